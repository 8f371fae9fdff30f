"""`keyed(key)`: stock modules and functions draw from a key, instead of from torch's global generator.

Read next: `_keyed_sites.py` (which key a draw gets), `_keyed_draws.py` and `_keyed_layers.py` (what each
function draws), `_keyed_reach.py` (how calls inside torch's own functions are seen).
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode

from ftrain.core.random._keyed_draws import DRAWS
from ftrain.core.random._keyed_layers import LAYERS
from ftrain.core.random._keyed_reach import draws_inside, is_random, opened
from ftrain.core.random._keyed_sites import Stream, UnkeyedRandomError

__all__ = ["UnkeyedRandomError", "keyed"]

HANDLERS = DRAWS | LAYERS

# Python functions that go on to run hooks and backwards of the user's, which must not draw unseen.
_RUN_THE_GRAPH: frozenset[Any] = frozenset(
    {torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad}
)


@contextlib.contextmanager
def keyed(key: Tensor, root: nn.Module | None = None) -> Iterator[None]:
    """Inside, every random draw of torch comes from `key`; the global generators are not touched.

    A draw at module path s, the n-th there, has the key fold_in(fold_in(key, hash(s)), n): equal keys give
    equal draws, eager, traced, vmapped and under torch.func transforms, and a layer added to a model leaves
    the draws of the other layers as they were.

    Covered: the dropout family, attention dropout (`F.scaled_dot_product_attention`,
    `nn.MultiheadAttention`, transformer layers), dropout between the layers of LSTM, GRU and RNN,
    `torch.rand*`, `normal`, `bernoulli`, `multinomial`, the in-place fills of tensors, and so `nn.init`, the
    constructors of modules and most of `torch.distributions`. Under `torch.vmap`, a batched key gives each
    row the draws of its own key, and a single key gives all rows the same draws.

    Args:
        key: int32, shape (2,).
        root: the module whose tree names the sites. Needed if modules inside it are called directly
            (`model.encoder(x)`); else the outermost module that is called is taken.

    Raises:
        UnkeyedRandomError: inside, for an operation that draws and cannot be keyed, a call with
            `generator=`, or a draw in a backward pass (activation checkpointing).

    >>> import ftrain.core.random as random
    >>> drop, x = nn.Dropout(0.5), torch.ones(8)
    >>> with random.keyed(random.key(0)):
    ...     a = drop(x)
    >>> with random.keyed(random.key(0)):
    ...     b = drop(x)
    >>> torch.equal(a, b)
    True
    """
    with _Keyed(Stream(key, root)):
        yield


class _Keyed(TorchFunctionMode):
    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._open: list[Callable[..., Any]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types_: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        handler = HANDLERS.get(func)
        if handler is not None:
            if kwargs.get("generator") is not None:
                raise _refusal(
                    func, "was called with `generator=`, which is state outside of the key"
                )
            return handler(self._stream, *args, **kwargs)
        if isinstance(func, types.FunctionType):
            if func in _RUN_THE_GRAPH or draws_inside(func):
                return self._inside(func, args, kwargs)
        elif isinstance(func, HigherOrderOperator):
            with self._stream.inside_operator(), self:
                return opened(HigherOrderOperator.__call__)(func, *args, **kwargs)
        elif is_random(func, args, kwargs):
            raise _refusal(func, "draws random numbers and has no keyed form")
        return func(*args, **kwargs)

    def _inside(
        self, func: types.FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if func in self._open:
            raise _refusal(func, "draws random numbers where a function mode cannot see them")
        self._open.append(func)
        try:
            with self:
                return opened(func)(*args, **kwargs)
        finally:
            self._open.pop()


def _refusal(func: Callable[..., Any], why: str) -> UnkeyedRandomError:
    name = torch.overrides.resolve_name(func) or getattr(func, "__qualname__", repr(func))
    name = name.replace("_VariableFunctionsClass.", "torch.")
    return UnkeyedRandomError(
        f"{name} {why}. Under ftrain.random.keyed it would draw from torch's global generator.\n"
        "  write instead:  ftrain.random.uniform(key, shape), .normal, .bernoulli, .randint or .permutation "
        "with a key of your own,\n"
        "  or draw before the step and pass the numbers in with the batch."
    )
