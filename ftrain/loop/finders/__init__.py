"""Searches before a run: which learning rate, which batch size. The state they are given stays as it is.

Read next: `learning_rate.py`.
"""

from ftrain.loop.finders.batch_size import BatchSizes, batch_size
from ftrain.loop.finders.learning_rate import RateSweep, learning_rate

__all__ = ["BatchSizes", "RateSweep", "batch_size", "learning_rate"]
