"""`WrittenBuffers` names the buffers that a forward pass writes to, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftrain.core._written_buffers import WrittenBuffers

X = torch.randn(4, 3, 5)
STATISTICS = {"mean", "var"}


class Model(nn.Module):
    """Model with two buffers of statistics, and one that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))
        self.register_buffer("count", torch.zeros(()))


def replace(model: Any) -> None:
    model.count = torch.ones(())


def add_a_buffer(model: Any) -> None:
    model.register_buffer("new", torch.ones(()))


WRITES = {
    "nothing": (lambda m: m.mean + m.var, set()),
    "in place": (lambda m: m.count.add_(1), {"count"}),
    "replaced": (replace, {"count"}),
    "added": (add_a_buffer, {"new"}),
    "batch_norm": (lambda m: F.batch_norm(X, m.mean, m.var, training=True), STATISTICS),
    "batch_norm, evaluated": (lambda m: F.batch_norm(X, m.mean, m.var), set()),
    "batch_norm of torch": (
        lambda m: torch.batch_norm(X, None, None, m.mean, m.var, True, 0.1, 1e-5, False),
        STATISTICS,
    ),
    "batch_norm of torch, evaluated": (
        lambda m: torch.batch_norm(X, None, None, m.mean, m.var, False, 0.1, 1e-5, False),
        set(),
    ),
    "instance_norm": (lambda m: F.instance_norm(X, m.mean, m.var), STATISTICS),
    "instance_norm, evaluated": (
        lambda m: F.instance_norm(X, m.mean, m.var, use_input_stats=False),
        set(),
    ),
}


@pytest.mark.parametrize("case", WRITES)
def test_recording_collects_the_names_of_the_written_buffers_only(case: str) -> None:
    write, expected = WRITES[case]
    model, written = Model(), WrittenBuffers()
    with written.recording(model):
        write(model)
    assert written.names == expected


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_recording_finds_the_statistics_that_a_layer_writes_in_training_but_none_in_evaluation(
    norm: type[nn.Module],
) -> None:
    layer = norm(3, track_running_stats=True)  # type: ignore[call-arg]
    written = WrittenBuffers()
    with written.recording(layer.eval()):
        layer(X)
    assert written.names == set()
    with written.recording(layer.train()):
        layer(X)
    assert {"running_mean", "running_var"} <= written.names
    assert ("num_batches_tracked" in written.names) == (norm is nn.BatchNorm1d)


def test_names_of_written_buffers_accumulate_over_calls_and_stay_empty_without_buffers() -> None:
    model, written = Model(), WrittenBuffers()
    for write in (lambda: model.mean.add_(1), lambda: model.var.mul_(2), lambda: None):
        with written.recording(model):
            write()
    assert written.names == STATISTICS
    bare = WrittenBuffers()
    with bare.recording(nn.Linear(1, 1)):
        F.batch_norm(X, torch.zeros(3), torch.ones(3), training=True)
    assert bare.names == set()


def test_writes_to_statistics_that_are_not_buffers_are_not_recorded() -> None:
    model, written = Model(), WrittenBuffers()
    mean: Tensor = torch.zeros(3)
    with written.recording(model):
        F.batch_norm(X, mean, model.var.clone(), training=True)
    assert written.names == set()
