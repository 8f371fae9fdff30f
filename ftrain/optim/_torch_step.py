"""One step of a `torch.optim.Optimizer` as a pure function, taken on copies.

In eager mode the optimizer runs as usual. Where tensors have no values, in a trace or under
`torch.vmap`, it runs as under `torch.compile`: with the compiling flag set, `capturable` if it has
the option, and without reading a 0-d tensor.
"""

from __future__ import annotations

from collections import UserDict, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ftrain.core import _torch
from ftrain.core.compile._trace import is_tracing
from ftrain.core.errors import TraceError

__all__ = ["Entries", "first_entries", "own_algorithm", "step_once"]

Entries = dict[str, Any]
"""State of an optimizer for one parameter, by the optimizer's own names."""


def step_once(
    make: type[torch.optim.Optimizer],
    options: Mapping[str, Any],
    rate: torch.Tensor,
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    entries: Sequence[Entries],
    numbers: Collection[str] = (),
    scalars: Collection[str] = (),
) -> tuple[list[torch.Tensor], list[Entries]]:
    """Return the parameters and the optimizer's state after one step, without modifying arguments.

    Args:
        make: the class.
        options: its arguments, without the learning rate.
        rate: the learning rate; float64, 0-d.
        params: of any floating dtype.
        grads: like `params`.
        entries: the optimizer's state of each parameter, as tensors.
        numbers: the names of state entries that the optimizer stores as Python numbers.
        scalars: the names of those that are 0-d for parameters of every shape, such as counts.
    """
    symbolic = _without_values(params)
    copies = [p.detach().clone() for p in params]
    optimizer = _made(make, options, rate, copies, symbolic)
    optimizer.state = defaultdict(dict)
    for copy, grad, entry in zip(copies, grads, entries, strict=True):
        copy.grad = grad.detach().clone()
        mine = {
            name: value.item()
            if name in numbers and not symbolic
            else _own(value, wide=symbolic and name in scalars)
            for name, value in entry.items()
        }
        if mine:
            optimizer.state[copy] = mine
    _step(optimizer, symbolic)
    new = [copy.to(p.dtype) for copy, p in zip(copies, params, strict=True)]
    return new, [dict(optimizer.state.get(copy, {})) for copy in copies]


def first_entries(
    make: type[torch.optim.Optimizer],
    options: Mapping[str, Any],
    rate: torch.Tensor | None,
    params: Sequence[torch.Tensor],
) -> list[Entries]:
    """Return the state that a `torch.optim` optimizer has for each parameter before its first step.

    torch fills its state during the first step, so one step is run with zero gradients. The first value
    stored under each name is the initial value. A value first stored after the initialization is a
    result of the step; its initial value is zero (the momentum of SGD). Without a `rate`, the class's
    default is used, which changes no dtype or shape.
    """
    symbolic = _without_values(params)
    copies = [p.detach().clone() for p in params]
    optimizer = _made(make, options, rate, copies, symbolic)
    given = {id(p): entry for p, entry in optimizer.state.items()}
    first = [_FirstValues() for _ in copies]
    for copy, entry in zip(copies, first, strict=True):
        entry.update(given.get(id(copy), {}))
        copy.grad = torch.zeros_like(copy)
    state: Any = dict(zip(copies, first, strict=True))
    optimizer.state = state
    initialise = getattr(optimizer, "_init_group", None)

    def then_late(*args: Any, **kwargs: Any) -> Any:
        assert initialise is not None
        found = initialise(*args, **kwargs)
        for entry in first:
            entry.late = True
        return found

    if initialise is not None:
        optimizer._init_group = then_late  # type: ignore[attr-defined]
    _step(optimizer, symbolic)
    return [entry.first for entry in first]


def _made(
    make: type[torch.optim.Optimizer],
    options: Mapping[str, Any],
    rate: torch.Tensor | None,
    params: list[torch.Tensor],
    symbolic: bool,
) -> torch.optim.Optimizer:
    optimizer = make(params, **options)
    (group,) = optimizer.param_groups
    if symbolic and "capturable" in group:
        group["capturable"] = True
    if "lr" in group and rate is not None:
        group["lr"] = rate if symbolic else rate.item()
    return optimizer


def _step(optimizer: torch.optim.Optimizer, symbolic: bool) -> None:
    # Unwrapped, because the profiler's mark in the wrapper is an operator and would enter the graph.
    step = type(optimizer).step
    step = getattr(step, "__wrapped__", step)
    if not symbolic:
        step(optimizer)
        return
    try:
        with _torch.as_compiled(), _Factors():
            step(optimizer)
    except Exception as error:
        raise TraceError(_untraceable(type(optimizer).__name__, error)) from error


def _untraceable(name: str, error: Exception) -> str:
    """Return the error text, with a remedy, for a torch optimizer that cannot be compiled or vmapped."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, _torch.DATA_DEPENDENT) or ".item()" in text:
        reason = "asks for the value of a tensor, which a trace does not have"
    else:
        reason = f"raises {type(error).__name__}: {text.splitlines()[0].rstrip('.')}"
    own = own_algorithm(name)
    instead = "" if own is None else f"Write `optim.{own}`, the same algorithm. "
    return (
        f"`from_torch({name})` cannot be compiled or mapped: its step {reason}. {instead}Outside of "
        "ftrain.compile and torch.vmap the update works."
    )


def own_algorithm(name: str) -> str | None:
    """Return the name in `ftrain.optim` of the algorithm that a class in `torch.optim` implements.

    >>> own_algorithm("Adafactor"), own_algorithm("SparseAdam"), own_algorithm("Mine")
    ('adafactor', 'adam', None)
    """
    return "adam" if name == "SparseAdam" else name.lower() if name in _OWN else None


_OWN = (
    "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "LBFGS", "Muon", "NAdam",
    "RAdam", "RMSprop", "Rprop", "SGD",
)  # fmt: skip


def _own(value: torch.Tensor, wide: bool) -> torch.Tensor:
    if wide:
        # A count in float32 makes `1 - b ** t` off by 5e-5 at first; torch uses Python floats.
        return value.detach().to(torch.float64, copy=True)
    return value.detach().clone()


class _FirstValues(UserDict[str, Any]):
    """Dict that keeps a copy of the first value stored under each name."""

    def __init__(self) -> None:
        self.first: Entries = {}
        self.late = False
        super().__init__()

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self.first:
            copy = value.clone() if isinstance(value, torch.Tensor) else value
            late = self.late and isinstance(value, torch.Tensor)
            self.first[name] = torch.zeros_like(value) if late else copy
        super().__setitem__(name, value)


def _without_values(tensors: Sequence[torch.Tensor]) -> bool:
    if is_tracing() or _torch.inside_functorch():
        return True
    return any(isinstance(t, _torch.FakeTensor) for t in tensors)


class _Factors(TorchFunctionMode):
    """Function mode in which `x.addcdiv_(a, b, value=t)` and the like accept a tensor `t`.

    The result has the bits of the same call with a Python number, except under vmap: torch's kernels
    compute `x + (t * a) / b`, `x + (t * a) * b` and `x + t * a`, the last two with one rounding where
    the processor has fused multiply-add. `addcmul` is fused where these are.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        factor = kwargs.get(_FACTORS.get(name, ""))
        if not isinstance(factor, torch.Tensor):
            return func(*args, **kwargs)
        x, *rest = args
        first, *second = (y.to(x.dtype) for y in rest)
        factor = (-factor if name.startswith("sub") else factor).to(x.device, x.dtype)
        if name.startswith("addcdiv"):
            return _add(x, first * factor / second[0], in_place=name.endswith("_"))
        pair = (first * factor, second[0]) if second else (first, factor)
        if _torch.inside_vmap():  # torch has no batching rule for `addcmul_`
            return _add(x, pair[0] * pair[1], in_place=name.endswith("_"))
        return x.addcmul_(*pair) if name.endswith("_") else x.addcmul(*pair)


def _add(x: torch.Tensor, term: torch.Tensor, in_place: bool) -> torch.Tensor:
    return x.add_(term) if in_place else x + term


_FACTORS = {
    "addcdiv": "value", "addcdiv_": "value", "addcmul": "value", "addcmul_": "value",
    "add": "alpha", "add_": "alpha", "sub": "alpha", "sub_": "alpha",
}  # fmt: skip
