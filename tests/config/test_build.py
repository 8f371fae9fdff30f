"""Test building the parts of a run: data facts, schedule lengths, errors in user code."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import torch

from ftrain import data as loading
from ftrain import optim
from ftrain.config import ConfigError
from ftrain.config.build import Parts, build
from ftrain.config.load import parse
from ftrain.core import tree
from tests.config.formats import configs, write

HERE = pathlib.Path(__file__).parent
GOOD: dict[str, Any] = {
    "model": "project.py:Net",
    "data": "project.py:data",
    "epochs": 3,
    "batch_size": 8,
}


def built(*overrides: str, base: pathlib.Path = HERE, **changes: Any) -> Parts:
    return build(parse(write({**GOOD, **changes}, "yaml"), base / "run.yaml", overrides))


def said(base: pathlib.Path = HERE, **changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        built(base=base, **changes)
    assert error.value.place.startswith(str(base / "run.yaml"))
    return str(error.value)


def user_file(folder: pathlib.Path, content: str) -> str:
    """Write a user's file; its name differs for each test, as modules stay imported."""
    name = f"own_{folder.name.replace('-', '_')}.py"
    (folder / name).write_text("import torch\n" + content)
    return name


@pytest.mark.parametrize("config", configs())
def test_every_valid_configuration_builds_and_takes_a_step(config: dict[str, Any]) -> None:
    parts = build(parse(write(config, "yaml"), HERE / "run.yaml"))
    state = parts.init_state()
    new_state, metrics = parts.steps.train_step(state, next(iter(parts.train.batches()))[0])
    assert int(new_state.step) == 1
    assert metrics["loss"].isfinite()


def test_initial_state_is_a_function_of_the_seed() -> None:
    digests = [tree.digest(built(f"seed={seed}").init_state()) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_held_out_samples_do_not_depend_on_the_seed() -> None:
    first, second = (
        built(f"seed={seed}", data={"name": "project.py:data", "held_out": 0.25}) for seed in "01"
    )
    assert torch.equal(first.held_out.dataset["x"], second.held_out.dataset["x"])
    assert (len(first.train.dataset["x"]), len(first.held_out.dataset["x"])) == (18, 6)


def test_data_function_with_held_out_argument_splits_its_own_data() -> None:
    parts = built(
        data={"name": "digits", "held_out": 100}, model={"name": "mlp", "inputs": 64, "outputs": 10}
    )
    assert len(parts.held_out.dataset["y"]) == 100
    assert "project.py:pair returns held-out data. Remove held_out" in said(
        data={"name": "project.py:pair", "held_out": 0.5}
    )


def test_evaluation_batches_are_in_order_and_the_last_batch_is_partial() -> None:
    parts = built(data="project.py:pair", eval_batch_size=5)
    assert [len(batch["y"]) for batch in parts.held_out] == [5, 5, 2]


@pytest.mark.parametrize(
    "made",
    [
        "loading.Loader({'x': x}, 4)",
        "loading.Stream([{'x': x}])",
        "range(9)",
        "[x, x]",
        "torch.utils.data.TensorDataset(x, x)",
        "iter_only()",
    ],
)
def test_data_function_may_return_any_dataset(made: str, tmp_path: pathlib.Path) -> None:
    content = f"""
from ftrain import data as loading
class iter_only:
    def __iter__(self): return iter(range(20))
x = torch.arange(12.)
def data(): return {made}
"""
    name = user_file(tmp_path, content)
    parts = built(
        base=tmp_path, model="tests.config.project:Net", data=f"{name}:data", batch_size=2
    )
    assert isinstance(parts.train, (loading.Loader, loading.Stream))
    assert next(iter(parts.train.batches())) is not None


def test_data_reference_in_an_argument_is_replaced_by_the_value_that_the_data_reports(
    tmp_path: pathlib.Path,
) -> None:
    model = {"name": "mlp", "inputs": "${data.features}", "outputs": "${data.classes}"}
    parts = built(data="digits", model=model)
    assert parts.model.init(torch.zeros(2, dtype=torch.int32))[0]["5.weight"].shape == (10, 64)
    model["outputs"] = "${data.clases}"
    message = said(data="digits", model=model)
    assert (
        "model.outputs: expected the name of a value that data source digits reports (classes, features)"
        in message
    )
    assert "got 'clases'. Did you mean classes?" in message


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "cosine"}, optim.cosine(0.1, 9)),
        ({"name": "cosine", "steps": 5}, optim.cosine(0.1, 5)),
        ({"name": "warmup_cosine", "warmup_steps": 0.34}, optim.warmup_cosine(0.1, 3, 9)),
        (
            {"name": "warmup_cosine", "warmup_steps": 2, "end": 0.01},
            optim.warmup_cosine(0.1, 2, 9, 0.01),
        ),
        (
            {"name": "warmup_stable_decay", "warmup_steps": 1, "decay_steps": 0.34},
            optim.warmup_stable_decay(0.1, 1, 5, 3),
        ),
        ({"name": "step", "steps": 2}, optim.step(0.1, 2)),
        (
            {"name": "piecewise_constant", "factors": {"3": 0.5}},
            optim.piecewise_constant(0.1, {3: 0.5}),
        ),
        ({"name": "linear", "end": 0.0}, optim.linear(0.1, 0.0, 9)),
    ],
)
def test_schedule_receives_the_length_of_the_run(schedule: Any, expected: Any) -> None:
    parts = built(schedule=schedule, optimizer={"name": "sgd", "learning_rate": 0.1})
    assert parts.total_steps == 9
    assert parts.schedule is not None
    for count in map(torch.tensor, range(12)):
        assert torch.equal(parts.schedule(count), expected(count))


def test_total_steps_is_the_smaller_of_epochs_and_max_steps() -> None:
    assert built().total_steps == 9
    assert built("max_steps=4").total_steps == 4
    assert built("max_steps=40").total_steps == 9
    assert built("max_steps=40", "epochs=null").total_steps == 40


def test_schedule_over_a_stream_requires_max_steps(tmp_path: pathlib.Path) -> None:
    content = "class Endless:\n    def __iter__(self): return iter([{'x': torch.ones(3)}])\n"
    name = user_file(tmp_path, content)
    model = "tests.config.project:Net"
    message = said(tmp_path, model=model, data=f"{name}:Endless", schedule="cosine")
    assert "Write max_steps" in message


def test_reduce_on_plateau_is_the_last_transformation_of_the_optimizer() -> None:
    parts = built(schedule={"name": "reduce_on_plateau", "patience": 2}, max_grad_norm=1.0)
    assert parts.schedule is None
    assert [type(state).__name__ for state in parts.init_state().opt_state][
        -1
    ] == "ReduceOnPlateauState"


def test_run_with_overfit_batches_trains_and_evaluates_on_them() -> None:
    parts = built("overfit_batches=2", data="project.py:pair")
    assert len(parts.train) == 2
    assert parts.held_out is parts.train
    assert parts.total_steps == 6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"model": "project.py:broken"},
            "project.py:broken raised RuntimeError: the file is not finished (",
        ),
        (
            {"model": "project.py:data"},
            "the model function: expected to return an nn.Module, got dict",
        ),
        (
            {"optimizer": {"name": "sgd", "momentum": 2.0}},
            "optimizer: sgd: momentum: expected a number in [0, 1)",
        ),
        (
            {"batch_size": 100},
            "batch_size: expected at most 24, the number of samples, because last_batch is "
            '"drop" and keeps full batches only, got 100. Change batch_size',
        ),
        (
            {"data": {"name": "project.py:data", "held_out": 100}},
            "data.held_out: held_out=100 of 24 samples",
        ),
        (
            {"data": {"name": "project.py:data", "path": "x"}},
            f"data: file not found: {HERE / 'x'}",
        ),
        ({"device": "quantum"}, "device: expected a device of this machine"),
        ({"device": "meta"}, "device: expected a device of this machine"),
        ({"schedule": {"name": "warmup_cosine", "warmup_steps": 20}}, "schedule: warmup_cosine: "),
    ],
)
def test_component_that_cannot_be_built_raises_with_key_and_reason(
    changes: dict[str, Any], expected: str
) -> None:
    assert expected in said(**changes)


@pytest.mark.parametrize(
    "text", ["24 samples make no batch of 8", "batch_size: a text of the data"]
)
def test_error_raised_by_a_dataset_names_the_data_key_even_if_its_text_names_another(
    text: str, tmp_path: pathlib.Path
) -> None:
    content = f"""
class Refusing:
    def __getitem__(self, index): return torch.zeros(3)
    def __len__(self): raise ValueError({text!r})
def data(): return Refusing()
"""
    name = user_file(tmp_path, content)
    message = said(tmp_path, model="tests.config.project:Net", data=f"{name}:data")
    assert f"data: {text}" in message


def test_pair_of_tensors_from_data_is_refused_as_ambiguous(tmp_path: pathlib.Path) -> None:
    name = user_file(tmp_path, "def pair(): return torch.ones(3), torch.ones(3)\n")
    message = said(tmp_path, model="tests.config.project:Net", data=f"{name}:pair")
    assert 'Return {"x": inputs, "y": targets}' in message


# Data that need no code.


def table(folder: pathlib.Path, rows: int = 20) -> pathlib.Path:
    lines = ["weight,age,kind,price"]
    lines += [f"{i},{i % 3},{'cat' if i % 2 else 'dog'},{10 * i}" for i in range(rows)]
    (folder / "pets.csv").write_text("\n".join(lines) + "\n")
    return folder / "pets.csv"


def test_csv_data_with_a_target_of_words_has_classes(tmp_path: pathlib.Path) -> None:
    table(tmp_path)
    model = {
        "name": "mlp",
        "inputs": "${data.features}",
        "outputs": "${data.classes}",
        "hidden": [],
    }
    data = {"name": "csv", "path": "pets.csv", "target": "kind"}
    parts = built(base=tmp_path, model=model, data=data)
    columns = ["weight", "age", "price"]
    assert parts.facts == {
        "features": 3,
        "columns": columns,
        "classes": 2,
        "names": ["cat", "dog"],
    }
    x = parts.train.dataset["x"]
    assert torch.allclose(x.mean(0), torch.zeros(3), atol=1e-6)
    assert parts.train.dataset["y"].dtype == torch.int64


def test_csv_data_with_a_target_of_numbers_has_a_regression_target(tmp_path: pathlib.Path) -> None:
    table(tmp_path)
    data = {"name": "csv", "path": "pets.csv", "target": "price", "standardize": False}
    parts = built(
        base=tmp_path, model={"name": "mlp", "inputs": 4, "outputs": 1}, data=data, loss="mse"
    )
    assert parts.facts == {"features": 4, "columns": ["weight", "age", "kind=cat", "kind=dog"]}
    weight, _, cat, dog = parts.train.dataset["x"].unbind(1)
    assert torch.equal(cat, weight % 2)
    assert torch.equal(dog, 1 - cat)
    metrics = parts.steps.eval_step(parts.init_state(), next(iter(parts.held_out)))
    assert sorted(metrics) == ["loss", "mae"]


def test_csv_data_with_classes_true_reads_numbers_as_classes(tmp_path: pathlib.Path) -> None:
    table(tmp_path)
    data = {"name": "csv", "path": "pets.csv", "target": "age", "classes": True}
    parts = built(base=tmp_path, model={"name": "mlp", "inputs": 4, "outputs": 3}, data=data)
    assert parts.facts["names"] == ["0", "1", "2"]
    model = {"name": "mlp", "inputs": 4, "outputs": "${data.classes}"}
    message = said(tmp_path, model=model, data={**data, "classes": None})
    expected = (
        "(columns, features, target_mean, target_scale), got 'classes'. Set data.classes: true"
    )
    assert expected in message
    model["outputs"] = 1
    message = said(tmp_path, model=model, data=data, loss="binary_cross_entropy")
    assert "binary_cross_entropy expects data of at most 2 classes, got 3 from csv" in message


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"path": "none.csv", "target": "kind"}, "file not found"),
        (
            {"path": "pets.csv", "target": "knd"},
            "expected a column 'knd', got the columns 'weight', 'age', 'kind', 'price'",
        ),
        (
            {"path": "pets.csv", "target": "kind", "classes": False},
            "expected numbers in the target 'kind', got words. Remove `classes: false`",
        ),
    ],
)
def test_csv_file_that_cannot_be_read_raises_with_the_reason(
    data: dict[str, Any], expected: str, tmp_path: pathlib.Path
) -> None:
    table(tmp_path)
    model = {"name": "mlp", "inputs": 3, "outputs": 2}
    assert expected in said(tmp_path, model=model, data={"name": "csv", **data})


def test_text_data_has_windows_over_the_whole_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "poem.txt").write_text("to be or not to be " * 40)
    data = {"name": "text", "path": "poem.txt", "context": 8}
    parts = built(
        base=tmp_path, model="tests.config.project:Net", data=data, loss="next_token", batch_size=4
    )
    assert next(iter(parts.train)).shape == (4, 9)
    assert (parts.facts["vocabulary"], parts.facts["context"]) == (7, 8)
    predicted = sum(len(batch) * 8 for batch in parts.held_out)
    assert predicted <= 76 < predicted + 9  # each held-out character once
    assert "expected 3,011 characters or more" in said(
        tmp_path, model="tests.config.project:Net", data={**data, "context": 300}
    )
    assert "expected a share of the text" in said(
        tmp_path, model="tests.config.project:Net", data={**data, "held_out": 5}
    )


def test_array_files_are_read_and_split_into_training_and_held_out_rows(
    tmp_path: pathlib.Path,
) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((10, 3), np.float32), y=np.arange(10) % 2)
    parts = built(
        base=tmp_path, model="tests.config.project:Net", data={"name": "arrays", "path": "a.npz"}
    )
    assert len(parts.held_out.dataset["y"]) == 2
    assert "expected a file name that ends in .npz" in said(
        tmp_path, model="tests.config.project:Net", data={"name": "arrays", "path": "a.pkl"}
    )


def test_data_seed_changes_only_the_order_of_the_samples() -> None:
    first, other, same = (built(*changes) for changes in ([], ["data_seed=1"], ["data_seed=0"]))
    batches = [next(iter(each.train))["x"] for each in (first, other, same)]
    assert torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[0], batches[1])
    weights = [each.init_state().params["layers.0.weight"] for each in (first, other)]
    assert torch.equal(*weights)
