"""Dispatch mode that gives a key to each random operator, even if function modes cannot see it.

`KeyedOperators` is a dispatch mode. It sees each operator that torch runs in its thread, including those
of `torch.jit`, of C++ code and of patched or captured functions. Operators tagged
`nondeterministic_seeded` draw from the stream of the context instead, by the equivalent function of
`_keyed_draws.py`, `_keyed_fills.py` or `_keyed_layers.py`. The mode raises for operators without such a
function, calls with a generator, draws under `torch.vmap`, and opaque operators (custom or higher-order
ones) that change a global generator. It costs 3 to 5 µs for each operator, so it is active while models
are built and while `compile` traces; `_watch.py` describes when eager steps enter it.

A draw that only this mode sees belongs to the site `PATH!`, while draws of the function mode in the same
module belong to `PATH`. The two sites have separate counts, so the draws of the function mode do not
depend on this mode.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx

from ftrain.core import _torch
from ftrain.core._torch_dispatch import (
    TRACED_TENSORS,
    VMAP,
    DispatchMode,
    HigherOrderOperator,
    OpOverload,
    names_of,
    runs_by_others,
    schema_of,
)
from ftrain.core.random import _generators
from ftrain.core.random._key_stream import KeyStream
from ftrain.core.random._keyed_draws import DRAWS
from ftrain.core.random._keyed_fills import FILLS
from ftrain.core.random._keyed_layers import LAYERS
from ftrain.core.random._keyed_reach import (
    draws_nothing,
    is_seeded,
    takes_generator,
    without_dispatch,
)
from ftrain.core.random._refusal import refusal

__all__ = ["KeyedOperators", "OpaqueOperators", "ThreadState", "has_opaque", "here"]

# Operators that torch tags although they do not draw: they choose a kernel, or replay earlier draws.
_IDLE = ("_fused_sdp_choice", "_nested_tensor_softmax_with_shape", "_fill_mem_eff_dropout_mask_")
# Namespaces in which every operator that draws has torch's tag. Collectives never draw. `_check` may run
# an operator several times, but each rank must start a collective once.
_TAGGED = frozenset({"aten", "prims", "prim", "ftrain", "_c10d_functional"})


class ThreadState(threading.local):
    """Per-thread state (`here`) shared by the modes and checks that detect draws without a key.

    Attributes:
        operators: True if `keyed` contexts enter the operator mode (`KeyedOperators`).
        watching: True if a `Watch` or a trace compares the generators before and after a call.
        keyed: the number of draws to which an operator mode has given a key.
        search: the search for a line that draws, while one is under way; see `_find_draw.py`.
    """

    operators = False
    watching = False
    keyed = 0
    search: Any = None


here = ThreadState()

Action = Callable[["KeyedOperators", Any, Sequence[Any], dict[str, Any]], Any]


class KeyedOperators(DispatchMode):
    """Dispatch mode that makes random operators draw from a key stream, or raises without a stream.

    Args:
        stream: the stream of the `keyed` context.
    """

    def __init__(self, stream: KeyStream | None) -> None:
        super().__init__()
        self.stream = stream
        # Below the dispatcher torch does not report an active vmap. One is active if it was active when
        # the context was entered, or if it has started since then.
        self._is_mapped, self._vmaps = _torch.inside_vmap(), _count_vmaps()

    def is_mapped(self) -> bool:
        """Return True if the running operator may be executed once for all rows of a vmap."""
        return self._is_mapped or _count_vmaps() > self._vmaps

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if types and any(map(_is_composed, types)):
            return NotImplemented  # the subclass then calls operators that this mode sees
        action = _ACTIONS.get(func) or _decide(func)
        search = here.search
        if search is None:
            return action(self, func, args, kwargs or {})
        search.begin_operator()
        try:
            return action(self, func, args, kwargs or {})
        finally:
            search.end_operator()


def _decide(func: Any) -> Action:
    """Choose how to run an operator: with a key, with a check that it draws nothing, or unchanged."""
    if isinstance(func, HigherOrderOperator) or func.namespace not in _TAGGED:
        action: Action = _check if not _is_drawing(func) else _draw
    else:
        action = _draw if _is_drawing(func) else _pass
    _ACTIONS[func] = action
    return action


_ACTIONS: dict[Any, Action] = {}


@functools.cache
def _is_composed(kind: type) -> bool:
    """Return True for a tensor subclass that implements operators by calling other operators."""
    return runs_by_others(kind) and not issubclass(kind, TRACED_TENSORS)


def _is_drawing(func: Any) -> bool:
    return isinstance(func, OpOverload) and is_seeded(func) and names_of(func)[0] not in _IDLE


def _pass(mode: KeyedOperators, func: Any, args: Any, kwargs: Any) -> Any:
    with _torch.unwatched():  # in a backward pass, function modes are still active here
        return func(*args, **kwargs)


def _draw(mode: KeyedOperators, func: OpOverload, args: Any, kwargs: Any) -> Any:
    if draws_nothing(func, args, kwargs):
        return func(*args, **kwargs)
    if takes_generator(func, args, kwargs):
        raise refusal(func, "was called with `generator=`, whose state is not part of the key")
    handler = _handler(func)
    if handler is None:
        # A composite operator is decomposed, so that this mode sees the operators inside it.
        with mode, _torch.unwatched():
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise refusal(
                func, "draws random numbers, and has no replacement that draws from a key"
            )
        return result
    stream = mode.stream
    if stream is None:
        raise refusal(func, "draws random numbers outside of `keyed`")
    if mode.is_mapped():
        raise refusal(func, "draws under torch.vmap, inside a function that `keyed` cannot replace")
    kwargs = {name: value for name, value in kwargs.items() if name != "generator"}
    with stream.below_functions(), _torch.unwatched():
        result = handler(stream, *args, **kwargs)
        stream.drew(result)
    here.keyed += 1
    return result


def _check(mode: KeyedOperators | None, func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator whose inner operators the mode does not see; raise if it draws."""
    # Another thread may have drawn in the meantime, but hardly during every attempt.
    is_mutable = isinstance(func, OpOverload) and schema_of(func).is_mutable
    attempts = 1 if is_mutable or len(sys._current_frames()) == 1 else 3
    run = func
    if isinstance(func, HigherOrderOperator):
        # Function modes are bypassed: in a backward pass they are active here, but have already handled
        # the call.
        run = functools.partial(without_dispatch(HigherOrderOperator.__call__), func)
    first = before = _generators.read(_generators.accelerator())
    names = {*_generators.NAMES}
    for _ in range(attempts):
        result = run(*args, **kwargs)
        names &= {*_generators.moved(before)}
        if not names:
            return result
        before = _generators.read_again(first)
    _generators.restore(first, tuple(names))
    raise refusal(func, "draws random numbers in its own code, which `keyed` cannot reach")


def _count_vmaps() -> int:
    """Return the number of running calls of `torch.vmap`."""
    count = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        count += frame.f_code is VMAP
        frame = frame.f_back
    return count


# Handlers by operator.

Handler = Callable[..., Any]


def _named(handlers: dict[Any, Handler]) -> dict[str, Handler]:
    return {func.__name__: handler for func, handler in handlers.items()}


def _functional(fill: Handler) -> Handler:
    """Turn a replacement for an in-place operator (`uniform_`) into one that returns a new tensor."""

    def drawn(
        stream: KeyStream, input: Tensor, *args: Any, out: Any = None, **kwargs: Any
    ) -> Tensor:
        result: Tensor = fill(stream, torch.empty_like(input), *args, **kwargs)
        return result if out is None else out.resize_(result.shape).copy_(result)

    return drawn


def _rrelu(
    stream: KeyStream,
    input: Tensor,
    noise: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output of randomized leaky ReLU and its slopes (1 where the input is positive)."""
    wide = torch.promote_types(input.dtype, torch.float32)
    slope = stream.uniform(input.shape, wide, input.device, lower, upper).to(input.dtype)
    slope = torch.where(input > 0, 1, slope)
    return input * slope, slope


def _rrelu_with_noise(stream: KeyStream, input: Tensor, noise: Tensor, *args: Any) -> Tensor:
    output, slope = _rrelu(stream, input, noise, *args)
    noise.copy_(slope)
    return output


def _rrelu_with_noise_(stream: KeyStream, input: Tensor, noise: Tensor, *args: Any) -> Tensor:
    return input.copy_(_rrelu_with_noise(stream, input, noise, *args))


_BY_NAME: dict[str, Handler] = {
    **{name: handler for name, handler in _named(DRAWS).items() if "empty" not in name},
    **_named(FILLS),
    "native_dropout": LAYERS[torch.native_dropout],
    "rrelu_with_noise": _rrelu_with_noise,
    "rrelu_with_noise_": _rrelu_with_noise_,
    "rrelu_with_noise_functional": _rrelu,
}
_FUNCTIONAL = {
    name.removesuffix("_"): _functional(fill)
    for name, fill in _named(FILLS).items()
    if name.removesuffix("_") not in _BY_NAME
}
_FUNCTIONAL["normal_functional"] = _functional(_named(FILLS)["normal_"])
_BY_OVERLOAD: dict[str, Handler] = {
    "bernoulli.Tensor": _functional(_named(FILLS)["bernoulli_"]),
    "bernoulli.Tensor_out": _functional(_named(FILLS)["bernoulli_"]),
    "normal.out": _functional(_named(FILLS)["normal_"]),
}


def _handler(func: OpOverload) -> Handler | None:
    if func.namespace != "aten":
        return None
    name, overload = names_of(func)
    by_overload = _BY_OVERLOAD.get(f"{name}.{overload}")
    return by_overload or _BY_NAME.get(name) or _FUNCTIONAL.get(name)


def has_opaque(graph: fx.GraphModule) -> bool:
    """Return True if a graph calls a custom operator, which may draw when it runs."""
    return any(
        isinstance(node.target, OpOverload) and node.target.namespace not in _TAGGED
        for module in graph.modules()
        if isinstance(module, fx.GraphModule)
        for node in module.graph.nodes
    )


class OpaqueOperators(DispatchMode):
    """Mode that refuses custom operators that draw, and runs all others."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if isinstance(func, OpOverload) and func.namespace not in _TAGGED:
            return _check(None, func, args, kwargs or {})
        return func(*args, **(kwargs or {}))
