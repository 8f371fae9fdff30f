"""Dispatch of commands; ftrain's own errors are printed as a message without a traceback."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from ftrain.cli._pipes import leave_stdout
from ftrain.cli._traces import trimmed
from ftrain.cli.commands import COMMANDS
from ftrain.config.errors import ConfigError, did_you_mean

__all__ = ["dispatch"]


def dispatch(name: str, rest: Sequence[str]) -> int:
    """Run the command of this name with its arguments, and return its exit code."""
    if name == "--version":
        print(f"ftrain {importlib.metadata.version('ftrain')}")
        return 0
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        print(f"ftrain: unknown {what} {name}. {did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"ftrain.cli.commands.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"ftrain {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    parser.add_argument("--traceback", action="store_true", help="after an error, show every frame")
    options = argparse.Namespace(traceback=False)
    try:
        parser.parse_intermixed_args(rest, options)
        code: int = module.run(options)
        sys.stdout.flush()
        return code
    except SystemExit as stopped:  # raised by argparse, which has printed the reason
        return stopped.code if isinstance(stopped.code, int) else 2
    except ConfigError as error:
        if error.__cause__ is not None:  # it was raised in the user's own code
            print(trimmed(error.__cause__, options.traceback), file=sys.stderr)
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not hasattr(error, "fit_result"):
            leave_stdout()  # `ftrain runs | head`; one from within a run is an error like others
            return 0
        notes = getattr(error, "__notes__", [])
        # Without the advice for Python callers, who can catch the exception.
        notes[:] = [note.partition(" The state after that step: `except")[0] for note in notes]
        ours = type(error).__module__.startswith("ftrain.")  # the message is all that is needed
        if ours and not options.traceback:
            print(
                f"ftrain {name}: {error}",
                *notes,
                sep="\n",
                file=sys.stderr,
            )
        else:
            print(trimmed(error, options.traceback), file=sys.stderr)
        return 1
