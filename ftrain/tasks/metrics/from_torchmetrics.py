"""Adapter of torchmetrics metrics to metrics of a step, which merge exactly over any batches.

Read next: `rates.py`, for metrics of ftrain.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ftrain.core import tree
from ftrain.core._words import a_or_an
from ftrain.core.metrics import Metric

__all__ = ["from_torchmetrics"]

#: How two states merge, by the name of torchmetrics' function for reduction over processes. The mean is
#: not supported, because it gives all batches the same weight, independently of their sizes.
_MERGED = {
    "dim_zero_sum": "sum",
    "dim_zero_max": "max",
    "dim_zero_min": "min",
    "dim_zero_cat": "cat",
}

#: Metrics of torchmetrics whose states merge by sum, although they are not sums over rows.
_NOT_SUMS = {
    "MultilabelRankingLoss": "counts one row of a batch whose rows all have equal labels",
}


def from_torchmetrics(
    metric: Any,
    *,
    keep: Literal["inputs", "states"] = "inputs",
    output: str | int | None = None,
) -> Callable[..., Metric]:
    """Return a function that computes a torchmetrics metric of a batch, mergeable over batches.

    Its arguments are those of the metric's `update`, or of a function of `torchmetrics.functional`. Put
    its result into the metrics of a loss or evaluation function. The result stores one of:

    - The inputs, concatenated; `value` calls the metric once, with all of them, outside of the step.
      This is exact for any metric or function of tensors, but its memory grows with the number of
      rows, so use it for evaluation.
    - The states of the metric, most of which have a constant size. Its `update` runs inside of the step,
      and must be a pure function of tensors; states merge by sum, maximum, minimum or concatenation.

    States are exact if `update` adds sums over rows. This is true for `torchmetrics.classification` and
    `regression`, with two exceptions: `MultilabelRankingLoss`, for which an error is raised, and metrics
    of logits, which decide by the range of the predictions in each update whether these are logits: pass
    probabilities. In a compiled step, `update` must not read values (pass `validate_args=False` to the
    metric) and must not call `torch.bincount`, which counts per class use: keep the inputs for those.

    Args:
        metric: a `torchmetrics.Metric`, which is copied, or a function.
        keep: "inputs" or "states".
        output: the entry of a value that is a dict or a tuple.

    Returns:
        `(*tensors, **tensors) -> Metric`.

    Raises:
        TypeError: `metric` is not a metric or function; in a call, an argument is not a tensor.
        ValueError: `keep` is unknown, or "states" is given for a function or for states that do not
            merge; in a call, `update` sets attributes that are not states, or inputs differ in their
            number of rows.

    Example:
        >>> def error(preds, target):                 # or torchmetrics.functional.mean_squared_error
        ...     return (preds - target).square().mean().sqrt()
        >>> rmse = from_torchmetrics(error)           # or torchmetrics.MeanSquaredError(squared=False)
        >>> x, y = torch.tensor([0.0, 0.0, 3.0]), torch.tensor([0.0, 0.0, 0.0])
        >>> rmse(x[:1], y[:1]).merge(rmse(x[1:], y[1:])).value == error(x, y)
        tensor(True)

    References:
        https://lightning.ai/docs/torchmetrics
    """
    if keep not in ("inputs", "states"):
        raise ValueError(f"keep: expected 'inputs' or 'states', got {keep!r}. Write 'inputs'.")
    if not isinstance(metric, nn.Module) or not hasattr(metric, "_reductions"):
        if isinstance(metric, (nn.Module, type)) or not callable(metric):
            got = (
                f"the class {metric.__name__}"
                if isinstance(metric, type)
                else type(metric).__name__
            )
            raise TypeError(
                f"metric: expected a torchmetrics.Metric or a function, got {got}. Pass one metric; for "
                "a MetricCollection, pass each of its metrics by itself."
            )
        if keep == "states":
            raise ValueError(
                f"keep: expected 'inputs' for the function {_named(metric)}, which has no states, got "
                "'states'. Leave `keep` out."
            )
        return _of_inputs(metric, metric, output)
    template: Any = copy.deepcopy(metric)
    template.reset()
    for each in template.modules():
        if hasattr(each, "sync_on_compute"):  # ftrain merges the results of all processes itself
            each.sync_on_compute = False
    if keep == "states":
        obstacle = _obstacle(template)
        if obstacle is not None:
            raise ValueError(f"keep: {_named(metric)} {obstacle}. Write keep='inputs'.")
        return _of_states(template, output)

    def whole(*args: Tensor, **kwargs: Tensor) -> Any:
        fresh = copy.deepcopy(template)
        fresh.update(*args, **kwargs)
        return fresh.compute()

    return _of_inputs(metric, whole, output)


def _obstacle(template: Any) -> str | None:
    """Return the reason why a metric's states cannot be merged; `None` if they can."""
    if type(template).__name__ in _NOT_SUMS:
        return _NOT_SUMS[type(template).__name__]
    if any(hasattr(each, "_reductions") for each in template.modules() if each is not template):
        return "contains other metrics, whose states are separate"
    if template.full_state_update is not False:
        return (
            "does not have full_state_update = False: its update may read the states of earlier "
            "batches"
        )
    for name, function in template._reductions.items():
        if getattr(function, "__name__", None) not in _MERGED:
            by = getattr(function, "__name__", function)
            return f"has a state {name!r} that is reduced by {by}, not by sum, max, min or cat"
        if isinstance(template._defaults[name], list) != (_MERGED[function.__name__] == "cat"):
            return f"has a state {name!r} whose reduction fits only one of its forms, a list or a tensor"
    return None


def _of_states(template: Any, output: str | int | None) -> Callable[..., Metric]:
    """Return a function from a batch to the torchmetrics states after one update."""
    how = {name: _MERGED[by.__name__] for name, by in template._reductions.items()}
    starts = {name: _start(x) for name, x in template._defaults.items()}
    update, compute = type(template).update, type(template).compute

    @tree.register_dataclass
    class States:
        """States of a torchmetrics metric, by name, and the number of updates as a 0-d tensor."""

        states: dict[str, Tensor]
        updates: Tensor
        grows: ClassVar[bool] = "cat" in how.values()

        @property
        def value(self) -> Tensor:
            """Return the value of the metric; for an ensemble, one value per member."""
            if self.updates.ndim:
                return _stacked(self, len(self.updates))
            fresh = copy.copy(template)
            for name, x in self.states.items():
                setattr(fresh, name, [x] if how[name] == "cat" else x)
            with torch.no_grad():
                return _picked(compute(fresh), output, template)

        def merge(self, other: States) -> States:
            """Return the merged states, which cover the rows of `self` and `other`."""
            return States(
                {
                    name: _merged(how[name], starts[name], x, other.states[name], self.updates.ndim)
                    for name, x in self.states.items()
                },
                self.updates + other.updates,
            )

    def call(*args: Tensor, **kwargs: Tensor) -> Metric:
        first = _checked(template, args, kwargs)
        fresh = copy.copy(template)
        for name, start in starts.items():
            setattr(fresh, name, [] if start is None else start(first))
        before = dict(fresh.__dict__)
        with torch.no_grad():
            update(fresh, *args, **kwargs)
        others = fresh.__dict__.keys() - how.keys()
        changed = sorted(x for x in others if before.get(x, fresh) is not fresh.__dict__[x])
        if changed:
            raise ValueError(
                f"{_named(template)}: expected an update() that sets only the states of the metric, got "
                f"one that also sets {', '.join(changed)}. Write from_torchmetrics(..., keep='inputs')."
            )
        empty = [name for name, by in how.items() if by == "cat" and not getattr(fresh, name)]
        if empty:
            raise ValueError(
                f"{_named(template)}: expected an update() that appends to each list state, got one "
                f"that appends nothing to {', '.join(empty)}. Write "
                "from_torchmetrics(..., keep='inputs')."
            )
        states = {
            name: torch.cat([x if x.ndim else x[None] for x in getattr(fresh, name)])
            if by == "cat"
            else getattr(fresh, name)
            for name, by in how.items()
        }
        return States(states, first.new_ones((), dtype=torch.int64))

    return call


def _of_inputs(
    metric: Any, whole: Callable[..., Any], output: str | int | None
) -> Callable[..., Metric]:
    """Return a function that collects the inputs of each batch, to compute the metric from all."""

    @tree.register_dataclass
    class Inputs:
        """Inputs of a torchmetrics metric, and the number of batches as a 0-d tensor."""

        args: tuple[Tensor, ...]
        kwargs: dict[str, Tensor]
        updates: Tensor
        grows: ClassVar[bool] = True

        @property
        def value(self) -> Tensor:
            """Return the value of the metric over all rows; for an ensemble, one value per member."""
            if self.updates.ndim:
                return _stacked(self, len(self.updates))
            with torch.no_grad():
                return _picked(whole(*self.args, **self.kwargs), output, metric)

        def merge(self, other: Inputs) -> Inputs:
            """Return the concatenated rows of `self` and `other`."""
            if len(self.args) != len(other.args) or self.kwargs.keys() != other.kwargs.keys():
                raise ValueError(
                    f"{_named(metric)}: expected the same arguments for each batch, got "
                    f"{len(self.args)} and {sorted(self.kwargs)} merged with {len(other.args)} and "
                    f"{sorted(other.kwargs)}. Pass them alike, by position or by name."
                )
            axis = self.updates.ndim
            pairs = zip(self.args, other.args, strict=True)
            return Inputs(
                tuple(torch.cat(pair, axis) for pair in pairs),
                {name: torch.cat([x, other.kwargs[name]], axis) for name, x in self.kwargs.items()},
                self.updates + other.updates,
            )

    def call(*args: Tensor, **kwargs: Tensor) -> Metric:
        first = _checked(metric, args, kwargs)
        given = [*args, *kwargs.values()]
        shapes = [tuple(x.shape) for x in given]
        if not all(x.ndim and len(x) == len(first) for x in given):
            raise ValueError(
                f"{_named(metric)}: expected tensors with one row for each sample, got shapes "
                f"{', '.join(map(str, shapes))}. Reshape them, or call the metric outside of the step."
            )
        return Inputs(tuple(args), dict(kwargs), first.new_ones((), dtype=torch.int64))

    return call


def _checked(metric: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the first argument of an update; raise unless all arguments are tensors."""
    named = {**{f"argument {i}": x for i, x in enumerate(args)}, **kwargs}
    for name, x in named.items():
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{_named(metric)}: expected tensors, got {a_or_an(type(x).__name__)} as {name}. A step "
                "has tensors only: for texts and lists, update the metric itself outside of the step, "
                "with the outputs of the model."
            )
    if not named:
        raise TypeError(
            f"{_named(metric)}: expected tensors, got no argument. Pass the arguments of its update()."
        )
    first: Tensor = next(iter(named.values()))
    return first


def _start(default: Any) -> Callable[[Tensor], Tensor] | None:
    """Return a function that makes a state's initial value; `None` if the state is a list.

    `new_full` creates the state on the device of the inputs, without a copy from the host, and under
    `vmap` with the mapped axis, so that an update may add to it in place.
    """
    if isinstance(default, list):
        return None
    values, shape, dtype = default.unique().tolist(), default.shape, default.dtype
    if len(values) == 1:
        return lambda like: like.new_full(shape, values[0], dtype=dtype)
    return lambda like: like.new_zeros(shape, dtype=dtype) + default.to(like.device)


def _merged(how: str, start: Any, one: Tensor, two: Tensor, axis: int) -> Tensor:
    if how == "cat":
        return torch.cat([one, two], axis)
    if how == "sum":
        total: Tensor = one + two - start(one)  # both include the initial value
        return total
    return torch.maximum(one, two) if how == "max" else torch.minimum(one, two)


def _stacked(metric: Any, members: int) -> Tensor:
    rows = (tree.map(lambda x, i=i: x[i], metric) for i in range(members))
    return torch.stack([row.value for row in rows])


def _picked(value: Any, output: str | int | None, metric: Any) -> Tensor:
    """Return the entry `output` of a metric's value, or the value itself, as a tensor."""
    if output is not None:
        try:
            value = value[output]
        except (KeyError, IndexError, TypeError):
            names = list(value) if isinstance(value, Mapping) else _kind(value)
            raise KeyError(
                f"output: expected an entry of the value of {_named(metric)}, {names}, got {output!r}. "
                "Write one of them."
            ) from None
    if isinstance(value, (Tensor, int, float)):
        return torch.as_tensor(value)
    names = ", ".join(map(repr, value)) if isinstance(value, Mapping) else _kind(value)
    raise TypeError(
        f"{_named(metric)}: expected a value that is a tensor, got {names}. Choose an entry: "
        "from_torchmetrics(..., output=...)."
    )


def _kind(value: Any) -> str:
    return f"{a_or_an(type(value).__name__)}" + (
        f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    )


def _named(metric: Any) -> str:
    return getattr(metric, "__name__", None) or type(metric).__name__
