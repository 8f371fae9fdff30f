"""Output of text to the terminal: escapes for control characters, and errors of a closed output.

File names, configuration keys and metrics in a run directory are untrusted input. On a terminal, control
characters in them can move the cursor, rename the window or enter input for the user. Commands print
with `say`; callbacks that print escape their text with `printable`.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import TextIO

__all__ = ["OutputClosedError", "discard_output", "printable", "reserve_streams", "say"]

# Escaped characters: C0, DEL and C1; surrogates, which represent the bytes of a name that is not UTF-8;
# line separators; and marks that change the order in which a text is displayed (CVE-2021-42574).
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069\ufeff]")
_CONTROL_OR_LINE = re.compile(f"{_CONTROL.pattern}|[\n\t]")


class OutputClosedError(OSError):
    """Error for a standard output that is closed or full."""


def printable(text: object, *, one_line: bool = False) -> str:
    r"""Return a text with its control characters as escapes, except line ends and tabs.

    Args:
        text: the text, or a value whose `str` is printed.
        one_line: True to escape line ends and tabs as well, as for a cell of a table.

    Example:
        >>> print(printable("\x1b[31mred\x1b[0m \u202eabc"), printable("a\nb", one_line=True))
        \x1b[31mred\x1b[0m \u202eabc a\nb
    """
    pattern = _CONTROL_OR_LINE if one_line else _CONTROL
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def say(*lines: object, error: bool = False, end: str = "\n", raw: bool = False) -> None:
    """Print lines with their control characters escaped, and flush.

    Args:
        lines: texts, or values whose `str` is printed; each may have several lines.
        error: True to write to standard error, and to ignore a failure.
        end: the end of the last line.
        raw: True if the lines are data for another program, which are escaped on a terminal only.

    Raises:
        OutputClosedError: standard output cannot be written. Later output is discarded.
    """
    stream: TextIO | None = sys.stderr if error else sys.stdout
    if stream is None:  # the process was started without this stream, `ftrain ... >&-`
        return
    text = "\n".join(map(str, lines)) + end
    if not raw or stream.isatty():
        text = printable(text)
    try:
        stream.write(_encodable(text, stream))
        stream.flush()
    except (OSError, ValueError) as failed:  # ValueError: the stream was closed in Python
        if error:
            return
        discard_output()
        code = getattr(failed, "errno", None) or errno.EBADF
        raise OutputClosedError(code, getattr(failed, "strerror", None) or str(failed)) from None


def discard_output() -> None:
    """Redirect standard output to the null device, so that Python reports no failure at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # sys.stdout is not a file, as in a test
        return


def reserve_streams() -> None:
    """Open the null device as each standard stream that the process was started without.

    Otherwise the next opened file, such as a checkpoint, gets the descriptor 1, and a library that
    prints would write into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Gets the lowest free descriptor.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _encodable(text: str, stream: TextIO) -> str:
    """Return a text with an escape for each character that the stream cannot encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
