"""Skip every test of this folder unless the process runs on the null device."""

from __future__ import annotations

import pathlib

import pytest

from tests.nullcuda.device import is_null

_HERE = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if is_null():
        return
    skip = pytest.mark.skip(reason="needs the CUDA device that computes nothing (make nullcuda)")
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(skip)
