"""Test the timing of contenders that take turns."""

from __future__ import annotations

import gc

import pytest

from ftrain.bench import Turns, take_turns
from ftrain.bench.turns import call_times


def test_take_turns_interleaves_contenders_and_starts_each_round_with_another_contender() -> None:
    order: list[str] = []
    turns = take_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        rounds=2,
        seconds=0.0,
        warmup=0,
    )
    assert order[-4:] == ["a", "b", "b", "a"]
    assert {len(seconds) for seconds in turns.seconds.values()} == {2}


def test_turns_compute_ratios_of_two_contenders_within_each_round() -> None:
    turns = Turns({"a": [1.0, 2.0, 1.0], "b": [3.0, 6.0, 3.0]})  # a busy second round
    assert turns.ratio("b", "a") == 3.0
    assert turns.spread("b", "a") == (3.0, 3.0)
    assert turns.fastest(["b", "a"]) == "a"


def test_call_times_returns_a_time_for_each_call_of_a_turn() -> None:
    calls = []
    turns = take_turns(
        {"a": lambda: calls.append(1)}, rounds=3, seconds=0.001, timer=call_times, warmup=0
    )
    per_round = (len(calls) - 2) // 3
    assert per_round >= 1
    assert len(turns.calls["a"]) == 3 * per_round
    assert min(turns.calls["a"]) <= turns.median("a") <= max(turns.calls["a"])


def test_take_turns_resets_a_contender_and_calls_it_once_before_the_clock_starts() -> None:
    order: list[str] = []

    class Contender:
        def reset(self) -> None:
            order.append("reset")

        def __call__(self) -> None:
            order.append("call")

    take_turns({"a": Contender()}, rounds=2, seconds=0.0, warmup=0)
    assert order == ["reset", "call", *["call"] * 2, *["reset", "call", "call"] * 2]


def test_take_turns_raises_the_exception_of_a_contender_and_unfreezes_the_garbage_collector() -> (
    None
):
    def fails() -> None:
        if gc.get_freeze_count():  # not in the warm-up, before anything is frozen
            raise RuntimeError("out of order")

    gc.unfreeze()
    with pytest.raises(RuntimeError, match="out of order"):
        take_turns({"a": fails}, rounds=9, seconds=0.0)
    assert gc.get_freeze_count() == 0
