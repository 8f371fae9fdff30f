"""Test the selection of columns of a dataset, and the warning for columns of texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ftrain
from ftrain import data, optim
from ftrain.core.errors import RecompileWarning

ROWS = [{"text": f"row {n}", "x": torch.tensor([float(n), 1.0]), "y": n % 2} for n in range(8)]


class Many(list[Any]):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[i] for i in indices]


class WholeBatches:
    def __len__(self) -> int:
        return 8

    def gather(self, indices: torch.Tensor) -> Any:
        return {"x": indices.float()[:, None], "y": indices % 2, "other": indices}


class HuggingFace(list[Any]):
    def select_columns(self, names: list[str]) -> Any:
        return HuggingFace({name: row[name] for name in names} for row in self)


@pytest.mark.parametrize(
    "dataset",
    [
        ROWS,
        Many(ROWS),
        WholeBatches(),
        HuggingFace(ROWS),
        {"x": torch.zeros(8, 2), "y": torch.arange(8), "z": torch.arange(8)},
    ],
    ids=["list", "several at once", "gather", "select_columns", "arrays"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_have_the_selected_columns_only(dataset: Any, workers: int) -> None:
    chosen = data.select(dataset, ["x", "y"])
    loader = data.Loader(chosen, 4, seed=1, workers=workers)
    whole = data.Loader(dataset, 4, seed=1)
    for batch, full in zip(loader, whole, strict=True):
        assert set(batch) == {"x", "y"}
        assert torch.equal(batch["x"], full["x"])


def test_unknown_column_raises_with_the_nearest_name() -> None:
    with pytest.raises(KeyError, match="text, x, y.*got 'txt'. Did you mean 'text'"):
        data.select(ROWS, ["txt"])[0]
    with pytest.raises(KeyError, match="got 'z'"):
        data.select({"x": torch.zeros(2)}, ["z"])


def test_select_refuses_generators_tuples_and_a_single_string() -> None:
    with pytest.raises(TypeError, match=r"got the text 'x'. Write \('x',\)"):
        data.select(ROWS, "x")
    with pytest.raises(TypeError, match="got generator"):
        data.select((row for row in ROWS), ["x"])
    with pytest.raises(TypeError, match="expected samples that are mappings, got tuple"):
        data.select([(1, 2)], ["x"])[0]


def steps() -> ftrain.Steps:
    def loss_fn(model: Any, batch: Any) -> Any:
        return model(batch["x"]).square().mean()

    return ftrain.make_steps(lambda: torch.nn.Linear(2, 1), loss_fn, optim.sgd(0.1))


def trained(dataset: Any) -> int:
    made = steps()
    step = ftrain.compile(made.train_step, backend="eager")
    state = made.init_state(0)
    for batch in data.Loader(dataset, 4, shuffle=False):
        state, _ = step(state, batch)
    return step.n_compiles


def test_recompilation_for_a_column_of_strings_warns_with_its_name_and_the_remedy() -> None:
    expected = (
        r"A text is a constant of the program\. Leave batch\['text'\] out of the batches with "
        r"ftrain\.data\.Loader\(ftrain\.data\.select\(dataset, columns\), \.\.\.\)"
    )
    with pytest.warns(RecompileWarning, match=expected):
        assert trained(ROWS) == 2
    assert trained(data.select(ROWS, ["x", "y"])) == 1


def test_recompilation_for_another_sequence_length_proposes_to_pad_sequences() -> None:
    step = ftrain.compile(lambda x: x + 1, backend="eager")
    step(torch.zeros(4, 13))
    with pytest.warns(RecompileWarning, match="Pad sequences to a multiple.*pad_to_multiple_of=64"):
        step(torch.zeros(4, 17))


def test_recompilation_for_a_smaller_batch_does_not_propose_to_pad_sequences() -> None:
    step = ftrain.compile(lambda x: x + 1, backend="eager")
    step(torch.zeros(4, 13))
    with pytest.warns(RecompileWarning, match="pad or drop the last ragged batch") as caught:
        step(torch.zeros(3, 13))
    assert "Pad sequences" not in str(caught[0].message)
