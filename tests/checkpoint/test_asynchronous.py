"""Test asynchronous saves: the saved state, the waiting time of the caller, and failures."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

import ftrain
from ftrain import checkpoint, optim, tree
from ftrain.checkpoint import _background, _determinism, _draft, _files, _structure
from ftrain.testing import assert_same_bits
from tests.campaign import examples
from tests.checkpoint.faults import Failing
from tests.checkpoint.states import bytes_of, train_state, trees


class Gate(_files.Files):
    """A file system that blocks writes until the test opens it."""

    def __init__(self):
        self.open = threading.Event()

    def write(self, descriptor, data, path):
        assert self.open.wait(20)
        super().write(descriptor, data, path)


def test_asynchronous_save_stores_the_state_as_it_was_at_the_call(tmp_path):
    """A donated step reuses the memory of the saved state before the thread writes it."""
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


def test_asynchronous_save_with_copy_false_does_not_clone(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "clone", None)
    gate = Gate()
    with _files.replaced(gate):
        with checkpoint.Store(tmp_path, asynchronous=True, copy=False) as store:
            monkeypatch.undo()
            state = train_state(1)
            store.save(state, step=1)
            gate.open.set()
    assert_same_bits(store.load(like=train_state(0))[0], state)


def test_a_second_asynchronous_save_waits_for_the_first(tmp_path):
    gate = Gate()
    with _files.replaced(gate), checkpoint.Store(tmp_path, asynchronous=True) as store:
        store.save(train_state(1), step=1)
        threading.Timer(0.2, gate.open.set).start()
        store.save(train_state(2), step=2)  # waits for the first
        assert store.steps()[0] == 1


@pytest.mark.parametrize("how", ["save", "wait", "close", "load", "exit"])
def test_a_failed_asynchronous_save_raises_at_the_next_call(tmp_path, how):
    store = checkpoint.Store(tmp_path, asynchronous=True)
    store.save(train_state(1), step=1)
    store.wait()
    with _files.replaced(Failing(6, 28, sticky=True)):
        store.save(train_state(2), step=2)
        assert store._background._job.done.wait(600)
    occasions = {
        "save": lambda: store.save(train_state(3), step=3),
        "wait": store.wait,
        "close": store.close,
        "load": lambda: store.load(like=train_state(0)),
        "exit": lambda: store.__exit__(None, None, None),
    }
    with pytest.raises(checkpoint.CheckpointWriteError, match="No space left"):
        occasions[how]()
    store.wait()  # raises only once
    assert store.steps() == [1]
    store.save(train_state(3), step=3)
    store.close()
    assert store.steps() == [1, 3]


def test_asynchronous_save_computes_paths_and_structure_in_the_background_thread(
    tmp_path, monkeypatch
):
    """Describing paths and aliases of 300 leaves took longer than copying them."""
    threads = {}
    for module, name in ((tree, "paths"), (_structure, "describe"), (_determinism, "fingerprint")):
        monkeypatch.setattr(module, name, noting(getattr(module, name), threads))
    with checkpoint.Store(tmp_path, asynchronous=True) as store:
        store.save(train_state(1), step=1)
    here = threading.current_thread().name
    assert threads == {
        "paths": {"ftrain-checkpoint"},
        "describe": {"ftrain-checkpoint"},
        "fingerprint": {here},  # read when `save` was called
    }


def noting(function, threads):
    def noted(*args, **kwargs):
        threads.setdefault(function.__name__, set()).add(threading.current_thread().name)
        return function(*args, **kwargs)

    return noted


def test_background_start_returns_at_once_while_the_job_keeps_the_interpreter_busy():
    """The thread once held the interpreter for 5 ms before `save` could return."""
    returned, seen = threading.Event(), []

    def busy():
        end = time.perf_counter() + 30.0  # keeps the interpreter for this long
        while not returned.is_set() and time.perf_counter() < end:
            pass
        seen.append(returned.is_set())

    background, before = _background.Background(), sys.getswitchinterval()
    sys.setswitchinterval(60.0)
    try:
        background.start(busy)
        returned.set()
    finally:
        sys.setswitchinterval(before)
        background.wait()
    assert seen == [True]


def test_asynchronous_save_ignores_later_changes_of_containers(tmp_path):
    """Containers are copied at the call; tensors only where they are donated."""
    gate, state, metadata = Gate(), {"w": torch.ones(2)}, {"at": [1]}
    with _files.replaced(gate):
        with checkpoint.Store(tmp_path, asynchronous=True, copy=False) as store:
            store.save(state, step=1, metadata=metadata)
            state["w"], state["b"] = torch.zeros(2), torch.zeros(1)
            metadata["at"].append(2)
            gate.open.set()
    loaded, metadata = store.load(like={"w": torch.zeros(2)})
    assert (loaded["w"].tolist(), metadata) == ([1, 1], {"at": [1]})


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@given(state=trees())
@settings(max_examples=examples(20, 60))
def test_copies_for_an_asynchronous_save_keep_layouts_and_tied_leaves(state):
    state = [state, state]
    copied = _draft.collect(state, None, None, None, None).copied().leaves
    for leaf, copy in zip(tree.leaves(state), copied, strict=True):
        assert (copy.shape, copy.dtype, copy.stride()) == (leaf.shape, leaf.dtype, leaf.stride())
        assert bytes_of(copy) == bytes_of(leaf)
        assert not leaf.numel() or leaf.data_ptr() != copy.data_ptr()
    half = len(copied) // 2
    assert all(a is b for a, b in zip(copied[:half], copied[half:], strict=True) if a.numel())


def test_asynchronous_store_frees_its_copy_after_writing_and_ends_its_thread_on_close(tmp_path):
    def threads():
        return [each for each in threading.enumerate() if each.name == "ftrain-checkpoint"]

    before = len(threads())
    state = {"w": torch.ones(3)}
    held = weakref.ref(state["w"])
    with checkpoint.Store(tmp_path, asynchronous=True, copy=False) as store:
        for step in (1, 2):
            store.save(state, step=step)
        assert store._background._job.done.wait(600)
        del state
        gc.collect()
        assert held() is None
        assert len(threads()) == before + 1
    forgotten = checkpoint.Store(tmp_path, asynchronous=True)
    forgotten.save({"w": torch.ones(3)}, step=3)
    forgotten.wait()
    del forgotten
    gc.collect()
    for _ in range(1000):
        if len(threads()) == before:
            break
        time.sleep(0.01)
    assert len(threads()) == before


def test_a_forked_child_starts_its_own_checkpoint_thread(tmp_path):
    with checkpoint.Store(tmp_path, asynchronous=True) as store:
        store.save(train_state(1), step=1)
    store.save(train_state(2), step=2)  # starts the thread again
    store.wait()
    store.close()
    store._background.start(lambda: None)
    child = os.fork()
    if child == 0:
        try:
            store.save(train_state(3), step=3)
            store.close()
        finally:
            os._exit(store.steps() != [1, 2, 3])
    assert os.waitpid(child, 0)[1] == 0
    store.close()


def test_asynchronous_save_writes_in_the_calling_thread_if_no_thread_can_start(
    tmp_path, monkeypatch
):
    """The store once waited forever for a thread that had not started."""

    def start(thread):
        raise RuntimeError("can't start new thread")

    with checkpoint.Store(tmp_path, asynchronous=True) as store:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            store.save(train_state(1), step=1)
        store.wait()
        assert store.steps() == [1]
        store.save(train_state(2), step=2)
    assert store.steps() == [1, 2]


def run(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    prelude = """
        import sys, torch
        from ftrain import checkpoint
        from ftrain.checkpoint import _files
        store = checkpoint.Store(sys.argv[1], asynchronous=True)
    """
    script = textwrap.dedent(prelude) + textwrap.dedent(code)
    command = [sys.executable, "-c", script, str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_a_process_exits_only_after_its_asynchronous_save(tmp_path):
    # 40 MB, so that the hashing thread would start while the interpreter is shutting down.
    done = run("store.save({'w': torch.arange(5_000_000)}, step=1)", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert checkpoint.Store(tmp_path).latest() is not None


def test_process_with_an_unreported_failure_of_an_asynchronous_save_exits_with_status_1(tmp_path):
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
