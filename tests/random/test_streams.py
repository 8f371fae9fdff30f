"""Test that a key keeps its draws from release to release: masks, initial weights and samples.

A run that is resumed by a later release goes on with the same dropout masks, and a published seed gives
the same initial weights. `streams.json` holds a weighted sum of each result; `python -m
tests.random.test_streams` writes it anew, which only a deliberate change of the streams may need.
"""

from __future__ import annotations

import json
import random as python
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import ftrain
from ftrain import random
from ftrain.core.random import _families, keyed
from tests.random import test_operator_mode as by_operator
from tests.random._keyed_cases import CASES, X, draw

STORED = Path(__file__).with_name("streams.json")
KEY = random.key(2026)


def _values(low: float, high: float, count: int = 2000) -> Tensor:
    """Return numbers whose logarithms are equally spaced."""
    return torch.logspace(low, high, count, dtype=torch.float64)


def _counts() -> tuple[Tensor, Tensor]:
    count, prob = _values(0, 6, 60).floor(), torch.linspace(0.003, 0.997, 50, dtype=torch.float64)
    return count.repeat_interleave(50), prob.repeat(60)


#: Samplers by rejection, over parameters that take each of their branches.
FAMILIES: dict[str, Callable[[], Tensor]] = {
    "gamma": lambda: _families.gamma(KEY, (1,), _values(-1.5, 6)),
    "gamma of a small parameter": lambda: _families.gamma(KEY, (2,), _values(-3, 0)),
    "dirichlet": lambda: _families.dirichlet(KEY, (3,), _values(-1, 3).reshape(-1, 5)),
    "poisson": lambda: _families.poisson(KEY, (4,), _values(-2, 1)),
    "poisson of a large rate": lambda: _families.poisson(KEY, (5,), _values(1, 8)),
    "binomial": lambda: _families.binomial(KEY, (6,), *_counts()),
    "von Mises": lambda: _families.von_mises(KEY, (7,), _values(-4, 5)),
    "von Mises of a small concentration": lambda: _families.von_mises(KEY, (8,), _values(-20, -5)),
}


class NumpyLayer(nn.Module):
    """A layer that draws its weights from the global generators of NumPy and of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(numpy.random.uniform(-1, 1, (40, 50))))
        self.bias = nn.Parameter(torch.tensor([python.uniform(-1, 1) for _ in range(50)]))


#: Models whose initial weights belong to the key.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "stock layers": lambda: nn.Sequential(nn.Linear(40, 50), nn.GRU(50, 9), nn.Embedding(30, 9)),
    "weights by NumPy": NumpyLayer,
}


def _by_operator(call: Callable[[], Any]) -> Any:
    with by_operator.operators(KEY):
        return call()


def _in_model(case: Any) -> Any:
    with keyed(KEY):
        return case.run(case.params, X)


STREAMS: dict[str, Callable[[], Any]] = {
    **{f"keyed {case.name}": lambda case=case: _in_model(case) for case in CASES},
    **{
        f"operator {name}": lambda call=call: _by_operator(call)
        for name, (call, _, _) in by_operator.CASES.items()
    },
    **{f"family {name}": call for name, call in FAMILIES.items()},
    **{
        f"model of {name}": lambda of=of: ftrain.bind(of).init(KEY)[0]
        for name, of in MODELS.items()
    },
}


def summary(output: Any) -> list[list[Any]]:
    """Return dtype, shape, weighted sum and weighted sum of absolute values of each tensor."""
    found = []
    for leaf in tree_leaves(output):
        values = leaf.detach().to(torch.float64).flatten()
        weights = (torch.arange(len(values)) * 37 % 101 + 1).to(torch.float64) / 101
        sums = float(values @ weights), float(values.abs() @ weights)
        found.append([str(leaf.dtype), list(leaf.shape), *sums])
    return found


@pytest.mark.parametrize("name", STREAMS)
def test_a_key_draws_what_it_drew_in_earlier_releases(name: str) -> None:
    stored = json.loads(STORED.read_text())[name]
    found = summary(STREAMS[name]())
    assert [leaf[:2] for leaf in found] == [leaf[:2] for leaf in stored]
    for (dtype, _, total, _), (_, _, expected, size) in zip(found, stored, strict=True):
        # Kernels of another processor round otherwise; one other mask or sample is off by more than
        # 1 / 2000 of the sum in the larger tensors, and by more in the others.
        rounding = {"torch.bfloat16": 1e-2, "torch.float16": 1e-3}.get(dtype, 2e-6)
        assert abs(total - expected) <= rounding * size, (total, expected)


def test_file_of_recorded_draws_has_exactly_one_entry_for_each_tested_draw() -> None:
    assert set(json.loads(STORED.read_text())) == set(STREAMS)


def test_recorded_summary_of_a_random_mask_changes_if_one_element_changes() -> None:
    mask = draw(torch.nn.functional.dropout, torch.ones(2000), 0.5)
    other = mask.clone()
    other[1234] = 2.0 - other[1234]
    (first,), (second,) = summary(mask), summary(other)
    assert abs(first[2] - second[2]) > 2e-6 * first[3]


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(summary(call()))}" for name, call in STREAMS.items()]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    sys.exit(0)
