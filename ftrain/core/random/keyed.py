"""`keyed(key)`, under which torch modules and functions draw from a key, not a global generator.

Read next: `_key_stream.py` (which key a draw gets), `_keyed_draws.py`, `_keyed_fills.py` and
`_keyed_layers.py` (what each function draws), `_keyed_reach.py` (how calls inside torch's own functions
are seen), `_keyed_functions.py` (draws in autograd functions), `_keyed_initializers.py` (initial weights
by the path of the parameter).
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ftrain.core import _torch
from ftrain.core._gated import behind_gates, gated_arguments
from ftrain.core._lost_tangents import refuse_second_tangents
from ftrain.core._sums_in_order import SUMS, in_order
from ftrain.core._torch_checkpoint import around_regions
from ftrain.core._torch_compiled import Plainly
from ftrain.core._torch_dispatch import CUSTOM_FUNCTION_CALL, HigherOrderOperator
from ftrain.core._torch_distributions import without_validation
from ftrain.core._torch_scripted import tracer_failed
from ftrain.core.random._key_stream import KeyStream, Scope
from ftrain.core.random._keyed_draws import DRAWS
from ftrain.core.random._keyed_families import FAMILIES
from ftrain.core.random._keyed_fills import FILLS
from ftrain.core.random._keyed_functions import drawing
from ftrain.core.random._keyed_layers import LAYERS
from ftrain.core.random._keyed_operators import KeyedOperators, here
from ftrain.core.random._keyed_reach import (
    RUN_THE_GRAPH,
    draws_inside,
    is_random,
    without_dispatch,
)
from ftrain.core.random._keyed_transforms import UNDER_TRANSFORMS, into
from ftrain.core.random._refusal import refusal, scripted_inside
from ftrain.core.random._watched_block import watched_block
from ftrain.core.random.keys import _check_single

__all__ = ["keyed", "next_key"]

HANDLERS = DRAWS | FILLS | LAYERS | FAMILIES
_NOTHING: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
_PLAINLY = Plainly()


@contextlib.contextmanager
def keyed(key: Tensor, root: nn.Module | None = None) -> Iterator[None]:
    """Draw all of torch's random numbers inside the context from `key`, not from global generators.

    The n-th draw at module path s has the key fold_in(fold_in(key, hash(s)), n): equal keys give equal
    draws, eager, traced, vmapped and under torch.func transforms, and adding a layer to a model
    does not change the draws of the other layers. A region under activation checkpointing
    (`torch.utils.checkpoint`) draws the same numbers when the backward pass computes it again; a body of
    `ftrain.scan` draws other numbers in each iteration.

    Covered: the dropout family, attention dropout (`F.scaled_dot_product_attention`,
    `nn.MultiheadAttention`, transformer layers), dropout between the layers of LSTM, GRU and RNN,
    `torch.rand*`, `normal`, `bernoulli`, `multinomial`, the in-place fills of tensors, and so
    `nn.init`, the constructors of modules and `torch.distributions` (except for Wishart). Under
    `torch.vmap`, a batched key gives each row the draws of its own key; a single key gives all rows the
    same draws.

    Draws that are not calls of these names from Python (in `torch.jit`, in patched or captured
    functions) belong to the site `s!` of their module. If the block changes a global generator
    nevertheless, through NumPy, Python's `random`, `torch.manual_seed` or another thread, it raises at
    its end; it warns instead if the program has other threads, which may have drawn.

    Args:
        key: int32, shape (2,).
        root: the module whose tree names the sites. Needed if modules inside it are called directly
            (`model.encoder(x)`); default: the outermost module that is called.

    Raises:
        ValueError: `key` is not a single key.
        UnkeyedRandomError: raised inside the block for an operation that draws and cannot be keyed, a
            call with `generator=`, a draw in a backward pass (of a custom autograd function or a hook),
            in the `jvp` or `vmap` of an autograd function, in its `setup_context` under transforms of
            torch.func, or in the body of a loop of torch's own (`torch._higher_order_ops`).

    >>> import ftrain.core.random as random
    >>> drop, x = nn.Dropout(0.5), torch.ones(8)
    >>> with random.keyed(random.key(0)):
    ...     a = drop(x)
    >>> with random.keyed(random.key(0)):
    ...     b = drop(x)
    >>> torch.equal(a, b)
    True
    """
    _check_single(key, "keyed")
    with watched_block(), keyed_by(KeyStream(key, root)):
        yield


@contextlib.contextmanager
def keyed_by(stream: KeyStream) -> Iterator[None]:
    """Draw torch's random numbers inside the context with the keys of a stream."""
    stream.enter = keyed_by
    operators = KeyedOperators(stream) if here.operators else _NOTHING
    # Under vmap, reading a value raises, and the argument checks of distributions read values.
    validation = without_validation() if _torch.inside_vmap() else _NOTHING
    plainly = _NOTHING if torch.compiler.is_dynamo_compiling() else _PLAINLY
    with validation, _Keyed(stream), around_regions(stream.again), operators, plainly:
        try:
            yield
        except RuntimeError as error:
            if not tracer_failed(error):
                raise
            raise scripted_inside(error) from error


def next_key() -> Tensor:
    """Return a new key from the surrounding `keyed`, for draws by functions of `ftrain.random`.

    A call counts as a draw at its site, so each call returns a different key. The keys are a function of
    the context's key, and differ between iterations of `ftrain.scan`. Use this in a loss function or in
    `forward`.

    Returns:
        int32, shape (2,).

    Raises:
        ValueError: the call is outside of `keyed`.

    >>> import ftrain.core.random as random
    >>> with random.keyed(random.key(0)):
    ...     noise = random.normal(random.next_key(), (3,))
    >>> noise.shape
    torch.Size([3])
    """
    return _stream("next_key").next_key()


def key_of(name: str) -> Tensor:
    """Return a key for a name in the surrounding `keyed`, independent of the keys of all draws."""
    return _stream("key_of").key_of(name)


def _stream(function: str) -> KeyStream:
    stream = innermost_stream()
    if stream is None:
        raise ValueError(
            f"{function}: expected a call inside of `with ftrain.random.keyed(key):`, got one outside. "
            "(A loss function and the `forward` of a bound model always run inside.) Write the `with` "
            "statement around this call, or use ftrain.random.split(key)."
        )
    return stream


def innermost_stream() -> KeyStream | None:
    """Return the stream of the innermost `keyed` around the caller; `None` if there is none."""
    for mode in reversed(_torch.function_modes()):
        if isinstance(mode, _Keyed):
            return mode.stream
    return None


@contextlib.contextmanager
def scoped(kind: str) -> Iterator[Scope]:
    """Give each iteration of a loop, or each branch, separate draws; see `KeyStream.scope`.

    Without a surrounding `keyed` the yielded contexts do nothing.
    """
    stream = innermost_stream()
    if stream is None:
        yield lambda number: contextlib.nullcontext()
        return
    with stream.scope(kind) as scope:
        yield scope


Action = Callable[["_Keyed", Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class _Keyed(TorchFunctionMode):
    def __init__(self, stream: KeyStream) -> None:
        super().__init__()
        self.stream = stream
        self.without_dispatch: list[Callable[..., Any]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types_: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        action = _ACTIONS.get(func) or _decide(func)
        if action is _pass:  # the common case is tested first, which saves 0.1 µs
            if kwargs and kwargs.get("out") is not None and _maps_rows():
                return into(func, *args, **kwargs)
            return func(*args, **(kwargs or {}))
        if torch.compiler.is_dynamo_compiling():
            # Dynamo traces the body of a higher-order operator; its draws get their keys when the
            # operator runs.
            return func(*args, **(kwargs or {}))
        return action(self, func, args, kwargs or {})


def _maps_rows() -> bool:
    return not torch.compiler.is_dynamo_compiling() and _torch.inside_vmap()


def _decide(func: Callable[..., Any]) -> Action:
    """Choose how to run a torch function under `keyed`: as usual, or with keys for the draws inside.

    Also called for attribute access (`x.shape`), so choices are cached.
    """
    action = _pass
    if torch.compiler.is_dynamo_compiling():
        return action
    if func in RUN_THE_GRAPH:
        action = _enter_graph
    elif isinstance(func, types.FunctionType):
        action = _enter_once if draws_inside(func) else _pass
    elif isinstance(func, HigherOrderOperator):
        action = _enter_operator
    elif is_random(func):
        action = _by_operators
    # Functions created at run time are not cached, because their number is unlimited.
    if (getattr(func, "__module__", None) or "torch").startswith("torch"):
        _ACTIONS[func] = action
    return action


def _pass(mode: _Keyed, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _draw(mode: _Keyed, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    if kwargs.get("generator") is not None:
        raise refusal(func, "was called with `generator=`, whose state is not part of the key")
    result = HANDLERS[func](mode.stream, *args, **kwargs)
    mode.stream.drew(result)
    return result


def _enter(mode: _Keyed, func: Any, args: Any, kwargs: Any) -> Any:
    with mode:
        return without_dispatch(func)(*args, **kwargs)


def _enter_graph(mode: _Keyed, func: Any, args: Any, kwargs: Any) -> Any:
    with in_order(adds=True):
        return _enter(mode, func, args, kwargs)


def _enter_once(mode: _Keyed, func: Any, args: Any, kwargs: Any) -> Any:
    if func in mode.without_dispatch:
        return _by_operators(mode, func, args, kwargs)
    mode.without_dispatch.append(func)
    try:
        return _enter(mode, func, args, kwargs)
    finally:
        mode.without_dispatch.pop()


def _enter_operator(mode: _Keyed, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    args = gated_arguments(args)
    with mode.stream.inside_operator(), mode:
        return without_dispatch(HigherOrderOperator.__call__)(func, *args, **kwargs)


def _enter_function(mode: _Keyed, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run an autograd function under torch.func, with keys for the draws of its `forward`."""
    refuse_second_tangents(func, args)
    function, *operands = gated_arguments(args)
    function = drawing(function, mode.stream)
    with mode, behind_gates():
        return without_dispatch(HigherOrderOperator.__call__)(func, function, *operands, **kwargs)


def _by_operators(mode: _Keyed, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run a torch function under `KeyedOperators`, which gives a key to each draw inside of it."""
    if _torch.inside_vmap():
        raise refusal(
            func, "draws random numbers under torch.vmap, where it cannot draw from a key"
        )
    keyed = here.keyed
    with KeyedOperators(mode.stream):
        result = func(*args, **kwargs)
    here.keyed = keyed  # not counted: the function mode keyed this draw already
    return result


def _under_transform(mode: _Keyed, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    form = UNDER_TRANSFORMS[func] if _torch.inside_functorch() else func
    return form(*args, **kwargs)


def _sum(mode: _Keyed, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    with in_order(adds=True):
        return func(*args, **kwargs)


_ACTIONS: dict[Any, Action] = dict.fromkeys(HANDLERS, _draw)
_ACTIONS.update(dict.fromkeys(SUMS, _sum))
_ACTIONS.update(dict.fromkeys(UNDER_TRANSFORMS, _under_transform))
_ACTIONS[CUSTOM_FUNCTION_CALL] = _enter_function
