"""Every random draw in a model is keyed, or raises an error that names its line."""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import optim, testing
from ftrain.core.errors import UnkeyedRandomError
from ftrain.core.random import _find_draw, _generators
from ftrain.core.random._watch import _operators_seen
from tests.campaign import CAMPAIGN
from tests.random.ways_to_draw import KEYED, REFUSED, UNKEYED, Way

BATCH = torch.linspace(-1, 1, 12).view(4, 3)
ALL = KEYED | UNKEYED | REFUSED
LINE = re.compile(r"ways_to_draw\.py:\d+ in |test_draws\.py:\d+ in ")


def generators() -> tuple[bytes, Any, str]:
    return bytes(torch.get_rng_state().numpy()), random.getstate(), str(np.random.get_state())


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    before = generators()
    yield
    assert generators() == before


class Drawn(nn.Module):
    """Model whose weights, or terms of its output, are drawn in given ways."""

    def __init__(self, built: tuple[Way, ...] = (), called: tuple[Way, ...] = ()) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.called = called
        for i, way in enumerate(built):
            self.register_parameter(f"drawn{i}", nn.Parameter(way((3, 3)).detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        for way in self.called:
            x = x + way((4, 3))
        return x


def steps_of(make: Callable[[], nn.Module]) -> ftrain.Steps:
    return ftrain.make_steps(make, lambda model, x: model(x).square().sum(), optim.sgd(0.1))


def outcome(call: Callable[[], Any]) -> tuple[str, bool]:
    """Return the digest of a call's result, or its error message, which names operator and line."""
    try:
        return ftrain.tree.digest(call()), True
    except UnkeyedRandomError as error:
        refused = str(error)
    assert LINE.search(refused), refused
    return refused, False


# A model that draws in a thread of its own is refused or seeded, as its other draws have it.
ways = st.lists(st.sampled_from(sorted(ALL.keys() - {"thread"})), min_size=1, max_size=3)


@settings(max_examples=10)
@given(ways, st.integers(0, 2**32), st.integers(0, 2**32))
def test_initial_weights_depend_only_on_the_seed(names: list[str], seed: int, around: int) -> None:
    make = lambda: Drawn(tuple(ALL[name] for name in names))  # noqa: E731
    found = []
    for global_seed in (around, around + 1):
        seed_all(global_seed)
        with kept():
            found.append(outcome(lambda: steps_of(make).init_state(seed)))
    assert found[0] == found[1]
    assert found[0][1] == REFUSED.keys().isdisjoint(names)
    if found[0][1]:
        assert outcome(lambda: steps_of(make).init_state(seed + 1)) != found[0]


PAIRS = [("manual_seed", "numpy"), ("numpy", "manual_seed"), ("random", "numpy")]


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a thread"])
def test_initial_weights_drawn_from_two_generators_depend_only_on_the_seed(
    names: tuple[str, str], beside: bool
) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    if beside:
        thread.start()
    try:
        make = lambda: Drawn(tuple(ALL[name] for name in names))  # noqa: E731
        found = []
        for global_seed in (0, 1):
            seed_all(global_seed)
            with kept():
                found.append(outcome(lambda: steps_of(make).init_state(0)))
        assert found[0] == found[1]
        assert found[0][1]
    finally:
        done.set()
        if beside:
            thread.join()


def test_random_draws_in_a_step_depend_only_on_the_arguments_of_the_step() -> None:
    check_steps({name: way for name, way in ALL.items() if name != "thread"}, compiled=False)


def test_compiled_step_draws_the_numbers_of_the_eager_step() -> None:
    check_steps(KEYED, compiled=True)


def check_steps(among: dict[str, Way], compiled: bool) -> None:
    @settings(max_examples=8 if compiled else 12)
    @given(st.lists(st.sampled_from(sorted(among)), min_size=1, max_size=3), st.integers(0, 2**32))
    def check(names: list[str], around: int) -> None:
        init_state, train_step, eval_step = steps_of(
            lambda: Drawn(called=tuple(ALL[name] for name in names))
        )
        state = init_state(0)
        for step in (train_step, eval_step):
            other = ftrain.compile(step, backend="eager") if compiled else step
            found = []
            for i, run in enumerate((step, other)):
                seed_all(around + i)
                with kept():
                    found.append(outcome(lambda run=run: run(state, BATCH)))
            assert found[0] == found[1]
            assert found[0][1] == (KEYED.keys() >= set(names))

    check()


@pytest.mark.parametrize("name", ["manual_seed", "numpy", "numpy Generator", "custom operator"])
def test_compiled_step_refuses_draws_that_would_become_constants(name: str) -> None:
    init_state, train_step, _ = steps_of(lambda: Drawn(called=(ALL[name],)))
    with kept():
        refused, done = outcome(
            lambda: ftrain.compile(train_step, backend="eager")(init_state(0), BATCH)
        )
    assert not done
    assert ("custom" in name) == ("ftrain_tests.noise.default draws" in refused)


@pytest.mark.parametrize("name", KEYED)
def test_keyed_draws_differ_between_steps_with_different_keys(name: str) -> None:
    init_state, train_step, _ = steps_of(lambda: Drawn(called=(KEYED[name],)))
    state = init_state(0)
    other = state.replace(rng=ftrain.random.key(5))
    found = {ftrain.tree.digest(train_step(each, BATCH)[1]) for each in (state, other)}
    assert len(found) == 2


@pytest.mark.parametrize("name", ALL)
def test_ensemble_rows_have_the_initial_weights_of_single_models(name: str) -> None:
    if name in REFUSED:
        pytest.skip("refused")
    init = ftrain.bind(lambda: Drawn((ALL[name],))).init
    keys = ftrain.random.key(torch.arange(3))
    with kept():
        rows = torch.vmap(init)(keys)[0]
        for i in range(3):
            testing.assert_same_bits({n: t[i] for n, t in rows.items()}, init(keys[i])[0])


@contextlib.contextmanager
def drawing_elsewhere(draw: Callable[[], Any]) -> Iterator[Callable[[], int]]:
    """Run a thread that draws random numbers continuously."""
    stop = threading.Event()
    count = 0

    def loop() -> None:
        nonlocal count
        while not stop.is_set():
            draw()
            count += 1
            time.sleep(0.0002)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield lambda: count
    finally:
        stop.set()
        thread.join()


DRAWS = {"torch": lambda: torch.rand(1), "numpy": lambda: np.random.rand(), "python": random.random}


@pytest.mark.parametrize(
    ("way", "name"), [*(("torch.rand", name) for name in DRAWS), ("jit", "torch")]
)
def test_draws_of_another_thread_during_a_step_neither_raise_nor_are_undone(
    way: str, name: str
) -> None:
    assert check_beside_draws(way, name) == 0


@pytest.mark.parametrize("name", ["numpy", "python"])
def test_draws_of_another_thread_during_a_step_with_torch_jit_change_no_result(name: str) -> None:
    """A step may be refused by mistake: `torch.jit` hides that it lets other threads run."""
    check_beside_draws("jit", name)


def check_beside_draws(way: str, name: str) -> int:
    """Run a step ten times beside a thread that draws; return how often it was refused."""
    init_state, train_step, _ = steps_of(lambda: Drawn(called=(KEYED[way],)))
    state = init_state(0)
    expected = ftrain.tree.digest(train_step(state, BATCH))
    fresh = steps_of(lambda: Drawn(called=(KEYED[way],))).train_step
    before = generators()
    refused = 0
    with drawing_elsewhere(DRAWS[name]) as count:
        started = count()
        for _ in range(10):
            digest, done = outcome(lambda: fresh(state, BATCH))
            assert not done or digest == expected
            refused += not done
        deadline = time.monotonic() + 60
        while count() == started and time.monotonic() < deadline:
            time.sleep(0.001)
    assert generators() != before
    return refused


@contextlib.contextmanager
def without_pauses(draw: Callable[[], Any]) -> Iterator[None]:
    """Run a thread that draws whenever another thread lets it run, and never pauses."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            draw()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("name", ["numpy", "python"])
def test_search_for_unkeyed_draws_ignores_draws_of_another_thread_during_operators(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    init_state, train_step, _ = steps_of(lambda: Drawn(called=(torch.rand,)))
    state = init_state(0)
    marks = _generators.read()
    monkeypatch.setattr(_find_draw, "_SWITCH_INTERVAL", 0.0)  # Python's 5 ms

    def run() -> None:
        with _operators_seen():
            train_step.fn(state, BATCH)

    with without_pauses(DRAWS[name]):
        found = [draw.line for _ in range(10) for draw in _find_draw._search(run, marks)]
    assert len(found) <= 1, found  # by chance: the interpreter interrupts each thread after 5 ms


class DrawsInAdd:
    """Object whose `+` draws below Python, as another thread may inside of the `+` of tensors."""

    __add__ = staticmethod(np.random.rand)


def test_search_for_unkeyed_draws_skips_operators_but_not_calls_if_another_thread_exists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Less than the pause: only the time that other threads use counts.
    monkeypatch.setattr(_find_draw, "_MAX_WAIT", 0.05)

    def run() -> None:
        DrawsInAdd() + 3
        with _operators_seen():
            time.sleep(0.1)
            torch.ones(3) + 1
            np.random.rand(3)

    idle = threading.Event()
    thread = threading.Thread(target=idle.wait)
    thread.start()
    try:
        found = [draw.line for draw in _find_draw._search(run, _generators.read())]
    finally:
        idle.set()
        thread.join()
    assert ["np.random.rand(3)" in line for line in found] == [True]


def test_search_for_unkeyed_draws_ignores_draws_of_another_thread_while_the_searched_code_waits() -> (
    None
):
    stop, lock = threading.Event(), threading.Lock()

    def draw() -> None:
        while not stop.is_set():
            np.random.rand()
            time.sleep(0.001)

    def run() -> None:
        for _ in range(5):
            time.sleep(0.05)
            lock.acquire(timeout=0.05)

    lock.acquire()
    before = np.random.get_state()
    thread = threading.Thread(target=draw)
    thread.start()
    try:
        # Repeated: a machine that stops this thread for 0.1 s lets the other one run at any line.
        found = _find_draw.find_draws(run, _generators.read())
    finally:
        stop.set()
        thread.join()
        np.random.set_state(before)
    assert found == []


def test_step_is_not_delayed_by_a_busy_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_find_draw, "_MAX_WAIT", 0.5)

    def pause_and_draw(shape: tuple[int, ...]) -> Tensor:
        time.sleep(0.01)  # lets the other thread run, so that the step is searched
        return torch.rand(shape)

    init_state, train_step, _ = steps_of(lambda: Drawn(called=(pause_and_draw,)))
    state = init_state(0)
    expected = ftrain.tree.digest(train_step(state, BATCH))
    began = time.process_time()  # of both threads: a busy machine does not lengthen it
    with without_pauses(DRAWS["numpy"]):
        for _ in range(3):
            assert ftrain.tree.digest(train_step(state, BATCH)) == expected
    assert time.process_time() - began < 30  # one switch of threads took a minute


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("names", [["custom operator"], ["jit", "torch.Generator"], ["numpy"]])
def test_refused_draw_restores_the_global_generators_while_another_thread_is_idle(
    names: list[str], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled and not CAMPAIGN:  # 2 s for each search of a traced call
        monkeypatch.setattr(_find_draw, "_MORE", 1)
    init_state, train_step, _ = steps_of(lambda: Drawn(called=tuple(ALL[name] for name in names)))
    state = init_state(0)
    step = ftrain.compile(train_step, backend="eager") if compiled else train_step
    idle = threading.Event()
    thread = threading.Thread(target=idle.wait)
    thread.start()
    try:
        with kept():
            assert not outcome(lambda: step(state, BATCH))[1]
    finally:
        idle.set()
        thread.join()
