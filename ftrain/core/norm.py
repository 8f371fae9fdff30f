"""Euclidean norm of a whole tree, and a test that all of it is finite."""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any, NamedTuple

import torch

from ftrain.core import _torch, tree
from ftrain.core._torch_levels import running_trace
from ftrain.core._torch_tensors import version
from ftrain.core._torch_wrapper import Wrapper
from ftrain.core.compile._trace import is_tracing
from ftrain.core.cond import apply_if

__all__ = ["GlobalNorm", "are_readable", "finite_norm", "global_norm", "row_norms", "shared_norm"]


class GlobalNorm(NamedTuple):
    """Global norm of a tree, and a flag that is True if all elements are finite.

    Attributes:
        value: 0-d, as from `global_norm`.
        finite: bool, 0-d: True if no element is infinite or NaN, even if the norm is infinite.
    """

    value: torch.Tensor
    finite: torch.Tensor


def global_norm(values: Any) -> torch.Tensor:
    r"""Return the norm of all leaves taken as one vector, $\sqrt{\sum_i \lVert x_i \rVert^2}$.

    If the squares neither overflow nor underflow (for a norm from 1e-15 to 1e19 in float32), it equals
    `torch.nn.utils.get_total_norm` bit for bit: the norm of the norms of all leaves. Otherwise, all
    elements are multiplied by a power of two first, as in `hypot`, and the norm is infinite only if it
    is out of the dtype's range. A step that reports the norm and a clipping that uses it call the same
    expression, which a compiled graph evaluates once.

    Args:
        values: a tree of floating tensors.

    Returns:
        A 0-d tensor: float64 if any leaf is float64, else float32 (bfloat16 squares are summed in
        float32 too). Zero for a tree without leaves.

    >>> global_norm({"a": torch.tensor([3.0]), "b": torch.tensor([[0.0], [4.0]])})
    tensor(5.)
    >>> global_norm([torch.tensor([3e30, 4e30])])
    tensor(5.0000e+30)
    """
    return finite_norm(values).value


def finite_norm(values: Any, *, keep: bool = False) -> GlobalNorm:
    """Return the `global_norm` of a tree, and a flag that is True if all elements are finite.

    Args:
        values: a tree of floating tensors.
        keep: True to store an eager result too, for the next norm of the same leaves in `shared_norm`.
    """
    leaves = tree.leaves(values)
    if not leaves:
        return GlobalNorm(torch.zeros(()), torch.ones((), dtype=torch.bool))
    if _torch.inside_functorch() == "vmap":
        return GlobalNorm(*_UnderVmap.apply(*leaves))  # type: ignore[no-untyped-call]
    is_traced = is_tracing()
    found = _latest.get(leaves) if is_traced or _latest.is_shared else None
    if found is None:
        found = _finite_norm(leaves)
        if is_traced or keep:
            _latest.keep(leaves, found)
    return found


def row_norms(values: Any) -> GlobalNorm:
    """Return, for each index of axis 0, the norm of all leaves and a finite flag, both `(n,)`."""
    return _finite_norm(tree.leaves(values), rows=True)


# For each dtype, a factor and a norm. Multiplied by the factor, the smallest number has a normal square;
# divided by it, 1e9 of the largest numbers have a finite sum of squares. Below the norm, squares of
# elements may lose digits: at this norm, 1e7 equal elements still have normal squares.
_RANGE = {
    torch.float32: (2.0**90, 2.0**-50),
    torch.float64: (2.0**700, 2.0**-480),
}


def _finite_norm(leaves: list[torch.Tensor], rows: bool = False) -> GlobalNorm:
    """Return norm and finite flag of all leaves together or, with `rows`, for each index of axis 0."""
    wide = any(leaf.dtype == torch.float64 for leaf in leaves)
    dtype = torch.float64 if wide else torch.float32
    up, least = _RANGE[dtype]
    if not rows and not torch.is_grad_enabled() and are_readable(leaves):
        total = _norm_of_norms(_torch.norms(leaves, dtype))
        if least <= total.item() < math.inf:  # true in nearly every step; saves 9 of 26 µs
            return GlobalNorm(total, torch.ones((), dtype=torch.bool))
    differentiated = _is_differentiated(leaves)
    with torch.no_grad():  # the factor computed from it cancels in the derivative
        total = _norm(leaves, dtype, rows)
        usual = (total >= least) & torch.isfinite(total)
        readable = not differentiated and total.is_cpu and _is_readable(total)
        if readable and bool(usual.all()):
            return GlobalNorm(total, usual)
        one = torch.ones_like(total)
        other = torch.where(torch.isfinite(total), one * up, one * (1 / up))
        factor = torch.where(usual, one, other)

    def scaled(_: Any = None) -> torch.Tensor:
        factors = (_as_rows(factor.to(x.device), x) for x in leaves)
        return _norm([x.to(dtype) * f for x, f in zip(leaves, factors, strict=True)], dtype, rows)

    if is_tracing() and total.is_cpu and not differentiated:
        # In nearly every step squares neither overflow nor underflow. The branch takes 6 µs; computing
        # the second norm always would take up to a fifth of a step. On an accelerator a branch would
        # wait for the device.
        norm = apply_if(~usual.all(), scaled, total)
    else:
        norm = scaled()
    return GlobalNorm(norm / factor, torch.isfinite(norm))


def _norm(leaves: list[torch.Tensor], dtype: torch.dtype, rows: bool) -> torch.Tensor:
    # One operator for all norms takes one collective if the rows of tensors are on several ranks.
    if not rows and (are_readable(leaves) or any(isinstance(x, Wrapper) for x in leaves)):
        return _norm_of_norms(_torch.norms(leaves, dtype))
    device = leaves[0].device
    if not rows:
        norms = [torch.linalg.vector_norm(x, dtype=dtype).to(device) for x in leaves]
        return _norm_of_norms(norms)
    norms = [
        torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), dtype=dtype).to(device)
        if x.ndim > 1
        else x.to(dtype).abs().to(device)
        for x in leaves
    ]
    by_row: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return by_row


def _norm_of_norms(norms: list[torch.Tensor]) -> torch.Tensor:
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def _as_rows(factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Reshape factors `(n,)` to multiply `x` along axis 0; return a 0-d factor unchanged."""
    return factor.reshape(-1, *(1,) * (x.ndim - 1)) if factor.ndim else factor


class _UnderVmap(torch.autograd.Function):
    """Autograd function whose vmap rule computes the norms of all rows in one call.

    `_finite_norm` computes a second norm only if the first overflowed or underflowed. One such branch
    for all rows avoids a vmapped branch, which would compute both norms.
    """

    @staticmethod
    def forward(*leaves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, finite = _finite_norm(list(leaves))
        return value, finite

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Save nothing, because autograd differentiates the operators that `vmap` calls."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *leaves: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[int, int]]:
        rows = [
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(leaves, in_dims, strict=True)
        ]
        value, finite = _finite_norm(rows, rows=True)
        return (value, finite), (0, 0)


class _Latest(threading.local):
    """Cache of the latest norm, so that a step's metrics and its clipping share one computation.

    Inductor would not merge two equal branches.

    Attributes:
        is_shared: True inside of `shared_norm`, where an eager call reads the cache too.
    """

    def __init__(self) -> None:
        self.is_shared = False
        self._of: list[tuple[weakref.ref[torch.Tensor], int]] = []
        # The norm, the number of writes to it, and the trace in which it was computed, if any.
        self._norm: tuple[GlobalNorm, int, weakref.ref[Any] | None] | None = None

    def get(self, leaves: list[torch.Tensor]) -> GlobalNorm | None:
        """Return the norm stored for `leaves`; `None` if there is none or one was written to."""
        kept, of = self._norm, self._of  # a garbage collection may call `forget` at any line
        if kept is None or len(leaves) != len(of) or _is_differentiated(leaves):
            return None
        norm, written, made_in = kept
        trace = running_trace()
        if trace is not (made_in and made_in()) or (made_in and trace is None):
            return (
                None  # an eager norm would be a constant of a trace, that of another trace an error
            )
        pairs = zip(leaves, of, strict=True)
        same = all(x is leaf() and version(x) == before for x, (leaf, before) in pairs)
        return norm if same and version(norm.value) == written else None

    def keep(self, leaves: list[torch.Tensor], norm: GlobalNorm) -> None:
        """Store the norm of `leaves`, unless torch does not count writes to it."""
        if any(x.is_inference() for x in (norm.value, *leaves)):
            return
        trace = running_trace()
        made_in = None if trace is None else weakref.ref(trace)
        self._of = [(weakref.ref(x, self.forget), version(x)) for x in leaves]
        self._norm = norm, version(norm.value), made_in

    def forget(self, _: Any = None) -> None:
        """Drop the stored norm, as when one of its leaves is freed."""
        self._of, self._norm = [], None


_latest = _Latest()


class shared_norm:
    """Context manager in which an eager norm of the leaves of the latest kept one is not computed again.

    In it, writes to the leaves that torch does not count are not seen (through `.data` or a NumPy view,
    or by `torch._amp_foreach_non_finite_check_and_unscale_`): use it only around code that must not
    write to its arguments, such as an optimizer.
    """

    def __enter__(self) -> None:
        self._outer, _latest.is_shared = _latest.is_shared, True

    def __exit__(self, *_: object) -> None:
        _latest.is_shared = self._outer
        _latest.forget()


def are_readable(leaves: list[torch.Tensor]) -> bool:
    """Return True if all tensors are ordinary CPU tensors, whose values can be read."""
    return _is_readable(leaves[0]) and all(type(x) is torch.Tensor and x.is_cpu for x in leaves)


def _is_readable(value: torch.Tensor) -> bool:
    """Return True if a tensor's value can be read: outside of traces and torch.func transforms."""
    return (
        type(value) is torch.Tensor
        and not is_tracing()
        and _torch.inside_functorch() is None
        and not _torch.is_forward_mode()  # where torch._foreach_norm raises (2.13)
        and not torch.compiler.is_dynamo_compiling()
    )


def _is_differentiated(leaves: list[torch.Tensor]) -> bool:
    """Return True if reverse or forward mode may differentiate with respect to one of `leaves`."""
    if _torch.inside_functorch() not in (None, "vmap") or _torch.is_forward_mode():
        return True
    return torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
