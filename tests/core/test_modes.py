"""Modes pass all arguments on: a torch call gives the same bits inside each of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from ftrain import testing
from ftrain.core import _torch, random
from ftrain.core._gated import Gated
from ftrain.core._torch_fake_ranks import Traffic, _Counter
from ftrain.core._write_line import WriteWatch
from ftrain.core._written_buffers import _Normalized
from ftrain.core.compile._rewrites import Rewrites
from ftrain.core.compile._untraceable import Calls
from ftrain.core.cost import _kernels
from ftrain.core.random._keyed_operators import OpaqueOperators

MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "below": _torch._Below,
    "gates": lambda: Gated(torch.tensor(True)),
    "kernels": lambda: _kernels._Mode([]),
    "keyed": lambda: random.keyed(random.key(0)),
    "normalized": _Normalized,
    "opaque operators": OpaqueOperators,
    "rewrites": lambda: Rewrites(Calls()),
    "traffic": lambda: _Counter(Traffic(2)),
    "writes": lambda: WriteWatch([]),
}
X = torch.linspace(-1, 1, 6).reshape(2, 3)
CALLS: dict[str, Callable[[], Tensor]] = {
    "keyword": lambda: torch.add(X, X, alpha=2),
    "dtype": lambda: X.sum(0, dtype=torch.float64),
    "no tensor": lambda: torch.full((2,), 1.0, dtype=torch.float64),
    "out": lambda: torch.exp(X, out=torch.empty(2, 3)),
    "no keyword": lambda: X.mul(X),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("mode", MODES)
def test_torch_call_with_keyword_arguments_gives_the_same_bits_inside_each_mode_of_ftrain(
    mode: str, call: str
) -> None:
    expected = CALLS[call]()
    with MODES[mode]():
        found = CALLS[call]()
    testing.assert_same_bits(found, expected)
    assert found.dtype == expected.dtype
