"""Test laws of every functional loss: formula, splits, ignored rows, order, derivatives, transforms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ftrain
from ftrain.core.metrics import Mean
from ftrain.tasks import functional
from ftrain.tasks._weighted import weighted
from ftrain.testing import assert_same_bits
from tests.campaign import choice
from tests.tasks.cases import CASES as OTHERS
from tests.tasks.cases import Case, Tensors
from tests.tasks.distillation_cases import DISTILLATION

CASES = {**OTHERS, **DISTILLATION}
SPLITTING = [name for name, case in CASES.items() if case.splits]
WEIGHING = [name for name, case in CASES.items() if case.weighs]
IGNORING = [name for name, case in CASES.items() if case.ignores]
# Two orders of one sum of at most some hundred terms in float64: 1e2 * 2**-53 is 1e-14.
BOUND = 1e-12

seeds = st.integers(0, 10_000)


def made(name: str, n: int, seed: int) -> tuple[Case, Tensors, Tensors]:
    case = CASES[name]
    params, data = case.make(n, torch.Generator().manual_seed(seed))
    return case, {k: x.requires_grad_() for k, x in params.items()}, data


def gradients(loss: Tensor, params: Tensors) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(params.values()), materialize_grads=True))


def rows(tensors: Tensors, take: slice | Tensor) -> Tensors:
    return {name: x[take] for name, x in tensors.items()}


def close(one: Tensor, two: Tensor) -> bool:
    return torch.allclose(one, two, rtol=BOUND, atol=BOUND)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=10)
@given(n=st.integers(2, 4), seed=seeds)
def test_loss_and_gradients_equal_the_independent_formula(name: str, n: int, seed: int) -> None:
    case, params, data = made(name, n, seed)
    found, expected = case.loss(**params, **data).value, case.oracle(params, data)
    assert close(found, expected)
    for one, two in zip(gradients(found, params), gradients(expected, params), strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-10)  # the oracle divides by a norm twice


@pytest.mark.parametrize("name", SPLITTING)
@settings(max_examples=10)
@given(n=st.integers(2, 7), cuts=st.sets(st.integers(1, 6), max_size=3), seed=seeds)
def test_any_ragged_split_gives_the_loss_and_gradients_of_the_whole_batch(
    name: str, n: int, cuts: set[int], seed: int
) -> None:
    case, params, data = made(name, n, seed)
    whole = case.loss(**params, **data)
    edges = [0, *sorted(cut for cut in cuts if cut < n), n]
    parts = [
        case.loss(**rows(params, slice(*edge)), **rows(data, slice(*edge)))
        for edge in itertools.pairwise(edges)
    ]
    merged = Mean(sum(p.total for p in parts), sum(p.weight for p in parts))  # type: ignore[arg-type]
    assert close(merged.value, whole.value)
    pairs = zip(gradients(merged.value, params), gradients(whole.value, params), strict=True)
    assert all(close(one, two) for one, two in pairs)


@pytest.mark.parametrize("name", WEIGHING)
@settings(max_examples=10)
@given(n=st.integers(2, 5), padding=st.integers(1, 3), seed=seeds)
def test_rows_of_weight_zero_add_nothing_to_a_loss(
    name: str, n: int, padding: int, seed: int
) -> None:
    case, params, data = made(name, n + padding, seed)
    weights = (torch.arange(n + padding) < n).double()
    padded = case.loss(**params, **data, row_weights=weights)
    own = case.loss(**rows(params, slice(n)), **rows(data, slice(n)))
    assert close(padded.total, own.total)
    assert close(padded.weight.double(), own.weight.double())
    for gradient in gradients(padded.total, params):
        assert not gradient[n:].any()


@pytest.mark.parametrize("name", WEIGHING)
@settings(max_examples=10)
@given(n=st.integers(2, 5), seed=seeds)
def test_row_of_weight_two_counts_as_two_rows(name: str, n: int, seed: int) -> None:
    case, params, data = made(name, n, seed)
    twice = case.loss(**params, **data, row_weights=2.0 ** (torch.arange(n) == 0))
    again = torch.tensor([*range(n), 0])
    expected = case.loss(**rows(params, again), **rows(data, again))
    assert close(twice.value, expected.value)


@pytest.mark.parametrize("name", IGNORING)
@settings(max_examples=10)
@given(n=st.integers(1, 3), seed=seeds)
def test_batch_of_ignored_labels_has_weight_zero_and_no_nan(name: str, n: int, seed: int) -> None:
    case, params, data = made(name, n, seed)
    found = case.loss(**params, **{**data, str(case.ignores): data["labels"].fill_(-100)})
    assert (found.total.item(), found.weight.item()) == (0.0, 0.0)
    assert all(not gradient.any() for gradient in gradients(found.total, params))


@pytest.mark.parametrize("name", IGNORING)
@settings(max_examples=10)
@given(n=st.integers(2, 4), seed=seeds)
def test_logits_at_ignored_labels_do_not_change_the_loss(name: str, n: int, seed: int) -> None:
    case, params, data = made(name, n, seed)
    data["labels"][-1] = -100
    expected = case.loss(**params, **data)
    (first,) = params
    other = {first: torch.cat([params[first][:-1], 7 * torch.rand_like(params[first][-1:])])}
    assert close(case.loss(**other, **data).value, expected.value)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=10)
@given(n=st.integers(2, 6), seed=seeds)
def test_order_of_rows_does_not_change_the_loss(name: str, n: int, seed: int) -> None:
    case, params, data = made(name, n, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    expected = case.loss(**params, **data).value
    assert close(case.loss(**rows(params, order), **rows(data, order)).value, expected)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", choice([0], range(3)))
def test_gradients_equal_finite_differences(name: str, seed: int) -> None:
    case, params, data = made(name, 3, seed)

    def value(*tensors: Tensor) -> Tensor:
        return case.loss(**dict(zip(params, tensors, strict=True)), **data).value

    assert torch.autograd.gradcheck(value, tuple(params.values()))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.vmaps])
def test_vmapped_loss_and_gradients_equal_those_of_each_row_alone(name: str) -> None:
    case = CASES[name]
    members = [case.make(3, torch.Generator().manual_seed(seed)) for seed in range(3)]
    stacked = ftrain.tree.map(lambda *x: torch.stack(x), *members)
    function = ftrain.value_and_grad(lambda p, d: case.loss(**p, **d).value)
    found = torch.vmap(function)(*stacked)
    expected = ftrain.tree.map(lambda *x: torch.stack(x), *(function(*each) for each in members))
    for one, two in zip(ftrain.tree.leaves(found), ftrain.tree.leaves(expected), strict=True):
        assert close(one, two)  # a product of one shape and of another


@pytest.mark.parametrize("name", [name for name in CASES if name != "ctc"])
def test_compiled_loss_and_gradients_have_the_bytes_of_eager_ones(name: str) -> None:
    case = CASES[name]
    args = case.make(3, torch.Generator().manual_seed(0))
    function = ftrain.value_and_grad(lambda p, d: case.loss(**p, **d).value)
    compiled = ftrain.compile(function, backend="eager")
    assert ftrain.tree.digest(compiled(*args)) == ftrain.tree.digest(function(*args))


def test_compiled_ctc_raises_because_its_alignments_depend_on_values() -> None:
    case = CASES["ctc"]
    args = case.make(3, torch.Generator().manual_seed(0))
    function = ftrain.value_and_grad(lambda p, d: case.loss(**p, **d).value)
    with pytest.raises(ftrain.errors.TraceError, match="alignments of a CTC loss"):
        ftrain.compile(function, backend="eager")(*args)


LOSSES = "cross_entropy causal_lm mse huber focal dice lovasz"
LOSSES += " info_nce supervised_contrastive triplet dpo ctc soft_targets distillation dino"


@pytest.mark.parametrize("name", LOSSES.split())
def test_loss_and_gradients_are_finite_in_float32_for_large_values(name: str) -> None:
    case, params, data = made(name, 4, 0)
    large = {k: (x.detach().float() * 50).requires_grad_() for k, x in params.items()}
    data = {k: x.float() if x.is_floating_point() else x for k, x in data.items()}
    found = case.loss(**large, **data).value
    assert math.isfinite(found.item())
    assert all(gradient.isfinite().all() for gradient in gradients(found, large))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", DISTILLATION)
def test_distillation_loss_of_narrow_outputs_is_computed_in_float32_or_wider(
    name: str, dtype: torch.dtype
) -> None:
    case, params, data = made(name, 16, 0)
    tensors = {k: x.detach() for k, x in {**params, **data}.items()}
    narrow = {k: x.to(dtype) if x.is_floating_point() else x for k, x in tensors.items()}
    exact = {k: x.double() if x.is_floating_point() else x for k, x in narrow.items()}
    found, expected = case.loss(**narrow), case.loss(**exact)
    assert found.total.dtype.itemsize >= 4  # the center of a case is float64
    # Some operations of float32, whose rounding is 6e-8; that of bfloat16 is 4e-3.
    torch.testing.assert_close(found.value.double(), expected.value, rtol=1e-5, atol=1e-6)


def test_mean_of_float16_values_is_finite_where_their_sum_overflows_float16() -> None:
    # autocast computes differences of float16 tensors, such as features, in float16
    features = torch.full((700, 2), 400.0, dtype=torch.float16)
    found = functional.feature_matching(features, torch.zeros_like(features))
    assert found.value == 160_000
    mean = weighted(features)
    assert mean.value == 400


def test_total_of_a_cross_entropy_in_float16_is_summed_in_float32() -> None:
    logits, labels = torch.zeros(20_000, 100, dtype=torch.float16), torch.arange(20_000) % 100
    found = functional.cross_entropy(logits, labels)
    torch.testing.assert_close(found.value.item(), math.log(100), rtol=1e-3, atol=0)
    assert functional.causal_lm(logits[None], labels[None]).value.isfinite()


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, 1e30])
@pytest.mark.parametrize("chunk_size", [0, 2])
def test_masked_pairs_of_info_nce_may_hold_any_values(chunk_size: int, value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([True, False, True, True])
    rows = [torch.randn(4, 3, generator=generator) for _ in range(2)]

    def of(value: float) -> tuple[Tensor, ...]:
        pair = [x.masked_fill(~mask[:, None], value).requires_grad_() for x in rows]
        loss = functional.info_nce(*pair, mask=mask, chunk_size=chunk_size).value
        return (loss, *torch.autograd.grad(loss, pair))

    assert_same_bits(of(value), of(1.0))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, 1e30])
def test_masked_rows_of_supervised_contrastive_may_hold_any_values(value: float) -> None:
    labels, mask = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([True, False, True, True, True])
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

    def of(value: float) -> tuple[Tensor, ...]:
        x = rows.masked_fill(~mask[:, None], value).requires_grad_()
        loss = functional.supervised_contrastive(x, labels, mask=mask).value
        return loss, *torch.autograd.grad(loss, x)

    assert_same_bits(of(value), of(1.0))
