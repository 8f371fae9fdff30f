"""Finders of a learning rate and of the largest batch size, which work on copies of a training state.

Read next: `learning_rate.py`.
"""

from ftrain.loop.finders.batch_size import BatchSizes, batch_size
from ftrain.loop.finders.learning_rate import RateSweep, learning_rate

__all__ = ["BatchSizes", "RateSweep", "batch_size", "learning_rate"]
