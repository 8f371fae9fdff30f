"""Test torch's higher-order operators in a loss under `keyed`: eager, compiled and differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.map import map as torch_map
from torch._higher_order_ops.scan import scan as torch_scan
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import ftrain
from ftrain import optim, random
from ftrain.core.errors import TraceError, UnkeyedRandomError
from tests.compile.cases import same_bytes

KEY = random.key(2)
X = torch.linspace(-1, 1, 12).view(3, 4) + 0.1


def conditional(w: Tensor) -> Tensor:
    return torch.cond(w.sum() > 0, lambda a: a.sin(), lambda a: a.cos(), (w,))


def mapped(w: Tensor) -> Tensor:
    return torch_map(lambda row, v: (row * v).sin(), w, w[0] * 2)


def accumulated(w: Tensor) -> Tensor:
    return associative_scan(torch.add, w, 0, combine_mode="generic")


def scanned(w: Tensor) -> Tensor:
    last, ys = torch_scan(lambda c, row: (c + row.sin(), c.cos()), w[0] * 0, w)
    return last + ys.sum()


def looped(w: Tensor) -> Tensor:
    def body(i: Tensor, a: Tensor) -> Any:
        return i + 1, a * 1.5

    return while_loop(lambda i, a: a.sum() < 40, body, (torch.tensor(0), w.detach()))[1]


def attended(w: Tensor) -> Tensor:
    q = w.detach().view(1, 1, 3, 4)
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 3, 3, device="cpu")
    return flex_attention(q, q, q, score_mod=lambda s, b, h, i, j: s + (i - j), block_mask=mask)


OPERATORS = [conditional, mapped, accumulated, scanned, looped, attended]


@pytest.mark.filterwarnings("ignore:.*flex_attention called without:UserWarning")
@pytest.mark.parametrize("operator", OPERATORS)
def test_torchs_higher_order_operators_give_the_same_results_inside_keyed(
    operator: Callable[..., Tensor],
) -> None:
    def run(key: Tensor, w: Tensor) -> Any:
        with random.keyed(key):
            return operator(w) * torch.rand(())

    with random.keyed(KEY):
        scale = torch.rand(())
    assert same_bytes(run(KEY, X), operator(X) * scale)
    assert same_bytes(ftrain.compile(run, backend="eager")(KEY, X), operator(X) * scale)


@pytest.mark.parametrize("operator", [conditional, mapped, accumulated])
def test_gradients_of_torchs_higher_order_operators_match_inside_keyed(
    operator: Callable[..., Tensor],
) -> None:
    def loss(w: Tensor) -> Tensor:
        return operator(w).square().sum()

    def run(key: Tensor, w: Tensor) -> Any:
        with random.keyed(key):
            return ftrain.value_and_grad(loss)(w)

    expected = ftrain.value_and_grad(loss)(X)
    for found in (run(KEY, X), ftrain.compile(run, backend="eager")(KEY, X)):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # sums in another order


def test_compiled_step_with_torch_cond_equals_eager() -> None:
    def loss_fn(model: Any, x: Tensor) -> Tensor:
        y = torch.dropout(model(x), 0.5, True)
        return torch.cond(y.sum() > 0, lambda y: y.square(), lambda y: y.exp(), (y,)).mean()

    steps = ftrain.make_steps(torch.nn.Linear(4, 4), loss_fn, optim.sgd(0.1))
    state = steps.init_state(0)
    expected, _ = steps.train_step(state, X)
    found, _ = ftrain.compile(steps.train_step, backend="eager")(state, X)
    assert same_bytes(found, expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_draw_in_a_torch_map_body_raises_an_error_that_suggests_ftrain_scan_and_cond(
    compiled: bool,
) -> None:
    def run(key: Tensor, w: Tensor) -> Any:
        with random.keyed(key):
            return torch_map(lambda row: F.dropout(row), w)

    with pytest.raises(UnkeyedRandomError, match=r"ftrain.scan, ftrain.cond"):
        (ftrain.compile(run, backend="eager") if compiled else run)(KEY, X)


#: Functions that torch's operators refuse: the operator and the reason in the message.
REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "an argument as the result": (
        lambda w: torch.cond(w.sum() > 0, lambda a: a, lambda a: a * 1, (w,)),
        r"torch\.cond refuses .* \(Higher order ops do not support aliasing\)",
    ),
    "other dtypes": (
        lambda w: torch.cond(w.sum() > 0, lambda a: a * 1, lambda a: a.double(), (w,)),
        "higher-order operator of torch refuses .*merging two branches",
    ),
    "a value": (
        lambda w: torch_map(lambda row, v: row * float(v.sum()), w, w[0]),
        "cannot become one graph",
    ),
    "an error": (
        lambda w: torch_map(lambda row, v: row * v[:3], w, w[0]),
        "higher-order operator of torch refuses .*broadcast a dimension of length 3",
    ),
    "a write": (
        lambda w: torch.cond(w.sum() > 0, lambda a: a.add_(1), lambda a: a * 1, (w,)),
        r"torch\.cond refuses .* \(Higher order ops do not support input mutation\)",
    ),
    "another shape": (
        lambda w: while_loop(lambda i, a: i < 3, lambda i, a: (i + 1, a[:1] * 2), (w[0, 0], w)),
        r"torch\.while_loop refuses .*shape: torch.Size\(\[1, 4\]\) vs torch.Size\(\[3, 4\]\)",
    ),
    "other strides": (
        lambda w: torch_scan(lambda c, row: (c + 1, c.clone()), w[:1].T, w)[1],
        r"torch's scan refuses .*stride: \(1, \w+\) vs \(1, 1\)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_error_for_a_body_that_torchs_loops_do_not_accept_names_the_loops_of_ftrain(
    what: str,
) -> None:
    fn, reason = REFUSED[what]
    with pytest.raises(TraceError, match=f"(?s){reason}.*test_torch_operators.py.*ftrain.cond"):
        ftrain.compile(fn, backend="eager")(X)
