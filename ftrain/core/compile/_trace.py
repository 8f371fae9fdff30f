"""Tracing of a Python function: one run on fake tensors records its operators as a graph.

Autograd, functorch and autocast inside the function happen at trace time, so the graph holds plain
operators only. The graph is then made pure (no output shares memory with a tensor from outside) or, for
donation, extended by operators that write the new state into the old state's memory at the end.

Read next: `_graph.py`, which has the passes, and `_lower.py`, which compiles the graph.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from ftrain.core import _torch, tree
from ftrain.core._torch_checkpoint import around_regions
from ftrain.core._torch_compiled import plain_in_traces
from ftrain.core._torch_distributions import without_validation
from ftrain.core._torch_fake import fake_kernels
from ftrain.core._traced_leftovers import guard, leftovers_removed
from ftrain.core.compile import _donate
from ftrain.core.compile._early_reductions import start_reductions_early
from ftrain.core.compile._errors import describe
from ftrain.core.compile._graph import GraphEditor
from ftrain.core.compile._impure import raise_impure
from ftrain.core.compile._leaks import (
    refuse_differentiated,
    refuse_hidden,
    refuse_leaked,
    refuse_sparse,
)
from ftrain.core.compile._rewrites import Rewrites
from ftrain.core.compile._untraceable import Calls, untraceable
from ftrain.core.errors import DonationError, UnkeyedRandomError
from ftrain.core.random._keyed_reach import unkeyed
from ftrain.core.random._watch import watched_trace

__all__ = ["TENSOR", "Traced", "is_tracing", "trace", "tracing", "unrecorded"]

TENSOR = object()  # placeholder for a tensor in a list of static leaves


class _Active(threading.local):
    depth = 0


_active = _Active()


def is_tracing() -> bool:
    """Return True if this thread is tracing a function for `compile`."""
    return _active.depth > 0


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Make `is_tracing()` return True inside the context, for autograd threads that continue a trace."""
    _active.depth += 1
    try:
        yield
    finally:
        _active.depth -= 1


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Keep operators that run inside the context out of the graph of a trace."""
    if not is_tracing():
        yield
        return
    with _torch.aside():
        yield


@dataclasses.dataclass
class Traced:
    """Graph of a traced function, with its captured tensors and the structure of its output.

    Attributes:
        graph: the graph, from the tensors of the arguments and the captured tensors to the tensors of
            the result, without the new state if that is donated.
        captured: the tensors that the function captures.
        out_treedef: the structure of the function's result.
        out_leaves: the leaves of the result, with `TENSOR` in place of each tensor.
        n_donated: the number of leading inputs that the graph overwrites with the new state.
        whole: True if the new state is the whole result, False if it is the first of several entries.
    """

    graph: fx.GraphModule
    captured: list[torch.Tensor]
    out_treedef: tree.TreeDef
    out_leaves: list[Any]
    n_donated: int
    whole: bool


def trace(
    fn: Callable[..., Any],
    function: str,
    treedef: tree.TreeDef,
    leaves: Sequence[Any],
    names: Sequence[str],
    *,
    donate: bool,
) -> Traced:
    """Trace `fn(*args, **kwargs)`, with arguments given by `treedef` and `leaves`.

    Args:
        function: the name of the function in messages.
        names: the name of each leaf in messages.
        donate: True to write the first output into the first argument's memory.
    """
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    tensors = [leaves[i] for i in places]
    tensor_names = [names[i] for i in places]
    found: dict[str, Any] = {}

    def flat(*inputs: torch.Tensor) -> list[torch.Tensor]:
        filled = list(leaves)
        for place, value in zip(places, inputs, strict=True):
            filled[place] = value
        with tree.withheld("a compiled function"):  # the program is used for other batches too
            args, kwargs = tree.unflatten(treedef, filled)
        state = args[0] if donate else None
        guard(fn)
        output = fn(*args, **kwargs)
        out_leaves, found["treedef"] = tree.flatten(output)
        if donate:
            found["whole"] = _donate.check_fits(function, state, output)
            found["n_state"] = len(tree.leaves(state))
        refuse_hidden(output, function)
        found["leaves"] = [TENSOR if isinstance(x, torch.Tensor) else x for x in out_leaves]
        refuse_sparse(output, function)
        return [x.detach() for x in out_leaves if isinstance(x, torch.Tensor)]

    run = _run(flat, function, tensors, fn)
    editor = GraphEditor(run.graph, run.mode, tensor_names)
    captured = editor.lift_captured()
    refuse_leaked(captured, function)
    refuse_differentiated(captured, function)
    write = editor.first_write()
    if write is not None:
        with tracing():
            raise_impure(flat, function, write, tensors, captured, tensor_names)
    n_donated = 0
    if donate:
        n_donated = sum(place < found["n_state"] for place in places)
        for name, before, after in zip(
            names, leaves, found["leaves"][: found["n_state"]], strict=False
        ):
            if isinstance(before, torch.Tensor) != (after is TENSOR):
                raise DonationError(
                    f"`{function}` cannot write the new state into the old one's memory: `{name}` was "
                    f"{describe(before)} and becomes "
                    f"{'a tensor' if after is TENSOR else describe(after)}. Return a tensor for each "
                    "tensor and a constant for each constant, or compile with donate=False."
                )
        editor.write_back(n_donated, function)
    editor.separate_outputs()
    draws = unkeyed(run.graph)
    if draws:
        raise UnkeyedRandomError(
            f"`{function}` draws from torch's global generator ({', '.join(sorted(set(draws)))}): it is "
            "not a function of its arguments. Draw inside `with ftrain.random.keyed(key):`, with a key "
            "among the arguments, or draw from a key, as in ftrain.random.uniform(key, shape)."
        )
    editor.eliminate_dead_code()
    start_reductions_early(run.graph.graph)
    run.graph.graph.lint()
    run.graph.recompile()
    whole = found.get("whole", False)
    return Traced(run.graph, captured, found["treedef"], found["leaves"], n_donated, whole)


@dataclasses.dataclass
class _Run:
    graph: fx.GraphModule
    mode: Any


def _run(
    flat: Callable[..., Any], function: str, tensors: Sequence[torch.Tensor], fn: Callable[..., Any]
) -> _Run:
    """Run the function once on fake tensors, with grad mode on; return the recorded graph.

    Args:
        flat: the traced function as a function from a list of tensors to a list of tensors.
        function: the name of the traced function in messages.
        tensors: example inputs of `flat`, of which only shapes, dtypes, strides and devices are used.
        fn: the traced function itself, whose random generators are checked for draws.
    """
    mode = _torch.fake_mode()
    fakes = [mode.from_tensor(tensor.detach()) for tensor in tensors]
    calls = Calls()
    if torch.is_anomaly_enabled():
        warnings.warn(
            f"`{function}` is compiled inside torch.autograd.detect_anomaly(), which sees no values in "
            "a trace and does not look into compiled programs. Call the function itself to find the "
            "operation, or train with nonfinite='raise'.",
            stacklevel=2,
        )
    try:
        with (
            leftovers_removed(),
            without_validation(),
            plain_in_traces(),
            tracing(),
            torch.autograd.set_detect_anomaly(False),
            torch.enable_grad(),
            _torch.interning(),
            fake_kernels(),
            # Under transforms, which do not allow saved-tensor hooks, checkpointed regions run without
            # checkpointing.
            around_regions(lambda: contextlib.nullcontext),
            Rewrites(calls),
            mode,
        ):
            pure = _torch.without_modes_below(flat)
            return _Run(watched_trace(lambda: _torch.trace(pure, fakes), fn), mode)
    except Exception as error:
        refusal = untraceable(error, function, calls)
        if refusal is None:
            error.add_note(f"(while ftrain.compile traced `{function}`)")
            raise
        raise refusal from error
