"""Tasks in configurations: their loss and evaluation, facts, refusals, and runs that use them."""

from __future__ import annotations

import pathlib

import pytest
import torch

from ftrain import tasks, testing
from ftrain.cli import main
from ftrain.config import ConfigError, load, load_run
from ftrain.config.dump import dump
from ftrain.config.load import parse
from ftrain.config.run import train
from ftrain.core.metrics import Mean
from tests.config.test_build import built, user_file

QUICK = {"compile": False, "progress": False, "epochs": 2, "batch_size": 8}


def test_task_sets_the_loss_and_the_evaluation_of_the_steps() -> None:
    parts = built(task={"name": "image_classification", "label_smoothing": 0.2})
    state, batch = parts.init_state(), next(iter(parts.train))
    model = parts.model.module(state.params, state.buffers)
    metrics = parts.steps.train_step(state, batch)[1]
    smoothed = tasks.cross_entropy(model, batch, label_smoothing=0.2)[0]
    assert torch.allclose(metrics["loss"], smoothed.value)
    evaluated = parts.steps.eval_step(state, batch)
    assert torch.allclose(evaluated["loss"], tasks.cross_entropy(model, batch)[0].value)
    assert set(evaluated) == {"loss", "accuracy", "calibration_error"}
    testing.assert_same_bits(parts.steps_at(0.1).eval_step(state, batch), evaluated)


def test_default_loss_is_cross_entropy_only_without_a_task(tmp_path: pathlib.Path) -> None:
    content = {"model": "mlp", "data": "digits", **QUICK}
    plain, of_task = load(content), load({**content, "task": "image_classification"})
    assert plain.loss is not None
    assert (plain.loss.name, plain.task) == ("cross_entropy", None)
    assert of_task.loss is None
    for config in (plain, of_task):
        assert dump(parse(dump(config), tmp_path / "run.yaml")) == dump(config)


def test_task_receives_the_number_of_classes_of_the_data() -> None:
    task = {"name": "image_classification", "mixup": 1.0}
    parts = built(task=task, data="digits", model={"name": "mlp", "inputs": 64, "outputs": 10})
    _, metrics = parts.steps.train_step(parts.init_state(), next(iter(parts.train)))
    assert bool(metrics["loss"].isfinite())


def test_task_and_loss_together_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"task: expected a task or a loss, got the task retrieval"
    ):
        load({"model": "mlp", "data": "digits", "task": "retrieval", "loss": "mse", **QUICK})


def test_error_for_an_unknown_task_suggests_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'segmentaton'. Did you mean segmentation"):
        built(task="segmentaton")
    with pytest.raises(ConfigError, match=r"task\.dise: unknown argument of segmentation"):
        built(task={"name": "segmentation", "dise": 0.5})


def test_task_function_that_does_not_return_a_task_is_refused(tmp_path: pathlib.Path) -> None:
    name = user_file(tmp_path, "def own(weight=1.0): return weight")
    with pytest.raises(ConfigError, match=r"expected a function that returns a Task, got a float"):
        built(
            base=tmp_path,
            model="tests.config.project:Net",
            data="tests.config.project:data",
            task=f"{name}:own",
        )


def test_run_with_a_task_resumes_evaluates_and_predicts(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{i % 7},{i % 5},{'setosa' if i % 2 else 'virginica'}\n" for i in range(40))
    (tmp_path / "irises.csv").write_text("length,width,species\n" + rows)
    content = {
        "model": {"name": "mlp", "inputs": "${data.features}", "outputs": "${data.classes}"},
        "data": {"name": "csv", "path": str(tmp_path / "irises.csv"), "target": "species"},
        "task": {"name": "text_classification", "label_smoothing": 0.1},
        "output_dir": str(tmp_path / "run"),
        **QUICK,
    }
    result = train(load(content))
    assert result.eval is not None
    assert set(result.eval.metrics) >= {"loss", "accuracy", "f1"}
    run = load_run(tmp_path / "run")
    assert run.config.task is not None
    assert run.config.task.arguments["label_smoothing"] == 0.1
    assert run.predict({"x": torch.zeros(3, 2)}["x"]).shape == (3, 2)
    longer = load(tmp_path / "run" / "config.yaml", ["epochs=3"])
    assert train(longer, resume=True).eval is not None
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert "f1" in capsys.readouterr().out
    out = tmp_path / "predictions.csv"
    table = f"data.path={tmp_path / 'irises.csv'}"
    assert main(["predict", str(tmp_path / "run"), table, "--out", str(out)]) == 0
    assert out.read_text().startswith("species,p(setosa),p(virginica)\n")


def test_configured_language_modeling_trains_a_gpt_on_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "book.txt").write_text("To be, or not to be, that is the question. " * 20)
    sizes = {"context": 8, "layers": 1, "heads": 2, "width": 8}
    content = {
        "model": {"name": "gpt", "vocabulary": "${data.vocabulary}", **sizes},
        "data": {"name": "text", "path": str(tmp_path / "book.txt"), "context": 8},
        "output_dir": str(tmp_path / "run"),
        **{**QUICK, "epochs": None, "max_steps": 3},
    }
    by_task = train(load({**content, "task": "language_modeling"}))
    by_loss = train(load({**content, "loss": "next_token"}), overwrite=True)
    assert by_task.eval is not None
    assert by_loss.eval is not None
    assert by_task.eval.loss == pytest.approx(by_loss.eval.loss, rel=1e-6)
    assert set(by_task.eval.metrics) == {"loss", "perplexity", "accuracy"}


def test_task_of_a_users_own_file_is_built_with_its_arguments(tmp_path: pathlib.Path) -> None:
    name = user_file(
        tmp_path,
        "from ftrain import tasks\n"
        "def own(factor=1.0):\n"
        "    def loss_fn(model, batch): return factor * model(batch['x']).square().mean()\n"
        "    return tasks.Task(loss_fn, loss_fn, ())\n",
    )
    parts = built(
        base=tmp_path,
        model="tests.config.project:Net",
        data="tests.config.project:data",
        task={"name": f"{name}:own", "factor": 3.0},
    )
    state, batch = parts.init_state(), next(iter(parts.train))
    model = parts.model.module(state.params, state.buffers)
    loss = parts.steps.eval_step(state, batch)
    assert torch.allclose(loss["loss"], 3 * model(batch["x"]).square().mean())
    assert not isinstance(loss.entries["loss"], Mean) or float(loss.entries["loss"].weight) == 1
