"""Fake tensors of a trace: their mode, and fake kernels that replace incorrect ones of torch.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch._decomp import meta_table
from torch._subclasses import fake_impls, fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["REWRITTEN", "fake_kernels", "fake_mode"]


def fake_mode() -> FakeTensorMode:
    """Return a mode that computes only shapes, also for real tensors (torch 2.0 and later).

    Torch's `while_loop` needs an environment of symbolic shapes; here sizes are static and values
    unknown.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # noqa: PLC0415  # imports sympy

    environment = ShapeEnv(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=environment, static_shapes=True)
    # `copy.deepcopy` of a fake tensor (by `nn.TransformerEncoder`, by inductor) would copy the mode with
    # its weak references to storages. A copied reference is freed without being counted, which corrupts
    # the heap (torch 2.13). The method is not defined in a subclass, because rules of operators are
    # registered for exactly this class.
    itself = weakref.ref(mode)
    mode.__deepcopy__ = lambda memo: itself()  # type: ignore[attr-defined]
    return mode


@contextlib.contextmanager
def fake_kernels() -> Iterator[None]:
    """Use this file's fake kernels inside the context (`op_implementations_dict`, torch 2.2 and later).

    An operator in the table of Python kernels for meta tensors is not decomposed before its kernel is
    looked up. Without the dict, torch's own fake kernels are used.
    """
    known: dict[Any, Any] = getattr(fake_impls, "op_implementations_dict", {})
    added = {operator: kernel for operator, kernel in _kernels().items() if operator not in known}
    whole = [operator for operator in added if operator not in meta_table]
    _forget(added)
    known.update(added)
    meta_table.update(dict.fromkeys(whole))
    try:
        yield
    finally:
        for operator in added:
            known.pop(operator, None)
        for operator in whole:
            meta_table.pop(operator, None)
        _forget(added)


def _forget(operators: Any) -> None:
    """Delete the cached results of `operators` from the cache that all fake tensor modes share."""
    cache: dict[Any, Any] = getattr(FakeTensorMode, "cache", {})
    for key in [key for key in cache if key.key[0] in operators]:
        cache.pop(key, None)


def _kernels() -> dict[Any, Any]:
    aten = torch.ops.aten
    kernels: dict[Any, Any] = {
        aten.native_batch_norm.default: _batch_norm,
        aten.native_batch_norm_backward.default: _batch_norm_backward,
        aten.softplus_backward.default: _softplus_backward,
    }
    grouped = getattr(getattr(aten, "_grouped_mm", None), "default", None)
    return kernels if grouped is None else {**kernels, grouped: _grouped_mm}


def _softplus_backward(
    mode: Any, func: Any, grad: torch.Tensor, x: torch.Tensor, beta: float, threshold: float
) -> torch.Tensor:
    """Return a fake gradient with the strides of `grad * x`; torch's kernel uses those of `x` (2.13)."""
    with mode:
        return grad * x


def _batch_norm(mode: Any, func: Any, x: torch.Tensor, *args: Any) -> Any:
    with fake_tensor.in_kernel_invocation_manager(mode):
        out, *statistics = func(x, *args)
    return _in_format(mode, x, out, statistics)


def _batch_norm_backward(
    mode: Any, func: Any, grad: torch.Tensor, x: torch.Tensor, *args: Any
) -> Any:
    with fake_tensor.in_kernel_invocation_manager(mode):
        by_x, *others = func(grad, x, *args)
    return _in_format(mode, x, by_x, others)


def _in_format(mode: Any, x: torch.Tensor, first: torch.Tensor | None, others: Any) -> Any:
    """Give fake outputs of batch normalization the memory format of `x`, as the real CPU kernels do.

    The format is contiguous if the strides of `x` match no format. Torch's fake kernels use the strides
    of `x`, and in backward those of the gradient (torch 2.13). The order of sums in a matrix product
    depends on strides.
    """
    if first is not None and x.device.type == "cpu":
        wanted = torch.contiguous_format
        for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if x.ndim == ndim and not x.is_contiguous() and x.is_contiguous(memory_format=layout):
                wanted = layout
        with fake_tensor.in_kernel_invocation_manager(mode):
            first = torch.empty_like(first, memory_format=wanted)
    return tuple(
        None if t is None else fake_tensor.FakeTensor(mode, t, x.device) for t in (first, *others)
    )


def _grouped_mm(
    mode: Any,
    func: Any,
    a: torch.Tensor,
    b: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the fake result of `_grouped_mm`; torch's own kernel accepts only bfloat16 (torch 2.13).

    Rows of the result begin at multiples of 16 bytes.
    """
    rows, columns = a.shape[-2], b.shape[-1]
    if a.ndim == b.ndim == 2:
        assert offs is not None  # checked by torch before
        size = [offs.shape[0], rows, columns]
    else:
        size = [rows, columns] if 2 in (a.ndim, b.ndim) else [a.shape[0], rows, columns]
    dtype = out_dtype or a.dtype
    aligned = 16 // dtype.itemsize
    row = -(-columns // aligned) * aligned
    strides = [rows * row, row, 1][-len(size) :]
    with mode:
        return torch.empty_strided(size, strides, dtype=dtype, device=a.device)


def _copy_of_zero_sum(x: torch.Tensor, **kwargs: Any) -> Any:
    """Copy a tensor on its own device where torch (2.13) copies it to the meta device by mistake.

    Under transforms (`torch.func.hessian`), torch copies to the meta device, on which it has computed
    the shape (torch 2.13). This call from C++ is recognized because only it passes a layout too.
    """
    device, layout = kwargs.get("device"), kwargs.get("layout")
    if device is None or device.type != "meta" or layout is None or x.device.type == "meta":
        return NotImplemented
    return torch.ops.aten._to_copy(x, dtype=kwargs["dtype"])


#: Operators that a trace records in another form (the decompositions of `make_fx`).
REWRITTEN = {torch.ops.aten._to_copy.default: _copy_of_zero_sum}
