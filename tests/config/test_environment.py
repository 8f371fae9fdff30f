"""Test the settings of the process during a run, and that they are restored after it."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from ftrain.config import load
from ftrain.config._environment import environment
from tests.config.tiny import configured


def test_an_interrupt_while_inductor_is_imported_is_not_replaced_by_an_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.use_deterministic_algorithms` imports inductor; the import cannot be repeated."""
    calls: list[Any] = []

    def importing(*_: Any, **__: Any) -> None:
        calls.append(None)
        if len(calls) == 1:
            raise KeyboardInterrupt
        raise AttributeError("module 'sympy' has no attribute 'printing'")

    config = load(configured(tmp_path))
    monkeypatch.setattr(torch, "use_deterministic_algorithms", importing)
    with pytest.raises(KeyboardInterrupt), environment(config):
        pass


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_algorithms_are_restored_after_a_run(
    deterministic: bool, tmp_path: pathlib.Path
) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with environment(load(configured(tmp_path), [f"deterministic={str(deterministic).lower()}"])):
        assert torch.are_deterministic_algorithms_enabled() == (deterministic or before)
    assert torch.are_deterministic_algorithms_enabled() == before
