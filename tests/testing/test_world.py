"""Test that checks report settings of torch that a step changes, and restore them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import BaseTorchFunctionMode

from ftrain import testing
from ftrain.core._torch import function_mode_depth
from ftrain.testing._global_state import changes, world

SETTINGS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "default device": lambda: torch.set_default_device("meta"),
    "float32 precision": lambda: torch.set_float32_matmul_precision("medium"),
    "float32 precision of a backend": lambda: setattr(
        torch.backends.cuda.matmul, "allow_tf32", True
    ),
    "oneDNN": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "kernels of attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "cudnn": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "flushing of subnormal floats to zero": lambda: torch.set_flush_denormal(True),
    "print options of torch": lambda: torch.set_printoptions(precision=2, sci_mode=False),
    "print options of numpy": lambda: np.set_printoptions(precision=2),
    "environment variables FTRAIN_A, FTRAIN_B": lambda: os.environ.update(
        FTRAIN_A="new", FTRAIN_B="changed"
    ),
    "environment variables FTRAIN_B": lambda: os.environ.pop("FTRAIN_B", None),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_check_pure_finds_a_changed_setting_and_restores_it(name: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("FTRAIN_B", "was here")

    def step(state: Any, batch: Any) -> Any:
        new = {"w": state["w"] + batch}
        SETTINGS[name]()
        return new, {}

    before = world()
    with pytest.raises(testing.LawViolation) as caught:
        testing.check_pure(step, [torch.ones(2)], state={"w": torch.zeros(2)})
    assert caught.value.summary == f"the call changed the {name.removesuffix(' of a backend')}"
    assert changes(before) == []
    assert torch.get_float32_matmul_precision() == "highest"  # raises if the switches disagree


def test_environment_variables_that_libraries_set_at_first_use_do_not_count_as_changes(
    monkeypatch: Any,
) -> None:
    before = world()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("KMP_INIT_AT_FORK", "FALSE")
    assert changes(before) == []


def test_check_pure_finds_a_function_mode_that_stays_active() -> None:
    mode = BaseTorchFunctionMode()

    def step(state: Any, batch: Any) -> Any:
        mode.__enter__()
        return state + batch, {}

    depth = function_mode_depth()
    try:
        with pytest.raises(testing.LawViolation, match="the call changed the function modes"):
            testing.check_pure(step, [torch.ones(2)], state=torch.zeros(2))
        assert function_mode_depth() == depth + 1
    finally:
        mode.__exit__(None, None, None)
