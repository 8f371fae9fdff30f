"""Plots of runs: curves as an image or a page, grids of images, and sweeps.

Drawing needs matplotlib (`pip install 'ftrain[examples]'`); the page needs no extra package.

Read next: `run_log.py`, the data of the plots.
"""

from ftrain.loop.plots.curves import curves
from ftrain.loop.plots.images import image_grid
from ftrain.loop.plots.page import page
from ftrain.loop.plots.run_log import Curve, Path, RunLog, read_run, read_runs
from ftrain.loop.plots.summary import summary
from ftrain.loop.plots.sweep_grid import sweep_grid

__all__ = [
    "Curve",
    "Path",
    "RunLog",
    "curves",
    "image_grid",
    "page",
    "read_run",
    "read_runs",
    "summary",
    "sweep_grid",
]
