"""Format of numbers in log lines, progress bars and summaries."""

from __future__ import annotations

__all__ = ["format_number"]

# Unit, its size, and the smallest value that is shown in it.
_UNITS = (("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e3, 1e4))


def format_number(value: float) -> str:
    """Format a number with about three significant digits.

    Example:
        >>> [format_number(x) for x in (0.0123, 123.4, 1234.5, 51234.5, 999_999, 2.5e9)]
        ['0.0123', '123', '1234', '51.2k', '1M', '2.5G']
    """
    for unit, size, least in _UNITS:
        if 0.9995 * least <= abs(value) < 1e12:  # 999.6k is shown as 1M
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.3g}"
