"""Test the suggestions for keys, values and components that have other names in other trainers."""

from __future__ import annotations

import pathlib
import re
import typing
from typing import Any

import pytest

from ftrain.config import ConfigError, _aliases, load
from ftrain.config.build import build
from ftrain.config.keys import keys
from ftrain.config.registry import KINDS, names
from ftrain.config.run import prepare

MINIMAL: dict[str, Any] = {
    "model": {"name": "mlp", "inputs": 64, "outputs": 10},
    "data": "digits",
    "epochs": 1,
    "compile": False,
}


def choices(key: str) -> set[str]:
    fields = [field for name, field in keys() if name.rpartition(".")[2] == key]
    return {each for field in fields for each in typing.get_args(field.annotation)}


@pytest.mark.parametrize("key", sorted({*_aliases._VALUES} - {"device"}))
def test_each_suggested_value_is_valid_for_its_key(key: str) -> None:
    assert {*_aliases._VALUES[key].values()} <= choices(key)
    assert not {*_aliases._VALUES[key]} & {_aliases._plain(each) for each in choices(key)}


@pytest.mark.parametrize("kind", KINDS)
def test_each_suggested_component_is_registered(kind: Any) -> None:
    table = _aliases._COMPONENTS.get(kind, {})
    assert {*table.values()} <= {*names(kind)}
    assert not {*table} & {_aliases._plain(each) for each in names(kind)}


def test_each_suggested_key_exists_in_the_schema() -> None:
    known = {key for key, _ in keys()}
    for alias, key in _aliases.KEYS.items():
        assert alias not in known
        for each in (
            key.partition(",")[0].partition(": ")[0].replace(" or ", " and ").split(" and ")
        ):
            assert each in known or each.partition(".")[0] in ("optimizer", "schedule"), each


def refused(changes: dict[str, Any], tmp_path: pathlib.Path) -> str:
    options = {**MINIMAL, "output_dir": str(tmp_path / "run"), **changes}
    with pytest.raises(ConfigError) as error:
        with prepare(load(options)):
            pass
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "got 'fp16'. Did you mean 16-mixed?"),
        ({"precision": "BF16"}, "got 'BF16'. Did you mean bf16-mixed?"),
        ({"precision": 16}, "got 16. Did you mean 16-mixed?"),
        ({"device": "gpu"}, "expected a device of this machine, got 'gpu'. Did you mean cuda?"),
        ({"device": "gpu:1"}, "Did you mean cuda:1?"),
        ({"device": 0}, "expected a text, got 0. Did you mean cuda:0?"),
        ({"compile": "yes"}, "expected true or false, got 'yes'. Write true"),
        ({"compile": "false"}, "got 'false'. Write false without the quotes"),
        ({"max_steps": "3"}, "expected a whole number, got '3'. Write 3 without the quotes"),
        (
            {"optimizer": {"learning_rate": "1e-3"}},
            "expected a number, got '1e-3'. Write 1e-3 without the quotes",
        ),
        (
            {"model": {"name": "mlp", "inputs": 64, "outputs": 10, "dropout": "0.1"}},
            "got '0.1'. Write 0.1 without the quotes",
        ),
        ({"loss": "BCEWithLogitsLoss"}, "Did you mean binary_cross_entropy?"),
        ({"schedule": "cosine_with_warmup"}, "Did you mean warmup_cosine?"),
        ({"callbacks": ["ModelCheckpoint"]}, "Did you mean Checkpointing?"),
        ({"checkpoint": {"mode": "maximize"}}, "Did you mean max?"),
        (
            {"early_stopping": {"patience": 2, "monitor": "val_loss"}},
            "early_stopping.monitor: expected a split and a metric, such as 'eval/loss' or "
            "'train/loss', got 'val_loss'. Did you mean 'eval/loss'?",
        ),
        ({"checkpoint": {"monitor": "val_acc"}}, "Did you mean 'eval/accuracy'?"),
        ({"num_train_epochs": 3}, "Write epochs instead"),
    ],
)
def test_error_for_a_name_of_another_trainer_suggests_the_name_in_ftrain(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    assert message in refused(changes, tmp_path)


def test_value_that_resembles_nothing_gets_no_suggestion(tmp_path: pathlib.Path) -> None:
    assert refused({"precision": "quick"}, tmp_path).endswith("got 'quick'. Change the value.")
    assert refused({"epochs": "three"}, tmp_path).endswith("got 'three'. Change the value.")


def test_error_for_an_unknown_device_does_not_list_the_devices_of_torch() -> None:
    with pytest.raises(ConfigError) as error:
        build(load({**MINIMAL, "device": "quantum"}))
    assert re.search(r"got 'quantum'\. Write cpu(, cuda, cuda:1)? or auto[.]$", str(error.value))
