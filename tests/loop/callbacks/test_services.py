"""Test service loggers against fake packages that record their calls."""

from __future__ import annotations

import pathlib
import sys
import types
from typing import Any

import pytest

from ftrain.loop import callbacks
from tests.loop.runs import fit, trainer


class Told(list[Any]):
    """A list of the calls made on it, as (name, arguments, options)."""

    def method(self, name: str, answer: Any = None) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.append((name, args, options))
            return answer

        return call


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    writer = types.SimpleNamespace(
        **{name: told.method(name) for name in ("add_scalar", "flush", "close")}
    )
    tensorboard = types.SimpleNamespace(SummaryWriter=told.method("SummaryWriter", writer))
    run = types.SimpleNamespace(id="abc", log=told.method("log"), finish=told.method("finish"))
    wandb = types.SimpleNamespace(init=told.method("init", run))
    started = types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))
    names = ("set_tracking_uri", "set_experiment", "log_metrics", "end_run")
    mlflow = types.SimpleNamespace(
        start_run=told.method("start_run", started), **{name: told.method(name) for name in names}
    )
    for name, module in (
        ("torch.utils.tensorboard", tensorboard),
        ("wandb", wandb),
        ("mlflow", mlflow),
    ):
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]  # a stand-in
    return told


def options_of(told: Told, name: str) -> list[dict[str, Any]]:
    return [options for called, _, options in told if called == name]


def test_tensorboard_gets_each_row_once_in_an_interrupted_and_resumed_run(
    told: Told, tmp_path: pathlib.Path
) -> None:
    for end in (7, 9):
        logger = callbacks.TensorBoardLogger(tmp_path / "tb")
        fit(trainer(logger, store=tmp_path / "store"), max_steps=end, resume="auto")
    assert options_of(told, "SummaryWriter") == [{"purge_step": None}, {"purge_step": 8}]
    scalars = [args for name, args, _ in told if name == "add_scalar"]
    assert [step for tag, _, step in scalars if tag == "train/loss"] == [3, 6, 7, 9]
    assert [step for tag, _, step in scalars if tag == "eval/accuracy"] == [7, 9]
    assert told[-1][0] == "close"


def test_wandb_logger_continues_the_same_run_after_a_resume(
    told: Told, tmp_path: pathlib.Path
) -> None:
    for end in (7, 9):
        logger = callbacks.WandbLogger("digits", mode="offline")
        fit(trainer(logger, store=tmp_path), max_steps=end, resume="auto")
    first, second = options_of(told, "init")
    assert first == {"project": "digits", "mode": "offline"}
    assert second == {**first, "id": "abc", "resume": "allow"}
    rows = [(options["step"], sorted(args[0])[0]) for name, args, options in told if name == "log"]
    assert rows[:2] == [(3, "epoch"), (6, "epoch")]
    assert options_of(told, "finish") == [{"exit_code": 0}] * 2


def test_mlflow_logger_continues_the_same_run_after_a_resume(
    told: Told, tmp_path: pathlib.Path
) -> None:
    for end in (7, 9):
        logger = callbacks.MLflowLogger("digits", tracking_uri="file:x", run_name="first")
        fit(trainer(logger, store=tmp_path), max_steps=end, resume="auto")
    ids = [options["run_id"] for options in options_of(told, "start_run")]
    assert ids == [None, "abc"]
    rows = [(options["step"], args[0]) for name, args, options in told if name == "log_metrics"]
    assert rows[0][0] == 3
    assert "train/loss" in rows[0][1]
    assert told[-1] == ("end_run", ("FINISHED",), {})


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
def test_callbacks_name_a_missing_package_on_construction(
    module: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]  # import then fails
    with pytest.raises(ImportError, match=r"needs \w+, which is not installed.*pip install"):
        make()


def test_a_failing_service_does_not_fail_the_run(told: Told) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    sys.modules["wandb"].init = refuse  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="WandbLogger raised"):
        result = fit(trainer(callbacks.WandbLogger("digits")), epochs=1)
    assert result.status == "completed"
