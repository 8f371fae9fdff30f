"""Test the retention policy: the checkpoints of a run that are kept."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import checkpoint
from ftrain.checkpoint import _files, _retention
from tests.checkpoint.states import filled, train_state


@given(
    entries=st.lists(
        st.tuples(st.integers(0, 50), st.floats(-5, 5) | st.just(float("nan")), st.floats(0, 1e5)),
        min_size=1,
        unique_by=lambda entry: entry[0],
    ),
    last=st.integers(1, 5),
    best=st.none() | st.integers(1, 3),
    mode=st.sampled_from(["min", "max"]),
    every=st.none() | st.integers(1, 10),
    hours=st.none() | st.floats(0.01, 10),
)
def test_retention_policy_keeps_last_best_and_periodic_steps(
    entries, last, best, mode, every, hours
):
    policy = _retention.RetentionPolicy(last, best, "loss", mode, every, hours)
    found = [
        _retention.StoredStep(step, {"loss": loss}, seconds) for step, loss, seconds in entries
    ]
    kept = policy.kept(found)
    steps = sorted(step for step, _, _ in entries)
    assert set(steps[-last:]) <= kept <= set(steps)
    # A second application of the policy deletes no more.
    assert policy.kept([entry for entry in found if entry.step in kept]) == kept
    if best is not None:
        losses = sorted(e[1] for e in entries if e[1] == e[1])
        wanted = losses[:best] if mode == "min" else losses[::-1][:best]
        assert [e.metrics["loss"] for e in policy.ranked(found)][:best] == wanted
        assert {e.step for e in policy.ranked(found)[:best]} <= kept
    if every is not None:
        assert {step for step in steps if step % every == 0} <= kept
    if hours is not None:
        times = sorted(e.seconds for e in found if e.step in kept)
        for entry in found:  # each is less than the interval after one that is kept
            assert any(0 <= entry.seconds - t < 3600 * hours for t in times)


@settings(max_examples=15)
@given(
    steps=st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True),
    last=st.integers(1, 3),
    best=st.none() | st.integers(1, 2),
)
def test_store_deletes_checkpoints_outside_its_retention_policy(
    memory_path_factory, steps, last, best
):
    directory = memory_path_factory()
    model: dict[int, float] = {}
    with checkpoint.Store(directory, keep_last=last, keep_best=best) as store:
        for step in steps:
            loss = (step * 7) % 11
            store.save({"w": torch.tensor(step)}, step=step, metrics={"loss": loss})
            model[step] = loss
            kept = set(sorted(model)[-last:]) | {step}  # the step just saved is always kept
            if best is not None:
                kept |= set(sorted(model, key=lambda s: (model[s], s))[:best])
            model = {s: value for s, value in model.items() if s in kept}
            assert store.steps() == sorted(model)
    assert store.latest().name == f"step-{max(model):012d}"
    assert store.best().name == f"step-{min(model, key=lambda s: (model[s], s)):012d}"
    assert sorted(os.listdir(directory)) == [".lock", *(f"step-{s:012d}" for s in sorted(model))]


def test_keep_every_hours_uses_the_time_at_which_a_checkpoint_was_finished(tmp_path):
    store = checkpoint.Store(tmp_path, keep_last=1, keep_every_hours=1.0)
    for step in range(5):
        path = store.save(train_state(step), step=step)
        finished = 1e9 + 1800 * step
        os.utime(path / "SHA256SUMS", (finished, finished))
        store._entries.clear()  # as in a new process
    assert store.steps() == [0, 2, 4]
    store.save(train_state(5), step=5)
    assert store.steps() == [0, 2, 4, 5]


def test_save_syncs_the_new_checkpoint_before_deleting_an_old_one(tmp_path):
    log = []

    class Watching(_files.Files):
        def call(self, operation, path, function, *args):
            log.append((operation, os.path.basename(path)))
            return super().call(operation, path, function, *args)

    filled(tmp_path, (1,), keep_last=1)
    with _files.replaced(Watching()):
        filled(tmp_path, (2,), keep_last=1)
    renamed = log.index(("rename", "step-000000000002"))
    synced = log.index(("fsync directory", tmp_path.name))
    gone = next(i for i, (op, name) in enumerate(log) if op == "rename" and ".trash" in name)
    assert renamed < synced < gone


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep_last": 0}, "keep_last: expected an integer >= 1 or None, got 0"),
        ({"keep_best": 1.5}, "keep_best"),
        ({"keep_every_hours": 0}, "keep_every_hours: expected a number > 0"),
        ({"mode": "smallest"}, "mode: expected 'min' or 'max'"),
    ],
)
def test_store_refuses_invalid_retention_options(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        checkpoint.Store(tmp_path, **options)


def test_store_refuses_negative_steps(tmp_path):
    with pytest.raises(ValueError, match="from 0 to 10"):
        checkpoint.Store(tmp_path).save(train_state(1), step=-1)


def test_a_missing_retention_metric_warns_once(tmp_path):
    """With a misspelt name the store once silently kept only the newest checkpoint."""
    with checkpoint.Store(tmp_path, keep_last=1, keep_best=1, metric="eval/los") as store:
        store.save(train_state(0), step=0)  # without metrics, a save is not ranked
        with pytest.warns(UserWarning, match="expected 'eval/los', by which keep_best=1") as caught:
            store.save(train_state(1), step=1, metrics={"eval/loss": 1.0, "x": 2.0})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            store.save(train_state(2), step=2, metrics={"eval/loss": 0.5, "x": 2.0})
        assert "got 'eval/loss', 'x'. Did you mean 'eval/loss'?" in str(caught[0].message)
        assert caught[0].filename == __file__
        assert store.best() is None


@pytest.mark.parametrize("options", [{"keep_best": 1, "metric": "loss"}, {"metric": "los"}])
def test_store_does_not_warn_if_the_retention_metric_is_present_or_unused(
    tmp_path, options, recwarn
):
    with checkpoint.Store(tmp_path, **options) as store:
        store.save(train_state(1), step=1, metrics={"loss": 1.0})
        store.save(train_state(2), step=2, metrics={"rate": 1.0})
    assert not recwarn.list
