"""Numbers for people: the same in lines, bars, summaries and pictures."""

from __future__ import annotations

__all__ = ["number"]

_UNITS = (("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e3, 1e4))  # and from where on each is used


def number(value: float) -> str:
    """Three digits or so.

    Example:
        >>> [number(x) for x in (0.0123, 123.4, 1234.5, 51234.5, 999_999, 2.5e9)]
        ['0.0123', '123', '1234', '51.2k', '1M', '2.5G']
    """
    for unit, size, least in _UNITS:
        if 0.9995 * least <= abs(value) < 1e12:  # what is rounded up to the next unit has that unit
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.3g}"
