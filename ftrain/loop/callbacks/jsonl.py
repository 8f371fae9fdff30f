"""Log as JSON lines, one object per row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ftrain.loop.callbacks import _lines
from ftrain.loop.callbacks._rows import RowLogger

__all__ = ["JSONLLogger"]


class JSONLLogger(RowLogger):
    """Write `metrics.jsonl`: `{"step": 50, "epoch": 1, "split": "train", "time": 1.5, "loss": 0.3}`.

    `split` is "train" for means over the last `log_every` steps, "train_epoch" for means over a
    whole epoch of training, "eval" for an evaluation. Epochs and steps count from 1 (see
    `Progress`). `time` is in seconds since the run began, without the time between an
    interruption and a resume. NaN and infinity, which JSON does not have, are `null`.

    A new run overwrites the file. A resumed run truncates it to the length at its checkpoint: no row
    is repeated, none is missing.

    Args:
        path: path of the file; its directory is created if missing.

    Example:
        >>> import tempfile, torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1))
        >>> path = tempfile.mkdtemp() + "/metrics.jsonl"
        >>> trainer = loop.Trainer(steps, [JSONLLogger(path)], compile=False, log_every=1)
        >>> result = trainer.fit(steps.init_state(0), [torch.ones(4, 3)], max_steps=1)
        >>> [(row["step"], row["split"]) for row in map(json.loads, open(path))]
        [(1, 'train'), (1, 'train_epoch')]
    """

    def _begin(self, rows: int) -> tuple[int, float]:
        previous = _lines.keep(self.path, rows)
        return len(previous), _time(previous[-1]) if previous else 0.0

    def _write(self, row: Mapping[str, Any]) -> None:
        _lines.append(self.path, json.dumps({name: _finite(value) for name, value in row.items()}))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _time(line: str) -> float:
    try:
        return float(json.loads(line)["time"])
    except (ValueError, TypeError, KeyError):  # a line that this logger did not write
        return 0.0
