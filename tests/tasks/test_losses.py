"""Test losses against torch, over merged parts of a batch, and with rows of weight zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core.metrics import Mean
from ftrain.tasks import losses

KINDS: dict[str, Any] = {
    "cross_entropy": lambda out, y: F.cross_entropy(out, y),
    "binary_cross_entropy": lambda out, y: F.binary_cross_entropy_with_logits(out[:, 0], y.float()),
    "mse": lambda out, y: F.mse_loss(out[:, 0], y.float()),
}


def batch(name: str, n: int, seed: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    draws = torch.Generator().manual_seed(seed)
    classes = 3 if name == "cross_entropy" else 1
    y = torch.randint(0, max(classes, 2), (n,), generator=draws)
    x = torch.randn(n, 4, generator=draws)
    return nn.Linear(4, classes), {"x": x, "y": y if classes > 1 else y.float()}


def value(found: Any) -> torch.Tensor:
    mean = found[0] if isinstance(found, tuple) else found
    assert isinstance(mean, Mean)
    return mean.value


@pytest.mark.parametrize("name", KINDS)
@given(n=st.integers(1, 9), seed=st.integers(0, 99))
def test_loss_equals_that_of_torch(name: str, n: int, seed: int) -> None:
    model, data = batch(name, n, seed)
    expected = KINDS[name](model(data["x"]), data["y"])
    assert torch.allclose(value(getattr(losses, name)(model, data)), expected, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
@given(n=st.integers(2, 9), cut=st.integers(1, 8), seed=st.integers(0, 99))
def test_merged_losses_of_parts_equal_the_loss_of_the_whole_and_ignore_rows_of_weight_zero(
    name: str, n: int, cut: int, seed: int
) -> None:
    cut = min(cut, n - 1)
    model, data = batch(name, n, seed)
    loss = getattr(losses, name)
    whole, extra = loss(model, data)
    first, second = (
        loss(model, {k: v[part] for k, v in data.items()}) for part in (slice(cut), slice(cut, n))
    )
    assert torch.allclose(first[0].merge(second[0]).value, whole.value, atol=1e-6)
    (metric,) = extra
    assert torch.allclose(
        first[1][metric].merge(second[1][metric]).value, extra[metric].value, atol=1e-6
    )
    weight = (torch.arange(n) < cut).float()
    padded = loss(model, {**data, "weight": weight})
    assert torch.allclose(padded[0].value, first[0].value, atol=1e-6)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_next_token_loss_is_weighted_by_tokens(n: int, length: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    windows = torch.randint(0, 5, (n, length + 1), generator=draws)
    windows[0, -1] = -100  # padding
    model = nn.Embedding(5, 5)
    found = losses.next_token(model, windows)
    assert int(found.weight) == n * length - 1
    if n * length > 1:
        logits = model(windows[:, :-1].clamp(min=0)).flatten(0, 1)
        expected = F.cross_entropy(logits, windows[:, 1:].flatten())
        assert torch.allclose(found.value, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("windows", "says"),
    [
        (torch.tensor([[9, 1, 2], [3, 4, 7]]), r"got 7 at \[1, 2\] \(1 of 6"),
        (torch.tensor([0, 1]), r"expected windows of tokens, .* got \(2,\)"),
        ({"x": torch.ones(2, 4)}, "expected windows of tokens, .* got a dict.*loss: causal_lm"),
    ],
)
def test_next_token_loss_refuses_batches_that_are_not_token_windows(
    windows: Any, says: str
) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*x.shape, 5)

    with pytest.raises((TypeError, ValueError), match=says):
        losses.next_token(model, windows)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "data", "says"),
    [
        ("cross_entropy", {"x": torch.ones(2, 4), "y": torch.ones(2)}, "or `loss: mse` to predict"),
        (
            "cross_entropy",
            {"x": torch.ones(2, 4), "y": torch.ones(2, 2).long()},
            r"and \(2, 2\) as batch",
        ),
        (
            "mse",
            {"x": torch.ones(2, 4), "y": torch.ones(2, 2)},
            r"\(2, 2\), as batch.*got \(2, 1\)",
        ),
        (
            "mse",
            {"image": torch.ones(2, 4), "y": torch.ones(2)},
            "batch: expected a key 'x', got 'image', 'y'",
        ),
        (
            "mse",
            {"x": torch.ones(2, 4), "y": torch.ones(2).long()},
            "csv become classes.*cross_entropy` to predict classes",
        ),
        (
            "mse",
            torch.ones(2, 4),
            r"batch: expected a tuple \(x, labels\) or named entries .*got a Tensor",
        ),
    ],
)
def test_losses_refuse_batches_of_wrong_structure_shape_or_dtype(
    loss: str, data: Any, says: str
) -> None:
    with pytest.raises((TypeError, ValueError, KeyError), match=says):
        getattr(losses, loss)(nn.Linear(4, 1), data)


@pytest.mark.parametrize("donate", [False, True])
def test_error_of_a_compiled_step_explains_how_to_find_a_label_out_of_range(donate: bool) -> None:
    steps = ftrain.make_steps(nn.Linear(4, 3), losses.cross_entropy, optim.sgd(0.1))
    step = ftrain.compile(steps.train_step, backend="eager", donate=donate)
    batch = {"x": torch.ones(2, 4), "y": torch.tensor([0, 3])}
    state = steps.init_state(0)
    with pytest.raises(IndexError, match="Target 3 is out of bounds") as raised:
        step(state, batch)
    (note,) = raised.value.__notes__
    assert "Call `train_step` itself, without ftrain.compile" in note
    with pytest.raises(ValueError, match=r"got 3 at \[1\] \(1 of 2"):
        steps.train_step(state, batch)
