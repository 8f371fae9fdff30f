"""Test runs over a fraction of an epoch."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from ftrain.config import ConfigError, load
from ftrain.config.build import build
from ftrain.config.run import train
from tests.loop.runs import STEPS, digest, eval_data, fit, train_data, trainer

DIGITS = {
    "model": {"name": "mlp", "inputs": 64, "outputs": 10},
    "data": {"name": "digits", "held_out": 0.9},
    "schedule": "cosine",
    "compile": False,
    "progress": False,
}


@pytest.mark.parametrize(
    ("epochs", "steps"), [(0.5, 4), (2.5, 18), (2.0, 14), (1 / 7, 1), (0.0, 0)]
)
def test_fit_rounds_fractional_epochs_up_to_whole_steps(epochs: float, steps: int) -> None:
    result = fit(trainer(), epochs=epochs)  # 7 steps per epoch
    assert (result.status, result.step) == ("completed", steps)
    assert digest(result) == digest(fit(trainer(), max_steps=steps))
    if steps:
        assert result.eval is not None
        assert result.eval.step == steps


def test_run_ends_at_fractional_epochs_or_max_steps_whichever_is_first() -> None:
    assert fit(trainer(), epochs=0.5, max_steps=2).step == 2
    assert fit(trainer(), epochs=0.5, max_steps=9).step == 4


def test_fractional_epochs_count_accumulated_steps() -> None:
    assert fit(trainer(accumulate=2), epochs=1.5).step == 6  # 4 steps per epoch


def test_fractional_epochs_need_data_with_a_length() -> None:
    def batches(epoch: int):
        return iter(train_data())

    with pytest.raises(ValueError, match="whole number for data without a length, got 0.5. Write"):
        trainer().fit(STEPS.init_state(0), batches, eval_data(), epochs=0.5)


@pytest.mark.parametrize("epochs", [-0.5, float("nan"), float("inf"), "3", True])
def test_fit_refuses_an_invalid_number_of_epochs(epochs: object) -> None:
    with pytest.raises(ValueError, match="epochs: expected a number of at least 0, got"):
        fit(trainer(), epochs=epochs)


def test_configuration_with_fractional_epochs_ends_its_schedule_with_the_run(
    tmp_path: pathlib.Path,
) -> None:
    config = load({**DIGITS, "epochs": 1.5, "output_dir": str(tmp_path / "run")})
    parts = build(config)
    assert parts.total_steps == 8  # 5 steps per epoch
    assert train(config).step == parts.total_steps
    again = load(tmp_path / "run/config.yaml")
    assert again.epochs == 1.5
    longer = load(tmp_path / "run/config.yaml", ["epochs=1.75", "schedule=null"])
    assert train(longer, resume=True).step == 9


@pytest.mark.parametrize("epochs", [0, -1, float("inf"), "1.5", True])
def test_configuration_refuses_an_invalid_number_of_epochs(epochs: object) -> None:
    with pytest.raises(ConfigError, match="epochs: expected a number above 0, such as 10 or 0.5"):
        load({**DIGITS, "epochs": epochs})


def test_configuration_keeps_whole_epochs_as_integers() -> None:
    assert load({**DIGITS, "epochs": 3.0}).epochs == 3
    assert isinstance(load({**DIGITS, "epochs": 3.0}).epochs, int)


def test_numpy_integers_limit_and_log_a_run_like_those_of_python() -> None:
    expected = digest(fit(trainer(log_every=2, save_every=3), max_steps=5))
    made = trainer(log_every=np.int64(2), save_every=np.int64(3))
    assert digest(fit(made, max_steps=np.int64(5))) == expected
    assert fit(trainer(), epochs=np.float32(0.5)).step == 4
