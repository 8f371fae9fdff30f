"""Test that batches and outputs of every form give the same call, and that ambiguous ones raise."""

from __future__ import annotations

import dataclasses
from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim
from ftrain.tasks import adapters


class Named(NamedTuple):
    x: Tensor
    y: Tensor


@dataclasses.dataclass
class Record:
    x: Tensor
    y: Tensor


class Pair(nn.Module):
    """Two inputs, one of them optional."""

    def forward(self, a: Tensor, b: Tensor, scale: Tensor | None = None) -> Tensor:
        return a + 2 * b if scale is None else (a + 2 * b) * scale


X, Y = torch.arange(6.0).reshape(2, 3), torch.tensor([1, 0])
BATCHES: dict[str, Any] = {
    "tuple": (X, Y),
    "list": [X, Y],
    "dict": {"y": Y, "x": X},
    "labels": {"input": X, "labels": Y},
    "UserDict": UserDict({"x": X, "y": Y}),
    "NamedTuple": Named(X, Y),
    "dataclass": Record(X, Y),
    "nested": ({"x": X}, Y),
    "tuple of one": ({"x": X, "y": Y},),
    "extra": {"x": X, "y": Y, "weight": torch.ones(2), "id": Y},
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_every_container_give_the_same_output_and_labels(name: str) -> None:
    model = nn.Linear(3, 2)
    found = adapters.output_and_labels(model, BATCHES[name])
    assert torch.equal(found.output, model(X))
    assert found.labels is Y


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_every_container_give_the_same_training_step(name: str) -> None:
    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        found = adapters.output_and_labels(model, batch)
        return nn.functional.cross_entropy(found.output, found.labels)

    steps = ftrain.make_steps(lambda: nn.Linear(3, 2), loss_fn, optim.sgd(0.1))
    state, _ = steps.train_step(steps.init_state(0), BATCHES[name])
    expected, _ = steps.train_step(steps.init_state(0), (X, Y))
    assert ftrain.tree.digest(state.params) == ftrain.tree.digest(expected.params)


def test_named_entries_go_to_the_arguments_of_those_names_in_any_order() -> None:
    a, b = torch.ones(2), torch.zeros(2)
    assert torch.equal(adapters.call_model(Pair(), {"b": b, "y": Y, "a": a}), a)
    assert torch.equal(adapters.call_model(Pair(), (a, b, Y)), a)
    assert torch.equal(adapters.call_model(Pair(), {"b": b, "scale": b, "a": a, "id": Y}), b)
    assert torch.equal(adapters.call_model(Pair(), ({"b": b, "a": a}, Y)), a)


def test_batch_of_one_tensor_is_passed_as_the_only_argument_of_the_model() -> None:
    assert adapters.call_model(lambda x: x, X) is X
    assert adapters.call_model(lambda x: x, (X,)) is X


def test_model_with_only_keyword_arguments_gets_all_entries_except_labels_and_weight() -> None:
    def model(**entries: Tensor) -> Any:
        return sorted(entries)

    batch = {"image": X, "mask": X, "weight": Y, "labels": Y}
    assert adapters.call_model(model, batch) == ["image", "mask"]


LOSS = torch.tensor(0.5)


@dataclasses.dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


@pytest.mark.parametrize(
    "outputs",
    [
        X,
        (X,),
        (X, LOSS),
        (LOSS, X),
        [X, X + 1],
        {"logits": X, "loss": LOSS},
        {"predictions": X},
        Output(X),
        UserDict({"logits": X}),
    ],
    ids=repr,
)
def test_logits_are_found_in_model_outputs_of_every_container(outputs: Any) -> None:
    assert adapters.find_output(outputs) is X


def test_output_given_by_name_or_position_takes_precedence() -> None:
    assert adapters.find_output({"logits": X, "aux": Y}, "aux") is Y
    assert adapters.find_output((X, Y), 1) is Y


def test_model_output_of_transformers_gives_its_logits() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    outputs = transformers.modeling_outputs.CausalLMOutput(logits=X)
    assert adapters.find_output(outputs) is X
    batch = transformers.BatchEncoding({"input_ids": Y, "labels": Y})
    assert adapters.find_labels(batch) is Y
    assert adapters.call_model(lambda input_ids, attention_mask=None: input_ids, batch) is Y


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: adapters.find_labels({"x": X}), KeyError, "called 'labels'.*or 'y', got 'x'"),
        (
            lambda: adapters.find_labels({"y": Y, "labels": Y}),
            KeyError,
            "more than one of them: 'labels', 'y'",
        ),
        (lambda: adapters.find_labels({"x": X}, "z"), KeyError, "a key 'z', got 'x'.*`target`"),
        (lambda: adapters.find_labels(X), TypeError, "a tuple .x, labels. .*got a Tensor"),
        (lambda: adapters.find_labels((X,)), TypeError, "got a tuple of Tensor"),
        (lambda: adapters.find_labels((X, Y), "y"), TypeError, "a dict with 'y'.*got a tuple"),
        (lambda: adapters.find_output({"loss": LOSS}), KeyError, "'logits'.*got 'loss'.*`output`"),
        (lambda: adapters.find_output((LOSS,)), TypeError, "got a tuple of Tensor"),
        (lambda: adapters.find_output((X,), 3), TypeError, "a tuple with a tensor at 3"),
        (lambda: adapters.find_output(None), TypeError, "got a NoneType"),
        (
            lambda: adapters.call_model(Pair(), {"a": X, "y": Y}),
            KeyError,
            "for the arguments 'b' of the model, got 'a', 'y'",
        ),
        (
            lambda: adapters.call_model(nn.Identity(), {"u": X, "v": X}),
            KeyError,
            "expected one entry called 'x'.*got 'u', 'v'.*`input`",
        ),
        (
            lambda: adapters.call_model(nn.Identity(), {"x": X, "image": X}),
            KeyError,
            "more than one of them: 'x', 'image'",
        ),
        (lambda: adapters.call_model(nn.Identity(), X, input="x"), TypeError, "got a Tensor"),
    ],
)
def test_missing_and_ambiguous_entries_raise_with_the_searched_names(
    call: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        call()
