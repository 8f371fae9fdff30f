"""Test law 7: an interrupted and resumed run ends with the bytes of an uninterrupted one.

`python -m tests.checkpoint.campaign_resume` interrupts the runs at every step; these tests at a few.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import preloaded
from tests.checkpoint.campaign_resume import at
from tests.checkpoint.resumed import STEPS, content, finish, save_each

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

FINISH = """
import sys
from pathlib import Path
from tests.checkpoint.resumed import finish

name, *sources = sys.argv[1:]
for source in sources:
    finish(name, Path(source), 1, Path(source + "-end"))
"""


@pytest.mark.parametrize(("name", "stops"), [("convnet", (1, 28)), ("char-gpt", (17, 39))])
def test_a_run_resumed_in_a_fresh_process_ends_with_the_same_bytes(
    name: str, stops: tuple[int, ...], tmp_path: Path
) -> None:
    """Interrupt after the first step, in and at the end of an epoch, and before the last step."""
    finish(name, None, 0, tmp_path / "whole")
    save_each(name, None, 2, tmp_path / "each")
    whole = content(tmp_path / "whole")
    assert content(at(tmp_path / "each", STEPS)) == whole
    sources = [at(tmp_path / "each", stop) for stop in stops]
    preloaded.run(
        "-c",
        FINISH,
        name,
        *map(str, sources),
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "random"},
    )
    for source in sources:
        assert content(source) != whole
        assert content(source.with_name(source.name + "-end")) == whole
