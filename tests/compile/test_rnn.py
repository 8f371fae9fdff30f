"""Recurrent layers compile into one operator, with the bits of the eager layer."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch._subclasses import FakeTensorMode

from ftrain.core import _torch_recurrent, tree
from ftrain.core.compile import _rnn, compile
from ftrain.testing import assert_close_norm, assert_same_bits
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


def passed(*args, **kwargs):
    return args, kwargs


def call_of(device, layers, dropout, training):
    """Return the arguments of an LSTM as `torch._VF.lstm` takes them."""
    shapes = [((28, 7 if i else 5), (28, 7), (28,), (28,)) for i in range(layers)]
    weights = [torch.zeros(shape, device=device) for of_layer in shapes for shape in of_layer]
    hx = tuple(torch.zeros(layers, 3, 7, device=device) for _ in range(2))
    x = torch.ones(6, 3, 5, device=device)
    return x, hx, weights, True, layers, dropout, training, False, False


@pytest.mark.parametrize(
    ("device", "layers", "dropout", "training", "unchanged"),
    [
        ("cpu", 2, 0.5, True, True),
        ("cpu", 1, 0.5, True, True),
        ("cpu", 2, 0.5, False, False),
        ("cpu", 2, 0.0, True, False),
        ("cuda", 2, 0.5, True, True),
        ("cuda", 1, 0.5, True, False),  # dropout acts between layers
    ],
)
def test_recurrent_layer_with_active_dropout_is_left_to_torch(
    device, layers, dropout, training, unchanged, monkeypatch
):
    monkeypatch.setitem(_rnn.KINDS, passed, "lstm")
    with FakeTensorMode():  # has devices that this machine does not have
        args = call_of(device, layers, dropout, training)
        found = _rnn.recurrent_layer(passed, *args)
    assert (found == (args, {})) is unchanged
    assert unchanged or [part.shape[-1] for part in found] == [7, 7, 7]


def test_packed_sequences_are_left_to_torch():
    packed = (torch.ones(6, 5), torch.ones(2), (torch.zeros(1, 3, 7),), [torch.ones(1)], True)
    assert _rnn.recurrent_layer(passed, *packed, n=1) == (packed, {"n": 1})


@pytest.mark.parametrize("grad_mode", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_recurrent_operator_uses_the_kernel_of_training_only_if_a_gradient_is_taken(
    grad_mode, requires_grad, monkeypatch
):
    layers = []
    apply = _rnn._apply
    monkeypatch.setattr(
        _rnn, "_apply", lambda layer, *args: layers.append(layer) or apply(layer, *args)
    )
    layer, _, x = make("lstm")
    layer.requires_grad_(requires_grad)
    func, args = torch._VF.lstm, call_of("cpu", 1, 0.0, True)
    with torch.set_grad_enabled(grad_mode):
        _rnn.recurrent_layer(func, x, args[1], layer._flat_weights, *args[3:])
    (options,) = layers
    assert json.loads(options)[-1] is (grad_mode and requires_grad)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [torch.nn.RNN, torch.nn.GRU])
def test_recurrent_layer_under_autocast_returns_the_dtype_and_bits_of_the_plain_one(
    kind, precision
):
    layer = kind(3, 4, num_layers=2)
    x = torch.randn(2, 5, 3)
    for start in (None, torch.randn(2, 5, 4), torch.randn(2, 5, 4).to(precision)):

        def run(x, start=start):
            with torch.autocast("cpu", precision):
                return layer(x, start)

        assert_same_bits(compile(run, backend="eager")(x), tuple(t.detach() for t in run(x)))


OPTIONS = [
    options
    for options in itertools.product(
        ["lstm", "gru", "rnn_tanh"],
        [1, 2],
        [False, True],
        [False, True],
        ["", "bfloat16", "float16"],
    )
    if options[0] != "lstm" or options[-1] != "float16"
]


def test_fake_recurrent_operator_has_shapes_dtypes_and_strides_of_the_kernels():
    """The kind, the layers, both ways, batch first, and the dtype of autocast."""
    for kind, n, both, first, autocast in OPTIONS:
        if kind == "lstm" and autocast and not lstm_runs_under_autocast(torch.bfloat16):
            continue
        cls = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN}[kind]
        layer = cls(5, 7, n, bidirectional=both, batch_first=first)
        weights = [weight.detach() for weight in layer._flat_weights]
        start = [torch.zeros(n * (1 + both), 3, 7)] * (1 + (kind == "lstm"))
        x = torch.ones((3, 6, 5) if first else (6, 3, 5))
        options = json.dumps(_rnn._Layer(kind, True, n, 0.0, True, both, first, autocast, False))
        real = torch.ops.ftrain.rnn(x, start, weights, options)
        grads = [torch.ones_like(part) for part in real]
        pulled = torch.ops.ftrain.rnn_backward(grads, x, start, weights, options)
        with FakeTensorMode() as mode:
            fx, *fakes = [mode.from_tensor(t) for t in (x, *start, *weights, *grads)]
            fs, fw = fakes[: len(start)], fakes[len(start) : len(start) + len(weights)]
            fake = torch.ops.ftrain.rnn(fx, fs, fw, options)
            fake_pulled = torch.ops.ftrain.rnn_backward(fakes[-len(grads) :], fx, fs, fw, options)
        for a, b in zip([*real, *pulled], [*fake, *fake_pulled], strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride()), (
                kind,
                autocast,
            )
