"""The guides' snippets run, and the small examples do what they say."""

from __future__ import annotations

import pathlib
import re

import pytest
import yaml

from examples import custom_callback, own_loop, resume
from ftrain.config.keys import keys
from ftrain.core import tree

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_coming_from(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = re.findall(
        r"^```python\n(.*?)^```", (DOCS / "coming_from.md").read_text(), re.S | re.M
    )
    assert len(snippets) == 5
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "coming_from"}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"coming_from.md, snippet {number}", "exec"), namespace)


def test_the_configuration_of_the_guide_has_keys_that_exist() -> None:
    (snippet,) = re.findall(
        r"^```yaml\n(.*?)^```", (DOCS / "configuration.md").read_text(), re.S | re.M
    )
    assert yaml.safe_load(snippet).keys() <= {key for key, _ in keys()}


def test_own_callbacks_end_the_run() -> None:
    result = custom_callback.run()
    assert (result.status, result.reason) == ("stopped", "2 evaluations below 0.01")


def test_both_loops_end_with_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    assert tree.digest(own_loop.without_a_trainer(3)) == tree.digest(own_loop.with_its_events(3))


def test_stops_on_the_way_change_nothing(tmp_path: pathlib.Path) -> None:
    assert resume.digest(tmp_path / "a", ()) == resume.digest(tmp_path / "b", (3, 7, 8))
