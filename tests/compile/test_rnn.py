"""Recurrent layers compile into one operator, with the bits of the eager layer."""

from __future__ import annotations

import pytest
import torch

from ftrain.core import _torch_recurrent, tree
from ftrain.core.compile import compile
from ftrain.testing import assert_close_norm
from tests.compile.cases import same_bytes
from tests.zoo import lstm_runs_under_autocast

LAYERS = {
    "lstm": (torch.nn.LSTM, {}),
    "lstm two layers, both ways": (
        torch.nn.LSTM,
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
    ),
    "lstm with dropout in evaluation": (torch.nn.LSTM, {"num_layers": 2, "dropout": 0.5}),
    "lstm two layers": (torch.nn.LSTM, {"num_layers": 2}),
    "gru": (torch.nn.GRU, {"num_layers": 2}),
    "gru without biases": (torch.nn.GRU, {"bias": False}),
    "tanh": (torch.nn.RNN, {}),
    "relu": (torch.nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}


def gradient_step(layer, precision=None, how="autograd"):
    """Return a pure function from parameters and input to a recurrent layer's loss and gradients."""

    def loss_of(params, x):
        with torch.autocast("cpu", precision or torch.bfloat16, precision is not None, False):
            y, hidden = torch.func.functional_call(layer, params, (x,))
            return y.float().square().sum() + sum(
                (h.float() ** 3).sum() for h in tree.leaves(hidden)
            )

    def by_autograd(params, x):
        with torch.enable_grad():
            params = {name: p.detach().requires_grad_() for name, p in params.items()}
            loss = loss_of(params, x)
            grads = torch.autograd.grad(loss, list(params.values()))
        return loss.detach(), dict(zip(params, grads, strict=True))

    def by_vjp(params, x):
        with torch.no_grad():
            loss, pull = torch.func.vjp(lambda params: loss_of(params, x), params)
            return loss, pull(torch.ones_like(loss))[0]

    return by_autograd if how == "autograd" else by_vjp


def make(name, length=6):
    cls, options = LAYERS[name]
    layer = cls(5, 7, **options)
    layer.train("evaluation" not in name)
    params = {name: p.detach().clone() for name, p in layer.named_parameters()}
    return layer, params, torch.randn(length, 3, 5)


@pytest.mark.parametrize("how", ["autograd", "vjp"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", LAYERS)
def test_compiled_recurrent_gradients_equal_eager(name, precision, how):
    if "lstm" in name and precision and not lstm_runs_under_autocast(precision):
        pytest.skip(f"oneDNN has no LSTM in {precision} for this processor's instructions")
    layer, params, x = make(name)
    # Eager oneDNN layers do not run under torch.func.vjp: plain autograd is the reference.
    expected = gradient_step(layer, precision)(params, x)
    compiled = compile(gradient_step(layer, precision, how), backend="eager")
    assert same_bytes(compiled(params, x), expected)


@pytest.mark.parametrize("how", ["autograd", "vjp"])
def test_bfloat16_lstm_uses_torchs_own_kernel_where_onednn_has_none(how, monkeypatch):
    """Processors without AVX-512 lack the kernel, and torch's layer cannot run under autocast there."""
    switched = []
    switch = torch._C._set_mkldnn_enabled
    monkeypatch.setattr(_torch_recurrent, "_bfloat16_lstm", lambda: False)
    monkeypatch.setattr(
        torch._C, "_set_mkldnn_enabled", lambda on: (switched.append(on), switch(on))
    )
    layer, params, x = make("lstm two layers")
    compiled = compile(gradient_step(layer, torch.bfloat16, how), backend="eager")
    found = compiled(params, x)
    assert switched[:2] == [False, True]
    # bfloat16 rounds each gate by 2^-9, at six steps of two layers: measured 5e-3 from float32.
    assert_close_norm(found, gradient_step(layer)(params, x), 5e-2)


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_recurrent_forward_pass_equals_eager(name):
    layer, params, x = make(name)

    def run(params, x):
        with torch.no_grad():
            return torch.func.functional_call(layer, params, (x,))

    assert same_bytes(compile(run, backend="eager")(params, x), run(params, x))


def test_lstm_graph_size_does_not_depend_on_sequence_length():
    def size(length):
        layer, params, x = make("lstm", length)
        graph = compile(gradient_step(layer), backend="eager").graph(params, x).graph
        return sum(node.op == "call_function" for node in graph.nodes)

    assert size(2) == size(64)


def test_vmapped_lstm_gradients_equal_single_gradients():
    layer, params, x = make("lstm")
    stacked = {name: torch.stack([p, p / 2]) for name, p in params.items()}
    step = gradient_step(layer, how="vjp")
    both = compile(torch.func.vmap(step, in_dims=(0, None)), backend="eager")(stacked, x)
    for i in range(2):
        row = compile(step, backend="eager")({name: p[i] for name, p in stacked.items()}, x)
        assert same_bytes(tree.map(lambda leaf, i=i: leaf[i], both), row)


@pytest.mark.inductor
def test_inductor_compiled_lstm_gradients_match_eager():
    """Both run one kernel for the layer; inductor's code for the loss may round differently."""
    layer, params, x = make("lstm")
    step = gradient_step(layer)
    # Six time steps of products of length 7: measured 0, and a wrong gate is off by 0.1.
    assert_close_norm(compile(step)(params, x), step(params, x), 1e-5)


def test_recurrent_gradients_that_share_one_buffer_are_copied_to_separate_memory(monkeypatch):
    """cuDNN returns the gradients of the weights as parts of one buffer."""
    layer, params, x = make("lstm two layers")
    expected = gradient_step(layer)(params, x)
    grad = torch.autograd.grad

    def in_one_buffer(*args, **kwargs):
        found = grad(*args, **kwargs)
        parts = torch.cat([g.reshape(-1) for g in found]).split([g.numel() for g in found])
        return tuple(part.view_as(g) for part, g in zip(parts, found, strict=True))

    monkeypatch.setattr(torch.autograd, "grad", in_one_buffer)
    compiled = compile(gradient_step(layer, how="vjp"), backend="eager")
    assert same_bytes(compiled(params, x), expected)
