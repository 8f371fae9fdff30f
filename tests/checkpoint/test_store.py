"""A run's checkpoints: which stay, which are found again, who may write, what goes wrong in a thread."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import checkpoint, optim
from ftrain.checkpoint import _files, _retention
from ftrain.testing import assert_same_bits
from tests.checkpoint.faults import Failing
from tests.checkpoint.states import train_state


def flip(path: Path, offset: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def filled(directory: Path, steps=(1, 2, 3), **options) -> checkpoint.Store:
    store = checkpoint.Store(directory, **options)
    for step in steps:
        store.save(train_state(step), step=step, metadata={"at": step}, metrics={"loss": -step})
    return store


# Which stay


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
def test_the_policy(entries, last, best, mode, every, hours):
    policy = _retention.Policy(last, best, "loss", mode, every, hours)
    found = [_retention.Entry(step, {"loss": loss}, seconds) for step, loss, seconds in entries]
    kept = policy.kept(found)
    steps = sorted(step for step, _, _ in entries)
    assert set(steps[-last:]) <= kept <= set(steps)
    assert (
        policy.kept([entry for entry in found if entry.step in kept]) == kept
    )  # nothing more goes
    if best is not None:
        losses = sorted(e[1] for e in entries if e[1] == e[1])
        wanted = losses[:best] if mode == "min" else losses[::-1][:best]
        assert [e.metrics["loss"] for e in policy.ranked(found)][:best] == wanted
        assert {e.step for e in policy.ranked(found)[:best]} <= kept
    if every is not None:
        assert {step for step in steps if step % every == 0} <= kept
    if hours is not None:
        times = sorted(e.seconds for e in found if e.step in kept)
        for entry in found:  # none is further from one that stays than the interval
            assert any(0 <= entry.seconds - t < 3600 * hours for t in times)


@settings(max_examples=15)
@given(
    steps=st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True),
    last=st.integers(1, 3),
    best=st.none() | st.integers(1, 2),
)
def test_the_store_follows_its_policy(memory_path_factory, steps, last, best):
    directory = memory_path_factory()
    model: dict[int, float] = {}
    with checkpoint.Store(directory, keep_last=last, keep_best=best) as store:
        for step in steps:
            loss = (step * 7) % 11
            store.save({"w": torch.tensor(step)}, step=step, metrics={"loss": loss})
            model[step] = loss
            kept = set(sorted(model)[-last:]) | {step}  # the one just saved always stays
            if best is not None:
                kept |= set(sorted(model, key=lambda s: (model[s], s))[:best])
            model = {s: value for s, value in model.items() if s in kept}
            assert store.steps() == sorted(model)
    assert store.latest().name == f"step-{max(model):012d}"
    assert store.best().name == f"step-{min(model, key=lambda s: (model[s], s)):012d}"
    assert sorted(os.listdir(directory)) == [".lock", *(f"step-{s:012d}" for s in sorted(model))]


def test_hours_count_from_when_a_checkpoint_was_finished(tmp_path):
    store = checkpoint.Store(tmp_path, keep_last=1, keep_every_hours=1.0)
    for step in range(5):
        path = store.save(train_state(step), step=step)
        finished = 1e9 + 1800 * step
        os.utime(path / "SHA256SUMS", (finished, finished))
        store._entries.clear()  # as a process that starts anew
    assert store.steps() == [0, 2, 4]
    store.save(train_state(5), step=5)
    assert store.steps() == [0, 2, 4, 5]


def test_the_new_one_is_durable_before_an_old_one_goes(tmp_path):
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
        ({"keep_last": 0}, "keep_last must be a whole number above zero or None, found 0"),
        ({"keep_best": 1.5}, "keep_best"),
        ({"keep_every_hours": 0}, "keep_every_hours must be above zero"),
        ({"mode": "smallest"}, "mode must be 'min' or 'max'"),
    ],
)
def test_policies_that_make_no_sense(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        checkpoint.Store(tmp_path, **options)


def test_steps_are_numbers_that_can_be_sorted(tmp_path):
    with pytest.raises(ValueError, match="from 0 to 10"):
        checkpoint.Store(tmp_path).save(train_state(1), step=-1)


# Which are found again


def test_an_empty_place(tmp_path):
    store = checkpoint.Store(tmp_path / "new")
    assert (store.latest(), store.best(), store.steps()) == (None, None, [])
    with pytest.raises(checkpoint.CheckpointNotFoundError, match="store.load\\(like, default="):
        store.load(like=train_state(0))
    state = train_state(0)
    assert store.load(like=state, default={"at": 0}) == (state, {"at": 0})
    assert not (tmp_path / "new").exists()


def test_what_does_not_verify_is_passed_over(tmp_path):
    store = filled(tmp_path)
    flip(tmp_path / "step-000000000003" / "tensors-00000.safetensors")
    with pytest.warns(
        checkpoint.CorruptCheckpointWarning, match="step-000000000003 does not verify"
    ):
        assert store.latest() == tmp_path / "step-000000000002"
    with pytest.warns(checkpoint.CorruptCheckpointWarning):
        assert store.best() == tmp_path / "step-000000000002"
    with pytest.warns(checkpoint.CorruptCheckpointWarning):
        state, metadata = store.load(like=train_state(0))
    assert metadata == {"at": 2}
    assert_same_bits(state, train_state(2))
    with pytest.raises(checkpoint.CheckpointCorruptError, match="not what was written"):
        store.load(like=train_state(0), step=3)
    for step in (1, 2):
        (tmp_path / f"step-{step:012d}" / "manifest.json").unlink()
    with pytest.warns(checkpoint.CorruptCheckpointWarning):
        with pytest.raises(checkpoint.CheckpointCorruptError, match="no checkpoint in .* verifies"):
            store.load(like=train_state(0), default={})  # a lost run does not begin anew by itself


def test_a_step_may_be_saved_again_only_as_it_was(tmp_path):
    store = filled(tmp_path)
    before = (tmp_path / "step-000000000003" / "SHA256SUMS").stat().st_ino
    store.save(train_state(3), step=3, metadata={"at": 3}, metrics={"loss": -3})
    assert (tmp_path / "step-000000000003" / "SHA256SUMS").stat().st_ino == before
    with pytest.raises(checkpoint.CheckpointExistsError):
        store.save(train_state(4), step=3)
    # One that does not verify holds nothing worth keeping.
    flip(tmp_path / "step-000000000003" / "tensors-00000.safetensors")
    with pytest.warns(checkpoint.CorruptCheckpointWarning, match="replaced"):
        store.save(train_state(4), step=3)
    assert_same_bits(store.load(like=train_state(0), step=3)[0], train_state(4))
    assert not [name for name in os.listdir(tmp_path) if name.startswith((".tmp", ".trash"))]


def test_what_does_not_verify_never_pushes_out_what_does(tmp_path):
    store = filled(tmp_path, (1, 2), keep_last=2)
    for step in (5, 6, 7):  # not even a manifest
        (tmp_path / f"step-{step:012d}").mkdir()
    store.save(train_state(3), step=3)
    assert store.steps() == [2, 3, 5, 6, 7]
    with pytest.warns(checkpoint.CorruptCheckpointWarning):
        assert store.latest() == tmp_path / "step-000000000003"


def test_going_back(tmp_path):
    store = filled(tmp_path)
    store.delete(3)
    assert store.load(like=train_state(0))[1] == {"at": 2}
    with pytest.raises(checkpoint.CheckpointNotFoundError, match=r"no step 3: \[1, 2\]"):
        store.delete(3)


# Who may write


def test_one_writer_at_a_time(tmp_path):
    first = filled(tmp_path)
    second = checkpoint.Store(tmp_path)
    assert second.load(like=train_state(0))[1] == {"at": 3}  # reading is free
    with pytest.raises(checkpoint.CheckpointLockedError, match=r"store.close\(\)"):
        second.save(train_state(9), step=9)
    with pytest.raises(checkpoint.CheckpointLockedError):
        second.delete(1)
    first.close()
    second.save(train_state(9), step=9)
    with pytest.raises(checkpoint.CheckpointLockedError):
        first.save(train_state(10), step=10)
    del second  # a store that is forgotten locks nothing
    first.save(train_state(10), step=10)


def test_the_lock_ends_with_its_process_whatever_its_children_do(tmp_path):
    ready, release = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        store = filled(tmp_path)
        if os.fork() == 0:  # a data loader's worker, that outlives its parent
            os.close(release[1])
            os.read(release[0], 1)
            os._exit(0)
        os.write(ready[1], b"x")
        time.sleep(60)
        del store
    os.read(ready[0], 1)
    with pytest.raises(checkpoint.CheckpointLockedError):
        checkpoint.Store(tmp_path).save(train_state(9), step=9)
    os.kill(child, 9)
    os.waitpid(child, 0)
    checkpoint.Store(tmp_path).save(train_state(9), step=9)
    for end in (*ready, *release):
        os.close(end)


def test_sweeping_spares_those_at_work(tmp_path):
    """Two plain saves side by side: neither takes the other's half-done directory for garbage."""
    entered, go_on = threading.Event(), threading.Event()

    class Slow(_files.Files):
        def sync(self, descriptor, path):
            if threading.current_thread().name == "slow" and path.endswith("safetensors"):
                entered.set()
                assert go_on.wait(20)
            super().sync(descriptor, path)

    (tmp_path / ".tmp-left-1-ab").mkdir()
    (tmp_path / ".trash-left-1-ab").mkdir()
    (tmp_path / ".trash-left-1-ab" / "file").write_text("")
    with _files.replaced(Slow()):
        thread = threading.Thread(
            target=lambda: checkpoint.save(tmp_path / "a", train_state(1)), name="slow"
        )
        thread.start()
        assert entered.wait(20)
        checkpoint.save(tmp_path / "b", train_state(2))
        go_on.set()
        thread.join()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    checkpoint.verify(tmp_path / "a")


# In a thread


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


def test_what_is_no_store_and_no_state_is_named(tmp_path: Path) -> None:
    state = {"w": torch.ones(2)}
    missing = checkpoint.Store(tmp_path / "none")
    with pytest.raises(checkpoint.CheckpointNotFoundError, match="there is no such directory"):
        missing.load(like=state)
    with checkpoint.Store(tmp_path / "store") as store:
        path = store.save(state, step=1)
        with pytest.raises(
            checkpoint.CheckpointMismatchError, match="function; call it: like=flip"
        ):
            store.load(like=flip)
    with pytest.raises(ValueError, match=r"itself a checkpoint; its store is the parent: Store\("):
        checkpoint.Store(path)
    (tmp_path / "file.py").write_text("")
    with pytest.raises(ValueError, match=r"file\.py is a file"):
        checkpoint.Store(tmp_path / "file.py")
