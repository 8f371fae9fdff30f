"""Test states of the global generators: reading from memory, comparison, restoration."""

from __future__ import annotations

import functools
import random
import struct
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core.errors import UnkeyedRandomError
from ftrain.core.random import _generators, _watch
from ftrain.core.random._own_generators import reachable
from tests.random import ways_to_draw

DRAWS: dict[str, tuple[str, Callable[[], Any]]] = {
    "rand": ("torch", lambda: torch.rand(1)),
    "randn": ("torch", lambda: torch.randn(3)),
    "manual_seed": ("torch", lambda: torch.manual_seed(torch.initial_seed() + 1)),
    "np.rand": ("numpy", lambda: np.random.rand()),
    "np.randn": ("numpy", lambda: np.random.randn()),  # every second one moves no word
    "np.seed": ("numpy", lambda: np.random.seed(int(np.random.randint(2**31)))),
    "random": ("python", random.random),
    "gauss": ("python", lambda: random.gauss(0, 1)),  # every second one moves no word
    "shuffle": ("python", lambda: random.shuffle([1, 2, 3])),
}


def states() -> tuple[bytes, Any, str]:
    return bytes(torch.get_rng_state().numpy()), random.getstate(), str(np.random.get_state())


@pytest.fixture(autouse=True)
def _states_are_put_back() -> Iterator[None]:
    torch_state, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    torch.set_rng_state(torch_state)
    random.setstate(python)
    np.random.set_state(numpy)


@given(st.lists(st.sampled_from(sorted(DRAWS)), max_size=6), st.integers(0, 2**31))
def test_comparison_of_generator_states_names_exactly_the_generators_that_drew(
    names: list[str], seed: int
) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    for name in names[: len(names) // 2]:
        DRAWS[name][1]()
    marks, before = _generators.read(), states()
    for name in names[len(names) // 2 :]:
        DRAWS[name][1]()
    moved = {DRAWS[name][0] for name in names[len(names) // 2 :]}
    assert set(_generators.moved(marks)) == moved
    assert set(_generators.moved_quietly(marks)) == moved - {"torch"}
    _generators.restore(marks, tuple(moved))
    assert states() == before
    assert _generators.moved(marks) == ()


def test_numpy_and_python_generator_states_are_read_from_memory() -> None:
    """Asking numpy and random for their states instead would cost 40 µs per step."""
    assert isinstance(_generators.read().python[0], bytes)
    assert isinstance(_generators.read().numpy[0], bytes)
    for reader in (_generators._python_reader, _generators._numpy_reader):
        assert isinstance(reader()[0]()[0], bytes)
    for _ in range(2):
        np.random.randn()
        state = np.random.get_state(legacy=False)
        words, kept = _generators._numpy_reader()[0]()
        assert words[:-4] == state["state"]["key"].tobytes()
        has, _, gauss = struct.unpack("=iid", kept)
        assert (has, gauss) == (state["has_gauss"], state["gauss"])


def test_layout_of_a_generator_with_other_contents_in_its_memory_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _generators._python_is_readable()
    assert _generators._find_gauss() is not None
    for name in ("_python_memory", "_numpy_memory"):
        monkeypatch.setattr(_generators, name, lambda _: SimpleNamespace(raw=bytes(2500)))
    assert not _generators._python_is_readable()
    assert _generators._find_gauss() is None
    monkeypatch.undo()
    monkeypatch.setattr(_generators, "_MT19937_BYTES", 10**9)  # more than the object has
    assert not _generators._python_is_readable()


def test_numpy_and_python_generator_states_of_unknown_memory_layout_are_read_by_their_api(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_generators, "_find_gauss", lambda: None)
    monkeypatch.setattr(_generators, "_python_is_readable", lambda: False)
    for reader, draw in (
        (_generators._numpy_reader, lambda: np.random.randn()),
        (_generators._python_reader, lambda: random.gauss(0, 1)),
    ):
        read, restore = reader()
        for _ in range(3):
            before = read()
            draw()
            assert read() != before
            restore(before)
            assert read() == before
            draw()


def test_draws_from_another_numpy_bit_generator_are_detected_and_undone() -> None:
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        marks = _generators.read()
        first = np.random.randn()
        assert _generators.moved(marks) == ("numpy",)
        _generators.restore(marks, ("numpy",))
        assert np.random.randn() == first
    finally:
        np.random.set_bit_generator(before)


@pytest.mark.parametrize("name", ["torch", "numpy", "python"])
def test_seeded_generator_depends_on_both_32_bit_words_of_the_seed(name: str) -> None:
    draw = {"torch": lambda: torch.rand(1).item(), "numpy": np.random.rand, "python": random.random}
    drawn = []
    # Torch's seeds have 32 bits: one of the first word, and 31 of the second.
    others = (1, 2**31), (2**31, 2), (2**32 - 1, 2**32 - 1), (0, 0), (0, 4)
    for words in ((1, 2), (1, 2), *others):
        _generators.seed(name, words)
        drawn.append(draw[name]())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 1 + len(others)


HELD = np.random.default_rng(0)
ALSO = random.Random(1)


def uses_a_global() -> float:
    return HELD.random()


def calls_a_helper() -> float:
    return uses_a_global()


class Holds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2))
        self.inner.held = {"deep": [HELD]}  # type: ignore[assignment]


class Calls(nn.Module):
    def forward(self) -> float:
        return self.helper()

    def helper(self) -> float:
        return ALSO.random()


def test_random_generators_of_user_code_that_a_function_reaches_are_found() -> None:
    captured = HELD
    assert reachable(uses_a_global) == reachable(calls_a_helper) == (HELD,)
    assert reachable(lambda: captured.random()) == (HELD,)
    assert reachable(lambda rng=HELD: rng.random()) == (HELD,)
    assert reachable(HELD.random) == (HELD,)
    assert reachable(Holds()) == (HELD,)
    assert reachable(Calls()) == (ALSO,)
    hooked = nn.Identity()
    hooked.register_forward_hook(lambda *_: HELD.random())
    assert reachable(hooked) == (HELD,)
    assert set(reachable(Holds(), Calls())) == {HELD, ALSO}


def keyword_default(*, rng: Any = HELD) -> float:
    return rng.random()


def reads_an_attribute() -> float:
    return ways_to_draw.NUMPY.random()


class Plain:
    """An object with a generator among its attributes, and one that a method uses."""

    def __init__(self, rng: Any = None) -> None:
        self.rng = rng

    def draw(self) -> float:
        return ALSO.random()


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        (keyword_default, {HELD}),
        (reads_an_attribute, {ways_to_draw.NUMPY}),
        (functools.partial(print, HELD), {HELD}),
        (functools.partial(print, file=HELD), {HELD}),
        (functools.partial(uses_a_global), {HELD}),
        ({"a": (1, [HELD])}, {HELD}),
        (frozenset([HELD]), {HELD}),
        (Plain(HELD), {HELD, ALSO}),
        (Plain().draw, {ALSO}),
        (Plain, {ALSO}),
        (np.random.RandomState, set()),
        (lambda: (lambda: HELD.random())(), {HELD}),
        (torch, set()),
        (lambda: torch.rand(1), set()),
        ([HELD, HELD, ALSO], {HELD, ALSO}),
        (np.random.mtrand._rand, set()),
        (1, set()),
    ],
    ids=lambda value: "" if isinstance(value, set) else type(value).__name__,
)
def test_search_for_user_generators_follows_what_an_object_refers_to(
    root: Any, expected: set[Any]
) -> None:
    found = reachable(root)
    assert len(found) == len(expected)
    assert set(found) == expected


def test_search_for_user_generators_takes_variables_that_are_not_bound_yet() -> None:
    def outer() -> Callable[[], Any]:
        def inner() -> Any:
            return later, HELD

        found.append(reachable(inner))
        later = 1
        return inner

    found: list[Any] = []
    outer()
    assert found == [(HELD,)]


def test_search_for_user_generators_ends_in_a_large_structure() -> None:
    """It looks at 20,000 objects, the last ones first."""
    assert reachable([HELD, *([] for _ in range(30_000))]) == ()
    assert reachable([HELD, *([] for _ in range(10_000))]) == (HELD,)
    ring: list[Any] = [HELD]
    ring.append(ring)
    assert reachable(ring) == (HELD,)


def test_search_for_user_generators_omits_global_generators_and_those_of_libraries() -> None:
    assert reachable(lambda: (random.random(), np.random.rand(), torch.rand(1))) == ()
    assert reachable(nn.TransformerEncoderLayer(4, 2, 8)) == ()


def test_repeated_draw_with_other_threads_raises_only_if_it_advances_the_same_generator() -> None:
    idle = threading.Event()
    thread = threading.Thread(target=idle.wait)
    thread.start()
    try:
        _watch.require_line(lambda: np.random.rand(), _generators.read(), ("torch",))
        with pytest.raises(UnkeyedRandomError):
            _watch.require_line(lambda: np.random.rand(), _generators.read(), ("numpy",))
    finally:
        idle.set()
        thread.join()


def test_type_check_of_beartype_that_draws_is_refused_by_its_name_with_the_remedy() -> None:
    """beartype draws the index of the item that it checks, in code that it generates."""
    generated = """
def forward(self, x):
    drawn = getrandbits(32)
    return call(self, x)
"""
    code = compile(generated, "<@beartype(library.Model.forward) at 0x7f00>", "exec")
    scope = {"getrandbits": random.getrandbits, "call": nn.Linear.forward}
    exec(code, scope)
    checked = type("Checked", (nn.Linear,), {"forward": scope["forward"]})
    steps = ftrain.make_steps(
        lambda: checked(3, 1), lambda model, batch: model(batch).square().mean(), optim.sgd(0.1)
    )
    before = random.getstate()
    for step in (steps.train_step, ftrain.compile(steps.train_step, backend="eager")):
        with pytest.raises(
            UnkeyedRandomError, match=r"(?s)`random`.*<@beartype\(library\.Model\.forward.*:3 .*-O"
        ):
            step(steps.init_state(0), torch.ones(2, 3))
    assert random.getstate() == before


OWN: dict[str, Callable[[], Any]] = {
    "Generator": lambda: np.random.default_rng(3),
    "RandomState": lambda: np.random.RandomState(3),
    "Random": lambda: random.Random(3),
}


@pytest.mark.parametrize("kind", OWN)
def test_draws_of_user_generators_are_named_and_undone(kind: str) -> None:
    used, unused = OWN[kind](), OWN[kind]()
    marks = _generators.read(own=(unused, used, random.SystemRandom()))
    assert _generators.moved(marks) == _generators.moved_quietly(marks) == ()
    first = used.random()
    assert _generators.moved(marks) == _generators.moved_quietly(marks) == ("own",)
    assert _generators.differing(marks, _generators.read_again(marks)) == ("own",)
    random.random()
    assert _generators.moved(marks) == _generators.moved_quietly(marks) == ("python", "own")
    _generators.restore(marks, ("python",))
    assert _generators.moved(marks) == ("own",)
    _generators.restore(marks, ("own",))
    assert _generators.moved(marks) == ()
    assert used.random() == first


class Accelerator:
    """Module of a device, such as `torch.cuda`, as far as its generator is concerned."""

    def __init__(self) -> None:
        self.state = torch.zeros(16, dtype=torch.uint8)

    def get_rng_state(self, device: torch.device) -> torch.Tensor:
        assert device.index == 0
        return self.state.clone()

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        assert device.index == 0
        self.state = state.clone()

    def manual_seed(self, seed: int) -> None:
        assert 0 <= seed < 2**63
        self.state = torch.tensor(list(seed.to_bytes(16)), dtype=torch.uint8)


def test_draws_of_the_generator_of_an_accelerator_are_named_and_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, module = torch.device("xpu", 0), Accelerator()
    monkeypatch.setattr(torch, "get_device_module", lambda *_: module)
    marks = _generators.read(device)
    assert _generators.moved(marks) == ()
    _generators.seed("device", (1, 2))
    first = module.state
    assert _generators.moved(marks) == ("device",)
    again = _generators.read_again(marks)
    assert _generators.differing(again, marks) == ("device",)
    assert _generators.differing(marks, _generators.read()) == ()
    assert _generators.differing(_generators.read(), marks) == ()
    _generators.restore(marks, ("torch",))
    assert _generators.moved(marks) == ("device",)
    _generators.restore(marks, ("device",))
    assert _generators.moved(marks) == ()
    _generators.restore(_generators.read(), ("device",))  # without a state of a device: nothing
    assert _generators.moved(marks) == ()
    for words in ((1, 4), (2, 2), (1, 0), (2**32 - 1, 2**32 - 1), (2, 2**32 - 1)):
        _generators.seed("device", words)
        assert not torch.equal(module.state, first)


@pytest.mark.parametrize("name", ["cpu", "meta"])
def test_states_of_the_cpu_stand_for_those_of_devices_without_a_generator(name: str) -> None:
    assert _generators.read(torch.device(name)).device is None


@pytest.mark.parametrize("captures", [False, True])
def test_state_of_a_cuda_generator_is_left_out_while_a_graph_is_captured(
    captures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Accelerator()
    monkeypatch.setattr(torch, "get_device_module", lambda *_: module)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)
    assert _generators.read(torch.device("xpu", 0)).device is not None
    assert (_generators.read(torch.device("cuda", 0)).device is None) == captures


def test_accelerator_is_the_current_cuda_device_if_the_program_uses_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    for available in (False, True):
        for used in (False, True):
            monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
            monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=used: used)
            expected = torch.device("cuda", 3) if available and used else None
            assert _generators.accelerator() == expected
