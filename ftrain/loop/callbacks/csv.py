"""Log of a run as a CSV table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from ftrain.core import _file_output
from ftrain.loop.callbacks._rows import RowLogger

__all__ = ["CSVLogger"]


class CSVLogger(RowLogger):
    """Write `metrics.csv` with the columns `step,epoch,split,time` and one for each metric.

    When a metric first appears in a later row, its column is added and the table is rewritten
    atomically. A cell is empty if a row has no value for its column. Splits and resuming are as for
    `JSONLLogger`.

    Args:
        path: path of the file; its directory is created if missing.

    Example:
        >>> import tempfile, torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1))
        >>> path = tempfile.mkdtemp() + "/metrics.csv"
        >>> trainer = loop.Trainer(steps, [CSVLogger(path)], compile=False, log_every=1)
        >>> result = trainer.fit(steps.init_state(0), [torch.ones(4, 3)], max_steps=1)
        >>> [(row["step"], row["split"]) for row in csv.DictReader(open(path))]
        [('1', 'train'), ('1', 'train_epoch')]
    """

    _columns: list[str]

    def _begin(self, rows: int) -> tuple[int, float]:
        previous = list(csv.DictReader(_file_output.keep(self.path, rows + 1)))
        # Columns in order of first appearance, without columns that only truncated rows had.
        self._columns = list(
            dict.fromkeys(name for row in previous for name, x in row.items() if name and x)
        )
        _file_output.replace(self.path, _table(self._columns, previous) if previous else "")
        return len(previous), float(previous[-1].get("time") or 0.0) if previous else 0.0

    def _write(self, row: Mapping[str, Any]) -> None:
        # Rows are counted by lines, so the name of a column must not contain a line break.
        row = {" ".join(name.splitlines()): value for name, value in row.items()}
        new = [name for name in row if name not in self._columns]
        if new or not self.path.exists():
            there: list[dict[str, str]] = []
            if self.path.exists():
                with self.path.open(encoding="utf-8", newline="") as file:
                    there = list(csv.DictReader(file))
            columns = [*self._columns, *new]
            _file_output.replace(self.path, _table(columns, [*there, row]))
            self._columns = columns
        else:
            _file_output.append(self.path, _line(row.get(name, "") for name in self._columns))


def _table(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> str:
    lines = [_line(columns), *(_line(row.get(name, "") for name in columns) for row in rows)]
    return "\n".join(lines) + "\n"


def _line(values: Iterable[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()
