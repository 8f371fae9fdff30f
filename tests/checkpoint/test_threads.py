"""Test several threads that share a store: they write in turn and see each other's changes."""

from __future__ import annotations

import os
import threading
import warnings

import pytest
import torch

from ftrain import checkpoint
from ftrain.checkpoint import _files
from ftrain.testing import assert_same_bits
from tests.checkpoint.states import filled, train_state


def together(*functions):
    """Run each function in a thread at the same time and return the exceptions, or None."""
    begin, raised = threading.Barrier(len(functions)), [None] * len(functions)

    def run(index):
        begin.wait()
        try:
            functions[index]()
        except BaseException as error:
            raised[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
        assert not thread.is_alive()
    return raised


@pytest.mark.parametrize("asynchronous", [False, True])
def test_concurrent_threads_can_save_different_steps_to_one_store(memory_path, asynchronous):
    """Two saves once deleted the same checkpoint, and a wait once ignored another thread's save."""
    store = checkpoint.Store(
        memory_path, keep_last=4, keep_best=2, keep_every_steps=10, asynchronous=asynchronous
    )

    def saving(first):
        for step in range(first, 40, 2):
            state = {"w": torch.tensor(step)}
            store.save(state, step=step, metadata=step, metrics={"loss": abs(step - 25)})

    def reading():
        for _ in range(20):
            store.wait()
            store.load(like={"w": torch.tensor(0)}, default=-1)
            store.best()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert together(lambda: saving(0), lambda: saving(1), reading) == [None] * 3
    store.save({"w": torch.tensor(40)}, step=40, metadata=40, metrics={"loss": 15})
    store.close()
    assert {0, 10, 20, 30, 38, 39, 40} <= set(store.steps())
    for step in store.steps():
        assert store.load(like={"w": torch.tensor(0)}, step=step) == ({"w": step}, step)
    assert sorted(os.listdir(memory_path)) == [".lock", *(f"step-{s:012d}" for s in store.steps())]
    assert store.best().name == "step-000000000025"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_one_of_two_concurrent_saves_of_a_step_with_different_content_raises(
    memory_path, asynchronous
):
    store = checkpoint.Store(memory_path, asynchronous=asynchronous)
    saves = [lambda kind=kind: store.save(train_state(kind), step=1) for kind in (1, 2)]
    raised = together(*saves)
    if asynchronous:
        with pytest.raises(checkpoint.CheckpointExistsError):
            store.close()
        assert raised == [None, None]
        first = None
    else:
        (first,) = [kind for kind, error in zip((1, 2), raised, strict=True) if error is None]
        assert isinstance(raised[2 - first], checkpoint.CheckpointExistsError)
    found = store.load(like=train_state(0), step=1)[0]
    assert int(found.step) in ({1, 2} if first is None else {first})
    assert_same_bits(found, train_state(int(found.step)))


class Held(_files.Files):
    """A file system that delays the first file of a save until the test allows it."""

    def __init__(self):
        self.reached, self.go_on = threading.Event(), threading.Event()

    def create(self, path):
        self.reached.set()
        assert self.go_on.wait(600)
        return super().create(path)


def test_a_child_forked_during_a_save_of_another_thread_does_not_block(memory_path):
    """The saving thread does not exist in the child and would never release its lock there."""
    store, held = checkpoint.Store(memory_path), Held()
    with _files.replaced(held):
        thread = threading.Thread(target=store.save, args=(train_state(1),), kwargs={"step": 1})
        thread.start()
        assert held.reached.wait(600)
        child = os.fork()
        if child == 0:
            store.wait()
            store.close()
            os._exit(3 if store.steps() else 0)
        assert os.waitpid(child, 0)[1] == 0
        held.go_on.set()
        thread.join()
    assert store.steps() == [1]


def test_best_returns_an_existing_checkpoint_while_another_is_deleted(memory_path, monkeypatch):
    """An entry that vanished between check and use once raised KeyError."""
    store = filled(memory_path, (1, 2, 3), keep_last=3)
    standing = type(store._numbered).standing
    deleted = []

    def slowly(self, step):
        found = standing(self, step)
        if step == 3 and not deleted:
            deleted.append(step)
            store.delete(3)
        return found

    monkeypatch.setattr(type(store._numbered), "standing", slowly)
    assert store.best().name == "step-000000000002"


def test_best_reads_the_metrics_of_a_checkpoint_replaced_by_another_store(memory_path):
    """The store once ranked by the metrics that it had read before the replacement."""
    writer = filled(memory_path, (1, 2, 3))
    reader = checkpoint.Store(memory_path)
    assert reader.best().name == "step-000000000003"
    writer.save(train_state(3), step=3, metrics={"loss": 9}, replace=True)
    assert reader.best().name == "step-000000000002"
    writer.delete(2)
    assert reader.best().name == "step-000000000001"
