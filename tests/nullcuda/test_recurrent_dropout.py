"""A recurrent layer with dropout does not read the global CUDA generator."""

from __future__ import annotations

import pytest
import torch

from ftrain import random


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_recurrent_module_of_one_layer_passes_dropout_0_to_the_cuda_kernel(monkeypatch, kind):
    from ftrain.core.random import _keyed_layers

    seen = []
    monkeypatch.setattr(torch, kind, lambda *args: seen.append(args))
    layer = _keyed_layers.recurrent(kind)
    x = torch.zeros(5, 2, 4, device="cuda")
    hx = torch.zeros(1, 2, 3, device="cuda")
    states = (hx, hx) if kind == "lstm" else hx
    for batch_first in ((False,), (True,)):
        layer(None, x, states, [hx], True, 1, 0.5, True, False, *batch_first)
    layer(None, x[0], torch.ones(5, dtype=torch.int64), states, [hx], True, 1, 0.5, True, False)
    before = torch.cuda.get_rng_state()
    assert [args[5 if i < 2 else 6] for i, args in enumerate(seen)] == [0.0, 0.0, 0.0]
    assert [len(args) for args in seen] == [9, 9, 9]
    assert torch.cuda.get_rng_state().equal(before)
    assert random.key(0).device.type == "cpu"
