"""Test that error messages of the package are whole sentences."""

from __future__ import annotations

import ast
import inspect
import pathlib
import re

import pytest

import ftrain.checkpoint
import ftrain.config
import ftrain.core.errors
import ftrain.loop
from ftrain.config.errors import did_you_mean

PACKAGE = pathlib.Path(ftrain.__file__).parent

#: Exceptions whose first argument is the whole message.
PUBLIC = {
    name
    for module in (ftrain.core.errors, ftrain.checkpoint, ftrain.config, ftrain.loop)
    for name, found in vars(module).items()
    if inspect.isclass(found) and issubclass(found, Exception)
} - {"ArgumentError", "CheckpointReadError", "CheckpointWriteError", "ImpureFunctionError"}
PYTHONS = {"ValueError", "TypeError", "KeyError", "IndexError", "FileNotFoundError"}

#: Raised inside of a reader, which adds the file and a remedy: (file, beginning of the message).
COMPOSED = {
    ("bench/report.py", "its format is"),
    ("checkpoint/_safetensors.py", "expected unique tensor names"),
    ("checkpoint/state_dicts.py", "the parts of the archive"),
    ("config/_json.py", "expected a finite number"),
    ("core/_regular_files.py", "expected JSON with fewer nested levels"),
    ("data/_files.py", "expected at most"),
    ("data/_output_file.py", "not a regular file"),
    ("data/_output_file.py", "no header"),
    ("data/_output_file.py", "its length does not match its header"),
    ("data/_output_file.py", "no digests"),
    ("data/arrays.py", "expected version"),
    ("data/arrays.py", "expected"),
    ("data/fitted.py", "expected finite numbers"),
    ("data/images.py", "expected 8 or 16 bits a channel"),
    ("testing/divergence/trace.py", "expected at most"),
}


def literal(node: ast.expr) -> list[str] | None:
    """Return the constant parts of a string expression, `""` for a value; `None` for other values."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return [part.value if isinstance(part, ast.Constant) else "" for part in node.values]
    if isinstance(node, ast.BinOp):
        left, right = literal(node.left), literal(node.right)
        return None if left is None and right is None else [*(left or [""]), *(right or [""])]
    return None


def ends_in_words(text: str) -> bool:
    """Return True if a text ends in a word, a number or code that no period follows."""
    *_, line = text.rstrip().splitlines() or [""]
    return bool(re.search(r"[\w)\]'\"`]$", line)) and not line.startswith("    ")  # a block of code


def raised() -> list[tuple[str, int, list[str]]]:
    """Return (file, line, constant parts) for each message that an exception is raised with."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Raise | ast.Return):
                continue
            call = node.exc if isinstance(node, ast.Raise) else node.value
            if not isinstance(call, ast.Call) or not call.args:
                continue
            is_config = ast.unparse(call.func) == "ConfigError.at"
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            if name not in PUBLIC | PYTHONS and not is_config:
                continue
            parts = literal(call.args[-1 if is_config else 0])
            if parts is not None:
                found.append((path.relative_to(PACKAGE).as_posix(), node.lineno, parts))
    return found


def test_every_error_message_that_ends_in_a_word_ends_with_a_period() -> None:
    messages = raised()
    assert len(messages) > 800
    unfinished = [
        f"{file}:{line}: {''.join(parts)}"
        for file, line, parts in messages
        if ends_in_words(parts[-1])
        if not any(
            file == where and next(filter(str.strip, parts)).strip().startswith(begins)
            for where, begins in COMPOSED
        )
    ]
    assert unfinished == []


@pytest.mark.parametrize("known", [["adam", "sgd"], []])
def test_suggestion_of_a_similar_name_ends_with_a_period(known: list[str]) -> None:
    assert did_you_mean("zzz", known).endswith(".")
