"""Skip every test of this folder unless the process runs on the null device."""

from __future__ import annotations

import os
import pathlib

import pytest
import torch

from ftrain.core import _writes
from tests.nullcuda.device import is_null

_HERE = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if is_null():
        return
    skip = pytest.mark.skip(reason="needs the CUDA device that computes nothing (make nullcuda)")
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _values_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not compare the bytes of inputs: kernels that copy and compare them compute nothing."""
    monkeypatch.setattr(_writes, "_can_compare", lambda *_: False)


@pytest.fixture(autouse=True)
def _cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use torch's own kernels for convolutions and recurrent layers, unless cuDNN has stubs too."""
    if not os.environ.get("NC_DNN"):
        monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
