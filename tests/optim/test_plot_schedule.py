"""Test `plot_schedule`: it draws every rate and imports matplotlib only when called."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from ftrain import optim

pytest.importorskip("matplotlib")


def test_plot_schedule_draws_the_rate_of_every_update(tmp_path):
    """A jump between two counts is drawn as a jump."""
    schedule = optim.step(1.0, 700, 0.5)
    figure = optim.plot_schedule(schedule, 2000)
    (ax,) = figure.axes
    (line,) = ax.get_lines()
    assert np.array_equal(line.get_xdata(), np.arange(2001))
    expected = [schedule(torch.tensor(t)).item() for t in (0, 699, 700, 1400, 2000)]
    assert [line.get_ydata()[t] for t in (0, 699, 700, 1400, 2000)] == expected
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("updates applied", "learning rate")
    assert ax.get_xlim() == (0, 2000)
    figure.savefig(tmp_path / "schedule.png")
    assert (tmp_path / "schedule.png").stat().st_size > 5000


def test_plot_schedule_labels_several_schedules():
    schedules = {"line": optim.linear(1.0, 0.0, 10), "fixed": lambda count: 0.5}
    figure = optim.plot_schedule(schedules, 10)
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["line", "fixed"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["line", "fixed"]
    assert figure.axes[0].get_lines()[1].get_ydata().tolist() == [0.5] * 11


def test_plot_schedule_draws_into_given_axes():
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert optim.plot_schedule({"a": optim.constant(0.1)}, 5, ax=right) is figure
    assert not left.get_lines()
    assert len(right.get_lines()) == 1
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["a"]


def test_plot_schedule_imports_matplotlib_only_when_called():
    """Check, too, that the error without matplotlib names the extra that installs it."""
    code = """
import sys
from ftrain import optim
assert "matplotlib" not in sys.modules
sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
try:
    optim.plot_schedule(optim.constant(0.1), 10)
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "plot_schedule draws with matplotlib, which is not installed" in done.stdout
    (extra,) = re.findall(r"ftrain\[(\w+)\]", done.stdout)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    wanted = project["project"]["optional-dependencies"][extra]
    assert any(entry.startswith("matplotlib") for entry in wanted)
