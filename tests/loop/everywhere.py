"""Send a signal before each line that the loop, data and checkpoint packages execute.

    python -m tests.loop.everywhere              # every line, each time it is executed; minutes
    python -m tests.loop.everywhere --times 3    # the first, middle and last time only

Python handles signals between two lines, so these are all moments at which a signal can be handled (a
signal that arrives during a step or a write is handled after it). Each interrupted run is resumed to its
end; its checkpoints, log and results must equal those of an uninterrupted run, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import types
from collections.abc import Iterator
from typing import Any

import torch

import ftrain
from ftrain import checkpoint, data
from ftrain.core import tree
from ftrain.core.accumulate import MicroBatches
from ftrain.loop import Trainer, callbacks

HOUSE = pathlib.Path(ftrain.__file__).parent
ROOMS = tuple(str(HOUSE / room) for room in ("loop", "data", "checkpoint"))
#: Files without a signal between their lines: the handler's own code.
LEFT_OUT = ("_signals.py",)
Place = tuple[str, int, int]  # file, line, number of earlier executions of the line


class Step:
    """A step of a few operators whose state and metrics depend on all earlier steps."""

    def __call__(self, state: Any, batch: Any) -> Any:
        parts = batch.batches if isinstance(batch, MicroBatches) else (batch,)
        x = torch.cat([part["x"] for part in parts])
        w, n = state["w"], state["n"] + 1
        loss = (x @ w).square().mean() / n
        w = w * 0.99 + x.mean(0) / n
        average = {"w": 0.9 * state["average"]["w"] + 0.1 * w}
        return {"w": w, "n": n, "average": average}, {"loss": loss, "grad_norm": w.norm()}


def evaluation(state: Any, batch: Any) -> Any:
    return {"loss": (batch["x"] @ state["w"]).abs().mean()}


def start() -> Any:
    w = torch.linspace(-1, 1, 3)
    return {"w": w, "n": torch.zeros(()), "average": {"w": w.clone()}}


def made(folder: pathlib.Path) -> Trainer:
    """Return a trainer with every stateful callback, and each boundary at different steps."""
    store = checkpoint.Store(folder / "checkpoints", keep_last=2, keep_best=1, metric="eval/loss")
    watching = [
        callbacks.Throughput(),
        callbacks.WindowedAverage("eval/loss", rows=2),
        callbacks.RunningAverage(),
        callbacks.AccumulationSchedule({0: 1, 1: 2}),
        callbacks.EarlyStopping(9, monitor="eval/loss"),
        callbacks.Checkpointing(best=1, monitor="eval/loss"),
        callbacks.JSONLLogger(folder / "metrics.jsonl"),
        callbacks.CSVLogger(folder / "metrics.csv"),
    ]
    return Trainer(
        (Step(), evaluation),
        watching,
        compile=False,
        log_every=3,
        eval_every=4,
        save_every=5,
        store=store,
    )


def run(folder: pathlib.Path, *, resume: bool = False) -> Any:
    """Train for two epochs, of six and three steps."""
    x = torch.linspace(-1, 2, 36).reshape(12, 3)
    train = data.Loader({"x": x}, 2, seed=0)
    held_out = data.Loader({"x": x[:5].flip(0)}, 3, shuffle=False)
    trainer = made(folder)
    try:
        return trainer.fit(start(), train, held_out, epochs=2, resume="auto" if resume else None)
    finally:
        assert isinstance(trainer.store, checkpoint.Store)
        trainer.store.close()


def outcome(folder: pathlib.Path, result: Any) -> dict[str, Any]:
    """Return everything that must be equal after a resume."""
    store = checkpoint.Store(folder / "checkpoints", keep_last=2, keep_best=1, metric="eval/loss")
    kept = {"latest": store.latest(), "best": store.best()}
    clocks = ("time", "duration")
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found: dict[str, Any] = {
        "state": tree.digest(result.state),
        "status": (result.status, result.step, result.epoch, result.reason),
        "history": [each.to_json(clock=False) for each in result.history],
        "log": [
            {k: v for k, v in row.items() if not k.endswith(("_per_second", *clocks))}
            for row in rows
        ],
    }
    for name, path in kept.items():
        assert path is not None
        found |= {f"{name} {path.name} {f.name}": f.read_bytes() for f in sorted(path.iterdir())}
    store.close()
    return found


class Tracer:
    """Send this process a signal before the line at `target`; without a target, count lines."""

    def __init__(self, target: Place | None, number: int) -> None:
        self.counts: dict[tuple[str, int], int] = {}
        self.target, self.number, self.sent = target, number, False

    def __call__(self, frame: types.FrameType, event: str, arg: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(ROOMS) or name.endswith(LEFT_OUT):
            return None
        if event == "line" and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            at = (name, frame.f_lineno)
            n = self.counts[at] = self.counts.get(at, -1) + 1
            if self.target == (*at, n):
                self.sent = True
                os.kill(os.getpid(), self.number)
        return self

    def __enter__(self) -> Tracer:
        sys.settrace(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


def places(times: int | None, folder: pathlib.Path) -> list[Place]:
    """Return every line that a run executes while it handles signals, with some repetitions."""
    with Tracer(None, 0) as tracer:
        run(folder)
    found: list[Place] = []
    for (name, line), last in sorted(tracer.counts.items()):
        every = range(last + 1)
        if times is not None and last >= times:
            every = sorted({round(i * last / max(times - 1, 1)) for i in range(times)})  # type: ignore[assignment]  # numbers
        found += [(name, line, n) for n in every]
    return found


def differences(
    chosen: list[Place], expected: dict[str, Any], folder: pathlib.Path, number: int
) -> Iterator[tuple[Place, list[str]]]:
    """Yield each line at which a signal changes the result, with the differences."""
    for i, place in enumerate(chosen):
        where = folder / str(i)
        with Tracer(place, number) as tracer:
            result = run(where)
        if result.status != "interrupted" and result.status != "completed":
            yield place, [f"status {result.status}"]
        interrupted = result.status == "interrupted"
        if interrupted:
            assert result.exit_code == 128 + number
            result = run(where, resume=True)
        found = outcome(where, result)
        wrong = sorted(k for k in found | expected if found.get(k) != expected.get(k))
        if not tracer.sent:
            wrong.append("the line was not executed again")
        if wrong:
            yield place, wrong
        shutil.rmtree(where)


def campaign(times: int | None) -> int:
    """Return the number of lines at which a signal changes the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        expected = outcome(folder / "uninterrupted", run(folder / "uninterrupted"))
        chosen = places(times, folder / "counted")
        n = 0
        for place, wrong in differences(chosen, expected, folder, signal.SIGTERM):
            n += 1
            print(f"{place}: {wrong}", flush=True)
    print(f"{len(chosen) - n} of {len(chosen)} places equal")
    return n


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=None)
    sys.exit(bool(campaign(parser.parse_args().times)))
