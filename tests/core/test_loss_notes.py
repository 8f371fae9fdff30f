"""Test the notes on errors inside of losses, and the refusal of what is not a loss of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, tasks
from ftrain.core import _loss_notes

X = torch.ones(4, 3)
Y = torch.tensor([0, 1, 2, 0])


def loss_fn(model: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"])


def notes(batch: Any, loss: Any = loss_fn) -> str:
    """Return the error and the notes of a step on a batch."""
    steps = ftrain.make_steps(lambda: nn.Linear(3, 3), loss, optim.sgd(0.1))
    with pytest.raises(Exception) as caught:  # noqa: PT011  # of any type
        steps.train_step(steps.init_state(0), batch)
    return "\n".join([str(caught.value), *caught.value.__notes__])


@pytest.mark.parametrize("argument", ["loss_fn", "eval_fn"])
@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("cross_entropy", r"got 'cross_entropy'\. .*pass the function itself"),
        (nn.CrossEntropyLoss(), r"torch's CrossEntropyLoss.* Write lambda model, batch: nn\.Cross"),
        (nn.MSELoss, r"torch's MSELoss.* nn\.MSELoss\(\)\(model\(batch\['x'\]\), batch\['y'\]\)"),
        (F.mse_loss, r"torch's mse_loss.* F\.mse_loss\(model"),
        (0, r"got 0\. Pass a function"),
    ],
)
def test_make_steps_refuses_a_loss_that_is_not_a_function_of_model_and_batch(argument, wrong, hint):
    with pytest.raises(TypeError, match=rf"^{argument}: expected a function .*{hint}"):
        ftrain.make_steps(
            lambda: nn.Linear(3, 3),
            **{"loss_fn": loss_fn, argument: wrong},
            optimizer=optim.sgd(0.1),
        )


@pytest.mark.parametrize(
    ("entry", "value", "dtype"),
    [
        ("x", X.double(), "float64"),
        ("x", X.to(torch.uint8), "uint8"),
        ("x", X.to(torch.int32), "int32"),
        ("y", Y.int(), "int32"),
        ("y", Y.to(torch.int16), "int16"),
    ],
)
def test_note_names_the_tensor_whose_dtype_is_the_cause(entry, value, dtype):
    text = notes({"x": X, "y": Y, "more": torch.zeros(2).double()} | {entry: value})
    assert f"batch['{entry}'] is {dtype}" in text
    assert "Convert the data" in text
    assert "batch['more'] is" not in text or dtype == "float64"
    assert ("/ 255 for pixels" in text) == (dtype == "uint8")
    assert ("NumPy's default" in text) == (dtype == "float64")


def test_dtype_note_is_left_out_where_the_dtype_is_not_the_cause():
    text = notes({"x": X, "y": Y, "more": X.double()}, lambda model, batch: batch["y"].dtypes)
    assert "while computing" in text
    assert "Convert the data" not in text


def test_note_names_lists_and_strings_of_a_batch_and_how_to_convert_them():
    words = notes({"x": X, "y": ["cat", "dog", "cat", "dog"]})
    assert "batch['y']: a list of str" in words
    assert "np.unique(words, return_inverse=True)" in words
    lists = notes({"x": X.tolist(), "y": Y})
    assert "batch['x'] is a list of lists: not a tensor" in lists
    assert "np.unique" not in lists


def test_note_names_lists_in_tuples_by_position():
    text = notes((X, ["a", "b", "c", "d"]), lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    assert "batch[1] is a list of str" in text


def test_note_does_not_name_python_numbers_of_a_batch():
    text = notes({"x": X.tolist(), "y": Y, "scale": 0.5})
    assert "batch['scale'] is" not in text


@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range_in_a_user_defined_loss_has_a_note_with_the_range(label):
    text = notes({"x": X, "y": torch.tensor([0, 1, 2, label])})
    assert f"batch['y'] has values from {min(label, 0)} to {max(label, 2)}" in text
    assert "Give the model more outputs" in text


def test_index_out_of_range_of_an_embedding_has_a_note_with_the_range():
    def embedded(model: Any, batch: Any) -> Any:
        return F.embedding(batch["tokens"], model.weight).sum()

    assert "batch['tokens'] has values from 0 to 9" in notes({"tokens": torch.arange(10)}, embedded)


def test_built_in_loss_refuses_strings_as_labels():
    text = notes({"x": X, "y": ["cat", "dog", "a", "b"]}, tasks.cross_entropy)
    assert text.startswith("labels: expected a tensor of classes or numbers, got a list of str.")
    assert text.count("np.unique") == 1


def test_built_in_loss_refuses_a_list_of_numbers_as_labels():
    text = notes({"x": X, "y": [0, 1, 2, 0]}, tasks.cross_entropy)
    assert "got a list of int. Convert them in the data: np.asarray(y, 'int64')" in text


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        ([0, -1, -1, 2], "Correct the labels, or leave them out of the loss: ignore_index=-1."),
        ([0, -1, -2, 2], "Correct the labels."),
        ([0, -1, 5, 2], "Correct the labels."),
        ([0, 1, 5, 2], "Give the model more outputs, or correct the labels."),
    ],
)
def test_out_of_range_error_of_a_built_in_loss_suggests_a_remedy_that_fits_the_labels(
    labels, remedy
):
    text = notes({"x": X, "y": torch.tensor(labels)}, tasks.cross_entropy)
    assert text.splitlines()[0].endswith(f"out of range). {remedy}")


@pytest.mark.parametrize("value", [X.numpy(), X.tolist(), np.float64(1.0)])
def test_bound_model_names_an_argument_that_is_not_a_tensor(value):
    apply = ftrain.bind(nn.Linear(3, 3))
    params, buffers = apply.init(ftrain.random.key(0))
    with pytest.raises(TypeError) as caught:
        apply(params, buffers, ftrain.random.key(1), value)
    assert "args[0] is a" in caught.value.__notes__[-1]
    assert "torch.as_tensor(x)" in caught.value.__notes__[-1]


def test_dtype_note_is_added_to_dtype_errors_of_torch_only_and_names_tensors_of_that_dtype() -> (
    None
):
    tensors = {"x": torch.zeros(2, dtype=torch.float64), "y": torch.zeros(2)}
    text = "expected scalar type Float but found Double"
    note = _loss_notes.dtype_note(RuntimeError(text), tensors)
    assert note is not None
    assert "x" in note
    assert "y" not in note.split()
    for error in (
        AttributeError(text),
        RuntimeError("Double trouble"),
        RuntimeError("dtype Float"),
    ):
        assert _loss_notes.dtype_note(error, tensors) is None
    labels = {"t": torch.zeros(2, dtype=torch.int64)}
    assert _loss_notes.dtype_note(RuntimeError("expected scalar type Long"), labels) is None
    assert _loss_notes.dtype_note(RuntimeError("Input type (Long) and weight"), labels) is not None


LONG = torch.tensor([4, -2])


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        (torch.ones(2), {}),
        (3, {}),
        (object(), {}),
        ("cat", {"b": "a str"}),
        (np.ones(2), {"b": "an ndarray"}),
        ([], {"b": "a list of no entries"}),
        ([[1], 2], {"b": "a list of lists"}),
        ([(1,)], {"b": "a list of tuples"}),
        ((1.5, "a"), {"b": "a tuple of float"}),
        ([torch.ones(2), "cat", 3], {"b[1]": "a str"}),
        (({"a": "cat"}, 3, [1]), {"b[0]['a']": "a str", "b[2]": "a list of int"}),
        ({1: {"a": torch.ones(2), "c": [1]}}, {"b[1]['c']": "a list of int"}),
    ],
)
def test_not_tensors_names_each_list_string_and_array(value: Any, paths: dict[str, str]) -> None:
    assert dict(_loss_notes.not_tensors("b", value)) == paths


@pytest.mark.parametrize(
    ("batch", "error", "note"),
    [
        # Lists and arrays are the cause only of errors of these types, and without a remedy of its own.
        ({"y": ["cat"]}, TypeError("bad"), "batch['y'] is a list of str: not a tensor."),
        ({"y": [1]}, AttributeError("bad"), "batch['y'] is a list of int: not a tensor."),
        ({"y": [1]}, ValueError("bad"), "torch.as_tensor(x)"),
        ({"y": [1]}, RuntimeError("bad"), None),
        ({"y": [1]}, TypeError("expected a tensor of classes"), None),
        ({"y": LONG}, TypeError("bad"), None),
        ({"y": "cat", "z": [1]}, TypeError("bad"), "numbers them from 0."),
        # Ranges are those of integers that have values.
        (
            {"y": LONG},
            IndexError("index out of range in self"),
            "batch['y'] has values from -2 to 4.",
        ),
        (
            {"y": LONG > 0},
            IndexError("index 3 is out of bounds"),
            "batch['y'] has values from 0 to 1.",
        ),
        (
            {"y": LONG},
            IndexError("Target -2 is out of bounds."),
            "batch['y'] has values from -2 to 4.",
        ),
        ({"y": LONG * 1.0}, IndexError("index out of range in self"), None),
        ({"y": LONG * 1j}, IndexError("index out of range in self"), None),
        ({"y": LONG[:0]}, IndexError("index out of range in self"), None),
        ({"y": LONG}, IndexError("list is too short"), None),
    ],
)
def test_note_of_an_error_names_the_values_that_may_have_caused_it(
    batch: dict[str, Any], error: Exception, note: str | None
) -> None:
    def fails(model: Any, batch: Any) -> Any:
        raise type(error)(*error.args)

    text = notes({"x": X, **batch}, fails)
    assert "while computing" in text
    if note is None:
        assert not any(word in text for word in ("not a tensor", "has values", "Convert"))
    else:
        assert note in text


def test_loss_of_torch_under_another_name_is_refused_and_a_function_of_a_user_is_not() -> None:
    class Own(nn.MSELoss):
        pass

    for fine in (Own(), lambda model, batch: 0):
        ftrain.make_steps(lambda: nn.Linear(3, 3), fine, optim.sgd(0.1))
    with pytest.raises(TypeError, match=r"got torch's l1_loss, .*batch: F\.l1_loss\(model"):
        ftrain.make_steps(lambda: nn.Linear(3, 3), F.l1_loss, optim.sgd(0.1))
