"""Transformations of training: functions from pure steps to pure steps.

A training step is a function, so it composes like one: trained many times over in one graph, looped,
differentiated. This package imports `core` and `optim` only.
"""

__all__: list[str] = []
