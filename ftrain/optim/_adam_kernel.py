"""C library that computes the update of Adam for all leaves in two calls, with the bits of torch.

Each of torch's operators passes over memory again, and takes microseconds for each leaf. The library is
used for float32 on the CPU, where nothing sees or differentiates operators; elsewhere, and without a
compiler, `_rule` in `adam.py` computes the same.

Read next: `adam.c`.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ftrain.core._c_library import NoLibraryError, load
from ftrain.core._torch import is_forward_mode, is_unintercepted
from ftrain.optim._leaf_loop import Leaf, Rule
from ftrain.optim.protocol import Hyperparameter

__all__ = ["AdamKernel", "adam_kernel", "may_compute"]

_SOURCES = [Path(__file__).with_name("adam.c")]
_FAR = 0.49  # From 0.5 on, in float32, torch.lerp computes otherwise.

Row = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class AdamKernel:
    """Functions of the compiled C library."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        leaves, number, integer = (ctypes.c_char_p, ctypes.c_int64), ctypes.c_float, ctypes.c_int
        self._moments = library.ftrain_adam_moments
        self._moments.restype = None
        self._moments.argtypes = (*leaves, integer, *[number] * 3, integer)
        self._updates = library.ftrain_adam_updates
        self._updates.restype = None
        self._updates.argtypes = (*leaves, *[number] * 4, integer)
        #: Whether torch's loops in this process round `a b + c` once.
        self.fused = False

    def __call__(
        self, leaves: Sequence[Leaf], scalars: Mapping[str, Hyperparameter]
    ) -> list[Row] | None:
        """Return the update and the new moments of each leaf, as `_rule` does.

        `None` if b1 is below 0.51, or if a gradient may be taken of a scalar.

        Args:
            leaves: those of which `may_compute` is True.
            scalars: the scalars of `_rule` by name.
        """
        if torch.is_grad_enabled() and any(map(_requires_grad, scalars.values())):
            return None
        of = {name: _number(scalar) for name, scalar in scalars.items()}
        if not of["one_b1"] < _FAR:
            return None
        rows: list[Row] = []
        packed = []
        for leaf in leaves:
            mean, square = leaf.memory
            row = torch.empty_like(mean), torch.empty_like(mean), torch.empty_like(mean)
            rows.append(row)
            read = leaf.grad.data_ptr(), mean.data_ptr(), square.data_ptr()
            param = leaf.param.data_ptr() if leaf.masked else 0
            written = (x.data_ptr() for x in row)
            packed.append(struct.pack("8q", *read, param, *written, mean.numel()))
        table, threads = b"".join(packed), torch.get_num_threads()
        decays = of["one_b1"], of["b2"], of["one_b2"]
        self._moments(table, len(rows), self.fused, *decays, threads)
        for update, _, _ in rows:
            update.sqrt_()
        numbers = of["correction"], of["eps"], of["step"], of["shrink_by"]
        self._updates(table, len(rows), *numbers, threads)
        return rows


def may_compute(leaves: Sequence[Leaf]) -> bool:
    """Return True if the kernel may compute the rows of all leaves.

    They must be ordinary dense float32 tensors of the CPU, those of a leaf with one layout, that no
    gradient is taken of; and no mode, transform, trace or profiler may see the operators.
    """
    if torch.compiler.is_dynamo_compiling() or not is_unintercepted() or is_forward_mode():
        return False
    graph = torch.is_grad_enabled()
    for leaf in leaves:
        mean, square = leaf.memory
        if not _is_dense(mean) or (graph and mean.requires_grad):
            return False
        strides = mean.stride()
        for each in (square, leaf.grad, leaf.param):
            if not _is_plain(each) or each.stride() != strides or (graph and each.requires_grad):
                return False
    return True


def _is_plain(x: torch.Tensor) -> bool:
    return (
        type(x) in (torch.Tensor, torch.nn.Parameter)
        and x.dtype is torch.float32
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_neg()
        and (x.data_ptr() != 0 or not x.numel())  # torch's tensors of zeros may have no memory
    )


def _is_dense(x: torch.Tensor) -> bool:
    """Return True for a plain tensor whose elements fill its memory, in any order of dimensions."""
    return _is_plain(x) and (
        x.is_contiguous() or bool(torch.ops.aten.is_non_overlapping_and_dense.default(x))
    )


def _requires_grad(scalar: Hyperparameter) -> bool:
    return isinstance(scalar, torch.Tensor) and scalar.requires_grad


def _number(scalar: Hyperparameter) -> float:
    return scalar.item() if isinstance(scalar, torch.Tensor) else scalar


@functools.cache
def adam_kernel(rule: Rule) -> AdamKernel | None:
    """Return the kernel, or `None` if it is unavailable; the first call compiles or loads it.

    Args:
        rule: `_rule` of `adam.py`, whose bits the kernel must have.
    """
    try:
        found: AdamKernel = load(_SOURCES, AdamKernel, functools.partial(_has_bits_of, rule))
    except (OSError, subprocess.SubprocessError, NoLibraryError):
        return None
    return found


def _has_bits_of(rule: Rule, kernel: AdamKernel) -> bool:
    """Set `kernel.fused` to the value with which the results have the bits of the rule.

    Returns:
        False if they do with neither value.
    """
    scalars: dict[str, Hyperparameter] = {"one_b1": 0.1, "b2": 0.999, "one_b2": 0.001, "eps": 1e-8}
    for name, value in {"correction": 0.3, "step": -0.01, "shrink_by": 1e-3}.items():
        scalars[name] = torch.tensor(value, device="cpu")
    # Elements of many sizes, so many that threads share them and vectors leave a remainder.
    wave = torch.arange(4 * 40_001, dtype=torch.float32, device="cpu").sin().view(4, -1)
    g, m, v, p = (wave * 10 ** (6 * wave.flip(0))).unbind()
    leaf = Leaf(g, p, True, (m, v.abs()))
    expected = rule(leaf, **scalars)
    for kernel.fused in (True, False):
        rows = kernel([leaf], scalars)
        if rows is not None and all(map(torch.equal, rows[0], expected)):
            return True
    return False
