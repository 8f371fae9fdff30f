"""The command line: `ftrain train config.yaml`, and the commands that work on a finished run.

Nothing heavy is imported before a command needs it: `ftrain --help` answers at once. Each command
is a module of its name in `commands/`.

Exit codes: 0 success (also when stopped early), 1 an error, a difference that `ftrain diff` found, or a
step that `ftrain bench --against` found to be worse, 2 an invalid command or configuration, 130 after
Ctrl-C, 143 after SIGTERM.

Read next: `_dispatch.py`, which runs a command; `commands/train.py`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from ftrain.cli.commands import COMMANDS
from ftrain.core._terminal import OutputClosedError, reserve_streams, say

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: the arguments after `ftrain`; default: the process's.

    Example:
        >>> main(["--help"])
        usage: ftrain COMMAND ...
        ...
        0
    """
    reserve_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        with contextlib.suppress(OutputClosedError):
            say(_overview())
        return 0 if arguments else 2
    from ftrain.cli._dispatch import dispatch  # noqa: PLC0415  # 0.1 s that `--help` need not wait for

    return dispatch(arguments[0], arguments[1:])


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ftrain COMMAND ...",
            "",
            *lines,
            "",
            "`ftrain COMMAND --help` says more.",
            "Begin with `ftrain init`, then `ftrain train config.yaml`.",
        ]
    )
