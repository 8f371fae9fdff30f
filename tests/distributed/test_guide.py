"""Test that the snippets of the guide on distributed training run on two ranks."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ftrain import distributed, testing
from tests.distributed.ranks import run

GUIDE = Path(__file__).parents[2] / "docs" / "distributed.md"


def follows_the_guide(mesh: Any) -> Any:
    """Run the snippets of the guide in one namespace, on the process group that the pool has formed."""
    snippets = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    namespace: dict[str, Any] = {}
    states = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "initialize", lambda: contextlib.nullcontext(mesh))
        for snippet in snippets:
            exec(compile(snippet, str(GUIDE), "exec"), namespace)
            states.append(namespace["state"])
    return states, dict(namespace["metrics"])


def test_snippets_of_the_guide_on_distributed_training_run_on_two_ranks() -> None:
    first, second = run(follows_the_guide, 2)
    testing.assert_same_bits(first, second)
    (plain, sharded), metrics = first
    assert int(plain.step) == int(sharded.step) == 4
    assert torch.isfinite(metrics["loss"])
