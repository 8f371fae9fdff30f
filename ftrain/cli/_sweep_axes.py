"""Parser of sweep values: a range with a count (`1e-4..1e-1:16`), integers (`0..3`), a list (`1,5`)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ftrain.config.errors import ConfigError

__all__ = ["sweep_axes"]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(\d+)(?::(linear|log))?)?")
_SPECIAL = re.compile(r"[-+]?(?:\.?nan|\.?inf|infinity)", re.IGNORECASE)

#: Largest number of members, far above what memory holds; `seed=0..99999999999` would exhaust it.
_MOST_MEMBERS = 1_000_000

Axes = dict[str, list[float]]


def sweep_axes(arguments: Sequence[str]) -> tuple[Axes, list[str]]:
    """Separate the arguments with several values, which a sweep varies, from those with one value.

    Returns:
        Values by key, in the order of the arguments; the other arguments.

    Raises:
        ConfigError: no argument has several values, a key cannot differ between members, a value is not
            a finite number or is given twice, or a range is invalid.

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
        if not _can_differ(key):
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
        _check_different(key, argument, values)
        axes[key] = values
        if (members := math.prod(map(len, axes.values()))) > _MOST_MEMBERS:
            raise _too_many(key, argument, members)
    if not axes:
        raise _refusal(
            "",
            "ftrain sweep",
            "expected at least one key with several values, got 0. Write "
            "`optimizer.learning_rate=1e-4..1e-1:16`, or `seed=0..3`.",
        )
    return axes, overrides


def _can_differ(key: str) -> bool:
    """Return True if the members of a sweep can have different values of a key."""
    optimizer, dot, name = key.partition(".")
    return key == "seed" or bool(optimizer == "optimizer" and dot and name.isidentifier())


def _values(key: str, text: str, argument: str) -> list[float] | None:
    """Return the values of one `key=values` argument; `None` if the argument has a single value."""
    parts = [part.strip() for part in text.split(",")]
    numbers = [_is_number(part) for part in parts]
    # In other keys, such as output_dir=a,1, and in [0.9, 0.95, 0.99], a comma may be part of one value.
    mixed = _can_differ(key) and text[0] not in "[{\"'" and any(numbers)
    if len(parts) > 1 and (mixed or all(numbers)):
        return [_number(key, argument, part) for part in parts]
    found = _RANGE.fullmatch(text)
    if found is None:
        if ".." in text and key in ("seed", "optimizer.learning_rate"):
            raise _refusal(
                key, argument, f"expected first..last:count, got {text!r}. Write `0.01..1:5`."
            )
        return None
    first, last = (_number(key, argument, part) for part in found.group(1, 2))
    if not first < last:
        raise _refusal(
            key, argument, f"expected the smaller number first, got {text!r}. Exchange them."
        )
    if found[3] is None:
        if not (isinstance(first, int) and isinstance(last, int)):
            raise _refusal(
                key, argument, f"expected a number of values, got {text!r}. Write `{text}:8`."
            )
        if (count := last - first + 1) > _MOST_MEMBERS:
            raise _too_many(key, argument, count)
        return [*range(first, last + 1)]
    if len(found[3]) > 9 or (count := int(found[3])) > _MOST_MEMBERS:
        raise _too_many(key, argument, found[3])
    return _spaced(key, argument, first, last, count, found[4])


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


def _is_number(text: str) -> bool:
    """Return True for a number, and for NaN and infinity, which `_number` refuses by name."""
    return re.fullmatch(_NUMBER, text) is not None or _SPECIAL.fullmatch(text) is not None


def _number(key: str, argument: str, text: str) -> float:
    """Return a value of a sweep: an `int` if it has neither point nor exponent, else a `float`."""
    if re.fullmatch(_NUMBER, text) and math.isfinite(float(text)):
        return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
    example = "0,1" if key == "seed" else "0.001,0.01"
    raise _refusal(
        key, argument, f"expected finite numbers, got {text!r:.50}. Write `{key}={example}`."
    )


def _check_different(key: str, argument: str, values: Sequence[float]) -> None:
    """Raise if a value occurs twice: its members would be the same training run."""
    seen: set[float] = set()
    for value in values:
        if value in seen:
            raise _refusal(
                key,
                argument,
                f"expected different values, got {value:.12g} twice. Write each value once.",
            )
        seen.add(value)


def _too_many(key: str, argument: str, count: int | str) -> ConfigError:
    return _refusal(
        key,
        argument,
        f"expected at most {_MOST_MEMBERS} members, got {count}. Write fewer values.",
    )


def _refusal(key: str, argument: str, message: str) -> ConfigError:
    return ConfigError.at(key, f"the command line ({argument})", message)
