"""Results file of a processor: measured cells, growths and goals of all runs, and their pictures."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks import measure
from benchmarks.peers import table
from benchmarks.peers.cell import Cell
from ftrain.bench import machine

__all__ = ["Results"]


class Results:
    """Results of this processor, of which a new measurement replaces an older one of the same name.

    Attributes:
        saves: True if the results are written to a file.
        path: the path of the file.
        refused: the names of workloads and contenders that do not compute the same step.
        content: the results, as JSON values.
    """

    def __init__(self, save: bool, name: str = "peers") -> None:
        self.saves = save
        self.path = measure.results_file(name, machine())
        self.refused: list[str] = []
        self.content: dict[str, Any] = {
            "benchmark": "peers",
            "cells": {},
            "growth": {},
            "goals": {},
        }
        if save and self.path.exists():
            self.content |= json.loads(self.path.read_text(encoding="utf-8"))

    def add_cell(self, cell: Cell) -> None:
        """Store the cell of a workload, and write the file."""
        self._check(cell)
        self.content["cells"][cell.workload.key] = cell.to_json()
        self._write()

    def add_growth(self, axis: str, cells: Mapping[float, Cell]) -> None:
        """Store the cells measured along an axis of growth, and write the file."""
        for cell in cells.values():
            self._check(cell)
        self.content["growth"][axis] = {f"{v:g}": cell.to_json() for v, cell in cells.items()}
        self._write()

    def add_goals(self, name: str, goals: list[dict[str, Any]]) -> None:
        """Store the goals of a row of the table, and write the file."""
        self.content["goals"][name] = {"machine": machine(), "goals": goals}
        self._write()

    def plot(self) -> list[pathlib.Path]:
        """Draw cells and growths; return the paths of the pictures, or none without matplotlib."""
        if not self.saves:
            return []
        figures = {}
        try:
            if self.content["cells"]:
                figures[self.path.with_suffix(".png")] = table.picture(self.content["cells"])
            for axis, cells in self.content["growth"].items():
                path = self.path.with_name(f"{self.path.stem}-{axis}.png")
                figures[path] = table.growth_picture(axis, cells)
        except ImportError:
            print("no picture: matplotlib is not installed")
            return []
        for path, figure in figures.items():
            figure.savefig(path)
        return list(figures)

    def _check(self, cell: Cell) -> None:
        self.refused += [f"{name} ({cell.workload.key})" for name in cell.refused]

    def _write(self) -> None:
        if self.saves:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.content, indent=1, ensure_ascii=False)
            self.path.write_text(text + "\n", encoding="utf-8")
