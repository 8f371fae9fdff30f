"""Private torch APIs: the precision (IEEE, TF32, bfloat16) of float32 operators on each backend.

The getters of torch's older switches (`torch.get_float32_matmul_precision`, `cudnn.allow_tf32`) raise
"mix of the legacy and new APIs" after a newer switch was set
(`torch.backends.cuda.matmul.fp32_precision`, 2.9 and later). The newer getters never raise, and also
return values set by the older switches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = [
    "COMPILED",
    "CONVOLUTIONS",
    "PRODUCTS",
    "compiled_fp32_precision",
    "fp32_precision",
    "set_fp32_precision",
]

Part = tuple[str, str]  # pairs of backend and kind of operator

PRODUCTS: tuple[Part, ...] = (("cuda", "matmul"), ("mkldnn", "matmul"))
CONVOLUTIONS: tuple[Part, ...] = (
    ("cuda", "conv"),
    ("cuda", "rnn"),
    ("mkldnn", "conv"),
    ("mkldnn", "rnn"),
)


def _read_older(backend: str, kind: str) -> str:
    """Read a precision from the switches of torch before 2.9; return its name in torch 2.9 and later."""
    if kind == "matmul":
        on_cpu = {"highest": "ieee", "high": "tf32", "medium": "bf16"}
        precision = on_cpu[torch.get_float32_matmul_precision()]
        return "tf32" if backend == "cuda" and precision == "bf16" else precision
    return "tf32" if backend == "cuda" and torch.backends.cudnn.allow_tf32 else "ieee"


_read: Callable[[str, str], str] = getattr(torch._C, "_get_fp32_precision_getter", _read_older)


def fp32_precision(parts: tuple[Part, ...]) -> tuple[str, ...]:
    """Return `"ieee"`, `"tf32"` or `"bf16"` for each pair of backend and kind of operator."""
    return tuple(_precision(*part) for part in parts)


def set_fp32_precision(products: tuple[str, ...], convolutions: tuple[str, ...]) -> None:
    """Set the precisions of products and convolutions to values that `fp32_precision` returned.

    The older switches are tried first, because they also set the newer ones, so that the older getters
    do not raise.
    """
    for older in ("highest", "high", "medium"):
        if fp32_precision(PRODUCTS) != products:
            torch.set_float32_matmul_precision(older)
    for allowed in (True, False):
        if fp32_precision(CONVOLUTIONS) != convolutions:
            torch.backends.cudnn.allow_tf32 = allowed
    wanted = zip(PRODUCTS + CONVOLUTIONS, products + convolutions, strict=True)
    for part, precision in wanted:
        if _precision(*part) != precision:
            _write(*part, precision)


def _write_nothing(backend: str, kind: str, precision: str) -> None:
    """Do nothing: torch before 2.9 has the older switches only."""


_write: Callable[[str, str, str], object] = getattr(
    torch._C, "_set_fp32_precision_setter", _write_nothing
)


def _precision(backend: str, kind: str) -> str:
    found = _read(backend, kind)
    return "ieee" if found == "none" else found


# The settings that inductor reads while it compiles; library kernels read the others at each call.
COMPILED: tuple[Part, ...] = (("mkldnn", "matmul"),)
if torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]  # torch's
    COMPILED += (("cuda", "matmul"), ("cuda", "conv"))

    def compiled_fp32_precision() -> tuple[str, ...]:
        """Return the float32 precisions that compiled programs depend on (each takes 0.5 µs)."""
        return (
            _precision("mkldnn", "matmul"),
            _precision("cuda", "matmul"),
            _precision("cuda", "conv"),
        )

else:

    def compiled_fp32_precision() -> tuple[str, ...]:
        """Return the float32 precision that compiled programs depend on (takes 0.5 µs)."""
        return (_precision("mkldnn", "matmul"),)
