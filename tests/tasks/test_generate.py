"""Test that generated tokens follow the model's distribution and depend on the key alone."""

from __future__ import annotations

import pytest
import torch

from ftrain import random
from ftrain.tasks import generate

PROMPT = torch.tensor([[2], [0]])
LOGITS = torch.tensor([0.1, 1.2, -0.5, 0.9])


def fixed(tokens: torch.Tensor) -> torch.Tensor:
    """Return the same logits after every token."""
    return LOGITS.expand(*tokens.shape, 4)


def shares(temperature: float = 1.0, top_k: int | None = None) -> torch.Tensor:
    prompt = torch.zeros(2000, 1, dtype=torch.int64)
    found = generate(fixed, prompt, random.key(3), length=10, temperature=temperature, top_k=top_k)
    return torch.bincount(found[:, 1:].flatten(), minlength=4) / 20_000


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_frequencies_of_generated_tokens_match_the_softmax(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(0)
    deviation = (expected * (1 - expected) / 20_000).sqrt()
    assert ((shares(temperature) - expected).abs() < 5 * deviation).all()


def test_top_k_draws_from_the_k_likeliest_tokens_only() -> None:
    expected = LOGITS.masked_fill(LOGITS < 0.5, -torch.inf).softmax(0)
    found = shares(top_k=2)
    assert found[[0, 2]].eq(0).all()
    assert (found - expected).abs().max() < 0.02
    assert shares(top_k=9).equal(shares())
    assert shares(top_k=1).equal(torch.tensor([0.0, 1, 0, 0]))
    assert shares(temperature=0).equal(torch.tensor([0.0, 1, 0, 0]))


def test_top_k_with_tied_logits_keeps_exactly_k_tokens() -> None:
    tied = generate(
        lambda tokens: torch.zeros(*tokens.shape, 50),
        torch.zeros(500, 1, dtype=torch.int64),
        random.key(0),
        length=4,
        top_k=3,
    )
    assert len(tied[:, 1:].unique()) == 3


def test_generate_depends_on_the_key_alone_and_leaves_global_generators_unchanged() -> None:
    before = torch.get_rng_state()
    first, again, other = (
        generate(fixed, PROMPT, random.key(seed), length=20) for seed in (0, 0, 1)
    )
    assert first.equal(again)
    assert not first.equal(other)
    assert torch.get_rng_state().equal(before)
    # A longer text begins with the shorter one.
    assert generate(fixed, PROMPT, random.key(0), length=30)[:, :21].equal(first)


def test_generate_calls_the_model_with_the_last_tokens_that_fit_its_context() -> None:
    seen = []

    def counted(tokens: torch.Tensor) -> object:
        seen.append(tokens)
        return {"logits": fixed(tokens)}

    found = generate(counted, PROMPT, random.key(0), length=6, context=3)
    assert [tokens.shape[1] for tokens in seen] == [1, 2, 3, 3, 3, 3]
    assert all(
        tokens.equal(found[:, max(0, at - 3) : at]) for at, tokens in enumerate(seen, start=1)
    )
    assert found[:, :1].equal(PROMPT)
    assert generate(counted, PROMPT, random.key(0), length=0) is PROMPT


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompt": torch.zeros(1, 0, dtype=torch.int64)}, "prompt: expected int64 tokens"),
        ({"prompt": torch.zeros(3)}, "prompt: expected int64 tokens"),
        ({"length": -1}, "length: expected an integer of at least 0, got -1"),
        ({"context": 0}, "context: expected an integer of at least 1"),
        ({"top_k": 0}, "top_k: expected an integer of at least 1"),
        ({"temperature": -0.5}, "temperature: expected a number of at least 0"),
        ({"temperature": float("nan")}, "temperature: expected a number"),
        ({"predict": lambda tokens: fixed(tokens) * torch.nan}, "expected logits, got NaN"),
    ],
)
def test_generate_refuses_arguments_out_of_range_and_nan(changed: dict, says: str) -> None:
    arguments = {"predict": fixed, "prompt": PROMPT, "key": random.key(0), "length": 3, **changed}
    with pytest.raises(ValueError, match=says):
        generate(**arguments)
