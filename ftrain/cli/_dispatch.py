"""Dispatch of commands; errors of ftrain are printed as a message without a traceback."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ftrain.cli._options import unknown_options
from ftrain.cli._print_warnings import notes
from ftrain.cli._short_traces import trimmed
from ftrain.cli.commands import COMMANDS
from ftrain.config.errors import ConfigError, did_you_mean
from ftrain.core._terminal import OutputClosedError, discard_output, say

__all__ = ["dispatch"]


class _Parser(argparse.ArgumentParser):
    """Argument parser whose messages escape the control characters in arguments."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            say(message, end="", error=file is not sys.stdout)

    def error(self, message: str) -> NoReturn:
        """Print argparse's error and exit; omit optional arguments from its list of missing ones.

        argparse calls a positional argument with `nargs="*"`, such as the overrides, required.
        """
        head, colon, names = message.partition("are required: ")
        optional = {action.metavar for action in self._actions if action.nargs == "*"}
        needed = [name for name in names.split(", ") if name not in optional]
        super().error(f"{head}{colon}{', '.join(needed)}")

    def parse_all(self, arguments: Sequence[str], options: argparse.Namespace) -> None:
        """Parse the arguments; if one is unknown, print an error that suggests a valid one, and exit."""
        _, unknown = self.parse_known_intermixed_args(arguments, options)
        if unknown:
            say(f"{self.prog}: {unknown_options(unknown, arguments, self)}", error=True)
            raise SystemExit(2)


def dispatch(name: str, rest: Sequence[str]) -> int:
    """Run the command of this name with its arguments, and return its exit code.

    Raises:
        OutputClosedError: standard output cannot be written.
    """
    if name == "--version":
        say(f"ftrain {importlib.metadata.version('ftrain')}")
        return 0
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        say(f"ftrain: unknown {what} {name}. {did_you_mean(name, COMMANDS)}", error=True)
        return 2
    module = importlib.import_module(f"ftrain.cli.commands.{name.replace('-', '_')}")
    parser = _Parser(
        prog=f"ftrain {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    parser.add_argument("--traceback", action="store_true", help="after an error, show every frame")
    options = argparse.Namespace(traceback=False)
    try:
        parser.parse_all(rest, options)
        with notes():
            code: int = module.run(options)
        return code
    except SystemExit as stopped:  # raised by argparse, which has printed the reason
        return stopped.code if isinstance(stopped.code, int) else 2
    except ConfigError as error:
        if error.__cause__ is not None:  # the error began in the user's own code
            say(trimmed(error.__cause__, options.traceback), error=True)
        say(error, error=True)
        return 2
    except OutputClosedError:  # `main` reports it for all commands, `--help` and `--version`
        raise
    except KeyboardInterrupt:
        say("interrupted", error=True)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not hasattr(error, "fit_result"):
            discard_output()  # the user's own code printed to the closed output
            return 0
        added = getattr(error, "__notes__", [])
        # Remove the advice for Python callers, who can catch the exception.
        added[:] = [note.partition(" The state after that step: `except")[0] for note in added]
        ours = type(error).__module__.startswith("ftrain.")  # errors of ftrain need no traceback
        if ours and not options.traceback:
            say(f"ftrain {name}: {error}", *added, error=True)
        else:
            say(trimmed(error, options.traceback), error=True)
        return 1
