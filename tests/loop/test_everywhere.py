"""Test signals at sampled lines of a run; `python -m tests.loop.everywhere` tests all lines."""

from __future__ import annotations

import pathlib
import signal
from typing import Any

import pytest

from ftrain.checkpoint import Store
from tests.loop import everywhere

SAMPLED = 24  # lines at which a signal is sent; a third of a second each


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Any]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    expected = everywhere.outcome(folder / "run", everywhere.run(folder / "run"))
    return expected, everywhere.places(None, folder / "counted")


def test_uninterrupted_run_has_evaluations_log_rows_and_checkpoints(uninterrupted: Any) -> None:
    expected, places = uninterrupted
    assert expected["status"] == ("completed", 9, 2, "2 epochs")
    assert len(places) > 5000
    assert any(name.startswith("best") for name in expected)
    assert [(row["step"], row["split"]) for row in expected["log"]] == [
        (3, "train"),
        (4, "eval"),
        (6, "train"),
        (6, "train_epoch"),
        (8, "eval"),
        (9, "train"),
        (9, "train_epoch"),
        (9, "eval"),
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_line_does_not_change_the_resumed_run(
    uninterrupted: Any, number: int, tmp_path: pathlib.Path
) -> None:
    expected, places = uninterrupted
    stride = len(places) // SAMPLED
    chosen = places[number * stride // 32 :: stride]  # other lines for each of the two signals
    assert list(everywhere.differences(chosen, expected, tmp_path, number)) == []


def test_comparison_with_an_uninterrupted_run_detects_metrics_lost_on_resume(
    uninterrupted: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, places = uninterrupted
    load = Store.load

    def forgets(self: Store, *args: Any, **options: Any) -> Any:
        state, metadata = load(self, *args, **options)
        metadata["window"]["steps"] = 0
        metadata["window"]["entries"] = {}
        return state, metadata

    monkeypatch.setattr(Store, "load", forgets)
    # The loss of metrics shows only at lines that run in the middle of a log window.
    chosen = [place for place in places if place[0].endswith("loop/run.py")][20::50]
    found = everywhere.differences(chosen, expected, tmp_path, signal.SIGTERM)
    assert next(found, None) is not None
