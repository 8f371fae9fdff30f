"""Test the batch-size finder: largest size that fits, few trials, unchanged state."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import optim
from ftrain.core import tree
from ftrain.loop import finders
from tests.campaign import examples


def bounded(limit, seen=None):
    """Return a step with memory for a given number of rows."""

    def step(state, batch):
        if seen is not None:
            seen.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return state, {}

    return step


@given(
    limit=st.integers(1, 5000),
    start=st.integers(1, 64),
    multiple=st.sampled_from([1, 8, 32]),
    highest=st.integers(64, 4096),
)
@settings(max_examples=examples(40, 100), deadline=None)
def test_batch_size_finds_the_largest_size_that_fits(limit, start, multiple, highest):
    with mock.patch("gc.collect"):  # takes 0.1 s per trial, and the steps here hold no memory
        found = finders.batch_size(
            bounded(limit),
            {},
            torch.ones(3),
            start=start,
            highest=highest,
            multiple=multiple,
            n_steps=1,
        )
    assert found.size <= min(limit, highest)
    if limit >= highest:
        assert found.size == highest
        assert found.too_large is None
    else:
        assert found.size <= limit < found.too_large
        assert found.too_large - found.size <= (1 if multiple == 1 else 2 * multiple - 1)
    assert all(trial.fits == (trial.size <= limit) for trial in found.trials)
    sizes = [trial.size for trial in found.trials]
    assert len(set(sizes)) == len(sizes) <= 26  # 12 doublings, 12 bisections, 2 ends


def test_batch_size_runs_batches_of_each_size_and_keeps_the_state():
    seen = []

    def loss_fn(model, batch):
        seen.append((len(batch["x"]), len(batch["y"])))
        return ((model(batch["x"]) - batch["y"]) * batch["scale"]).square().mean()

    steps = ftrain.make_steps(lambda: torch.nn.Linear(3, 1), loss_fn, optim.adamw(1e-3))
    state = steps.init_state(0)
    before = tree.digest(state)
    batch = {"x": torch.ones(5, 3), "y": torch.ones(5, 1), "scale": torch.tensor(2.0)}
    found = finders.batch_size(steps, state, batch, highest=12, n_steps=1)
    assert (found.size, found.too_large) == (12, None)
    assert set(seen) == {(2, 2), (4, 4), (8, 8), (12, 12)}
    assert tree.digest(state) == before
    again = finders.batch_size(steps, state, batch, highest=4, compile={"backend": "eager"})
    assert again.size == 4
    assert tree.digest(state) == before


def test_batch_size_donates_only_copies_of_the_state():
    steps = ftrain.make_steps(
        lambda: torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1)
    )
    state = steps.init_state(0)
    before = tree.digest(state)
    step = ftrain.compile(steps.train_step, donate=True, backend="eager")

    def lost(state, batch):
        new = step(state, batch)
        if len(batch) > 6:
            raise MemoryError("after the old state was written over")
        return new

    found = finders.batch_size(lost, state, torch.ones(2, 3), highest=16)
    assert (found.size, found.too_large) == (6, 7)
    assert tree.digest(state) == before


def test_batch_size_raises_with_remedies_if_one_row_does_not_fit():
    steps = ftrain.make_steps(
        lambda: torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1)
    )
    with pytest.raises(MemoryError, match="Options that save memory"):
        finders.batch_size(bounded(0), steps.init_state(0), torch.ones(2, 3))


def test_batch_size_adds_the_size_to_errors_other_than_out_of_memory():
    def step(state, batch):
        raise ValueError("Expected more than 1 value per channel")

    with pytest.raises(ValueError, match="more than 1 value") as caught:
        finders.batch_size(step, {}, torch.ones(2, 3))
    assert "at batch size 2" in caught.value.__notes__[0]


def test_batch_size_accepts_a_function_of_the_size_and_refuses_invalid_arguments():
    seen = []
    found = finders.batch_size(
        bounded(9, seen), {}, lambda size: torch.ones(size), highest=32, n_steps=1
    )
    assert found.size == 9
    assert seen[:3] == [2, 4, 8]
    assert "a batch of 9 rows fits into memory, and 10 rows do not" in str(found)
    assert found.to_json()["trials"][0] == {"size": 2, "fits": True, "peak_bytes": None}
    with pytest.raises(ValueError, match=r"got row counts \[2, 3\]"):
        finders.batch_size(bounded(1), {}, (torch.ones(2), torch.ones(3)))
    with pytest.raises(ValueError, match="highest: expected at least"):
        finders.batch_size(bounded(1), {}, torch.ones(2), highest=1)
