"""The first use of ftrain in a process may be inside a transform, although it imports modules."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import torch, ftrain
def f(x):
    FIRST
    return ftrain.scan(lambda c, _: (c * x, None), x, length=2)[0].sum()
x = torch.tensor([2.0, 3.0])
print(torch.func.grad(f)(x).tolist(), torch.func.jvp(f, (x,), (x,))[1].item())
"""


@pytest.mark.parametrize("first", ["ftrain.scan", "ftrain.optim", "ftrain.loop"])
def test_first_use_of_ftrain_may_be_inside_a_torch_func_transform(first: str) -> None:
    program = PROGRAM.replace("FIRST", first)
    found = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split("\n")[0] == "[12.0, 27.0] 105.0"
