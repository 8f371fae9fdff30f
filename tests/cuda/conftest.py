"""Skip without a CUDA device; run under deterministic algorithms."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest
import torch

from tests.nullcuda.device import is_null

# cuBLAS reads it at its first product; without it, products raise under deterministic algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_HERE = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    own = [item for item in items if _HERE in item.path.parents]
    for item in own:
        item.add_marker(pytest.mark.cuda)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif item.get_closest_marker("values") and is_null():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device that computes"))


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """Use deterministic algorithms, by which laws 2 and 7 hold on CUDA."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the null device, let the first call of a step find its batch unchanged."""
    if is_null():
        monkeypatch.setattr(torch, "equal", lambda *_: True)
