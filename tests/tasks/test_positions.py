"""Test losses on tuples: entries selected by index, data sets of torch, and runs."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import ftrain
from ftrain import data, optim, tasks
from ftrain.config import load
from ftrain.config.run import train
from ftrain.testing import assert_same_bits

X, OTHER = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.ones(8, 2)
Y = torch.arange(8) % 3
LOGITS = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


def loss_of(loss: Any, batch: Any, model: Any = lambda: nn.Linear(4, 3)) -> Any:
    steps = ftrain.make_steps(model, loss, optim.sgd(0.1))
    return steps.train_step(steps.init_state(0), batch)


@pytest.mark.parametrize("container", [tuple, list])
@pytest.mark.parametrize(
    ("order", "input", "target"),
    [
        ((X, Y), 0, 1),
        ((X, Y), -2, -1),
        ((Y, X), 1, 0),
        ((X, Y, OTHER), 0, 1),
        ((OTHER, Y, X), 2, 1),
        ((Y, X), "x", 0),  # a name is not used; of the others, x remains
        ((OTHER, X, Y), 1, "y"),  # the last
    ],
)
def test_input_and_target_indices_select_tuple_entries(
    container: Any, order: Any, input: Any, target: Any
) -> None:
    for loss in (tasks.cross_entropy, tasks.supervised_contrastive):
        expected = loss_of(loss, {"x": X, "y": Y})
        chosen = functools.partial(loss, input=input, target=target)
        assert_same_bits(loss_of(chosen, container(order)), expected)


def test_input_and_target_indices_work_with_mixup() -> None:
    options = {"mixup": 0.4, "classes": 3}
    expected = loss_of(functools.partial(tasks.cross_entropy, **options), (X, Y))
    chosen = functools.partial(tasks.cross_entropy, input=1, target=0, **options)
    assert_same_bits(loss_of(chosen, (Y, X)), expected)


def test_losses_read_the_tuple_entries_that_their_index_arguments_select() -> None:
    expected = loss_of(tasks.distillation, {"x": X, "y": Y, "teacher": LOGITS})
    chosen = functools.partial(tasks.distillation, input=1, target=2, cached=0)
    assert_same_bits(loss_of(chosen, (LOGITS, X, Y)), expected)
    expected = loss_of(tasks.triplet, {"anchor": X, "positive": X + 1, "negative": -X})
    chosen = functools.partial(tasks.triplet, anchor=0, positive=1, negative=2)
    assert_same_bits(loss_of(chosen, (X, X + 1, -X)), expected)
    lengths = torch.full((8,), 2)
    named = {"x": X.reshape(8, 2, 2), "y": Y[:, None] % 2 + 1, "input_lengths": lengths}
    model = lambda: nn.Linear(2, 3)  # noqa: E731
    expected = loss_of(tasks.ctc, {**named, "label_lengths": lengths - 1}, model)
    chosen = functools.partial(tasks.ctc, input=0, target=1, input_lengths=2, label_lengths=3)
    assert_same_bits(loss_of(chosen, (*named.values(), lengths - 1), model), expected)


@pytest.mark.parametrize(("input", "target"), [(2, 1), (0, 5), (-3, 1)])
def test_index_out_of_range_is_named_in_the_error(input: int, target: int) -> None:
    chosen = functools.partial(tasks.cross_entropy, input=input, target=target)
    with pytest.raises(KeyError, match=r"expected a tuple with an entry at .*a tuple of Tensor, T"):
        loss_of(chosen, (X, Y))
    with pytest.raises(KeyError, match=r"expected a key . ?got|expected a key \d, got 'x', 'y'"):
        loss_of(functools.partial(tasks.cross_entropy, input=0, target=1), {"x": X, "y": Y})


class Pairs(Dataset[Any]):
    """Data set as those of torchvision: an image as a tensor, and a Python int."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return X[index], int(Y[index])


@pytest.mark.parametrize(
    "dataset", [TensorDataset(X, Y), Pairs(), [(X[i], int(Y[i])) for i in range(8)]]
)
def test_data_sets_of_tuples_train_with_built_in_losses(dataset: Any) -> None:
    batch = next(iter(data.Loader(dataset, 8, shuffle=False)))
    expected = loss_of(tasks.cross_entropy, {"x": X, "y": Y})
    assert_same_bits(loss_of(tasks.cross_entropy, batch), expected)


def test_configuration_accepts_indices_of_tuple_entries(tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "def dataset():\n"
        "    y = torch.arange(40) % 3\n"
        "    return TensorDataset(y, torch.zeros(40), torch.eye(4)[y].double())\n"
    )
    configuration = {
        "model": {"name": "mlp", "inputs": 4, "outputs": 3},
        "data": {"name": f"{tmp_path}/model.py:dataset", "held_out": 10},
        "loss": {"name": "cross_entropy", "input": 2, "target": 0},
        "optimizer": {"name": "adamw", "learning_rate": 0.1},
        "epochs": 10,
        "batch_size": 10,
        "compile": False,
        "progress": False,
        "output_dir": str(tmp_path / "run"),
    }
    result = train(load(configuration))
    assert result.eval is not None
    assert result.eval.metrics["accuracy"] == 1.0
