"""Donation of a dict, list or tuple of states: every state in it is claimed, written to and marked."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ftrain.core import tree
from ftrain.core.compile import _ownership, compile
from ftrain.core.errors import DonatedStateError, DonationError
from tests.compile.cases import Pair, addresses, apart, same_bytes

Two = collections.namedtuple("Two", ["a", "b"])


def pair(seed: int) -> Pair:
    g = torch.Generator().manual_seed(seed)
    return Pair(torch.randn(3, generator=g), {"w": torch.randn(2, 2, generator=g)})


CONTAINERS: dict[str, Callable[[], Any]] = {
    "dict": lambda: {"a": pair(0), "b": pair(1)},
    "dict in another order": lambda: {"b": pair(1), "a": pair(0)},
    "tuple": lambda: (pair(0), pair(1)),
    "list": lambda: [pair(0), pair(1)],
    "named tuple": lambda: Two(pair(0), pair(1)),
    "nested": lambda: {"a": [pair(0)], "b": (pair(1), {"c": pair(2)})},
}


def step(states: Any, x: torch.Tensor) -> Any:
    """Give every leaf the sum of all leaves of the old states."""
    total = torch.stack([leaf.sum() for leaf in tree.leaves(states)]).sum()
    return tree.map(lambda leaf: leaf * 0.5 + total * x, states), {"total": total}


def parts(states: Any) -> list[Pair]:
    if isinstance(states, Pair):
        return [states]
    values = states.values() if isinstance(states, dict) else states
    return [part for value in values for part in parts(value)]


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("alone", [False, True], ids=["with metrics", "alone"])
def test_donating_several_states_gives_the_bytes_of_the_plain_step_in_the_same_memory(
    name: str, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Any] = []
    usual = _ownership.copy_of
    monkeypatch.setattr(_ownership, "copy_of", lambda x: copies.append(x) or usual(x))
    fn = (lambda states, x: step(states, x)[0]) if alone else step
    compiled, x = compile(fn, donate=True, backend="eager"), torch.tensor(0.1)
    states, kept = CONTAINERS[name](), CONTAINERS[name]()
    memory = addresses(states)
    for _ in range(3):
        old, expected = states, fn(kept, x)
        found = compiled(states, x)
        assert same_bytes(found, expected)
        assert apart(found)
        states, kept = (found, expected) if alone else (found[0], expected[0])
        assert type(states) is type(old)
        assert addresses(states) == memory
        for part in parts(old):
            with pytest.raises(DonatedStateError, match="was donated to"):
                part.a  # noqa: B018
        with pytest.raises(DonatedStateError):
            compiled(old, x)
    assert compiled.n_compiles == 1
    assert copies == []


@pytest.mark.parametrize("steps", [0, 2])
def test_tensors_of_donated_states_referenced_elsewhere_keep_their_values(steps: int) -> None:
    compiled, x = compile(step, donate=True, backend="eager"), torch.tensor(0.1)
    states = CONTAINERS["dict"]()
    for _ in range(steps):
        states, _ = compiled(states, x)
    holds = [states["b"].a, states["a"].b, states["b"].b["w"][0]]
    expected = step(states, x)
    before = tree.map(torch.clone, holds)
    assert same_bytes(compiled(states, x), expected)
    assert same_bytes(holds, before)


@pytest.mark.parametrize("names", ["a", "abc"])
def test_states_donated_first_in_one_dict_and_then_in_another_keep_their_bits(names: str) -> None:
    """The record of a container is found by its first state, which may be in another container too."""

    def halved(states: Any) -> Any:
        return tree.map(lambda leaf: leaf * 0.5, states)

    def fresh(names: str) -> Any:
        return {name: pair(i) for i, name in enumerate(names)}

    compiled, other = (compile(halved, donate=True, backend="eager") for _ in range(2))
    other(fresh(names))  # the next call of it finds a program
    recorded = compiled(fresh("ab"))
    given = {**fresh(names), **{name: recorded[name] for name in names if name in recorded}}
    shared = given[names[-1]].b["w"][0]
    expected, before = halved(given), shared.clone()
    assert same_bytes(other(given), expected)
    assert same_bytes(shared, before)


def test_donating_two_states_raises_and_keeps_one_usable_if_another_thread_donates_the_other() -> (
    None
):
    compiled, x = compile(step, donate=True, backend="eager"), torch.tensor(0.1)
    a, b = pair(0), pair(1)
    program = compile(step, donate=True, backend="eager")
    program((tree.map(torch.clone, a), tree.map(torch.clone, b)), x)
    check = type(program)._check_memory

    def then_donate_b(self: Any, *args: Any) -> None:
        check(self, *args)
        if self is program:
            compiled(b, x)  # as another thread may, before this call claims the states

    type(program)._check_memory = then_donate_b  # type: ignore[method-assign]
    try:
        with pytest.raises(DonatedStateError):
            program((a, b), x)
    finally:
        type(program)._check_memory = check  # type: ignore[method-assign]
    assert same_bytes(a, pair(0))
    with pytest.raises(DonatedStateError):
        repr(b)


def test_donating_a_container_with_the_same_state_twice_raises() -> None:
    state = pair(0)
    with pytest.raises(
        DonationError, match=r"`states\['a'\].a` and `states\['b'\].a` share memory"
    ):
        compile(step, donate=True, backend="eager")({"a": state, "b": state}, torch.tensor(0.1))
    assert same_bytes(state, pair(0))


@pytest.mark.parametrize(
    ("states", "match"),
    [
        ({}, "got a dict"),
        ((), "got a tuple"),
        ({"a": pair(0), "n": torch.ones(1)}, r"got a Tensor at \['n'\]"),
        ([pair(0), {"deep": [3]}], r"got an int at \[1\]\['deep'\]\[0\]"),
        ([pair(0), None], r"got a NoneType at \[1\]"),
    ],
)
def test_donating_a_container_of_anything_but_states_raises(states: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        compile(lambda states: states, donate=True, backend="eager")(states)


@pytest.mark.parametrize("written", [False, True])
def test_donated_states_are_restored_only_if_the_program_fails_before_its_first_write(
    written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, x = compile(step, donate=True, backend="eager"), torch.tensor(0.1)
    states, _ = compiled(CONTAINERS["nested"](), x)
    expected = tree.map(torch.clone, states)

    def fail(_: Any) -> Any:
        raise MemoryError

    if written:
        monkeypatch.setattr(compiled._programs[0], "_call", fail)
    else:
        kept = states["a"][0].a  # noqa: F841  # is copied first
        monkeypatch.setattr(_ownership, "copy_of", fail)
    with pytest.raises(MemoryError):
        compiled(states, x)
    if not written:
        assert same_bytes(states, expected)
        return
    for part in parts(states):
        with pytest.raises(DonatedStateError, match="half of the next state"):
            repr(part)
