"""Checks report settings of torch that a step changes, and restore them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ftrain import testing
from ftrain.testing._world import changes, world

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
}


@pytest.mark.parametrize("name", SETTINGS)
def test_check_pure_finds_a_changed_setting_and_restores_it(name: str) -> None:
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
