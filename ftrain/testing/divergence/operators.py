"""Recording of the operators that one call of a step runs, eagerly or from its graph.

An eager call runs under a dispatch mode. A compiled step is traced, and its graph runs operator by
operator, with the kernels of the eager backend; each node stores the source line of its operator.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ftrain.core import _torch, tree
from ftrain.core._leaf_digest import leaf_digest
from ftrain.core._torch_dispatch import (
    DispatchMode,
    HigherOrderOperator,
    OpOverload,
    makes_values,
    names_of,
    runs_by_others,
)
from ftrain.core.compile import Compiled
from ftrain.core.compile._graph import written
from ftrain.core.compile._lower import lower
from ftrain.core.compile._trace import TENSOR, Traced
from ftrain.testing.divergence.operator_locations import Place, Places
from ftrain.testing.divergence.trace import OperatorRecord, record_tensor

__all__ = ["PLACE", "Recorder", "computes", "record_eager", "record_graph", "traced_with_places"]

# Copies, and views whose schemas do not mark them as views.
_COPIES = frozenset({"_unsafe_view", "_reshape_alias", "clone", "lift_fresh", "lift_fresh_copy"})
_SHOWN = 200  # largest number of characters of an operator's arguments that is stored
PLACE = "ftrain place"  # key of an operator's location in the metadata of its graph node


class Recorder:
    """Recorder of the operators of one call, in the order of execution.

    Args:
        keep: the positions of the operators whose results are kept.

    Attributes:
        operators: the records, in the order of execution.
        kept: the results of operators, by position.
    """

    def __init__(self, keep: Collection[int] = ()) -> None:
        self.operators: list[OperatorRecord] = []
        self.kept: dict[int, list[torch.Tensor]] = {}
        self._keep = keep

    def run(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], place: Callable[[], Place]
    ) -> Any:
        """Run an operator and record it, unless it only views, copies or allocates."""
        if not computes(func):
            return func(*args, **kwargs)
        where = place()
        inputs = list(_tensors((*args, *kwargs.values())))
        with _torch.unwatched(), torch.no_grad():  # before the call, which may write to the inputs
            digests = tuple(map(leaf_digest, inputs))
        result = func(*args, **kwargs)
        outputs = list(_tensors(result)) or list(_tensors(written(func, args, kwargs)))
        if outputs:
            shapes = tuple(tuple(x.shape) for x in inputs)
            with _torch.unwatched(), torch.no_grad():
                if len(self.operators) in self._keep:
                    self.kept[len(self.operators)] = [x.detach().clone() for x in outputs]
                records = tuple(map(record_tensor, outputs))
            text = _text((*args, *(f"{name}={_text(value)}" for name, value in kwargs.items())))
            self.operators.append(
                OperatorRecord(str(func), digests, shapes, text[:_SHOWN], records, where)
            )
        return result


def record_eager(
    fn: Callable[..., Any], args: Sequence[Any], keep: Collection[int] = ()
) -> tuple[Recorder, Any]:
    """Return the records of the operators of `fn(*args)`, and its result."""
    recorder = Recorder(keep)
    with _Eager(recorder, Places(sys._getframe())):
        return recorder, fn(*args)


def record_graph(
    fn: Callable[..., Any], args: Sequence[Any], keep: Collection[int] = ()
) -> tuple[Recorder, Any]:
    """Trace `fn(*args)` as `ftrain.compile` does; return the records of its graph, and the result."""

    traced, inputs = traced_with_places(fn, args)
    graph = traced.graph
    places = {node.name: node.meta.get(PLACE, Place()) for node in graph.graph.nodes}
    # The eager backend compiles nothing; this call applies its changes to the graph.
    lower(graph, inputs, "eager", None, n_donated=0)
    recorder = Recorder(keep)
    autocast = _torch.without_autocast() if _torch.any_autocast() else contextlib.nullcontext()
    with autocast, torch.no_grad():
        outputs = iter(_Interpreter(graph, recorder, places).run(*inputs))
    leaves = [next(outputs) if leaf is TENSOR else leaf for leaf in traced.out_leaves]
    return recorder, tree.unflatten(traced.out_treedef, leaves)


def traced_with_places(
    fn: Callable[..., Any], args: Sequence[Any]
) -> tuple[Traced, list[torch.Tensor]]:
    """Trace `fn(*args)` with module and source line in each node's metadata; also return the inputs."""

    @functools.wraps(fn)
    def marked(*arguments: Any) -> Any:
        with _Marks(Places(sys._getframe())):
            return fn(*arguments)

    return Compiled(marked, False, None, "eager").traced(*args)


class _Eager(DispatchMode):
    """Dispatch mode that records every operator."""

    def __init__(self, recorder: Recorder, places: Places) -> None:
        super().__init__()
        self._recorder, self._places = recorder, places

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if any(map(runs_by_others, types)):
            return NotImplemented  # the subclass then calls operators that this mode records
        return self._recorder.run(func, args, kwargs or {}, self._places.here)


class _Marks(DispatchMode):
    """Dispatch mode that stores module and source line of each operator in its graph node."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self._places = places

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        place = self._places.here()
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            node = _torch.node_of(tensor) if isinstance(tensor, torch.Tensor) else None
            if node is not None:
                node.meta.setdefault(PLACE, place)
        return result


class _Interpreter(fx.Interpreter):
    """Interpreter of a graph that records every operator."""

    def __init__(
        self, graph: fx.GraphModule, recorder: Recorder, places: Mapping[str, Place]
    ) -> None:
        super().__init__(graph)
        self._recorder, self._places = recorder, places

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return self._recorder.run(n.target, args, kwargs, lambda: self._places[n.name])


@functools.cache
def computes(func: Any) -> bool:
    """Return True for an operator that computes new values, and not for views, copies or allocations."""
    if isinstance(func, HigherOrderOperator):
        return True
    if not isinstance(func, OpOverload):
        return False
    return names_of(func)[0] not in _COPIES and makes_values(func)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the dense tensors with real values in an operator's arguments or results."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, torch.Tensor) and _is_ordinary(value):
        yield value


def _is_ordinary(tensor: torch.Tensor) -> bool:
    """Return True for a dense tensor with values in memory, not a meta, nested or wrapped tensor."""
    strided = tensor.layout is torch.strided and not tensor.is_nested
    return strided and not tensor.is_meta and not _torch.is_wrapped(tensor)


def _text(value: Any) -> str:
    """Return an operator's arguments as text, with `_` for each tensor."""
    if isinstance(value, torch.Tensor):
        return "_"
    if isinstance(value, (tuple, list)):
        brackets = "()" if isinstance(value, tuple) else "[]"
        return f"{brackets[0]}{', '.join(map(_text, value))}{brackets[1]}"
    if isinstance(value, str):
        return value
    plain = isinstance(value, (bool, int, float, complex, torch.dtype, torch.device, type(None)))
    return str(value) if plain else type(value).__name__
