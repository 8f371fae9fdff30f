"""Packed sequences and `out=` under vmap, for which torch has no batching rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import ftrain
from ftrain import optim, testing
from ftrain.core import random, tree

KEY = random.key(0)
STEPS = 4


def rows_match(function: Callable[[Any], Any], rows: Any, tolerance: float) -> None:
    """Products are summed in another order; the error stayed below the tolerance."""
    mapped = torch.vmap(function)(rows)
    for i in range(2):
        single = function(tree.map(lambda t: t[i], rows))  # noqa: B023
        testing.assert_close_norm(tree.map(lambda t: t[i], mapped), single, tolerance)  # noqa: B023


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, STEPS), min_size=1, max_size=4),
    batch_first=st.booleans(),
    padding=st.sampled_from([0.0, -2.5]),
    total=st.sampled_from([None, STEPS, STEPS + 2]),
    seed=st.integers(0, 1000),
)
def test_vmapped_packing_and_padding_of_sequences_match_torch(
    lengths: list[int], batch_first: bool, padding: float, total: int | None, seed: int
) -> None:
    """They only move values, so bytes are compared."""
    x = random.normal(random.key(seed), (2, STEPS, len(lengths), 3))
    rows = x.transpose(1, 2) if batch_first else x

    def through(x: Tensor) -> dict[str, Tensor]:
        with random.keyed(KEY):
            packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first, False)
            padded, again = pad_packed_sequence(packed, batch_first, padding, total)
        assert again.tolist() == lengths
        return {"data": packed.data, "padded": padded}

    mapped = torch.vmap(through)(rows)
    for i in range(2):
        testing.assert_same_bits(tree.map(lambda t: t[i], mapped), through(rows[i]))  # noqa: B023


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM])
def test_vmapped_recurrent_layer_matches_single_calls_on_packed_sequences(
    cell: type[nn.RNN],
) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(2, 3)
            self.layers = cell(3, 4, num_layers=2, bidirectional=True, dropout=0.3)

        def forward(self, x: Tensor) -> Tensor:
            lengths = torch.tensor([2, STEPS, 1])
            packed = pack_padded_sequence(self.embed(x), lengths, enforce_sorted=False)
            padded: Tensor = pad_packed_sequence(self.layers(packed)[0])[0]
            return padded.square().sum()

    apply = ftrain.bind(Packed)
    params, buffers = apply.init(KEY)
    x = random.normal(KEY, (STEPS, 3, 2))
    step = ftrain.value_and_grad(lambda params: apply(params, buffers, KEY, x)[0])
    rows_match(step, {name: torch.stack([p, 2 * p]) for name, p in params.items()}, 1e-6)


@pytest.mark.parametrize("normed", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_vmapped_step_with_spectral_norm_matches_single_steps(
    normed: Callable[[nn.Module], nn.Module],
) -> None:
    init_state, train_step, _ = ftrain.make_steps(
        lambda: nn.Sequential(normed(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 1)),
        lambda model, x: model(x).square().mean(),
        optim.sgd(0.1),
    )
    states = tree.map(lambda *leaves: torch.stack(leaves), init_state(0), init_state(1))
    rows_match(lambda state: train_step(state, torch.ones(4, 3))[0].params, states, 1e-6)


OUT: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "add": (lambda x, out: torch.add(x, 1, out=out), (torch.zeros(3),)),
    "a wider dtype": (lambda x, out: torch.mul(x, x, out=out), (torch.zeros(3).double(),)),
    "normalize": (lambda x, out: nn.functional.normalize(x, dim=0, out=out), (torch.zeros(3),)),
    "two outputs": (
        lambda x, *out: torch.sort(x, out=out),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64)),
    ),
}


@pytest.mark.parametrize("case", OUT)
def test_vmapped_call_with_an_out_argument_writes_the_bytes_of_single_calls(case: str) -> None:
    call, outs = OUT[case]
    x = random.normal(KEY, (2, 3))

    def write(x: Tensor, outs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outs = tuple(out.clone() for out in outs)
        with random.keyed(KEY):
            call(x, *outs)
        return outs

    rows = tuple(torch.stack([out, out]) for out in outs)
    mapped = torch.vmap(write)(x, rows)
    for i in range(2):
        testing.assert_same_bits(tuple(out[i] for out in mapped), write(x[i], outs))


@pytest.mark.parametrize(
    ("call", "out"),
    [
        (lambda x, out: torch.add(x, 1, out=out), torch.zeros(3, dtype=torch.int64)),
        (lambda x, out: torch.add(x, 1, out=out), torch.zeros(1)),
    ],
    ids=["a narrower dtype", "another shape"],
)
def test_vmapped_call_refuses_an_out_argument_of_narrower_dtype_or_another_shape(
    call: Callable[..., Any], out: Tensor
) -> None:
    def write(x: Tensor, out: Tensor) -> Tensor:
        out = out.clone()
        with random.keyed(KEY):
            call(x, out)
        return out

    with pytest.raises(RuntimeError, match="Batching rule"):
        torch.vmap(write)(torch.ones(2, 3), torch.stack([out, out]))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_one_hot_codes_of_mapped_indices_of_any_shape_equal_torchs(shape: tuple[int, ...]) -> None:
    index = torch.arange(2 * math.prod(shape)).reshape(2, *shape) % 4

    def codes(x: Tensor, index: Tensor) -> Tensor:
        with random.keyed(KEY):
            return x * F.one_hot(index, 4)

    x = torch.ones((2, *shape, 4), dtype=torch.float64)
    gradient = torch.vmap(torch.func.grad(lambda x, index: codes(x, index).sum()))(x, index)
    testing.assert_same_bits(gradient, F.one_hot(index, 4).double())
