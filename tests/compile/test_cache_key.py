"""Inductor's cache holds a program of its own for each version of the passes over its graphs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

import ftrain
from ftrain.core import _torch_inductor_split
from ftrain.core.compile import _inductor
from ftrain.core.random import _threefry


def test_cache_key_covers_the_files_of_all_passes_and_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: set[str] = set()

    def read_bytes(path: Path) -> bytes:
        read.add(str(path))
        return b""

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    _inductor._sources.__wrapped__()
    chosen = _inductor.passes(donates=True)
    used = {type(each) for name in chosen if "pass" in name for each in chosen[name].passes}
    assert {each.__name__ for each in used} >= {"MergeEqual", "OneDNNProducts", "ReadBeforeWrite"}
    files = {str(sys.modules[each.__module__].__file__) for each in used}
    assert read >= files | {str(_torch_inductor_split.__file__), str(_threefry.__file__)}


@pytest.mark.inductor
def test_program_of_other_sources_or_another_product_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.arange(7.0)

    def misses() -> int:
        before = counters["inductor"]["fxgraph_cache_miss"]
        ftrain.compile(lambda x: x.sin() * 3.25 - 0.5)(x)
        return int(counters["inductor"]["fxgraph_cache_miss"] - before)

    assert (misses(), misses()) == (1, 0)
    product = _inductor.onednn_product()
    monkeypatch.setattr(_inductor, "onednn_product", lambda: None if product else object())
    assert (misses(), misses()) == (1, 0)
    monkeypatch.setattr(_inductor, "_sources", lambda: "of an earlier version")
    assert (misses(), misses()) == (1, 0)
