"""Test the retrieval example: its pairs, its training, and the ranks that it prints."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import pytest
import torch

import ftrain
from examples import retrieval
from ftrain import tasks
from ftrain.core import tree
from ftrain.tasks import functional

SOURCE = '''
def add(a, b):
    """Return the sum of
    two numbers.

    More of it.
    """
    return a + b

class Stack:
    @property
    def top(self):
        """Return the last element pushed."""
        return self.items[-1]

    def pop(self):
        """Too short."""
        return self.items.pop()
'''


@pytest.fixture(autouse=True)
def _few_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take few functions, made up, instead of the standard library's."""
    nouns = ["file", "socket", "thread", "queue", "header", "color", "token", "digest"]
    verbs = ["open", "close", "read", "write", "parse", "format", "flush", "copy"]
    made = tuple(
        retrieval.Pair(
            f"{verb} the given {noun} now", f"def {verb}_{noun}(x):\n    return x.{noun}"
        )
        for verb in verbs
        for noun in nouns
    )
    monkeypatch.setattr(retrieval, "functions", lambda: made)
    monkeypatch.setattr(retrieval, "HELD_OUT", 16)
    monkeypatch.setattr(retrieval, "VOCABULARY", 64)
    monkeypatch.setattr(retrieval, "model", functools.partial(tasks.TwoTower, 64, 16, 16))


def test_documented_functions_are_split_into_docstring_and_code() -> None:
    found = list(retrieval.documented(SOURCE))
    assert found == [
        ("Return the sum of two numbers.", "def add(a, b):\n    return a + b"),
        (
            "Return the last element pushed.",
            "    def top(self):\n        return self.items[-1]",
        ),
    ]


def test_tokens_are_padded_and_unknown_words_share_an_id() -> None:
    pair = retrieval.Pair("some strange words", "def f(): some")
    batch = retrieval.tokens([pair], {"some": 2, "words": 3})
    assert batch["query"].shape == (1, 32)
    assert batch["query"][0, :4].tolist() == [2, 1, 3, 0]
    assert batch["document"][0, :4].tolist() == [1, 1, 2, 0]


def test_no_function_is_both_trained_on_and_held_out() -> None:
    training, held_out = retrieval.split(retrieval.functions())
    assert (len(training), len(held_out)) == (48, 16)
    assert not {*training} & {*held_out}


def test_retrieval_gradients_computed_in_chunks_equal_those_of_the_whole_batch() -> None:
    def whole(model: Any, batch: Any) -> Any:
        query, document = model(batch["query"], batch["document"])
        return functional.info_nce(query, document, temperature=(-model.logit_scale).exp())

    model = functools.partial(tasks.TwoTower, 64, 16, 16, dropout=0.0)
    loss_fn = tasks.grad_cache(
        {"query": "query", "document": "document"}, retrieval.compare, chunk_size=10
    )
    made = [ftrain.make_steps(model, fn, ftrain.optim.sgd(0.1)) for fn in (loss_fn, whole)]
    batch, _ = retrieval.pairs()
    found, expected = (
        steps.train_step.gradients(made[0].init_state(0), batch).grads for steps in made
    )
    ftrain.testing.assert_close_norm(found, expected, 4e-6)


def test_retrieval_main_learns_and_draws_curves(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = functools.partial(retrieval.train, batch_size=48)
    monkeypatch.setattr(retrieval, "train", train)
    last = retrieval.main(["--steps", "60", "--out", str(tmp_path)])
    assert last["mrr"] > 0.5  # chance: 0.21
    said = capsys.readouterr().out
    assert "48 functions to train on, 16 held out" in said
    assert f"mean reciprocal rank {last['mrr']:.3f}" in said
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_retrieval_training_is_a_function_of_the_seed() -> None:
    def digest(seed: int) -> str:
        training, held_out = retrieval.pairs()
        state, _ = retrieval.train(training, held_out, steps=2, seed=seed, batch_size=48)
        return tree.digest(state)

    assert digest(0) == digest(0)
    assert digest(0) != digest(1)


def test_padding_does_not_change_an_embedding() -> None:
    tower = tasks.TwoTower(64, 16, 16).eval().query
    ids = torch.randint(1, 64, (3, 7))
    padded = torch.cat([ids, torch.zeros(3, 5, dtype=torch.int64)], 1)
    assert torch.allclose(tower(ids), tower(padded), atol=1e-6)
    assert tower(torch.zeros(2, 4, dtype=torch.int64)).isfinite().all()
