"""Test service loggers against fake packages that record their calls."""

from __future__ import annotations

import pathlib
import sys
import types
from typing import Any

import pytest

from ftrain.config import Config, load
from ftrain.config.run import train
from ftrain.loop import LoopWarning, callbacks
from tests.loop.runs import fit, trainer


class Calls(list[Any]):
    """List of the calls that a fake package received, as (name, arguments, options)."""

    def method(self, name: str, answer: Any = None) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.append((name, args, options))
            return answer

        return call


WRITES = ("add_scalar", "add_text", "add_hparams", "flush", "close")
VALUES = {"seed": 0, "ema": None, "optimizer": {"name": "sgd", "learning_rate": 0.1}}
FLAT = {"seed": 0, "optimizer.name": "sgd", "optimizer.learning_rate": 0.1}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    writer = types.SimpleNamespace(**{name: calls.method(name) for name in WRITES})
    tensorboard = types.SimpleNamespace(SummaryWriter=calls.method("SummaryWriter", writer))
    run = types.SimpleNamespace(id="abc", log=calls.method("log"), finish=calls.method("finish"))
    wandb = types.SimpleNamespace(init=calls.method("init", run))
    started = types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))
    names = ("set_tracking_uri", "set_experiment", "log_metrics", "log_params", "end_run")
    mlflow = types.SimpleNamespace(
        start_run=calls.method("start_run", started), **{name: calls.method(name) for name in names}
    )
    for name, module in (
        ("torch.utils.tensorboard", tensorboard),
        ("wandb", wandb),
        ("mlflow", mlflow),
    ):
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]  # a stand-in
    return calls


def options_of(calls: Calls, name: str) -> list[dict[str, Any]]:
    return [options for called, _, options in calls if called == name]


def test_tensorboard_gets_each_row_once_in_an_interrupted_and_resumed_run(
    calls: Calls, tmp_path: pathlib.Path
) -> None:
    for end in (7, 9):
        logger = callbacks.TensorBoardLogger(tmp_path / "tb")
        fit(trainer(logger, store=tmp_path / "store"), max_steps=end, resume="auto")
    assert options_of(calls, "SummaryWriter") == [{"purge_step": None}, {"purge_step": 8}]
    scalars = [args for name, args, _ in calls if name == "add_scalar"]
    assert [step for tag, _, step in scalars if tag == "train/loss"] == [3, 6, 7, 9]
    assert [step for tag, _, step in scalars if tag == "eval/accuracy"] == [7, 9]
    assert calls[-1][0] == "close"


def test_wandb_logger_continues_the_same_run_after_a_resume(
    calls: Calls, tmp_path: pathlib.Path
) -> None:
    for end in (7, 9):
        logger = callbacks.WandbLogger("digits", mode="offline")
        fit(trainer(logger, store=tmp_path), max_steps=end, resume="auto")
    first, second = options_of(calls, "init")
    assert first == {"project": "digits", "mode": "offline"}
    assert second == {**first, "id": "abc", "resume": "allow"}
    rows = [(options["step"], sorted(args[0])[0]) for name, args, options in calls if name == "log"]
    assert rows[:2] == [(3, "epoch"), (6, "epoch")]
    assert options_of(calls, "finish") == [{"exit_code": 0}] * 2


def test_mlflow_logger_continues_the_same_run_after_a_resume(
    calls: Calls, tmp_path: pathlib.Path
) -> None:
    for end in (7, 9):
        logger = callbacks.MLflowLogger("digits", tracking_uri="file:x", run_name="first")
        fit(trainer(logger, store=tmp_path), max_steps=end, resume="auto")
    ids = [options["run_id"] for options in options_of(calls, "start_run")]
    assert ids == [None, "abc"]
    rows = [(options["step"], args[0]) for name, args, options in calls if name == "log_metrics"]
    assert rows[0][0] == 3
    assert "train/loss" in rows[0][1]
    assert calls[-1] == ("end_run", ("FINISHED",), {})


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("torch.utils.tensorboard", lambda: callbacks.TensorBoardLogger("x")),
        ("wandb", lambda: callbacks.WandbLogger("x")),
        ("mlflow", lambda: callbacks.MLflowLogger("x")),
        ("matplotlib", lambda: callbacks.Curves("x")),
        ("matplotlib", lambda: callbacks.ImageGrid(lambda state: state, "x")),
    ],
)
def test_constructing_a_logger_without_its_package_raises_with_the_package_name(
    module: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]  # import then fails
    with pytest.raises(ImportError, match=r"needs \w+, which is not installed.*pip install"):
        make()


def refuse(*_: Any, **__: Any) -> Any:
    raise ConnectionError("no network.\nand more lines")


@pytest.mark.parametrize(
    ("module", "function", "make", "remedy"),
    [
        ("wandb", "init", lambda: callbacks.WandbLogger("digits"), "Log in with `wandb login`"),
        ("mlflow", "start_run", lambda: callbacks.MLflowLogger("digits"), "Check tracking_uri"),
        (
            "torch.utils.tensorboard",
            "SummaryWriter",
            lambda: callbacks.TensorBoardLogger("x"),
            "Choose another folder",
        ),
    ],
)
def test_logger_whose_service_refuses_the_run_warns_once_with_the_remedy(
    calls: Calls, module: str, function: str, make: Any, remedy: str
) -> None:
    setattr(sys.modules[module], function, refuse)
    with pytest.warns(LoopWarning) as caught:
        result = fit(trainer(make()), epochs=2)
    assert result.status == "completed"
    (warning,) = [each for each in caught if issubclass(each.category, UserWarning)]
    said = str(warning.message)
    assert "Logger raised ConnectionError: no network; nothing is logged there. " + remedy in said
    assert "NoneType" not in said
    assert not [name for name, *_ in calls if name in ("log", "log_metrics", "add_scalar")]


def test_wandb_logger_passes_the_hyperparameters(calls: Calls, tmp_path: pathlib.Path) -> None:
    for end in (7, 9):
        logger = callbacks.WandbLogger("digits", config=VALUES)
        fit(trainer(logger, store=tmp_path), max_steps=end, resume="auto")
    first, second = options_of(calls, "init")
    assert first == {"project": "digits", "config": VALUES}
    assert second == {**first, "id": "abc", "resume": "allow", "allow_val_change": True}


def test_mlflow_logger_logs_the_hyperparameters_once(calls: Calls, tmp_path: pathlib.Path) -> None:
    for end in (7, 9):
        logger = callbacks.MLflowLogger("digits", hyperparameters=VALUES)
        fit(trainer(logger, store=tmp_path), max_steps=end, resume="auto")
    assert [args for name, args, _ in calls if name == "log_params"] == [(FLAT,)]


def test_tensorboard_shows_the_hyperparameters_beside_the_last_metrics(calls: Calls) -> None:
    result = fit(trainer(callbacks.TensorBoardLogger("x", hyperparameters=VALUES)), epochs=1)
    ((_, (tag, text, step), _),) = [each for each in calls if each[0] == "add_text"]
    assert (tag, step) == ("config", 0)
    assert "    optimizer.learning_rate: 0.1" in text
    ((_, (values, metrics), options),) = [each for each in calls if each[0] == "add_hparams"]
    assert values == FLAT
    assert metrics["hparams/eval/loss"] == result.eval.loss
    assert options == {"run_name": ".", "global_step": 7}


@pytest.mark.parametrize("written", [{}, {"folder": "${run}/tb"}, {"folder": "tb-${name}"}])
def test_configured_tensorboard_logger_gets_folder_and_configuration_of_the_run(
    calls: Calls, tmp_path: pathlib.Path, written: dict[str, str]
) -> None:
    run = tmp_path / "first"
    train(configured(run, {"name": "TensorBoardLogger", **written}))
    (opened,) = [args for name, args, _ in calls if name == "SummaryWriter"]
    default = written.get("folder", "${run}/tensorboard")
    assert opened == (default.replace("${run}", str(run)).replace("${name}", "first"),)
    ((_, (values, _), _),) = [each for each in calls if each[0] == "add_hparams"]
    assert values["optimizer.learning_rate"] == 0.25
    assert values["model.name"] == "mlp"


def test_configured_service_loggers_get_the_name_and_configuration_of_the_run(
    calls: Calls, tmp_path: pathlib.Path
) -> None:
    train(configured(tmp_path / "first", "WandbLogger"))
    (options,) = options_of(calls, "init")
    assert (options["project"], options["dir"]) == ("first", str(tmp_path / "first"))
    assert options["config"]["optimizer"]["learning_rate"] == 0.25
    train(configured(tmp_path / "second", "MLflowLogger"))
    assert ("set_experiment", ("second",), {}) in calls
    ((params,),) = [args for name, args, _ in calls if name == "log_params"]
    assert params["optimizer.learning_rate"] == 0.25


def configured(folder: pathlib.Path, callback: Any) -> Config:
    return load(
        {
            "model": {"name": "mlp", "inputs": 64, "outputs": 10},
            "data": {"name": "digits", "held_out": 0.9},
            "optimizer": {"name": "sgd", "learning_rate": 0.25},
            "max_steps": 2,
            "compile": False,
            "progress": False,
            "callbacks": [callback],
            "output_dir": str(folder),
        }
    )
