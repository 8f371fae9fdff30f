"""Test dropout, attention and recurrent layers under `keyed` against torch's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftrain.core.errors import UnkeyedRandomError
from ftrain.core.random import key, keyed, split
from tests.compile.cases import same_bytes
from tests.random._keyed_cases import draw


@pytest.mark.parametrize("training", [False, True])
def test_gradient_of_randomized_leaky_relu_at_zero_is_its_slope_as_in_torch(training: bool) -> None:
    x = torch.tensor([-1.0, 0.0, 0.5], requires_grad=True)
    for rrelu in (F.rrelu, lambda *args, **kwargs: draw(F.rrelu, *args, **kwargs)):
        out = rrelu(x, 0.25, 0.5, training=training)
        (slope,) = torch.autograd.grad(out.sum(), x)
        assert same_bytes(out.detach(), x.detach() * slope)
        assert slope[2] == 1
        assert bool(((slope[:2] >= 0.25) & (slope[:2] < 0.5)).all())
        assert training or slope[:2].tolist() == [0.375] * 2


@pytest.mark.parametrize("train", [True, None, False])
@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_output_of_native_dropout_is_the_scaled_mask(p: float, train: bool | None) -> None:
    x = torch.linspace(1, 2, 1000)
    out, mask = draw(torch.native_dropout, x, p, train)
    scale = 1.0
    if train is not False:
        assert abs(mask.double().mean() - (1 - p)) <= 5 * math.sqrt(p * (1 - p) / 1000)
        scale = 1 / (1 - p) if p < 1 else 0.0
    assert (mask.dtype, out is x) == (torch.bool, False)
    assert torch.allclose(out, x * mask * scale, rtol=1e-6, atol=0)
    assert train is not False or bool(mask.all())


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("name", ["dropout", "alpha_dropout", "feature_dropout", "rrelu"])
def test_dropout_that_needs_no_mask_does_not_change_later_draws(name: str, p: float) -> None:
    def run(training: bool) -> Tensor:
        x = torch.ones(2, 3)
        if name == "rrelu":
            torch.rrelu(x, training=False)
        else:
            getattr(torch, name)(x, p, training)
        return torch.rand(3)

    assert same_bytes(draw(run, True), draw(torch.rand, 3))
    assert same_bytes(draw(run, False), draw(torch.rand, 3))


@pytest.mark.parametrize("shape", [(500, 2), (500, 2, 3), (500, 2, 3, 4)])
def test_feature_dropout_drops_each_channel_of_each_example_separately(shape: Any) -> None:
    for drop in (torch.feature_dropout, torch.feature_alpha_dropout):
        out = draw(drop, torch.ones(shape), 0.5, True).reshape(500, 2, -1)
        kept = out[..., 0] > 0
        assert (out == out[..., :1]).all()
        # Counts of (dropped, dropped), (dropped, kept), ...: 125 each, six deviations of 9.7.
        counts = torch.bincount((kept[:, 0] * 2 + kept[:, 1]).long(), minlength=4)
        assert bool(((counts - 125).abs() < 58).all())


QUERY, KEYS, VALUES = (torch.randn(2, 4, n, 8, generator=torch.Generator().manual_seed(n))
                       for n in (3, 5, 6))  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.7},
        {"is_causal": True},
        {"attn_mask": torch.tensor([[True, False, True, True, False]])},
        {"attn_mask": torch.linspace(-1, 1, 15).view(3, 5), "scale": 0.2},
        {"enable_gqa": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_attention_with_negligible_dropout_equals_attention_of_torch(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    """At p = 1e-30 no weight is dropped, and 1 / (1 - p) is 1."""
    heads = (2, 1) if options.get("enable_gqa") else (4, 4)
    q, k, v = QUERY, KEYS[:, : heads[0]], VALUES[:, : heads[1], :5, :6]
    if "attn_mask" in options and options["attn_mask"].is_floating_point():
        options = {**options, "attn_mask": options["attn_mask"].to(dtype)}
    q, k, v = (x.to(dtype) for x in (q, k, v))
    found = draw(F.scaled_dot_product_attention, q, k, v, dropout_p=1e-30, **options)
    if options.get("enable_gqa"):  # torch's own refuses other numbers of heads for keys and values
        k, v, options = k.repeat_interleave(2, 1), v.repeat_interleave(4, 1), {}
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    assert found.dtype == dtype
    if options == {"is_causal": True}:
        one = draw(F.scaled_dot_product_attention, q[0, 0], k[0, 0], v[0, 0], None, 1e-30, True)
        torch.testing.assert_close(
            one, found[0, 0], rtol=1e-5, atol=1e-2 if k.itemsize == 2 else 1e-6
        )
    # Sums of 8 and 5 products, and in bfloat16 the weights, are rounded otherwise.
    error = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 4e-2}[dtype]
    torch.testing.assert_close(found, expected, rtol=0, atol=error)


def test_attention_without_dropout_is_computed_by_torch_and_draws_nothing() -> None:
    def run(**options: Any) -> tuple[Tensor, Tensor]:
        attended = F.scaled_dot_product_attention(QUERY, KEYS[:, :2], VALUES[:, :2, :5], **options)
        return attended, torch.rand(3)

    for options in ({"enable_gqa": True}, {"enable_gqa": True, "is_causal": True, "scale": 0.3}):
        found, later = draw(run, **options)
        assert same_bytes(found, run(**options)[0])
        assert same_bytes(later, draw(torch.rand, 3))


def test_attention_refuses_a_mask_together_with_is_causal() -> None:
    mask = torch.ones(3, 5, dtype=torch.bool)
    with pytest.raises(RuntimeError, match=r"attn_mask=None with is_causal=True.*is_causal=False"):
        draw(
            F.scaled_dot_product_attention, QUERY, KEYS, VALUES[:, :, :5],
            attn_mask=mask, dropout_p=0.5, is_causal=True,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["dropout_", "alpha_dropout_", "feature_dropout_", "rrelu_"])
def test_in_place_layers_write_what_the_others_return(name: str) -> None:
    options = {} if name == "rrelu_" else {"p": 0.5}
    flag = "training" if name == "rrelu_" else "train"
    for on in (True, False):
        x = torch.linspace(-1, 1, 24).view(2, 3, 4)
        expected = draw(getattr(torch, name[:-1]), x, **options, **{flag: on})
        y = x.clone()
        assert draw(getattr(torch, name), y, **options, **{flag: on}) is y
        assert same_bytes(y, expected)


def test_in_place_layer_that_draws_nothing_takes_input_shared_by_the_rows_of_a_vmap() -> None:
    x = torch.ones(3)

    def run(key: Tensor, train: bool) -> Tensor:
        with keyed(key):
            return torch.dropout_(x, 0.5, train) + torch.rand(3)

    assert torch.vmap(lambda k: run(k, False))(split(key(1), 2)).shape == (2, 3)
    with pytest.raises(UnkeyedRandomError, match=r"dropout with inplace=True.*inplace=False"):
        torch.vmap(lambda k: run(k, True))(split(key(1), 2))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_without_dropout_draw_nothing(kind: Any) -> None:
    for layer in (kind(3, 4, 1), kind(3, 4, 2), kind(3, 4, 2, dropout=0.5).eval()):

        def run(x: Tensor, layer: nn.Module = layer) -> Any:
            return layer(x), torch.rand(3)

        x = torch.ones(2, 1, 3)
        found, later = draw(run, x)
        with torch.random.fork_rng(devices=[]):
            assert same_bytes(found, layer(x))
        assert same_bytes(later, draw(torch.rand, 3))


@pytest.mark.parametrize("training", [False, True])
def test_recurrent_layers_on_the_meta_device_have_the_shapes_of_the_cpu(training: bool) -> None:
    layer, x = nn.LSTM(3, 4, 2, dropout=0.5).train(training), torch.ones(2, 1, 3)
    shapes = [y.shape for y in torch.utils._pytree.tree_leaves(draw(layer, x))]
    found = torch.utils._pytree.tree_leaves(draw(layer.to("meta"), x.to("meta")))
    assert [y.shape for y in found] == shapes
    assert all(y.is_meta for y in found)
