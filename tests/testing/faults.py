"""Helpers for tests with planted faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ftrain import testing

X = torch.linspace(-1, 1, 8)
STATE = {"w": torch.zeros(8), "key": torch.tensor(3)}
BATCHES = [X, X + 1, X + 2]


def violation(check: Callable[..., Any], *args: Any, **options: Any) -> testing.LawViolation:
    """Return the violation that a check raises; its parts must be in its message."""
    with pytest.raises(testing.LawViolation) as caught:
        check(*args, **options)
    found = caught.value
    message = str(found)
    assert found.law == check.__name__.removeprefix("check_")
    for part in (found.summary, found.operator, found.cause, found.remedy):
        assert part is None or part in message
    assert found.remedy
    return found


def line_with(file: str, text: str) -> str:
    """Return `FILE:LINE` of the line of a file that ends with a comment."""
    path = Path(file)
    lines = path.read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.rstrip().endswith(f"# {text}")]
    return f"{path.name}:{number} "
