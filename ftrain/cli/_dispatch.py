"""From a command's name to its exit code; every error that explains itself is said without a trace."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from ftrain.cli import COMMANDS
from ftrain.config.errors import ConfigError, did_you_mean

__all__ = ["dispatch"]


def dispatch(name: str, rest: Sequence[str]) -> int:
    """Run the command of this name."""
    if name == "--version":
        print(f"ftrain {importlib.metadata.version('ftrain')}")
        return 0
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        print(f"ftrain: no {what} {name}. {did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"ftrain.cli.commands.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"ftrain {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    try:
        code: int = module.run(parser.parse_intermixed_args(rest))
        sys.stdout.flush()
        return code
    except SystemExit as stopped:  # argparse, which has said why
        return stopped.code if isinstance(stopped.code, int) else 2
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `ftrain runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not _explains_itself(error):
            raise
        print(f"ftrain {name}: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        return 1


def _explains_itself(error: Exception) -> bool:
    """Whether the message is all that the user needs; a trace leads to a place in their own code."""
    return type(error).__module__.startswith("ftrain.")
