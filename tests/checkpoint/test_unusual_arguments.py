"""Test unusual arguments: a state or value that could not be loaded raises when it is saved."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ftrain import checkpoint
from ftrain.checkpoint import _files, _safetensors

ONE = {"a": torch.ones(1)}


def saved(path, state=ONE, **options):
    checkpoint.save(path, state, **options)
    return checkpoint.load(path, like=state, on_change="ignore")


@pytest.mark.parametrize("step", [-1, 2**70, 10**12, 3.7, "5", torch.tensor(3.0), math.nan])
def test_save_refuses_invalid_steps(step, tmp_path):
    """A step of -1 was once saved and then refused as corrupt; 3.7 was saved as 3."""
    for save in (
        lambda: checkpoint.save(tmp_path / "one", ONE, step=step),
        lambda: checkpoint.Store(tmp_path).save(ONE, step=step),
    ):
        with pytest.raises((TypeError, ValueError), match="step: expected a"):
            save()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [0, 10**12 - 1, torch.tensor(3), np.int64(3)])
def test_save_accepts_integers_and_0d_tensors_as_step(step, tmp_path):
    with checkpoint.Store(tmp_path) as store:
        store.save(ONE, step=step)
        assert store.steps() == [int(step)]
        assert checkpoint.verify(store.latest()).step == int(step)


@pytest.mark.parametrize("value", [None, "low", torch.ones(2), 10**400])
def test_save_refuses_metrics_that_are_not_numbers(value, tmp_path):
    with pytest.raises(TypeError, match=r"metrics\['loss'\]: expected a number, got "):
        checkpoint.save(tmp_path / "one", ONE, metrics={"loss": value})


def test_save_refuses_metrics_that_are_not_a_dict(tmp_path):
    with pytest.raises(TypeError, match="metrics: expected a dict of names and numbers, got list"):
        checkpoint.save(tmp_path / "one", ONE, metrics=[1.0])


def freed():
    tensor = torch.ones(3)
    tensor.untyped_storage().resize_(0)
    return tensor


def fake():
    with FakeTensorMode():
        return torch.ones(3)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("make", [freed, fake, lambda: torch.nn.LazyLinear(3).weight])
def test_save_refuses_tensors_without_memory(tmp_path, make, asynchronous):
    """A tensor with freed storage was once saved asynchronously with the bytes of another."""
    store = checkpoint.Store(tmp_path / "run", asynchronous=asynchronous)
    with pytest.raises(ValueError, match=r"the leaf at \['a'\]: expected a tensor with memory"):
        store.save({"a": make()}, step=1)
    store.close()
    assert store.steps() == []


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad])
def test_save_inside_vmap_or_grad_raises(tmp_path, transform):
    def saving(x):
        checkpoint.save(tmp_path / "one", {"a": x})
        return x.sum()

    with pytest.raises(ValueError, match="Save outside of transformed functions"):
        transform(saving)(torch.ones(2))


def test_save_refuses_containers_nested_more_than_100_levels(tmp_path):
    """Such states were once saved, and then reported as corrupt by a reader with a deeper stack."""

    def deep(levels):
        state = torch.ones(1)
        for _ in range(levels):
            state = [state]
        return state

    assert checkpoint.save(tmp_path / "one", deep(100)).leaves
    for levels in (101, 900):
        with pytest.raises(ValueError, match="at most 100 levels of nested containers"):
            checkpoint.save(tmp_path / "two", deep(levels))


def test_save_refuses_states_that_are_too_large_for_load_to_accept(tmp_path, monkeypatch):
    """States beyond the limits against hostile files were once saved and could not be loaded."""

    def never(self, operation, path, *_):
        raise AssertionError(f"{operation} {path}")  # the save must raise before it writes

    monkeypatch.setattr(_files.Files, "call", never)
    module = sys.modules["ftrain.checkpoint.save"]
    monkeypatch.setattr(module, "MOST_MANIFEST", 3000)
    with pytest.raises(ValueError, match="a manifest of at most 3000 bytes, got"):
        checkpoint.save(tmp_path / "one", ONE, metadata="x" * 3000)
    monkeypatch.setattr(_safetensors, "_MOST_HEADER", 1000)
    many = {f"name{i}": torch.ones(1) for i in range(30)}
    with pytest.raises(
        ValueError, match="expected a safetensors header of at most .* for 30 tensors"
    ):
        checkpoint.save(tmp_path / "one", many)
    monkeypatch.undo()
    monkeypatch.setattr(_safetensors, "_MOST_HEADER", 1000)
    with pytest.raises(
        ValueError, match="expected a safetensors header of at most .* for 30 tensors"
    ):
        checkpoint.write_state_dict(tmp_path / "one", many)
    assert not list(tmp_path.iterdir())


def test_save_accepts_a_manifest_of_exactly_the_largest_size(tmp_path, monkeypatch):
    """The size is exact to the byte, before the hashes of the files are known."""
    checkpoint.save(tmp_path / "one", ONE, step=1)
    size = (tmp_path / "one" / "manifest.json").stat().st_size
    module = sys.modules["ftrain.checkpoint.save"]
    monkeypatch.setattr(module, "MOST_MANIFEST", size)
    checkpoint.save(tmp_path / "two", ONE, step=1)
    monkeypatch.setattr(module, "MOST_MANIFEST", size - 1)
    with checkpoint.Store(tmp_path / "run", asynchronous=True) as store:
        store.save(ONE, step=1)
        with pytest.raises(ValueError, match=f"a manifest of at most {size - 1} bytes, got {size}"):
            store.wait()
    assert os.listdir(tmp_path / "run") == [".lock"]


def nested(depth):
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


def test_save_refuses_metadata_that_is_too_deep_cyclic_or_too_large(tmp_path):
    """Reading deeply nested JSON depends on the depth of the reader's stack."""
    endless: list[object] = []
    endless.append(endless)
    for value in (nested(101), nested(5000), endless):
        with pytest.raises(
            TypeError, match="at most 100 nested levels, got more, or a value that contains itself"
        ):
            checkpoint.save(tmp_path / "one", ONE, metadata=value)
    with pytest.raises(TypeError, match="at most 4096 bits"):
        checkpoint.save(tmp_path / "one", ONE, metadata={"n": 10**5000})
    for value in (nested(100), {"n": 2**4096 - 1}):
        assert saved(tmp_path / str(id(value)), metadata=value)[1] == value


@pytest.mark.parametrize("value", [(1, 2), math.nan, [math.inf], {"a": (1,)}])
def test_settings_recorded_by_a_save_compare_equal_when_loaded_unchanged(value, tmp_path):
    fingerprint = {"mine": value}
    checkpoint.save(tmp_path / "one", ONE, fingerprint=fingerprint)
    checkpoint.load(tmp_path / "one", ONE, fingerprint=fingerprint, on_change="raise")
    with pytest.raises(checkpoint.CheckpointMismatchError, match="mine"):
        checkpoint.load(tmp_path / "one", ONE, fingerprint={"mine": 3}, on_change="raise")


def test_load_refuses_an_unknown_value_of_on_change(tmp_path):
    checkpoint.save(tmp_path / "one", ONE)
    with pytest.raises(ValueError, match="on_change: expected one of"):
        checkpoint.load(tmp_path / "one", ONE, on_change="raises")  # type: ignore[arg-type]


@pytest.mark.parametrize("hours", [0, -1, math.nan, "1"])
def test_store_refuses_invalid_keep_every_hours(hours, tmp_path):
    with pytest.raises(ValueError, match="keep_every_hours: expected a number > 0"):
        checkpoint.Store(tmp_path, keep_every_hours=hours)


def test_state_dict_functions_refuse_unknown_formats(tmp_path):
    for act in (
        lambda: checkpoint.write_state_dict(tmp_path / "w", {}, format="pickle"),
        lambda: checkpoint.read_state_dict(tmp_path / "w", format="pickle"),
    ):
        with pytest.raises(ValueError, match="format: expected 'safetensors' or 'torch'"):
            act()
    with pytest.raises(checkpoint.CheckpointNotFoundError, match="expected model.safetensors or"):
        checkpoint.read_state_dict(tmp_path)


@pytest.mark.parametrize("every", [0.5, 0, True])
def test_store_refuses_invalid_keep_every_steps(every, tmp_path):
    with pytest.raises(ValueError, match="keep_every_steps: expected an integer >= 1"):
        checkpoint.Store(tmp_path, keep_every_steps=every)


def test_tied_leaves_stay_tied_if_only_one_requires_grad(tmp_path):
    tied = torch.ones(2)
    checkpoint.save(tmp_path / "one", {"a": tied, "b": tied})
    like = {"a": torch.zeros(2, requires_grad=True), "b": torch.zeros(2)}
    state, _ = checkpoint.load(tmp_path / "one", like)
    assert state["a"] is state["b"]
    assert state["a"].requires_grad


def test_load_refuses_the_directory_of_a_store(tmp_path):
    with checkpoint.Store(tmp_path) as store:
        store.save(ONE, step=1)
    with pytest.raises(checkpoint.CheckpointCorruptError, match=r"write Store\(...\).load"):
        checkpoint.load(tmp_path, ONE)


def test_save_refuses_a_path_through_a_broken_link_or_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(checkpoint.CheckpointWriteError, match="a link to nothing: choose"):
            checkpoint.save(tmp_path / name / "one", ONE)


@pytest.mark.parametrize("name", ["日本 é\n", "\udcff", "n" * 200, "a'b\"c"])
def test_single_checkpoints_may_be_saved_under_any_directory_name(name, tmp_path):
    assert torch.equal(saved(tmp_path / name)[0]["a"], ONE["a"])
    (tmp_path / "linked").symlink_to(tmp_path / name)
    assert torch.equal(checkpoint.load(tmp_path / "linked", ONE)[0]["a"], ONE["a"])


def test_write_state_dict_refuses_reserved_names_and_modules(tmp_path):
    with pytest.raises(ValueError, match="which safetensors reserves"):
        checkpoint.write_state_dict(tmp_path / "w", {"__metadata__": torch.ones(1)})
    with pytest.raises(TypeError, match="module.state_dict"):
        checkpoint.write_state_dict(tmp_path / "w", torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_store_wait_after_an_interrupted_wait_waits_for_the_save_again(tmp_path, monkeypatch):
    """After Ctrl-C, a second wait once returned before the checkpoint existed."""
    go_on = threading.Event()
    write = _files.Files.create

    def slowly(self, path):
        assert go_on.wait(60)
        return write(self, path)

    monkeypatch.setattr(_files.Files, "create", slowly)
    store = checkpoint.Store(tmp_path, asynchronous=True)
    store.save(ONE, step=1)
    # Parallel test runs ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            store.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    assert store.steps() == []
    threading.Timer(0.3, go_on.set).start()
    store.wait()
    assert store.steps() == [1]
    store.close()


def test_a_forked_child_does_not_wait_for_the_save_of_its_parent(tmp_path, monkeypatch):
    go_on = threading.Event()
    write = _files.Files.create
    monkeypatch.setattr(
        _files.Files, "create", lambda self, path: (go_on.wait(60), write(self, path))[1]
    )
    store = checkpoint.Store(tmp_path, asynchronous=True)
    store.save(ONE, step=1)
    child = os.fork()
    if child == 0:
        store.wait()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    go_on.set()
    store.close()
    assert store.steps() == [1]
