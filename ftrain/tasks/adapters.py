"""Adapters that call a model with any kind of batch, and find the output and the labels for a loss.

A batch may be a tensor, a tuple `(x,)` or `(x, ..., labels)`, or have named entries: a dict, any other
mapping (`UserDict`, Hugging Face's `BatchEncoding`), a dataclass or a NamedTuple. For a `data.Padded`,
its `batch` is used. A model may return a tensor, a tuple, a mapping, a dataclass or a Hugging Face
`ModelOutput`. If more than one entry is possible, a function raises instead of choosing. float64 inputs,
NumPy's default, are converted to the dtype of the model's parameters.

Read next: `losses/rows.py`, whose losses take their batches through these functions.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ftrain.core._loss_notes import not_tensors
from ftrain.core._words import a_or_an
from ftrain.core.padded import unpadded
from ftrain.tasks._numpy_dtypes import as_parameters, integers_explained

__all__ = ["Prediction", "call_model", "find_labels", "find_output", "output_and_labels"]

#: Names under which labels are searched, unless a name is given.
LABELS = ("labels", "label", "targets", "target", "y")
#: Names of an input that is passed by position if no argument of the model has the name of an entry.
INPUTS = ("x", "input", "inputs", "input_ids", "input_values", "pixel_values", "image", "tokens")
#: Names under which an output is searched, unless a name is given.
OUTPUTS = ("logits", "prediction", "predictions", "output")
#: Entries for the loss, which are passed to a model only if it has an argument of that name.
OF_THE_LOSS = ("weight", *LABELS)


class Prediction(NamedTuple):
    """Output of a model for a batch, and the labels to compare it with.

    Attributes:
        output: logits or predicted values.
        labels: the labels in the batch, unchanged.
        outputs: everything that the model returned.
    """

    output: Tensor
    labels: Tensor
    outputs: Any


def output_and_labels(
    model: Callable[..., Any],
    batch: Any,
    *,
    input: str | int | None = None,
    target: str | int | None = None,
    output: str | int | None = None,
) -> Prediction:
    """Call a model with a batch; return its output and the labels of the batch.

    Args:
        model: a module or a function.
        batch: a tuple `(x, ..., labels)`, a mapping, a dataclass or a NamedTuple.
        input: the name, or in a tuple the index, of the entry that the model takes as its only
            argument; `None`: chosen by `call_model`.
        target: the name or index of the labels; `None`: found by `find_labels`.
        output: the name or index of the output; `None`: found by `find_output`.

    Raises:
        KeyError: an entry is missing, or more than one is possible.
        TypeError: the batch or the outputs have no entries to choose from.

    Example:
        >>> import torch
        >>> found = output_and_labels(nn.Linear(3, 2), {"x": torch.ones(4, 3), "y": torch.zeros(4)})
        >>> found.output.shape, found.labels.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """
    batch = unpadded(batch)
    named = named_entries(batch)
    if named is not None and isinstance(input, str) and isinstance(target, str):
        _check_pair(named, input, target)
    labels = find_labels(batch, target)
    _refuse_lists(labels)
    outputs = call_model(model, batch, input=input, target=target)
    return Prediction(find_output(outputs, output), labels, outputs)


def call_model(
    model: Callable[..., Any],
    batch: Any,
    *,
    input: str | int | None = None,
    target: str | int | None = None,
    has_labels: bool = True,
) -> Any:
    """Call a model with the inputs in a batch, and return its outputs.

    - A tensor is the only argument. In a tuple or list of two or more entries, the last (or the one at
      index `target`) holds the labels, and the others are the arguments. In a tuple or list of one
      entry, this entry is the argument.
    - Entries with names are passed as keywords to the arguments of those names; entries that the model
      does not take, and the labels, are not passed. If no name fits, the one entry called `x`, `input`,
      `inputs`, `input_ids`, `input_values`, `pixel_values`, `image` or `tokens` is passed by position.
    - A single argument of a tuple may have named entries itself: `({"input_ids": ...}, labels)`.

    Args:
        model: a module or a function.
        batch: see above.
        input: the name, or in a tuple the index, of the entry that is the only argument.
        target: the name or index of the labels, which are not passed on.
        has_labels: if False, every entry of a tuple is an argument, as for pairs of images and texts.

    Raises:
        KeyError: an entry that the model needs is missing.

    Example:
        >>> import torch
        >>> call_model(lambda a, b: a + b, {"b": torch.ones(1), "a": torch.ones(1), "y": torch.ones(1)})
        tensor([2.])
    """
    batch = unpadded(batch)
    named = named_entries(batch)
    if named is not None:
        if input is not None:
            return _called(model, named_entry(named, input, "batch", "input"))
        return _call_with_names(model, named, target)
    if isinstance(input, int):
        return _called(model, entry_at(batch, input, "input"))
    if input is not None:
        raise TypeError(
            f"batch: expected a dict with an entry {input!r}, got {a_or_an(type(batch).__name__)}. "
            "Return dicts from the data function, leave out `input`, or give an index in the tuple: "
            "input=0."
        )
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        labels = (target if isinstance(target, int) else -1) % max(len(batch), 1)
        inputs = batch
        if has_labels and len(batch) > 1:
            inputs = [x for place, x in enumerate(batch) if place != labels]
        inner = named_entries(inputs[0]) if len(inputs) == 1 else None
        if inner is None:
            return _called(model, *inputs)
        return _call_with_names(model, inner, None if isinstance(target, int) else target)
    return _called(model, batch)


def find_labels(batch: Any, target: str | int | None = None) -> Tensor:
    """Return the labels of a batch.

    Args:
        batch: a tuple or list of two or more entries, whose last is the labels; or named entries, of
            which one is called `labels`, `label`, `targets`, `target` or `y`.
        target: the name of the entry, if it is not a usual one; or its index in a tuple, if not the
            last.

    Raises:
        KeyError: no entry has such a name or index, or more than one has such a name.
        TypeError: the batch is a tensor, or a tuple of one entry.

    Example:
        >>> import torch
        >>> find_labels((torch.ones(2, 3), torch.tensor([0, 1])))
        tensor([0, 1])
    """
    batch = unpadded(batch)
    named = named_entries(batch)
    if named is not None:
        found: Tensor = _one(named, target, LABELS, "batch", "target")
        return found
    if isinstance(target, int) and isinstance(batch, Sequence) and not isinstance(batch, str):
        there: Tensor = entry_at(batch, target, "target")
        return there
    if isinstance(batch, Sequence) and not isinstance(batch, str) and target is None:
        if len(batch) > 1:
            last: Tensor = batch[-1]
            return last
        inner = named_entries(batch[0]) if len(batch) else None
        if inner is not None:
            return find_labels(inner)
    wanted = "a tuple (x, labels) or named entries" if target is None else f"a dict with {target!r}"
    raise TypeError(
        f"batch: expected {wanted} to find labels in, got {_shape_of(batch)}. Return dicts from the "
        "data function, or write your own loss: file.py:loss_fn."
    )


def find_output(outputs: Any, output: str | int | None = None) -> Tensor:
    """Return the output that a loss reads, among the outputs of a model.

    Args:
        outputs: a tensor; a tuple or list, whose first tensor with axes is taken, so that a 0-d loss is
            skipped; or named entries (such as a `ModelOutput`), of which one is called `logits`,
            `prediction`, `predictions` or `output`.
        output: the name of the entry, or its index in a tuple.

    Raises:
        KeyError: no entry has such a name, or more than one has.
        TypeError: the output holds no tensor.

    Example:
        >>> import torch
        >>> find_output({"loss": torch.tensor(0.1), "logits": torch.ones(2)})
        tensor([1., 1.])
        >>> find_output((torch.tensor(0.1), torch.ones(2)))
        tensor([1., 1.])
    """
    found: Any = None
    named = named_entries(outputs)
    if named is not None and not isinstance(output, int):
        found = _one(named, output, OUTPUTS, "outputs of the model", "output")
    elif isinstance(outputs, Tensor) and output is None:
        found = outputs
    elif isinstance(outputs, Sequence) and isinstance(output, int):
        found = outputs[output] if -len(outputs) <= output < len(outputs) else None
    elif isinstance(outputs, Sequence) and output is None:
        found = next((x for x in outputs if isinstance(x, Tensor) and x.ndim), None)
    if isinstance(found, Tensor):
        return found
    wanted = {
        str: f"a dict with an entry {output!r}",
        int: f"a tuple with a tensor at {output}",
    }.get(type(output), "a tensor, a tuple with a tensor that has axes, or an entry 'logits'")
    raise TypeError(
        f"outputs of the model: expected {wanted}, got {_shape_of(outputs)}. Name the output: "
        "output='logits', or output=0 for a position in a tuple."
    )


def _refuse_lists(labels: Any) -> None:
    """Raise if labels are words or a list of values instead of a tensor."""
    for name, what in not_tensors("labels", labels):
        remedy = (
            "Give each word a number: np.unique(words, return_inverse=True)[1] numbers them from 0"
            if what in ("a str", "a list of str", "a tuple of str")
            else "Convert them in the data: np.asarray(y, 'int64') for classes, 'float32' for numbers"
        )
        raise TypeError(f"{name}: expected a tensor of classes or numbers, got {what}. {remedy}.")


def named_entries(value: Any) -> Mapping[str, Any] | None:
    """Return the entries of a mapping, dataclass or NamedTuple by name; `None` if they have no names."""
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    return None


def entry_at(batch: Any, place: int, option: str) -> Any:
    """Return the entry at an index of a tuple or list; raise if the index is out of range."""
    is_tuple = isinstance(batch, Sequence) and not isinstance(batch, str)
    if is_tuple and -len(batch) <= place < len(batch):
        return batch[place]
    raise KeyError(
        f"batch: expected a tuple with an entry at {place}, got {_shape_of(batch)}. Give another index "
        f"with `{option}`; in a configuration, loss: {{name: ..., {option}: 0}}."
    )


def _called(model: Callable[..., Any], *inputs: Any) -> Any:
    converted = as_parameters(_weights(model), *inputs)
    with integers_explained(_weights(model), *converted):
        return model(*converted)


def _weights(model: Callable[..., Any]) -> Iterable[Tensor]:
    return model.parameters() if isinstance(model, nn.Module) else ()


def _call_with_names(
    model: Callable[..., Any], named: Mapping[str, Any], target: str | int | None
) -> Any:
    """Call a model with the batch entries that its signature names; if none, with the only input."""
    takes = _parameters(model)
    labels = target if target is not None else next((x for x in LABELS if x in named), None)
    own = {name: x for name, x in named.items() if name != labels}
    fitting = {name: x for name, x in own.items() if name in takes}
    if not fitting and any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        fitting = {name: x for name, x in own.items() if name not in OF_THE_LOSS}
    if not fitting:
        return _called(model, _one(own, None, INPUTS, "batch", "input", named))
    needed = [
        name
        for name, p in takes.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    missing = [name for name in needed if name not in fitting]
    if missing:
        raise KeyError(
            f"batch: expected entries for the arguments {', '.join(map(repr, missing))} of the model, "
            f"got {_listed(named)}. Add them to the batch, or write your own loss: file.py:loss_fn."
        )
    converted = as_parameters(_weights(model), *fitting.values())
    with integers_explained(_weights(model), *converted):
        return model(**dict(zip(fitting, converted, strict=True)))


def _parameters(model: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(
            model.forward if isinstance(model, nn.Module) else model
        ).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


def _one(
    named: Mapping[str, Any],
    name: str | int | None,
    usual: Sequence[str],
    what: str,
    option: str,
    whole: Mapping[str, Any] | None = None,
) -> Any:
    """Return the entry called `name` or, if `name` is `None`, the only one with a usual name.

    Args:
        whole: the entries that a message lists, if there are more than the searched ones.
    """
    if name is not None:
        return named_entry(named, name, what, option)
    found = [each for each in usual if named.get(each) is not None]
    if len(found) == 1:
        return named[found[0]]
    got = (
        f"more than one of them: {', '.join(map(repr, found))}"
        if found
        else _listed(whole or named)
    )
    raise KeyError(
        f"{what}: expected one entry called {', '.join(map(repr, usual[:-1]))} or {usual[-1]!r}, got "
        f"{got}. Name the entry with `{option}`; in a configuration, "
        f"loss: {{name: ..., {option}: {found[0] if found else _suggested(named, option)}}}."
    )


def named_entry(named: Mapping[str, Any], name: str | int, what: str, option: str | None) -> Any:
    """Return the entry called `name`; if it is missing, raise an error that lists the names."""
    if name in named:
        return named[name]  # type: ignore[index]  # a mapping may have any keys
    if option is None:
        raise KeyError(
            f"{what}: expected a key {name!r}, got {_listed(named)}. Add it to the {what}."
        )
    raise KeyError(
        f"{what}: expected a key {name!r}, got {_listed(named)}. Name another entry with `{option}`; "
        f"in a configuration, loss: {{name: ..., {option}: {_suggested(named, option)}}}."
    )


def _check_pair(named: Mapping[str, Any], input: str, target: str) -> None:
    """Raise one error for an input and labels that are both missing."""
    if input in named or target in named:
        return
    names = f"input: {_suggested(named, 'input')}, target: {_suggested(named, 'target')}"
    raise KeyError(
        f"batch: expected the keys {input!r} and {target!r}, got {_listed(named)}. Name other entries "
        f"with `input` and `target`; in a configuration, loss: {{name: ..., {names}}}."
    )


def _suggested(named: Mapping[str, Any], option: str) -> Any:
    """Return the entry name that an error message suggests for an option; `...` if it is unclear."""
    roles = {"input": (INPUTS, OF_THE_LOSS), "target": (LABELS, INPUTS)}
    if option not in roles:
        return next(iter(named), "...")
    usual, of_the_other = roles[option]
    lower = {str(name).lower(): name for name in named}
    found = [lower[name] for name in usual if name in lower]
    others = [name for text, name in lower.items() if text not in of_the_other]
    return found[0] if found else others[0] if len(others) == 1 else "..."


def _listed(named: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, named)) or "no entries"


def _shape_of(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        inside = ", ".join(type(x).__name__ for x in value)
        return f"{a_or_an(type(value).__name__)} of {inside or 'no entries'}"
    return a_or_an(type(value).__name__)
