"""Test that a resumed run restores callback states with their types, each to its own callback."""

from __future__ import annotations

import collections
import enum
import json
import math
import pathlib
import signal
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import checkpoint
from ftrain.checkpoint import _json
from ftrain.loop import BatchEnd, CallbackWarning, EvaluateEnd, Trainer, callbacks
from ftrain.loop._callback_identity import matched, named
from ftrain.loop._callback_states import state_from_json, state_to_json
from ftrain.loop.state import LoopState
from tests.campaign import examples
from tests.loop.runs import STEPS, Interrupts, fit, trainer

# The resumed run lacks the callback that interrupted it, which issues a warning.
pytestmark = pytest.mark.filterwarnings("ignore:the checkpoint holds the states:UserWarning")

PLAIN = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4)
KEYS = st.integers() | st.text(max_size=4) | st.none() | st.tuples(st.integers(), st.text())
MARKS = st.sampled_from(["__tuple__", "__set__", "__dict__", "__float__"])
STATES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(PLAIN.filter(lambda x: x == x), max_size=3)
        | st.frozensets(KEYS, max_size=3)
        | st.dictionaries(st.text(max_size=3) | MARKS, inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


def spelled(value: Any) -> Any:
    """Return a value with its types, for comparison by `==`; NaN equals NaN."""
    if isinstance(value, dict):
        return ["dict", sorted(repr([spelled(key), spelled(x)]) for key, x in value.items())]
    if isinstance(value, (set, frozenset)):
        return [type(value).__name__, sorted(repr(spelled(each)) for each in value)]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [spelled(each) for each in value]]
    return [type(value).__name__, repr(value)]


@given(STATES)
@settings(max_examples=examples(50, 150))
def test_a_callback_state_keeps_its_types_in_a_checkpoint(state: Any) -> None:
    """Convert the state to the JSON of a checkpoint's manifest and back."""
    content = {"state": _json.encode_user(state_to_json(state, "state"), "metadata")}
    back = _json.decode_floats(_json.parse(_json.render(content), "manifest")["state"])
    assert spelled(state_from_json(back)) == spelled(state)


class Point(NamedTuple):
    x: float


class Level(enum.IntEnum):
    LOW = 1


OTHER_TYPES = {
    "NamedTuple": (Point(1.0), "_asdict"),
    "float64": (np.float64(1.0), "tolist"),
    "int64": (np.int64(1), "tolist"),
    "ndarray": (np.zeros(2), "tolist"),
    "Tensor": (torch.zeros(2), "state.extras"),
    "OrderedDict": (collections.OrderedDict(a=1), "dict"),
    "Counter": (collections.Counter("ab"), "dict"),
    "deque": (collections.deque([1]), "can be built again"),
    "IntEnum": (Level.LOW, "int"),
    "range": (range(3), "can be built again"),
    "bytes": (b"ab", "can be built again"),
}


class Holds:
    """A callback with a given value in its state, initially or after an evaluation."""

    def __init__(self, value: Any, at_once: bool = False) -> None:
        self.value, self.at_once = value, at_once

    def init(self) -> Any:
        return {"seen": [self.value] if self.at_once else []}

    def __call__(self, state: Any, event: Any) -> Any:
        if isinstance(event, EvaluateEnd):
            return {"seen": [*state["seen"], self.value]}, ()
        return state, ()


@pytest.mark.parametrize("name", OTHER_TYPES)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_callback_state_of_an_unsupported_type_is_refused(
    name: str, at_once: bool, tmp_path: pathlib.Path
) -> None:
    value, remedy = OTHER_TYPES[name]
    said = r"the state of callback Holds\['seen'\]\[0\]: "
    with pytest.raises(TypeError, match=f"{said}expected None, bool.*{remedy}") as error:
        fit(trainer(Holds(value, at_once), store=tmp_path), epochs=3)
    if not at_once:
        result = error.value.fit_result  # type: ignore[attr-defined]
        assert result.epoch == 1
    # Without a store, no state is saved, and any type is accepted.
    assert fit(trainer(Holds(value, at_once)), max_steps=1).status == "completed"


def test_a_resumed_callback_receives_its_saved_state(tmp_path: pathlib.Path) -> None:
    class Remembers:
        def __init__(self) -> None:
            self.found: list[Any] = []

        def init(self) -> Any:
            return {"last": (0, math.inf), "seen": set(), "by step": {}}

        def __call__(self, state: Any, event: Any) -> Any:
            self.found.append(spelled(state))
            step = event.progress.step
            if not isinstance(event, BatchEnd):
                return state, ()
            last = (step, float(len(state["seen"])))
            by_step = {step: last, **state["by step"]}
            return {"last": last, "seen": state["seen"] | {step}, "by step": by_step}, ()

    whole = Remembers()
    fit(trainer(whole, store=tmp_path / "whole"), max_steps=9)
    parts = Remembers()
    stop = Interrupts(signal.SIGINT, BatchEnd, 4)
    fit(trainer(parts, stop, store=tmp_path / "parts"), max_steps=9)
    fit(trainer(parts, store=tmp_path / "parts"), max_steps=9, resume=True)
    assert parts.found[-1] == whole.found[-1]


class Opaque:
    """A callback that is distinguished only by a function."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def init(self) -> Any:
        return 0

    def __call__(self, state: Any, event: Any) -> Any:
        return state + self.what(event.progress.step), ()


PAIRS = {
    "EarlyStopping": [
        callbacks.EarlyStopping(5),
        callbacks.EarlyStopping(5, monitor="eval/accuracy", mode="max"),
    ],
    "EarlyStopping of two modes": [
        callbacks.EarlyStopping(5),
        callbacks.EarlyStopping(5, mode="max"),
    ],
    "WindowedAverage": [
        callbacks.WindowedAverage(rows=4),
        callbacks.WindowedAverage("train/accuracy", rows=4),
    ],
    "RunningAverage": [
        callbacks.RunningAverage(),
        callbacks.RunningAverage("train/accuracy"),
    ],
    "Checkpointing": [
        callbacks.Checkpointing(best=2),
        callbacks.Checkpointing(best=2, monitor="eval/accuracy", mode="max"),
    ],
}


def states_of(folder: pathlib.Path) -> dict[str, Any]:
    _, metadata = checkpoint.Store(folder).load(like=STEPS.init_state(0))
    return dict(LoopState.from_metadata(None, metadata).callbacks)


@pytest.mark.parametrize("name", PAIRS)
def test_callbacks_listed_in_another_order_keep_their_states(
    name: str, tmp_path: pathlib.Path
) -> None:
    """The run stops after an epoch of 7 steps and resumes with another order."""
    pair, keys = PAIRS[name], [each.key for each in named(PAIRS[name])]
    fit(trainer(*pair, store=tmp_path / "whole"), max_steps=20)
    whole = states_of(tmp_path / "whole")
    assert len({json.dumps(state) for state in whole.values()}) == 2
    fit(trainer(*pair, store=tmp_path / "parts"), max_steps=7)
    fit(trainer(*reversed(pair), store=tmp_path / "parts"), max_steps=20, resume=True)
    parts = states_of(tmp_path / "parts")
    assert [parts[key] for key in reversed(keys)] == [whole[key] for key in keys]


class Kept:
    """A callback with arbitrary options, which are also its state."""

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)
        self._given = options

    def init(self) -> Any:
        return None

    def __call__(self, state: Any, event: Any) -> Any:
        return state, ()


OPTIONS = st.dictionaries(
    st.sampled_from(["a", "b", "_c"]),
    st.integers(0, 2) | st.sampled_from(["x", "y"]) | st.lists(st.integers(0, 1), max_size=2),
)


@given(options=st.lists(OPTIONS, min_size=1, max_size=5), data=st.data())
@settings(max_examples=examples(40, 100))
def test_each_callback_receives_the_saved_state_of_the_callback_with_equal_attributes(
    options: list[Any], data: Any
) -> None:
    """Check any order; a callback with changed attributes receives the remaining state, or raises."""
    before = named(Kept(**each) for each in options)
    saved = {each.key: options[i] for i, each in enumerate(before)}
    kept = {each.key: each.options for each in before if not each.alone}
    order = data.draw(st.permutations(range(len(options))))
    now = [options[i] for i in order]
    found = matched(named(Kept(**each) for each in now), saved, kept)
    assert [saved[found[each.key]] for each in named(Kept(**o) for o in now)] == now
    changed = {"a": "other"}
    others = now[1:]
    if any(each == now[0] for each in others):
        return
    after = named(Kept(**each) for each in [changed, *others])
    found = matched(after, saved, kept)
    assert saved[found[after[0].key]] == now[0]
    assert [saved[found[each.key]] for each in after[1:]] == others


def test_indistinguishable_callback_states_are_refused_unless_named(
    tmp_path: pathlib.Path,
) -> None:
    def made(swapped: bool = False, **names: str) -> Trainer:
        pair = [Opaque(lambda step: step), Opaque(lambda step: -step)]
        for each, name in zip(pair, names.values(), strict=False):
            each.name = name  # type: ignore[attr-defined]
        return trainer(*(pair[::-1] if swapped else pair), store=tmp_path)

    fit(made(), max_steps=4)
    first = states_of(tmp_path)
    assert first["Opaque"] == -first["Opaque_2"] != 0
    for swapped in (False, True):
        with pytest.raises(ValueError, match="states without a match") as error:
            fit(made(swapped), max_steps=5, resume=True)
        assert "callback.name = 'Opaque', callback.name = 'Opaque_2'" in str(error.value)
    fit(made(True, first="Opaque", second="Opaque_2"), max_steps=5, resume=True)
    after = states_of(tmp_path)
    assert after["Opaque"] == -after["Opaque_2"] > first["Opaque"] > 0


def test_an_added_or_removed_callback_needs_a_name_only_if_ambiguous(
    tmp_path: pathlib.Path,
) -> None:
    one, other = callbacks.EarlyStopping(5), callbacks.EarlyStopping(5, monitor="train/loss")
    fit(trainer(one, store=tmp_path), max_steps=8)
    (state,) = states_of(tmp_path).values()
    assert state["best"] is not None
    with pytest.raises(ValueError, match="named 'EarlyStopping' to its state .*, got 1 state w"):
        fit(trainer(other, one, store=tmp_path), max_steps=9, resume=True)
    other.name = "second"  # type: ignore[attr-defined]
    fit(trainer(other, one, store=tmp_path), max_steps=9, resume=True)
    assert states_of(tmp_path)["EarlyStopping"]["best"] < state["best"]
    assert states_of(tmp_path)["second"]["best_step"] == 0  # no epoch ended after the resume
    del other.name  # type: ignore[attr-defined]
    pair = named([one, other])
    saved = {"EarlyStopping": 1, "EarlyStopping_2": 2}
    kept = {each.key: each.options for each in pair}
    assert matched(named([other]), saved, kept) == {"EarlyStopping": "EarlyStopping_2"}
    assert matched(named([one]), saved, kept) == {"EarlyStopping": "EarlyStopping"}
    # A checkpoint without digests of the callbacks' attributes.
    with pytest.raises(ValueError, match="named 'EarlyStopping' to its state .*, got 2 states"):
        matched(pair, saved, {})


def test_callbacks_without_a_saved_state_need_no_names() -> None:
    pair = named([Kept(f=print), Kept(f=len)])
    kept = {each.key: each.options for each in pair}
    found = matched(named([Kept(f=len), Kept(f=print)]), dict.fromkeys(kept), kept)
    assert found == {"Kept": "Kept", "Kept_2": "Kept_2"}
    assert matched(named([Kept(f=len), Kept(f=print)]), {"Kept": None}, {}) == {"Kept": "Kept"}


def test_loggers_of_a_moved_run_are_matched_by_file_name(tmp_path: pathlib.Path) -> None:
    first = [callbacks.JSONLLogger(tmp_path / "old" / name) for name in ("a.jsonl", "b.jsonl")]
    saved = {"JSONLLogger": {"rows": 7}, "JSONLLogger_2": {"rows": 9}}
    kept = {each.key: each.options for each in named(first)}
    moved = [callbacks.JSONLLogger(tmp_path / "new" / name) for name in ("b.jsonl", "a.jsonl")]
    found = matched(named(moved), saved, kept)
    assert found == {"JSONLLogger": "JSONLLogger_2", "JSONLLogger_2": "JSONLLogger"}


def test_a_callback_with_on_error_warn_keeps_its_last_valid_state(tmp_path: pathlib.Path) -> None:
    class Reports(Holds):
        on_error = "warn"

    with pytest.warns(
        CallbackWarning, match=r"Reports raised TypeError: the state of callback Rep"
    ):
        result = fit(trainer(Reports(np.float64(1.0)), store=tmp_path), epochs=1)
    assert result.status == "completed"
    assert states_of(tmp_path)["Reports"] == {"seen": []}
