"""Saving in a thread: what is saved, what the loop waits for, how a failure comes out."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

import ftrain
from ftrain import checkpoint, optim
from ftrain.checkpoint import _files
from ftrain.testing import assert_same_bits
from tests.checkpoint.faults import Failing
from tests.checkpoint.states import train_state


class Gate(_files.Files):
    """Lets nothing be written until it is opened."""

    def __init__(self):
        self.open = threading.Event()

    def write(self, descriptor, data, path):
        assert self.open.wait(20)
        super().write(descriptor, data, path)


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    """Donation hands the saved state's memory to the next one while the thread has yet to write."""
    init_state, train_step, _ = ftrain.make_steps(
        lambda: torch.nn.Linear(4, 2), lambda m, x: m(x).square().mean(), optim.adamw(1e-1)
    )
    step = ftrain.compile(train_step, donate=True, backend="eager")
    state, gate = init_state(0), Gate()
    memory = state.params["weight"].data_ptr()
    with _files.replaced(gate), checkpoint.Store(tmp_path, asynchronous=True) as store:
        expected = ftrain.tree.map(torch.clone, state)
        store.save(state, step=0)
        for _ in range(3):
            state, _ = step(state, torch.ones(3, 4))
        assert state.params["weight"].data_ptr() == memory
        assert store.steps() == []
        gate.open.set()
        store.wait()
        assert_same_bits(store.load(like=init_state(1))[0], expected)


def test_an_immutable_state_is_its_own_snapshot(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "clone", None)
    gate = Gate()
    with _files.replaced(gate):
        with checkpoint.Store(tmp_path, asynchronous=True, donates=False) as store:
            monkeypatch.undo()
            state = train_state(1)
            store.save(state, step=1)
            gate.open.set()
    assert_same_bits(store.load(like=train_state(0))[0], state)


def test_one_save_is_in_flight(tmp_path):
    gate = Gate()
    with _files.replaced(gate), checkpoint.Store(tmp_path, asynchronous=True) as store:
        store.save(train_state(1), step=1)
        threading.Timer(0.2, gate.open.set).start()
        store.save(train_state(2), step=2)  # waits for the first
        assert store.steps()[0] == 1


@pytest.mark.parametrize("how", ["save", "wait", "close", "load", "exit"])
def test_a_failure_is_raised_at_the_next_occasion(tmp_path, how):
    store = checkpoint.Store(tmp_path, asynchronous=True)
    store.save(train_state(1), step=1)
    store.wait()
    with _files.replaced(Failing(6, 28, sticky=True)):
        store.save(train_state(2), step=2)
        while store._background._thread.is_alive():
            time.sleep(0.01)
    occasions = {
        "save": lambda: store.save(train_state(3), step=3),
        "wait": store.wait,
        "close": store.close,
        "load": lambda: store.load(like=train_state(0)),
        "exit": lambda: store.__exit__(None, None, None),
    }
    with pytest.raises(checkpoint.CheckpointWriteError, match="No space left"):
        occasions[how]()
    store.wait()  # once
    assert store.steps() == [1]
    store.save(train_state(3), step=3)
    store.close()
    assert store.steps() == [1, 3]


def run(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    prelude = """
        import sys, torch
        from ftrain import checkpoint
        from ftrain.checkpoint import _files
        store = checkpoint.Store(sys.argv[1], asynchronous=True)
    """
    script = textwrap.dedent(prelude) + textwrap.dedent(code)
    command = [sys.executable, "-c", script, str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_process_ends_only_when_its_checkpoint_is_there(tmp_path):
    # 40 MB: the hashing thread is asked for while the interpreter shuts down.
    done = run("store.save({'w': torch.arange(5_000_000)}, step=1)", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert checkpoint.Store(tmp_path).latest() is not None


def test_a_failure_that_nobody_was_told_of_ends_the_process_with_status_1(tmp_path):
    done = run(
        """
        import atexit, errno
        class Full(_files.Files):
            def write(self, *_):
                raise OSError(errno.ENOSPC, "No space left on device", "x")
        _files.system = Full()
        atexit.register(print, "another atexit function")
        store.save({'w': torch.ones(1)}, step=1)
        atexit.register(print, "and a later one")
        """,
        tmp_path,
    )
    assert done.returncode == 1
    assert "CheckpointWriteError" in done.stderr
    assert "and a later one\nanother atexit function" in done.stdout
    assert [name for name in os.listdir(tmp_path) if name != ".lock"] == []
