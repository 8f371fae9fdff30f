"""A donated state belongs to one call; other references to its tensors keep their values."""

from __future__ import annotations

import copy
import dataclasses
import gc
import threading
import weakref

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from ftrain.core import tree
from ftrain.core.compile import _ownership, compile
from ftrain.core.errors import DonatedStateError
from ftrain.core.state import TrainState
from tests.campaign import long
from tests.compile.cases import addresses, apart, same_bytes


def step(state, x):
    params = {name: p * 0.5 + x for name, p in state.params.items()}
    moment = [m + p for m, p in zip(state.opt_state, state.params.values(), strict=True)]
    return state.replace(step=state.step + 1, params=params, opt_state=moment), {"x": x * 2}


def make_state(seed=0, buffers=0):
    g = torch.Generator().manual_seed(seed)
    params = {"w": torch.randn(4, generator=g), "v": torch.randn(2, 2, generator=g)}
    opt_state = [torch.randn(4, generator=g), torch.randn(2, 2, generator=g)]
    others = {f"{i:03d}": torch.randn(3, generator=g) for i in range(buffers)}
    return TrainState(torch.tensor(0), params, others, opt_state, (), torch.zeros(2), {})


def copied(value):
    return tree.map(torch.clone, value)


# What code may keep of a live state, all of which shares its memory.
HOLDS = {
    "a leaf": lambda s: s.params["w"],
    "the params": lambda s: s.params,
    "a copy of the dict": lambda s: dict(s.params),
    "the values": lambda s: list(s.params.values()),
    "the optimizer's list": lambda s: s.opt_state,
    "a replaced state": lambda s: s.replace(extras={}),
    "dataclasses.replace": lambda s: dataclasses.replace(s, rng=torch.ones(2)),
    "copy.copy": copy.copy,
    "a mapped tree": lambda s: tree.map(lambda x: x, s),
    "leaves": tree.leaves,
    "detached leaves": lambda s: tree.map(torch.Tensor.detach, s),
    ".data": lambda s: s.params["v"].data,
    "a view": lambda s: s.params["w"][1:3],
    "a transposed view": lambda s: s.params["v"].t(),
    "a view of bytes": lambda s: s.opt_state[0].view(torch.int32),
    "an array": lambda s: s.params["w"].numpy(),
    "an array of a detached leaf": lambda s: s.params["v"].detach().numpy(),
    "a memoryview": lambda s: memoryview(s.opt_state[1].numpy()),
    "dlpack": lambda s: torch.from_dlpack(s.params["w"]),
    "a parameter": lambda s: torch.nn.Parameter(s.params["w"]),
    "a closure": lambda s: (lambda w: lambda: w * 1)(s.params["w"]),
    "an iterator": lambda s: (lambda it: (next(it), it))(iter(s.params.items()))[1],
    "the step": lambda s: s.step,
}


def value_of(hold):
    """Return a copy of the current values of a reference."""
    if isinstance(hold, memoryview):
        return bytes(hold)
    if callable(hold) and not isinstance(hold, torch.Tensor):
        return hold()
    if hasattr(hold, "__next__"):
        return [torch.clone(x) for _, x in copy.copy(hold)]
    return copy.deepcopy(hold)


def same(a, b):
    if isinstance(a, bytes):
        return a == b
    if hasattr(a, "tobytes"):
        return a.tobytes() == b.tobytes()
    return same_bytes(a, b)


@given(st.data())
@settings(max_examples=15)
def test_tensors_of_a_donated_state_referenced_elsewhere_keep_their_values_over_steps(data):
    compiled, xs = compile(step, donate=True, backend="eager"), torch.ones(())
    state, expected, kept = make_state(), make_state(), []
    for _ in range(data.draw(st.integers(1, 4))):
        for name in data.draw(st.lists(st.sampled_from(sorted(HOLDS)), max_size=3)):
            hold = HOLDS[name](state)
            kept.append((name, hold, value_of(hold)))
        state, _ = compiled(state, xs)
        expected, _ = step(expected, xs)
        assert same_bytes(state, expected)
        assert apart(state)
        for name, hold, before in kept:
            assert same(value_of(hold), before), name
        for _ in range(data.draw(st.integers(0, 1))):
            kept = kept[1:]
    assert compiled.n_compiles == 1


@pytest.mark.parametrize("name", HOLDS)
@pytest.mark.parametrize("buffers", [0, 40])  # use counts are read one by one, or all at once
@pytest.mark.parametrize("steps", [0, 2])  # before the first call, and in a run
def test_tensor_of_a_donated_state_keeps_its_values_for_every_kind_of_other_reference(
    name, buffers, steps
):
    compiled, x = compile(step, donate=True, backend="eager"), torch.ones(())
    state = make_state(buffers=buffers)
    for _ in range(steps):
        state, _ = compiled(state, x)
    expected = step(state, x)
    hold = HOLDS[name](state)
    before = value_of(hold)
    assert same_bytes(compiled(state, x), expected)
    assert same(value_of(hold), before)


@pytest.mark.parametrize("buffers", [0, 40])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3,)])
def test_donated_call_does_not_overwrite_a_user_tensor_that_replaced_a_leaf_of_the_state(
    shape, buffers
):
    """A leaf that is not the recorded one, with as many references as that one has."""

    def double(state, x):
        return state.replace(opt_state=[m + x for m in state.opt_state], step=state.step + 1), {}

    compiled, x = compile(double, donate=True, backend="eager"), torch.ones(())
    state = make_state(buffers=buffers)
    state = state.replace(opt_state=[torch.zeros(shape), torch.zeros(2)])
    for _ in range(2):
        state, _ = compiled(state, x)
    mine = state.opt_state[0].clone()
    state.opt_state[0] = mine
    before = mine.clone()
    state, _ = compiled(state, x)
    assert same_bytes(mine, before)
    assert same_bytes(state.opt_state[0], before + 1)


@pytest.mark.parametrize("more", [0, 40])
def test_owned_leaves_are_those_of_a_list_only_if_it_begins_with_the_same_tensor_objects(more):
    leaves = [torch.zeros(shape) for shape in [(), (1,), (0,), (2,), (3, 2), *[(2,)] * more]]
    owned = _ownership.OwnedLeaves(leaves)
    assert owned.is_of([*leaves])
    assert owned.is_of([*leaves, torch.ones(2)])
    assert not owned.is_of([*leaves[:-1], None])
    for place, leaf in enumerate(leaves[:6]):
        for other in (leaf.clone(), leaf[...], leaf.numpy(), 0.0, None, torch.zeros(5), "leaf"):
            assert not owned.is_of([*leaves[:place], other, *leaves[place + 1 :]]), (place, other)


@pytest.mark.parametrize("buffers", [0, 40])
def test_donated_state_without_other_references_is_not_copied(buffers, monkeypatch):
    copies = []
    monkeypatch.setattr(_ownership, "copy_of", lambda x: copies.append(x.shape) or x.clone())
    compiled, x = compile(step, donate=True, backend="eager"), torch.ones(())
    state = make_state(buffers=buffers)
    memory = addresses(state)
    for i in range(6):
        state, _ = compiled(state, x)
        assert state.params["w"].shape == (4,)  # reads leave nothing behind
        tree.digest(state), tree.nbytes(state), repr(state), copy.deepcopy(state)
        if i == 3:
            state = state.replace(extras={})
        assert addresses(state) == memory
    assert copies == []
    for p in state.params.values():  # the name of the loop stays
        p.sum()
    state, _ = compiled(state, x)
    state, _ = compiled(state, x)
    assert copies == [torch.Size([2, 2])]
    other = compile(lambda s, x: step(s, x * 3), donate=True, backend="eager")
    del p
    for _ in range(3):  # two functions in turn, as a generator and a discriminator
        state, _ = other(state, x)
        state, _ = compiled(state, x)
    assert len(copies) == 1


def test_donated_tensor_with_gaps_between_rows_keeps_its_strides():
    compiled, x = compile(step, donate=True, backend="eager"), torch.ones(())
    state = make_state()
    state.params["v"] = torch.zeros(4, 4)[::2, ::2]
    state, _ = compiled(state, x)
    kept = state.params["v"]
    state, _ = compiled(state, x)
    assert kept.tolist() == [[1.0, 1.0]] * 2
    assert state.params["v"].stride() == kept.stride()
    assert compiled.n_compiles == 1


def test_module_parameters_in_a_donated_state_keep_their_values():
    layer = torch.nn.Linear(2, 2, bias=False)
    before = layer.weight.detach().clone()
    state = make_state().replace(
        params={"v": layer.weight, "w": torch.ones(4)},
        opt_state=[torch.zeros(4), torch.zeros(2, 2)],
    )
    with torch.no_grad():
        new, _ = compile(
            lambda s, x: (
                s.replace(step=s.step + 1, params={k: p + x for k, p in s.params.items()}),
                {},
            ),
            donate=True,
            backend="eager",
        )(state, torch.ones(()))
    assert same_bytes(layer.weight.detach(), before)
    assert same_bytes(new.params["v"].detach(), before + 1)


def test_leaves_of_a_deleted_donated_state_are_freed():
    compiled, x = compile(step, donate=True, backend="eager"), torch.ones(())
    state, _ = compiled(make_state(), x)
    state, _ = compiled(state, x)
    refs = [weakref.ref(leaf) for leaf in tree.leaves(state)]
    del state
    assert [ref() for ref in refs] == [None] * len(refs)
    assert not gc.garbage


def test_donated_call_that_fails_before_it_writes_restores_the_state(monkeypatch):
    compiled, x = compile(step, donate=True, backend="eager"), torch.ones(())
    state, _ = compiled(make_state(), x)
    expected, kept = copied(state), state.params["w"]
    monkeypatch.setattr(_ownership, "copy_of", lambda x: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        compiled(state, x)
    assert same_bytes(state, expected)
    monkeypatch.undo()
    new, _ = compiled(state, x)
    assert same_bytes(new, step(expected, x)[0])
    assert same_bytes(kept, expected.params["w"])
    with pytest.raises(DonatedStateError):
        repr(state)


def race(n, work):
    """Run `work(i)` in n threads that start together; return results and errors."""
    barrier, found = threading.Barrier(n), [None] * n

    def run(i):
        barrier.wait()
        try:
            found[i] = work(i)
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize(
    "backend", ["eager", pytest.param("inductor", marks=[pytest.mark.inductor, long])]
)
def test_one_of_two_threads_that_donate_the_same_state_raises(backend, monkeypatch):
    compiled = compile(step, donate=True, backend=backend)
    state = compiled(make_state(), torch.ones(()))[0]
    checked, check = threading.Barrier(2), type(compiled)._check_memory

    def both_have_read_the_state(*args):
        check(*args)
        try:
            checked.wait(timeout=0.05)
        except threading.BrokenBarrierError:  # the other has failed before
            checked.reset()

    monkeypatch.setattr(type(compiled), "_check_memory", both_have_read_the_state)
    for _ in range(80):
        expected = [copied(step(state, torch.tensor(float(i)))) for i in (0, 1)]
        found = race(2, lambda i, state=state: compiled(state, torch.tensor(float(i))))
        (i,) = [i for i in (0, 1) if not isinstance(found[i], Exception)]
        torch.testing.assert_close(tree.leaves(found[i]), tree.leaves(expected[i]))
        if backend == "eager":
            assert same_bytes(found[i], expected[i])
        assert isinstance(found[1 - i], DonatedStateError)
        assert "state, metrics = step(state, batch)" in str(found[1 - i])
        state = found[i][0]
    assert compiled.n_compiles == 1


def test_concurrent_readers_of_a_donated_state_neither_change_the_new_state_nor_crash():
    """A reader that took the tensors before the claim may read values from before and after it."""
    compiled, x = compile(step, donate=True, backend="eager"), torch.ones(())
    state = compiled(make_state(), x)[0]
    for _ in range(40):
        after = tree.digest(step(state, x)[0])
        found = race(3, lambda i, s=state: tree.digest(s) if i else compiled(s, x))
        state = found[0][0]
        assert tree.digest(state) == after
        assert all(isinstance(digest, (str, DonatedStateError)) for digest in found[1:])


def test_donated_state_refuses_use_while_its_program_runs():
    """Use the state in the middle of the program, as another thread could."""
    state, seen = make_state(), []

    def inside(inputs):
        for use in (tree.digest, repr, lambda s: s.params, lambda s: compiled(s, torch.ones(()))):
            with pytest.raises(DonatedStateError, match="donated to `step`"):
                use(state)
            seen.append(use)
        return original(inputs)

    compiled = compile(step, donate=True, backend="eager")
    first, _ = compiled(make_state(1), torch.ones(()))
    program = compiled._programs[0]
    original, program._call = program._call, inside
    compiled(state, torch.ones(()))
    assert len(seen) == 4
    assert first.step.item() == 1
