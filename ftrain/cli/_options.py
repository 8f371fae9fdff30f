"""Message for unknown command-line options, such as `--epochs 3` instead of `epochs=3`."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from ftrain.config._aliases import KEYS
from ftrain.config.errors import did_you_mean
from ftrain.config.keys import keys
from ftrain.core._nearest import nearest

__all__ = ["unknown_options"]


def unknown_options(
    unknown: Sequence[str], arguments: Sequence[str], parser: argparse.ArgumentParser
) -> str:
    """Return the error message for unknown arguments of a command, with a remedy.

    Args:
        unknown: the unknown arguments, perhaps without the value of an option, which the parser took for
            a positional argument.
        arguments: all arguments of the command.
        parser: the parser of the command.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> _ = parser.add_argument("overrides", nargs="*", metavar="key=value")
        >>> unknown_options(["--epochs", "--lr=1e-3"], ["--epochs", "3", "--lr=1e-3"], parser)
        'unknown options --epochs, --lr. Write epochs=3 optimizer.learning_rate=1e-3.'
        >>> unknown_options(["--hlep"], ["--hlep"], parser)
        'unknown option --hlep. Did you mean --help?'
    """
    options = _split(unknown, arguments)
    if not options:
        return f"expected no more arguments, got {' '.join(unknown)}. Remove them."
    says = f"unknown option{'s' if len(options) > 1 else ''} {', '.join(n for n, _ in options)}. "
    known = [each for action in parser._actions for each in action.option_strings]
    if any(action.metavar == "key=value" for action in parser._actions):
        written = [
            _override(name, value, fuzzy=not nearest(name, known)) for name, value in options
        ]
        if None not in written:
            return f"{says}Write {' '.join(filter(None, written))}."
    return says + did_you_mean(options[0][0], known)


def _split(unknown: Sequence[str], arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return each unknown option with its value: the text after `=`, or the next argument.

    The value is `None` if the next argument is an option, an override or a configuration file.
    """
    found: list[tuple[str, str | None]] = []
    for argument in unknown:
        if argument.startswith("-") and not _is_number(argument):
            name, equals, value = argument.partition("=")
            after = [*arguments, "--"][[*arguments].index(argument) + 1]
            alone = "=" in after or pathlib.PurePath(after).suffix in _FILES
            is_value = not alone and (not after.startswith("-") or _is_number(after))
            found.append((name, value if equals else after if is_value else None))
    return found


#: Suffixes of configuration files. Such a file after an option is not the value of the option.
_FILES = (".yaml", ".yml", ".json", ".toml")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _override(name: str, value: str | None, fuzzy: bool) -> str | None:
    """Return the `key=value` argument to write instead of an option: `epochs=3` for `--epochs 3`.

    Return `None` if the option resembles no configuration key, of ftrain or of another trainer.
    """
    key, default = name.lstrip("-").replace("-", "_"), "true"
    known = [each for each, _ in keys()]
    leaves = {each.rpartition(".")[2]: each for each in reversed(known)}
    if key.startswith("no_") and key.removeprefix("no_") in known:
        key, default = key.removeprefix("no_"), "false"
    if key.partition(".")[0] not in known:
        key = KEYS.get(key) or leaves.get(key) or (nearest(key, known) if fuzzy else None) or ""
    key, colon, constant = key.partition(": ")  # `bf16` is a value of the key `precision`
    if key.partition(".")[0] not in known or " " in key:
        return None
    return f"{key}={constant if colon else default if value is None else value}"
