"""Test the needs declared by registered components, built-in or the user's."""

from __future__ import annotations

import inspect
import pathlib
from typing import Any

import pytest
import torch

import ftrain
from ftrain import optim
from ftrain.config import Needs, load, load_run, register, registry
from ftrain.config.run import train
from ftrain.loop import callbacks
from ftrain.optim import schedules
from tests.config.test_build import built, said, user_file


def test_schedule_receives_the_number_of_steps_as_the_declared_argument() -> None:
    @register(
        "schedule", "test-declared", Needs(total_steps="updates", remaining_steps="flat_steps")
    )
    def declared(peak: float, updates: int, flat_steps: int, warmup_steps: int = 0) -> Any:
        return lambda count: torch.tensor([updates, flat_steps, warmup_steps])

    parts = built(schedule={"name": "test-declared", "warmup_steps": 0.34})
    assert parts.schedule is not None
    assert parts.schedule(torch.tensor(0)).tolist() == [9, 6, 3]
    written = built(schedule={"name": "test-declared", "updates": 5, "flat_steps": 2})
    assert written.schedule is not None
    assert written.schedule(torch.tensor(0)).tolist() == [5, 2, 0]


@pytest.mark.parametrize("registered", [True, False])
def test_schedule_without_declaration_receives_total_steps(
    registered: bool, tmp_path: pathlib.Path
) -> None:
    name = user_file(
        tmp_path, "def own(peak, total_steps): return lambda count: total_steps + count"
    )
    named = f"{name}:own"
    if registered:
        found = registry.find("schedule", named, tmp_path, "", "")
        named = register("schedule", "test-undeclared")(found) and "test-undeclared"
    parts = built(
        base=tmp_path,
        model="tests.config.project:Net",
        data="tests.config.project:data",
        schedule=named,
    )
    assert parts.schedule is not None
    assert int(parts.schedule(torch.tensor(0))) == 9


def test_schedule_with_needs_chained_multiplies_the_updates_of_the_optimizer() -> None:
    @register("schedule", "test-chained", Needs(chained=True))
    def halved(factor: float = 0.5) -> optim.GradientTransformation:
        return optim.scale(factor)

    half = built(schedule="test-chained", optimizer={"name": "sgd", "learning_rate": 0.2})
    whole = built(optimizer={"name": "sgd", "learning_rate": 0.1})
    assert half.schedule is None
    batch = next(iter(whole.train.batches()))[0]
    states = [parts.steps.train_step(parts.init_state(), batch)[0] for parts in (half, whole)]
    torch.testing.assert_close(states[0].params, states[1].params)


def test_loss_receives_the_number_of_classes_of_the_data_if_its_needs_declare_it() -> None:
    @register("loss", "test-facts", Needs(facts={"count": "classes", "other": "absent"}))
    def loss_fn(model: Any, batch: Any, count: int, other: int = 3) -> Any:
        return model(batch["x"]).square().mean() * count + other

    @register("loss", "test-required", Needs(facts={"other": "absent"}))
    def required(model: Any, batch: Any, other: int) -> Any:
        return model(batch["x"]).square().mean() * other

    model = {"name": "mlp", "inputs": 64, "outputs": 10}
    assert built(data="digits", model=model, loss="test-facts").loss_fn.keywords == {"count": 10}
    written = built(data="digits", model=model, loss={"name": "test-facts", "count": 2})
    assert written.loss_fn.keywords == {"count": 2}
    message = said(data="digits", model=model, loss="test-required")
    assert (
        "loss.other: expected the name of a value that data source digits reports (classes, "
        "features), got 'absent'" in message
    )


def test_loss_refuses_data_of_more_classes_than_it_declares() -> None:
    @register("loss", "test-few", Needs(max_classes=9))
    def loss_fn(model: Any, batch: Any) -> Any:
        return model(batch["x"]).square().mean()

    model = {"name": "mlp", "inputs": 64, "outputs": 10}
    message = said(data="digits", model=model, loss="test-few")
    assert "loss: test-few expects data of at most 9 classes, got 10 from digits" in message


def test_loss_registered_as_a_factory_is_called_with_its_arguments() -> None:
    @register("loss", "test-builds", Needs(builds=True, facts={"count": "classes"}))
    def power(exponent: int = 2, *, count: int) -> Any:
        return lambda model, batch: (model(batch["x"]) ** exponent).mean() * count

    model = {"name": "mlp", "inputs": 64, "outputs": 10}
    parts = built(data="digits", model=model, loss={"name": "test-builds", "exponent": 4})
    batch = next(iter(parts.train.batches()))[0]
    twin = ftrain.make_steps(parts.model, lambda m, b: (m(b["x"]) ** 4).mean() * 10, optim.sgd(0.1))
    expected = twin.eval_step(parts.init_state(), batch)["loss"]
    assert parts.steps.eval_step(parts.init_state(), batch)["loss"].item() == expected.item()
    message = said(data="digits", model=model, loss={"name": "cached_info_nce", "chunk_size": 0})
    assert "cached_info_nce: chunk_size: expected a whole number of at least 1, got 0" in message


def test_callback_may_declare_a_replacement_of_make_steps() -> None:
    def counted(*arguments: Any, **options: Any) -> ftrain.Steps:
        steps = ftrain.make_steps(*arguments, **options)

        def train_step(state: Any, batch: Any) -> Any:
            state, metrics = steps.train_step(state, batch)
            samples = ftrain.Sum(torch.tensor(len(batch["y"])))
            return state, ftrain.Metrics({**metrics.entries, "samples": samples})

        return steps._replace(train_step=train_step)

    @register("callback", "test-counter", Needs(make_steps=counted))
    class Counter:
        pass

    parts = built(callbacks=["test-counter"])
    batch = next(iter(parts.train.batches()))[0]
    assert int(parts.steps.train_step(parts.init_state(), batch)[1]["samples"]) == 8
    message = said(callbacks=["test-counter", "GradientMonitor"])
    assert (
        "expected at most one callback that replaces make_steps, got test-counter, GradientMonitor"
        in message
    )


@pytest.mark.parametrize("name", ["GradientMonitor", "ftrain.loop.callbacks:GradientMonitor"])
def test_declared_needs_apply_to_a_component_given_by_name_or_import_path(name: str) -> None:
    parts = built(callbacks=[name])
    batch = next(iter(parts.train.batches()))[0]
    assert "grad_norm/layers.0" in parts.steps.train_step(parts.init_state(), batch)[1]


def test_data_source_may_declare_a_function_that_reads_rows_without_target(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ftrain.cli.predict import predict

    content = """
import pathlib
from ftrain.config import Needs, register
from ftrain.data.sources import Data

def inputs(path, fitted=None):
    return torch.tensor([[float(cell)] for cell in path.read_text().split()])

@register("data", "test-lines", Needs(inputs=inputs))
def lines(path: pathlib.Path, fitted=None):
    x = inputs(path)
    return Data({"x": x, "y": 2 * x[:, 0]}, fitted={"target": {"name": "double"}})
"""
    name = user_file(tmp_path, content)
    (tmp_path / "lines.txt").write_text("1 2 3 4")
    config = {
        "imports": [name],
        "model": {"name": "mlp", "inputs": 1, "outputs": 1},
        "data": {"name": "test-lines", "path": str(tmp_path / "lines.txt")},
        "loss": "mse",
        "batch_size": 2,
        "epochs": 1,
        "compile": False,
        "output_dir": str(tmp_path / "run"),
    }
    monkeypatch.chdir(tmp_path)
    train(load(config))
    (tmp_path / "new.txt").write_text("5 6 7")
    run = load_run(tmp_path / "run", overrides=["data.path=new.txt"])
    assert list(predict(run)) == ["double"]
    assert len(predict(run)["double"]) == 3


@pytest.mark.parametrize(
    ("kind", "needs", "expected"),
    [
        (
            "loss",
            Needs(total_steps="batch"),
            "Needs.total_steps: expected a component of the kind schedule, got loss",
        ),
        (
            "model",
            Needs(make_steps=len),
            "Needs.make_steps: expected a component of the kind callback, got model",
        ),
        ("loss", Needs(facts={"btch": "x"}), "got 'btch'. Did you mean batch?"),
    ],
)
def test_needs_that_a_kind_of_component_cannot_declare_are_refused(
    kind: registry.Kind, needs: Needs, expected: str
) -> None:
    def component(model: Any, batch: Any) -> None:
        pass

    with pytest.raises(ValueError, match=expected.replace("?", r"\?")):
        register(kind, "test-refused", needs)(component)
    assert "test-refused" not in registry.names(kind)


def test_registry_contains_the_public_functions_of_the_library() -> None:
    built_in = {name for name in registry.names("schedule") if not name.startswith("test-")}
    simple = {*schedules.__all__} - {"join", "plot_schedule"}
    assert simple | {"reduce_on_plateau"} <= built_in
    classes = {name for name in callbacks.__all__ if inspect.isclass(getattr(callbacks, name))}
    assert classes <= {*registry.names("callback")}
