"""Deep copies of traced tensors share the fake mode of the trace.

A copy of the mode holds copies of weak references to storages. Such a copy is freed without having been
counted, which corrupts the heap (torch 2.13).
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import ftrain
from tests.compile.cases import same_bytes


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the list of weak references that were copied, which should stay empty."""
    found: list[object] = []
    monkeypatch.setattr(
        StorageWeakRef,
        "__deepcopy__",
        lambda self, memo: found.append(self) or self,
        raising=False,
    )
    return found


class Cloned(nn.Module):
    """Model that copies a layer with parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.BatchNorm1d(3)
        first.running_mean.note = ["kept"]  # type: ignore[union-attr]
        self.layers = nn.ModuleList([first, copy.deepcopy(first), copy.deepcopy(first)])
        nn.init.normal_(self.layers[1].weight)
        self.layers[1].running_var.mul_(2)
        mean = self.layers[2].running_mean
        assert mean is not first.running_mean
        assert mean.note == ["kept"]
        assert mean.note is not first.running_mean.note  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.parametrize("model", [Cloned, transformer])
def test_tracing_the_init_of_a_model_that_deep_copies_layers_copies_no_weak_references(
    model: type[nn.Module], copied: list[object]
) -> None:
    steps = ftrain.make_steps(model, lambda model, x: model(x).mean(), ftrain.optim.sgd(0.1))
    one = ftrain.compile(steps.init_state, backend="eager")
    every = ftrain.compile(torch.vmap(steps.init_state), backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_bytes(one(torch.tensor(1)), steps.init_state(1))
        ensemble = every(torch.arange(2))
    assert same_bytes(ftrain.tree.map(lambda x: x[1], ensemble), steps.init_state(1))
    assert not copied


def chosen(p: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return ftrain.cond(p, lambda x: (x, x.sum()), lambda x: (x.flip(0), torch.tensor(3.0)), x)


def test_deep_copy_of_a_traced_graph_copies_no_weak_references(copied: list[object]) -> None:
    inputs = torch.tensor(False), torch.ones(2)
    graph = copy.deepcopy(ftrain.compile(chosen, backend="eager").graph(*inputs))
    assert same_bytes(tuple(graph(*inputs, torch.tensor(3.0))), chosen(*inputs))
    assert not copied


@pytest.mark.inductor
def test_compiling_a_graph_with_constants_in_branches_copies_no_weak_references(
    copied: list[object],
) -> None:
    assert ftrain.compile(chosen)(torch.tensor(False), torch.ones(2))[1] == 3
    assert not copied
