"""Test functional losses against transformers, their errors, mixing, masks, memory, and use in steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import optim
from ftrain.tasks import functional as loss

seeds = st.integers(0, 10_000)


@settings(max_examples=10)
@given(seed=seeds)
def test_causal_lm_equals_the_loss_of_transformers(seed: int) -> None:
    utils = pytest.importorskip(
        "transformers.loss.loss_utils", reason="transformers is not installed"
    )
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 6, 9, generator=draws)
    labels = torch.randint(0, 9, (2, 6), generator=draws)
    labels[0, 3:] = -100
    expected = utils.ForCausalLMLoss(logits, labels, vocab_size=9)
    assert torch.allclose(loss.causal_lm(logits, labels).value, expected, rtol=1e-6)
    expected = utils.ForMaskedLMLoss(logits, labels, vocab_size=9)
    assert torch.allclose(loss.masked_lm(logits, labels).value, expected, rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 0, 2])
def test_token_weights_of_causal_lm_apply_to_the_predicted_tokens(chunk_size: int | None) -> None:
    states, head, labels = torch.randn(2, 4, 3), torch.randn(7, 3), torch.randint(0, 7, (2, 4))
    weights = torch.rand(2, 4)
    if chunk_size is None:
        found = loss.causal_lm(states @ head.T, labels, row_weights=weights)
    else:
        found = loss.chunked_causal_lm(
            states, head, labels, chunk_size=chunk_size, row_weights=weights
        )
    each = nn.functional.cross_entropy(
        (states @ head.T)[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none"
    )
    assert torch.allclose(found.total, (each * weights[:, 1:]).sum())
    assert torch.allclose(found.weight, weights[:, 1:].sum())


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("chunk_size", [0, 4, 1000])
def test_chunked_causal_lm_trains_a_head_like_causal_lm_over_micro_batches(
    chunk_size: int, compiled: bool
) -> None:
    def chunked(model: Any, batch: Tensor) -> Any:
        return loss.chunked_causal_lm(
            model.embed(batch.clamp(min=0)), model.head, batch, chunk_size=chunk_size
        )

    def whole(model: Any, batch: Tensor) -> Any:
        return loss.causal_lm(model.head(model.embed(batch.clamp(min=0))), batch)

    batch = torch.randint(0, 11, (4, 7), generator=torch.Generator().manual_seed(1))
    batch[0, 1:] = -100  # a micro-batch of nothing
    batch[3, 5:] = -100
    results = []
    for loss_fn, accumulate in ((chunked, 4), (whole, 1)):
        steps = ftrain.make_steps(Tiny, loss_fn, optim.sgd(0.5), accumulate=accumulate)
        step = ftrain.compile(steps.train_step, backend="eager") if compiled else steps.train_step
        state, metrics = step(steps.init_state(0), batch)
        results.append((metrics["loss"], *ftrain.tree.leaves(state.params)))
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, rtol=1e-6, atol=1e-7)


def saved_bytes(loss_fn: Any, *tensors: Tensor) -> int:
    """Return the bytes of all tensors that the backward pass of a loss keeps."""
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        alive = loss_fn(*tensors)
    assert alive.requires_grad
    return sum(kept.values())


def test_chunked_causal_lm_keeps_no_logits_for_its_backward_pass() -> None:
    hidden, head = torch.randn(2, 65, 4, requires_grad=True), torch.randn(500, 4)
    labels = torch.randint(0, 500, (2, 65))
    logits = 2 * 64 * 500 * 4
    whole = saved_bytes(lambda x: loss.causal_lm(x @ head.T, labels).total, hidden)
    chunked = saved_bytes(
        lambda x: loss.chunked_causal_lm(x, head, labels, chunk_size=16).total, hidden
    )
    assert whole > logits
    assert chunked < logits / 8


def test_info_nce_has_a_gradient_for_a_learned_temperature() -> None:
    log_temperature = torch.zeros((), requires_grad=True)
    found = loss.info_nce(torch.eye(3), torch.eye(3), temperature=log_temperature.exp())
    (gradient,) = torch.autograd.grad(found.value, log_temperature)
    assert gradient > 0  # a lower temperature separates these pairs better


@settings(max_examples=10)
@given(seed=seeds, n=st.integers(1, 4), padding=st.integers(1, 3))
def test_masked_pairs_are_not_negatives_of_other_pairs(seed: int, n: int, padding: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    q, d = torch.randn(2, n + padding, 3, dtype=torch.float64, generator=draws).requires_grad_()
    mask = torch.arange(n + padding) < n
    found, expected = loss.info_nce(q, d, mask=mask), loss.info_nce(q[:n], d[:n])
    assert torch.allclose(found.value, expected.value, rtol=1e-12)
    assert int(found.weight) == n
    labels = torch.arange(n + padding) // 2
    found = loss.supervised_contrastive(q, labels, mask=mask)
    expected = loss.supervised_contrastive(q[:n], labels[:n])
    assert torch.allclose(found.total, expected.total, rtol=1e-12)
    assert torch.equal(found.weight, expected.weight)
    none = torch.zeros_like(mask)
    for empty in (
        loss.info_nce(q, d, mask=none),
        loss.supervised_contrastive(q, labels, mask=none),
    ):
        (gradient,) = torch.autograd.grad(empty.total, q)
        assert (empty.total.item(), empty.weight.item()) == (0.0, 0.0)
        assert not gradient.any()


def test_info_nce_documents_without_a_query_are_negatives() -> None:
    q, d = torch.eye(2), torch.eye(2)
    more = torch.cat([d, torch.tensor([[1.0, 1.0]])])
    one_way = loss.info_nce(q, more, symmetric=False, temperature=1.0)
    assert one_way.value > loss.info_nce(q, d, symmetric=False, temperature=1.0).value
    scores = torch.tensor([1.0, 0.0, 0.5**0.5])
    assert torch.allclose(one_way.value, scores.logsumexp(0) - 1)


def test_sequence_log_probs_equal_minus_the_causal_loss_of_each_text() -> None:
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    labels[0, 3:] = -100
    expected = [-loss.causal_lm(logits[i : i + 1], labels[i : i + 1]).total for i in range(3)]
    assert torch.allclose(loss.sequence_log_probs(logits, labels), torch.stack(expected))


@pytest.mark.parametrize("mix", [loss.mixup, loss.cutmix])
@settings(max_examples=20)
@given(seed=st.integers(0, 1000), n=st.integers(1, 5), alpha=st.sampled_from([0.2, 1.0, 5.0]))
def test_mixup_and_cutmix_mix_labels_in_the_same_proportion_as_inputs(
    mix: Any, seed: int, n: int, alpha: float
) -> None:
    key, x = ftrain.random.key(seed), torch.zeros(n, 1, 6, 4)
    y = torch.arange(n)
    x += y.reshape(n, 1, 1, 1)
    inputs, labels = mix(key, x, y, alpha=alpha, classes=n)
    assert inputs.shape == x.shape
    assert torch.allclose(labels.sum(1), torch.ones(n))
    # Each image has its class in every pixel, so the mean of its pixels is the mean of its labels.
    assert torch.allclose(inputs.mean((1, 2, 3)), labels @ y.to(x.dtype), atol=1e-5)
    again = mix(key, x, y, alpha=alpha, classes=n)
    assert ftrain.tree.digest(again) == ftrain.tree.digest((inputs, labels))
    soft = mix(key, x, torch.eye(n), alpha=alpha)
    assert torch.equal(soft[1], labels)


def test_mixup_shares_follow_the_beta_distribution() -> None:
    x, y = torch.eye(2), torch.arange(2)
    shares = [
        float(loss.mixup(ftrain.random.key(seed), x, y, alpha=0.5, classes=2)[1].max())
        for seed in range(400)
    ]
    # Of Beta(1/2, 1/2), the larger share is above 0.9755 with probability 0.2.
    extreme = sum(share > 0.97553 for share in shares if share < 1)
    mixed = sum(share < 1 for share in shares)  # half of the permutations move nothing
    assert abs(extreme / mixed - 0.2) < 4 * (0.16 / mixed) ** 0.5


@pytest.mark.parametrize("mix", [loss.mixup, loss.cutmix])
def test_mixup_and_cutmix_give_the_same_bits_compiled_and_vmapped(mix: Any) -> None:
    x, y = torch.rand(4, 1, 5, 5), torch.tensor([0, 1, 2, 1])

    def mixed(key: Tensor) -> Any:
        return mix(key, x, y, alpha=0.7, classes=3)

    keys = ftrain.random.split(ftrain.random.key(0), 3)
    expected = [mixed(key) for key in keys]
    compiled = ftrain.compile(mixed, backend="eager")
    assert all(
        ftrain.tree.digest(compiled(key)) == ftrain.tree.digest(each)
        for key, each in zip(keys, expected, strict=True)
    )
    inputs, labels = torch.vmap(mixed)(keys)
    assert torch.equal(inputs, torch.stack([each[0] for each in expected]))
    assert torch.equal(labels, torch.stack([each[1] for each in expected]))


X, L = torch.zeros(2, 3), torch.tensor([0, 5])
IMAGES, PIXELS = torch.zeros(1, 2, 2, 2), torch.tensor([[[0, 1], [1, 2]]])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: loss.cross_entropy(X, L), r"classes 0 to 2.*got 5 at \[1\] \(1 of 2"),
        (lambda: loss.cross_entropy(X, L - 1), r"got -1 at \[0\] \(2 of 2"),
        (
            lambda: loss.cross_entropy(X, L, class_weights=torch.ones(3)),
            r"got 5 at \[1\]",
        ),
        (lambda: loss.cross_entropy(X, X[:, :2]), r"classes of shape \(2,\) or soft .*\(2, 3\)"),
        (lambda: loss.cross_entropy(X, L[:1]), r"got torch.int64 of shape \(1,\)"),
        (
            lambda: loss.causal_lm(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 4]])),
            r"got 4 at \[0, 2\] \(1 of 3",
        ),
        (
            lambda: loss.chunked_causal_lm(
                torch.zeros(2, 4, 3), torch.zeros(4, 3), torch.arange(8).view(2, 4), chunk_size=2
            ),
            r"got 5 at \[1, 1\] \(3 of 8",  # that at [1, 0] is not predicted
        ),
        (lambda: loss.causal_lm(X, L), r"expected \(n, length, width\)"),
        (
            lambda: loss.sequence_log_probs(torch.zeros(1, 2, 4), torch.tensor([[0, 9]])),
            r"got 9 at \[0, 0\]",
        ),
        (lambda: loss.sequence_log_probs(X, L), r"expected \(n, length, vocabulary\)"),
        (lambda: loss.chunked_causal_lm(X, X, L), "hidden: expected"),
        (
            lambda: loss.chunked_causal_lm(torch.zeros(1, 2, 3), X, L[None], chunk_size=-1),
            "chunk_size: expected",
        ),
        (lambda: loss.multi_label(X, L), "one column of zeros and ones"),
        (lambda: loss.mse(X, X[:, :1]), r"shape of the targets, \(2, 1\), got \(2, 3\)"),
        (lambda: loss.mse(X, X, row_weights=torch.ones(3)), r"row_weights: .*got \(3,\)"),
        (lambda: loss.focal(IMAGES, PIXELS), r"got 2 at \[0, 1, 1\]"),
        (lambda: loss.dice(IMAGES, PIXELS), r"got 2 at \[0, 1, 1\]"),
        (lambda: loss.lovasz(IMAGES[:, :1], PIXELS), "two or more classes"),
        (lambda: loss.tversky(IMAGES, PIXELS, false_negatives=0), "false_negatives: expected"),
        (
            lambda: loss.dice(IMAGES, PIXELS * 0, row_weights=torch.ones(1, 2)),
            "one weight for each image",
        ),
        (lambda: loss.info_nce(X, X[:1]), "Give every query a document"),
        (lambda: loss.supervised_contrastive(X, L[:1]), r"labels: expected \(n,\)"),
        (lambda: loss.dpo(X[0], X[0], X[0], X[0, :1]), r"\[\(1,\), \(3,\)\]"),
        (lambda: loss.ctc(X[None], L[None], L, L), "Pad labels to one length"),
        (lambda: loss.mixup(ftrain.random.key(0), X, L, alpha=0.2), "classes: expected"),
        (
            lambda: loss.mixup(ftrain.random.key(0), X, L, alpha=0.0, classes=9),
            "alpha: expected",
        ),
        (
            lambda: loss.mixup(ftrain.random.key(0), X, L, alpha=1.0, classes=3),
            r"got 5 at \[1\]",
        ),
    ],
)
def test_wrong_labels_and_shapes_raise_with_the_argument_and_the_remedy(
    call: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        call()
