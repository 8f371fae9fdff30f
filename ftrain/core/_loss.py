"""Calls of a loss function under a precision policy, with a purity check and normalized results."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ftrain.core import tree
from ftrain.core._captured import Captured
from ftrain.core._kept_graph import kept
from ftrain.core._loss_notes import add_notes
from ftrain.core._torch import unwatched
from ftrain.core._traced_leftovers import guard
from ftrain.core._words import kind
from ftrain.core._writes import FirstCalls, unchanged
from ftrain.core.errors import ImpureFunctionError
from ftrain.core.metrics import BatchMean, Mean, Metrics, as_metrics, on_device
from ftrain.core.precision import Policy
from ftrain.core.random.keyed import key_of

#: `(model, batch) -> loss | (loss, metrics)`; with a parameter `key` or `extras`, these are passed too.
LossFn = Callable[..., Any]

_RESERVED = ("loss", "grad_norm", "skipped", "loss_scale", "learning_rate")
_CAPTURED_REMEDY = (
    "A step must be a function of its state and batch: pass the tensor in the batch, register it "
    "as a buffer, or carry it in state.extras"
)
_INPUT_REMEDY = "Compute with a changed copy instead: x = x + 1, not x += 1"


class WatchedLoss:
    """Loss function with the tensors that it captures, to detect writes to them.

    Attributes:
        function: the loss function.
        takes_extras: True if the function has a parameter `extras`.
        captured: the captured tensors.
        calls: the calls made so far; at the first one, bytes are compared.
    """

    def __init__(self, loss_fn: LossFn) -> None:
        functools.update_wrapper(self, loss_fn, updated=())  # without copying its attributes
        self.function, self._takes_key = loss_fn, takes(loss_fn, "key")
        self.takes_extras = takes(loss_fn, "extras")
        self.captured = Captured(loss_fn)
        self.calls = FirstCalls()

    def __call__(self, model: Any, batch: Any, extras: Any = None) -> Any:
        """Call the loss; pass a key for its draws, and `extras`, if it has parameters for them."""
        guard(self.function)
        more = {"key": key_of("loss")} if self._takes_key else {}
        if self.takes_extras:
            more["extras"] = extras
        return self.function(model, batch, **more)


def call_loss(
    loss_fn: LossFn,
    module: nn.Module,
    batch: Any,
    extras: Any,
    policy: Policy,
    device_type: str,
    where: str,
    until: contextlib.ExitStack | None = None,
) -> Any:
    """Return `loss_fn(module, batch)` under the policy's autocast; raise if it wrote to an input.

    It raises too if the loss assigned an entry of the extras.

    Args:
        extras: the extras of the state, for a loss with a parameter of this name.
        device_type: that of the state, because a batch may begin with a 0-d tensor on the host.
        until: a stack; tensors must not change until it is closed, for code that runs in a backward
            pass.
    """
    watched = loss_fn if isinstance(loss_fn, WatchedLoss) else WatchedLoss(loss_fn)
    given = {"batch": batch, "state.extras": extras if watched.takes_extras else {}}
    leaves, treedef = tree.flatten(given)
    places = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
    # The loss gets its own containers, because it may pop the labels out of its batch.
    own = tree.unflatten(treedef, leaves)

    def name(place: int) -> str:
        # The path "['batch']['x']" is written as batch['x'].
        argument, rest = tree.paths(given)[place].removeprefix("['").split("']", 1)
        return argument + rest

    with contextlib.ExitStack() as call:
        (until or call).enter_context(_unchanged(watched, places, name))
        with policy.inside_loss(device_type):
            try:
                out = watched(module, own["batch"], own["state.extras"])
            except Exception as error:
                tensors = {name(place): t for place, t in places.items()}
                in_batch = {path: t for path, t in tensors.items() if path.startswith("batch")}
                add_notes(error, where, batch, in_batch)
                raise
    if watched.takes_extras:
        _refuse_assigned(own["state.extras"], given["state.extras"], where)
    return out


def _refuse_assigned(after: Any, before: Any, where: str) -> None:
    """Raise if a loss assigned an entry of `state.extras`, because the new state would not contain it.

    A loss may remove entries, because the containers are its own, as for a batch.
    """
    known = dict(zip(tree.paths(before), tree.leaves(before), strict=True))
    for path, leaf in zip(tree.paths(after), tree.leaves(after), strict=True):
        if known.get(path) is not leaf:
            raise ImpureFunctionError(
                f"{where} assigned state.extras{path}, which a loss can only read: the new state would "
                "not have the value. Register a buffer (model.register_buffer) to assign to, or "
                "return the value in the metrics and change the extras in a step of your own."
            )


@contextlib.contextmanager
def _unchanged(
    loss: WatchedLoss, places: dict[int, torch.Tensor], name: Callable[[int], str]
) -> Iterator[None]:
    captured = loss.captured.tensors()
    first = loss.calls.is_first("call", [*places.values(), *captured.values()])
    with (
        unchanged(places, "input", _INPUT_REMEDY, name, compare_bytes=first),
        unchanged(captured, "captured tensor", _CAPTURED_REMEDY, compare_bytes=first),
    ):
        yield
    if first:
        loss.calls.passed("call")


def takes(loss_fn: Callable[..., Any], name: str) -> bool:
    """Return True if a loss function has a parameter `name` that the caller must provide.

    >>> takes(lambda model, batch, key: 0, "key"), takes(lambda model, batch: 0, "extras")
    (True, False)
    >>> takes(lambda model, batch, extras={}: 0, "extras")
    True
    """
    try:
        parameter = inspect.signature(loss_fn).parameters.get(name)
    except (TypeError, ValueError):  # a builtin has no signature
        return False
    return (
        parameter is not None
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and (
            parameter.default in (parameter.empty, None)  # a partial may have bound the parameter
            or (isinstance(parameter.default, (dict, list, tuple)) and not parameter.default)
        )
    )


def split_loss(out: Any, where: str) -> tuple[torch.Tensor, Metrics]:
    """Split a loss function's result into the total to differentiate and the metrics.

    Metrics are detached, except inside of `keeping_graph`.

    The total's weight is that of `metrics.entries["loss"]`.

    Raises:
        TypeError: the result is neither a loss nor a pair of loss and metrics.
        ValueError: a metric has a name that the step itself reports.
    """
    loss, extra = (out, {}) if not is_pair(out) else out
    metric: type[Mean] = Mean
    if isinstance(loss, Mean):
        total, weight = loss.total, loss.weight
        for part, value in (("total", total), ("weight", weight)):
            if not isinstance(value, torch.Tensor) or value.ndim:
                raise TypeError(
                    f"{where}: expected a Mean of 0-d tensors, got {part} {kind(value)}. Reduce both: "
                    "Mean((loss * mask).sum(), mask.sum())."
                )
    else:
        total = loss
        if not isinstance(total, torch.Tensor) or total.ndim:
            raise TypeError(
                f"{where}: expected a scalar (0-d) loss, `Mean(total, weight)`, or a pair "
                f"`(loss, metrics)`, got {kind(total)}. {_scalar_remedy(total)}"
            )
        metric, weight = BatchMean, None
    metrics = as_metrics(extra, where, total.device)
    taken = sorted(set(metrics) & set(_RESERVED))
    if taken:
        raise ValueError(
            f"{where} returned metrics named {taken}, which the step itself reports. Rename them."
        )
    with unwatched():
        dtype = torch.promote_types(total.dtype, torch.float32)
        if weight is None:
            weight = torch.ones_like(total, dtype=dtype)
        else:
            weight = on_device(kept(weight), total.device).to(dtype, copy=True)
        counted = metric(kept(total).clone(), weight)
    return total, Metrics({"loss": counted, **metrics.entries})


def is_pair(out: Any) -> bool:
    return isinstance(out, tuple) and not isinstance(out, Mean) and len(out) == 2


def _scalar_remedy(loss: Any) -> str:
    if loss is None:
        return "Is a `return` missing?"
    if isinstance(loss, (bool, int, float)):
        return (
            "A Python number has left the graph, by .item() or float(): return the tensor itself."
        )
    if isinstance(loss, dict):
        return "Return the loss first and named values second: return loss, metrics."
    if isinstance(loss, (list, tuple)):
        return (
            "Return the loss, or a tuple of the loss and a dict of metrics: return loss, metrics."
        )
    return "Reduce it: loss.mean()."
