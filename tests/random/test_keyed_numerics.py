"""Test that functions under `keyed` match torch's functions in distribution and arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftrain.core.random import _key_stream, key
from ftrain.core.random.keyed import keyed
from tests.random._keyed_cases import KEY, draw

N = 20_000

# With a fixed key nothing here is random: a bound is where a right sampler is with probability 1 - 1e-6.
SIGMAS = 4.9


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return the list of drawn masks, in order."""
    drawn: list[Tensor] = []
    bernoulli = _key_stream.KeyStream.bernoulli

    def recorded(*args: Any) -> Tensor:
        drawn.append(bernoulli(*args))
        return drawn[-1]

    monkeypatch.setattr(_key_stream.KeyStream, "bernoulli", recorded)
    return drawn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_scales_kept_values_and_drops_at_the_given_rate(
    p: float, dtype: torch.dtype
) -> None:
    x = torch.full((N,), 3.0, dtype=dtype)
    out = draw(F.dropout, x, p)
    kept = out != 0
    assert out.dtype == dtype
    assert out[kept].eq(x[kept] * (1 / (1 - p))).all()
    assert abs(kept.double().mean() - (1 - p)) < SIGMAS * math.sqrt(p * (1 - p) / N)


def test_dropout_of_rate_0_keeps_and_rate_1_zeroes_all_values() -> None:
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    for drop in (F.dropout, F.alpha_dropout, lambda x, p: F.dropout1d(x[None], p)[0]):
        assert draw(drop, x, 0.0).equal(x)
    assert draw(F.dropout, x, 1.0).equal(torch.zeros(8))
    assert draw(F.alpha_dropout, x, 1.0, training=True).equal(torch.zeros(8))
    assert draw(F.dropout, x, 0.5, training=False) is x
    assert draw(nn.Dropout(0.5).eval(), x) is x
    with pytest.raises(ValueError, match="between 0 and 1"):
        draw(F.dropout, x, 1.5)


def test_dropout_modules_in_eval_mode_or_of_rate_0_draw_no_masks(masks: list[Tensor]) -> None:
    x = torch.ones(4, 6, 8)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True).eval()
    for quiet in (
        encoder,
        nn.Dropout(0.3).eval(),
        nn.LSTM(8, 4, 2, dropout=0.3).eval(),
        nn.Dropout(0),
    ):
        draw(quiet, x)
    draw(F.scaled_dot_product_attention, x, x, x)
    assert not masks


def test_dropout_gradient_equals_the_scaled_mask() -> None:
    x = torch.linspace(-1, 1, 64).requires_grad_()
    out = draw(F.dropout, x, 0.25)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.equal((out != 0) * torch.tensor(1 / 0.75))
    y = x * 1
    out = draw(F.dropout, y, 0.25, inplace=True)
    assert out is y
    assert torch.autograd.grad(out.sum(), x)[0].equal(grad)


def test_dropout_of_a_dropped_infinity_gives_zero_not_nan() -> None:
    out = draw(F.dropout, torch.full((64,), math.inf), 0.5)
    assert set(out.tolist()) == {0.0, math.inf}


@pytest.mark.parametrize(
    ("drop", "shape"),
    [(F.dropout1d, (50, 40, 3)), (F.dropout2d, (50, 40, 2, 3)), (F.dropout3d, (50, 40, 2, 1, 3)),
     (F.feature_alpha_dropout, (50, 40, 2, 3))],
)  # fmt: skip
def test_feature_dropout_drops_whole_channels(
    drop: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    out = draw(drop, torch.ones(shape), 0.3, training=True).flatten(2)
    assert (out == out[..., :1]).all()
    dropped = (out[..., 0] <= 0).double().mean()
    assert abs(dropped - 0.3) < SIGMAS * math.sqrt(0.3 * 0.7 / 2000)


@pytest.mark.parametrize("drop", [F.alpha_dropout, F.feature_alpha_dropout])
def test_alpha_dropout_keeps_mean_and_variance(drop: Callable[..., Tensor]) -> None:
    with keyed(key(8)):  # of one key's first draws, one would decide the other
        x = torch.randn(100, 200, 1)
    out = draw(drop, x, 0.3, training=True)
    assert abs(out.mean()) < SIGMAS / math.sqrt(N)
    # The fourth moment of the mixture is below 6, so the variance's own deviation is below sqrt(5 / n).
    assert abs(out.var() - 1) < SIGMAS * math.sqrt(5 / N)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keep: Tensor, p: float
) -> Tensor:
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1).nan_to_num() * keep / (1 - p)) @ v


@pytest.mark.parametrize("form", ["plain", "causal", "bool", "float", "gqa"])
def test_attention_dropout_matches_float64_attention_with_the_same_mask(
    form: str, masks: list[Tensor]
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, heads, 5, 8) for heads in ((4, 2, 2) if form == "gqa" else (2, 2, 2)))
    allowed = torch.rand(5, 5) > 0.4
    allowed[2] = False  # a query that may look nowhere
    options: dict[str, Any] = {
        "plain": {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": allowed},
        "float": {"attn_mask": torch.where(allowed, 0.5, -math.inf)},
        "gqa": {"enable_gqa": True},
    }[form]
    q.requires_grad_()
    out = draw(F.scaled_dot_product_attention, q, k, v, dropout_p=0.3, **options)
    wide = [t.double() for t in (q, k, v)]
    if form == "gqa":
        wide[1:] = [t.repeat_interleave(2, 1) for t in wide[1:]]
    causal = torch.full((5, 5), -math.inf, dtype=torch.float64).triu(1)
    bias = {
        "causal": causal,
        "bool": torch.where(allowed, 0.0, -math.inf).double(),
        "float": torch.where(allowed, 0.5, -math.inf).double(),
    }.get(form)
    expected = attention(*wide, bias, masks[0], 0.3)
    # Sums of 8 and 5 products in float32, divided by 0.7: below 30 roundings 2^-24 of values under 4.
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
    assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()
    # With a mask that keeps all, torch's own kernel.
    plain = draw(F.scaled_dot_product_attention, q, k, v, dropout_p=1e-30, **options)
    torch.testing.assert_close(
        plain, F.scaled_dot_product_attention(q, k, v, **options), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("weights", [True, False])
def test_multihead_attention_dropout_matches_float64_attention_with_the_same_mask(
    weights: bool, masks: list[Tensor]
) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
    x = torch.randn(3, 5, 8)
    out, attended = draw(module, x, x, x, need_weights=weights, average_attn_weights=False)
    wide = nn.MultiheadAttention(8, 2, batch_first=True).double()
    wide.load_state_dict(module.state_dict())
    q, k, v = F.linear(x.double(), wide.in_proj_weight, wide.in_proj_bias).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
    keep = masks[0].reshape(3, 2, 5, 5)
    mixed = attention(q, k, v, None, keep, 0.3).transpose(1, 2).flatten(-2)
    # As above, and one more product of 8.
    torch.testing.assert_close(out.double(), wide.out_proj(mixed), rtol=0, atol=1e-5)
    assert len(masks) == 1
    assert weights == (attended is not None)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True}, {"batch_first": True}, {"bias": False}, {"proj_size": 3}],
    ids=str,
)
@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_layers_with_negligible_dropout_match_torch(
    kind: Any, options: dict[str, Any], packed: bool
) -> None:
    """At p = 1e-30 no element is dropped and 1 / (1 - p) is 1, but layers run one at a time."""
    if "proj_size" in options and kind is not nn.LSTM:
        pytest.skip("only LSTMs project")
    torch.manual_seed(0)
    kept, plain = kind(4, 6, 3, dropout=1e-30, **options), kind(4, 6, 3, **options)
    plain.load_state_dict(kept.state_dict())
    x: Any = torch.randn(5, 5, 4)
    if packed:
        x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 4, 2, 1]), kept.batch_first)
    start = [torch.randn_like(h) for h in torch.utils._pytree.tree_leaves(plain(x)[1])]
    hx = tuple(start) if kind is nn.LSTM else start[0]
    leaves = torch.utils._pytree.tree_leaves
    for given in ((x,), (x, hx)):
        ours, theirs = leaves(draw(kept, *given)), leaves(plain(*given))
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            # The fused kernel of all layers may sum in another order: 10 roundings of values below 1.
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_recurrent_dropout_is_applied_between_layers(masks: list[Tensor]) -> None:
    torch.manual_seed(0)
    gru, x = nn.GRU(4, 6, 3, dropout=0.3), torch.randn(5, 2, 4)
    out, final = draw(gru, x)
    assert [mask.shape for mask in masks] == [(5, 2, 6)] * 2
    hidden = x
    for layer in range(3):
        one = nn.GRU(4 if layer == 0 else 6, 6)
        names = dict(one.named_parameters())
        one.load_state_dict({n: getattr(gru, n.replace("l0", f"l{layer}")) for n in names})
        if layer:
            hidden = hidden * masks[layer - 1] / 0.7
        hidden, last = one(hidden)
        torch.testing.assert_close(final[layer : layer + 1], last, rtol=0, atol=1e-6)
    torch.testing.assert_close(out, hidden, rtol=0, atol=1e-6)


def test_keyed_functions_follow_autocast_dtypes() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True)
    x = torch.randn(2, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = draw(layer, x), layer(x)
        q = torch.randn(2, 2, 3, 4)
        assert draw(F.scaled_dot_product_attention, q, q, q, dropout_p=0.3).dtype == torch.bfloat16
    assert ours.dtype == theirs.dtype


def test_keyed_complex_uniforms_draw_both_parts() -> None:
    drawn = draw(torch.rand, 4, 500, dtype=torch.complex64)
    assert drawn.dtype == torch.complex64
    assert drawn.shape == (4, 500)
    parts = torch.view_as_real(drawn)
    assert bool(((parts >= 0) & (parts < 1)).all())
    # The spread of a mean of 2000 uniforms is 0.0065.
    assert (parts.mean((0, 1)) - 0.5).abs().max() < SIGMAS * 0.0065


def test_keyed_draws_on_the_meta_device_return_meta_tensors() -> None:
    layer = draw(lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.3, device="meta"))
    assert all(p.is_meta for p in layer.parameters())
    assert draw(layer, torch.empty(4, 2, 8, device="meta")).shape == (4, 2, 8)
    with torch.device("meta"):
        assert draw(torch.rand, 3).is_meta
        assert draw(torch.randperm, 3).is_meta


def test_keyed_factory_functions_accept_torch_options() -> None:
    out = torch.empty(0)
    assert draw(torch.rand, 3, 2, out=out) is out
    assert out.shape == (3, 2)
    assert draw(torch.randn, (3,), requires_grad=True).requires_grad
    assert draw(torch.randn, size=(3,), dtype=torch.float64).dtype == torch.float64
    image = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    like = draw(torch.rand_like, image, memory_format=torch.contiguous_format)
    assert like.is_contiguous()
    assert draw(torch.rand, 2, 3).equal(draw(torch.rand, (2, 3)))
    with pytest.raises(TypeError, match=r"expected layout=torch\.strided"):
        draw(torch.rand, 3, layout=torch.sparse_coo)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_equal_cpu_draws() -> None:
    for call in (
        lambda device: F.dropout(torch.ones(1000, device=device), 0.3),
        lambda device: torch.rand(1000, device=device),
        lambda device: torch.randint(0, 100, (1000,), device=device),
    ):
        before = torch.cuda.get_rng_state()
        assert draw(call, "cuda").cpu().equal(draw(call, "cpu"))
        with keyed(KEY.cuda()):
            assert call("cuda").cpu().equal(draw(call, "cpu"))
        assert torch.cuda.get_rng_state().equal(before)
