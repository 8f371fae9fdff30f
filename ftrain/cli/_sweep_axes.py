"""Parser of sweep values: a range with a count (`1e-4..1e-1:16`), integers (`0..3`), a list (`1,5`)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ftrain.config.errors import ConfigError

__all__ = ["sweep_axes"]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(\d+)(?::(linear|log))?)?")
_LIST = re.compile(rf"{_NUMBER}(?:,{_NUMBER})+")

Axes = dict[str, list[float]]


def sweep_axes(arguments: Sequence[str]) -> tuple[Axes, list[str]]:
    """Separate the arguments with several values, which a sweep varies, from those with one value.

    Returns:
        Values by key, in the order of the arguments; the other arguments.

    Raises:
        ConfigError: no argument has several values, a key cannot differ between members, or a range is
            invalid.

    >>> sweep_axes(["epochs=3", "seed=0..2", "optimizer.learning_rate=0.001..0.1:3"])
    ({'seed': [0, 1, 2], 'optimizer.learning_rate': [0.001, 0.01, 0.1]}, ['epochs=3'])
    """
    axes: Axes = {}
    overrides = []
    for argument in arguments:
        key, _, text = argument.partition("=")
        values = _values(key, text.strip(), argument)
        if values is None:
            overrides.append(argument)
            continue
        optimizer, dot, name = key.partition(".")
        if key != "seed" and not (optimizer == "optimizer" and dot and name.isidentifier()):
            raise _refusal(
                key,
                argument,
                f"expected to sweep over seed or a number of the optimizer, such as "
                f"optimizer.learning_rate, got {key}. Train each value of {key} with `ftrain train`.",
            )
        if key in axes:
            raise _refusal(
                key,
                argument,
                f"expected one argument for {key}, got two. Write all values in one argument.",
            )
        axes[key] = values
    if not axes:
        raise _refusal(
            "",
            "ftrain sweep",
            "expected at least one key with several values, got 0. Write "
            "`optimizer.learning_rate=1e-4..1e-1:16`, or `seed=0..3`.",
        )
    return axes, overrides


def _values(key: str, text: str, argument: str) -> list[float] | None:
    """Return the values of one `key=values` argument; `None` if the argument has a single value."""
    if _LIST.fullmatch(text):
        return [_number(part) for part in text.split(",")]
    found = _RANGE.fullmatch(text)
    if found is None:
        if ".." in text and key in ("seed", "optimizer.learning_rate"):
            raise _refusal(
                key, argument, f"expected first..last:count, got {text!r}. Write `0.01..1:5`."
            )
        return None
    first, last = _number(found[1]), _number(found[2])
    if not first < last:
        raise _refusal(
            key, argument, f"expected the smaller number first, got {text!r}. Exchange them."
        )
    if found[3] is None:
        if not (isinstance(first, int) and isinstance(last, int)):
            raise _refusal(
                key, argument, f"expected a number of values, got {text!r}. Write `{text}:8`."
            )
        return [*range(first, last + 1)]
    return _spaced(key, argument, first, last, int(found[3]), found[4])


def _spaced(
    key: str, argument: str, first: float, last: float, count: int, spacing: str | None
) -> list[float]:
    if count < 2:
        raise _refusal(
            key, argument, f"expected at least 2 values, got {count}. Write one value alone."
        )
    if key == "seed":
        raise _refusal(
            key, argument, f"expected whole numbers, got {count} values. Write `seed=0..3`."
        )
    if spacing == "log" and first <= 0:
        raise _refusal(
            key,
            argument,
            f"expected positive numbers for log, got {first:g}. Write linear instead.",
        )
    if spacing == "log" or (spacing is None and 0 < 10 * first <= last):
        inner = [first * (last / first) ** (i / (count - 1)) for i in range(1, count - 1)]
    else:
        inner = [first + (last - first) * i / (count - 1) for i in range(1, count - 1)]
    # Rounded to 12 digits, so that 0.01 is not printed as 0.010000000000000002.
    return [float(first), *(float(f"{value:.12g}") for value in inner), float(last)]


def _number(text: str) -> float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _refusal(key: str, argument: str, message: str) -> ConfigError:
    return ConfigError.at(key, f"the command line ({argument})", message)
