"""Rows of stacked states, and predictions of all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical

import ftrain
from ftrain import testing, transforms
from tests.transforms.cases import batches, line_batch, line_steps, steps


def test_member_and_select_return_copies_of_the_stacked_states() -> None:
    states = [line_steps().init_state(seed) for seed in range(3)]
    stacked = transforms.stack(states)
    for i, state in enumerate(states):
        testing.assert_same_bits(transforms.member(stacked, i), state)
        testing.assert_same_bits(transforms.member(stacked, i - 3), state)
    row = transforms.member(stacked, 1)
    row.params["weight"].zero_()
    testing.assert_same_bits(transforms.member(stacked, 1), states[1])
    chosen = transforms.select(stacked, [2, 0])
    testing.assert_same_bits(chosen, transforms.stack([states[2], states[0]]))
    masked = transforms.select(stacked, torch.tensor([False, True, True]))
    testing.assert_same_bits(masked, transforms.stack(states[1:]))


def test_the_best_member_continues_training_as_an_ordinary_state() -> None:
    each = steps("convnet")
    swept = transforms.sweep(each, 3)
    states, _ = swept.train_step(swept.init_state(0), batches("convnet", 1)[0])
    state = transforms.best(states, torch.tensor([0.3, float("nan"), 0.1]))
    testing.assert_same_bits(state, transforms.member(states, 2))
    new, _ = each.train_step(state, batches("convnet", 1)[0])
    assert int(new.step) == 2


@given(
    values=st.lists(
        st.one_of(st.floats(-3, 3, width=32), st.just(float("nan"))), min_size=1, max_size=6
    ).filter(lambda v: any(x == x for x in v)),
    mode=st.sampled_from(["min", "max"]),
)
def test_best_returns_the_first_member_with_the_best_value_and_ignores_nan(
    values: list[float], mode: Any
) -> None:
    numbers = [x for x in values if x == x]
    expected = values.index((min if mode == "min" else max)(numbers))
    states = {"i": torch.arange(len(values))}
    assert int(transforms.best(states, torch.tensor(values), mode)["i"]) == expected


def test_best_prefers_a_member_with_an_infinite_value_to_one_with_nan() -> None:
    values = torch.tensor([float("nan"), float("inf")])
    assert int(transforms.best({"i": torch.arange(2)}, values)["i"]) == 1


PAIR: Any = lambda state, batch: (state["a"], batch)  # noqa: E731
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing to stack": (lambda: transforms.stack([]), ValueError, "expected at least one"),
    "other structure": (
        lambda: transforms.stack([{"a": torch.ones(1)}, {"b": torch.ones(1)}]),
        ValueError,
        r"trees\[1\] differs",
    ),
    "other shape": (
        lambda: transforms.stack([{"a": torch.ones(1)}, {"a": torch.ones(2)}]),
        ValueError,
        r"trees\[1\]\['a'\]: expected float32\[1\]",
    ),
    "a number": (lambda: transforms.stack([{"a": 1.0}]), TypeError, "expected a tensor, got float"),
    "a 0-d leaf": (
        lambda: transforms.member({"a": torch.tensor(1.0)}, 0),
        ValueError,
        "expected a leading axis of members",
    ),
    "other sizes": (
        lambda: transforms.member({"a": torch.ones(1), "b": torch.ones(2)}, 0),
        ValueError,
        "expected the same number of members",
    ),
    "out of range": (
        lambda: transforms.member({"a": torch.ones(2)}, 2),
        IndexError,
        r"i: expected a position in \[-2, 2\), got 2",
    ),
    "no member": (
        lambda: transforms.select({"a": torch.ones(2)}, torch.tensor([False, False])),
        ValueError,
        "expected at least one member, got 0",
    ),
    "a short mask": (
        lambda: transforms.select({"a": torch.ones(2)}, torch.tensor([True])),
        ValueError,
        r"a bool mask of shape \(2,\)",
    ),
    "all NaN": (
        lambda: transforms.best({"a": torch.ones(2)}, torch.full((2,), float("nan"))),
        ValueError,
        "got NaN for all",
    ),
    "no axis": (lambda: transforms.grid(), ValueError, "at least one axis"),
    "a text": (lambda: transforms.grid(seed="01"), TypeError, "expected a sequence of values"),
    "an ensemble of texts": (
        lambda: transforms.ensemble(lambda s, b: s["a"], of="texts"),  # type: ignore[arg-type]
        ValueError,
        "of: expected 'numbers' or 'logits'",
    ),
    "other weights": (
        lambda: transforms.ensemble(lambda s, b: s["a"])(
            {"a": torch.ones(2)}, torch.ones(1), torch.ones(3)
        ),
        ValueError,
        "weights: expected one number per member",
    ),
    "predictions that are not tensors": (
        lambda: transforms.ensemble(PAIR)({"a": torch.ones(2)}, torch.ones(1)),
        TypeError,
        "predict: expected a function that returns a floating tensor, got a tuple",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_functions_of_members_refuse_invalid_arguments(case: str) -> None:
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


@given(n=st.integers(1, 5), seed=st.integers(0, 100), weighted=st.booleans(), half=st.booleans())
def test_ensemble_of_logits_matches_probabilities_and_entropies_of_torch(
    n: int, seed: int, weighted: bool, half: bool
) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, 4, 3, generator=g)
    logits = logits.bfloat16() if half else logits
    weights = torch.rand(n, generator=g) + 0.1 if weighted else None
    found = transforms.ensemble(lambda state, batch: state["z"], of="logits")
    mean, disagreement = found({"z": logits}, torch.ones(1), weights)
    share = torch.full((n,), 1.0) if weights is None else weights
    share = (share / share.sum()).double()
    p = logits.double().softmax(-1)
    mixed = (share[:, None, None] * p).sum(0)
    single = Categorical(p).entropy()  # type: ignore[no-untyped-call]  # torch's
    spread = Categorical(mixed).entropy() - (share[:, None] * single).sum(0)  # type: ignore[no-untyped-call]
    # bfloat16 results are rounded to 8 bits.
    limit = 1e-2 if half else 1e-5
    torch.testing.assert_close(mean.double().exp(), mixed, rtol=limit, atol=limit)
    torch.testing.assert_close(disagreement.double(), spread.clamp(min=0), rtol=limit, atol=limit)
    assert mean.dtype == disagreement.dtype == logits.dtype


def test_ensemble_of_numbers_is_mean_and_standard_deviation_of_single_predictions() -> None:
    each = line_steps()

    def predict(state: Any, batch: Any) -> torch.Tensor:
        found: torch.Tensor = state.params["weight"] @ batch["x"].T
        return found

    states, batch = transforms.sweep(each, 4).init_state(0), line_batch(0)
    rows = torch.stack([predict(transforms.member(states, i), batch) for i in range(4)])
    for run in (
        transforms.ensemble(predict),
        ftrain.compile(transforms.ensemble(predict), backend="eager"),
    ):
        mean, spread = run(states, batch)
        torch.testing.assert_close(mean, rows.mean(0))
        torch.testing.assert_close(spread, rows.std(0, correction=0))


def test_a_member_of_weight_zero_has_no_influence_even_if_it_is_nan() -> None:
    rows = torch.tensor([[1.0, 2.0], [float("nan"), 0.0], [3.0, 2.0]])
    active = torch.tensor([True, False, True])
    mean, spread = transforms.ensemble(lambda s, b: s["z"])({"z": rows}, torch.ones(1), active)
    assert mean.tolist() == [2.0, 2.0]
    assert spread.tolist() == [1.0, 0.0]
    mean, spread = transforms.ensemble(lambda s, b: s["z"], of="logits")(
        {"z": rows}, torch.ones(1), active
    )
    assert torch.isfinite(mean).all()
    assert torch.isfinite(spread).all()


def test_disagreement_of_members_that_agree_is_zero() -> None:
    rows = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0)).expand(4, 5, 3)
    _, spread = transforms.ensemble(lambda s, b: s["z"], of="logits")({"z": rows}, torch.ones(1))
    assert float(spread.max()) < 1e-6
