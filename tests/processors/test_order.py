"""Test the preloaded matrix products: correct, with a summation order that depends on shape."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processors.__main__ import library

SCRIPT = """
import torch
torch.manual_seed(0)
for dtype, bound in ((torch.float32, 2.0**-24), (torch.float64, 2.0**-53)):
    a, b = torch.randn(3, 9, 33, dtype=dtype), torch.randn(3, 33, 5, dtype=dtype)
    exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    found = a @ b
    assert ((found - exact).abs() <= 2 * 34 * bound * size).all()
    assert not found[0].equal(torch.cat([row @ b[0] for row in a[0].split([2, 7])]))
    assert found.equal(a.clone() @ b.clone())
print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libraries are preloaded on Linux")
@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler")
def test_preloaded_matrix_product_is_correct_and_its_order_of_sums_depends_on_the_shape(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "LD_PRELOAD": library("order", str(tmp_path))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "done\n", done.stderr
