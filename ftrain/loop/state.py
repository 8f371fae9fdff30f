"""State of a run, as stored in a checkpoint.

A checkpoint holds the tensors of `train` directly, so that `checkpoint.load(path, like=state)` reads
any checkpoint of a run; everything else is JSON, in the checkpoint's metadata.

Read next: `trainer.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ftrain.core.state import TrainState
from ftrain.data import Cursor
from ftrain.loop._identity import Options
from ftrain.loop._kept import decoded, encoded
from ftrain.loop._running import Running
from ftrain.loop._skips import Counts
from ftrain.loop.callback import Accumulate, Action, Evaluate, Log, Note, Save, Stop
from ftrain.loop.events import Progress
from ftrain.loop.result import EpochResult

__all__ = ["LoopState"]

_VERSION = 2


@dataclasses.dataclass(frozen=True)
class LoopState:
    """State of a run between two steps.

    Attributes:
        train: the training state.
        progress: the progress of the run.
        cursor: the position in the training data, after the last batch that was trained on.
        window: metrics since the last row of the log.
        epoch: metrics since the epoch began.
        history: results of the epochs and evaluations so far.
        callbacks: `{name: state}`.
        callback_options: digests of the constructor arguments of callbacks that share a name, by the
            names of their states.
        accumulate: number of the loader's batches per step.
        micro_batches: number of parts into which each batch is split after running out of memory.
        nonfinite: number of steps skipped in a row because of non-finite gradients; in an ensemble, one
            number per member.
        stop: the `Stop` action that ended the run; `None` if none did.
        over: True if all batches of the current epoch are done, and only `todo` remains.
        todo: pending actions of this step: an evaluation that a signal interrupted, and the checkpoint
            after it. A resumed run does them first.
        due: True if the work after the last step (rows of the log, an evaluation) is not complete
            because the run failed during it; a resumed run repeats that work.
    """

    train: TrainState | Any
    progress: Progress = dataclasses.field(default_factory=Progress)
    cursor: Cursor | None = None
    window: Running = dataclasses.field(default_factory=Running)
    epoch: Running = dataclasses.field(default_factory=Running)
    history: tuple[EpochResult, ...] = ()
    callbacks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    callback_options: Mapping[str, Options] = dataclasses.field(default_factory=dict)
    accumulate: int = 1
    micro_batches: int = 1
    nonfinite: Counts = 0
    stop: Stop | None = None
    over: bool = False
    todo: tuple[Action, ...] = ()
    due: bool = False

    def metadata(self) -> dict[str, Any]:
        """Return all but `train` as JSON, without clocks, so that equal runs write equal bytes."""
        options = {name: each.to_json() for name, each in self.callback_options.items()}
        return {
            **({"callback_options": options} if options else {}),
            "version": _VERSION,
            "progress": self.progress._asdict(),
            "data": None if self.cursor is None else self.cursor.to_json(),
            "window": self.window.to_json(),
            "epoch": self.epoch.to_json(),
            "history": [result.to_json(clock=False) for result in self.history],
            "callbacks": {
                name: encoded(state, f"the state of callback {name}")
                for name, state in self.callbacks.items()
            },
            "accumulate": self.accumulate,
            "micro_batches": self.micro_batches,
            "nonfinite": self.nonfinite if isinstance(self.nonfinite, int) else [*self.nonfinite],
            "stop": None if self.stop is None else _fields(self.stop),
            "over": self.over,
            "todo": [[type(action).__name__, _fields(action)] for action in self.todo],
            "due": self.due,
        }

    @classmethod
    def from_metadata(cls, train: TrainState | Any, content: Mapping[str, Any]) -> LoopState:
        """Return the state from a checkpoint's training state and metadata.

        Args:
            train: the training state.
            content: the output of `metadata`.

        Raises:
            ValueError: a trainer did not write the metadata, or another version of ftrain did.
        """
        version = content.get("version") if isinstance(content, Mapping) else None
        if version != _VERSION:
            raise ValueError(
                f"this checkpoint holds no run that a trainer can go on with (version {version!r}, "
                f"expected {_VERSION}): it was saved by other means, or by another version of ftrain. "
                "To start a new run from its weights, load the state and give it to fit, no `resume`."
            )
        stop = content["stop"]
        return cls(
            train=train,
            progress=Progress(**content["progress"]),
            cursor=None if content["data"] is None else Cursor.from_json(content["data"]),
            window=Running.from_json(content["window"]),
            epoch=Running.from_json(content["epoch"]),
            history=tuple(EpochResult.from_json(result) for result in content["history"]),
            callbacks={name: decoded(state) for name, state in content["callbacks"].items()},
            callback_options={
                name: Options.from_json(options)
                for name, options in content.get("callback_options", {}).items()
            },
            accumulate=content["accumulate"],
            micro_batches=content["micro_batches"],
            nonfinite=_counts(content["nonfinite"]),
            stop=None if stop is None else Stop(**stop),
            over=content["over"],
            todo=tuple(_ACTIONS[kind](**fields) for kind, fields in content["todo"]),
            due=content.get("due", False),  # missing in older checkpoints
        )


_ACTIONS: dict[str, Any] = {
    kind.__name__: kind for kind in (Accumulate, Evaluate, Log, Note, Save, Stop)
}


def _fields(value: Action) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _counts(content: int | list[int]) -> Counts:
    return tuple(content) if isinstance(content, list) else content
