"""Command line of ftrain: `ftrain train config.yaml`, and the commands for runs and configurations.

torch is imported only by commands that need it, so that `ftrain --help` takes a fraction of a second.
Each command is a module of the same name in `commands/`.

Exit codes: 0 success (also after early stopping); 1 an error, a difference that `ftrain diff` found, or
a step that `ftrain bench --against` found to be worse; 2 an invalid command or configuration; 130 after
Ctrl-C; 143 after SIGTERM.

Read next: `_dispatch.py`, which runs a command; `commands/train.py`.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from ftrain.cli.commands import COMMANDS
from ftrain.core._terminal import OutputClosedError, reserve_streams, say

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: the arguments after `ftrain`; default: those of the process.

    Example:
        >>> main(["--help"])
        usage: ftrain COMMAND ...
        ...
        0
    """
    reserve_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            say(_overview())
            return 0 if arguments else 2
        from ftrain.cli._dispatch import dispatch  # noqa: PLC0415  # takes 0.1 s, not needed by `--help`

        return dispatch(arguments[0], arguments[1:])
    except OutputClosedError as error:
        if error.errno == errno.EPIPE:  # as in `ftrain runs | head`
            return 0
        command = " ".join(["ftrain", *arguments[:1]])
        say(f"{command}: standard output: {error.strerror}", error=True)
        return 1


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ftrain COMMAND ...",
            "",
            *lines,
            "",
            "`ftrain COMMAND --help` lists the options of a command.",
            "Begin with `ftrain init`, then `ftrain train config.yaml`.",
        ]
    )
