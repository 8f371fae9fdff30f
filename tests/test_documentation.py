"""The reference of the documentation site lists exactly the public names in `__all__`."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import Any

import griffe
import markdown  # type: ignore[import-untyped]  # it has no stubs
import pytest
import yaml

import ftrain

ROOT = Path(__file__).parent.parent
ROOMS = [
    "ftrain",
    "ftrain.core.debug",
    "ftrain.core.random",
    "ftrain.core.tree",
    "ftrain.core.errors",
    "ftrain.bench",
    "ftrain.optim",
    "ftrain.data",
    "ftrain.data.sources",
    "ftrain.checkpoint",
    "ftrain.distributed",
    "ftrain.loop",
    "ftrain.loop.callbacks",
    "ftrain.loop.finders",
    "ftrain.loop.plots",
    "ftrain.config",
    "ftrain.tasks",
    "ftrain.tasks.functional",
    "ftrain.tasks.metrics",
    "ftrain.tasks.models",
    "ftrain.transforms",
    "ftrain.testing",
    "ftrain.testing.strategies",
    "ftrain.testing.machine",
]


def documented() -> list[str]:
    """Return every name in the reference pages."""
    files = sorted((ROOT / "docs" / "reference").glob("*.md"))
    return [name for page in files for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]


@pytest.mark.parametrize("room", ROOMS)
def test_reference_lists_every_public_name_of_a_package(room: str) -> None:
    names = {f"{room}.{name}" for name in importlib.import_module(room).__all__}
    own = {f"ftrain.{page}" for page in ("debug", "random", "tree", "errors")}  # modules
    assert names - own <= set(documented())


def test_reference_lists_only_public_names_and_each_once() -> None:
    public = {f"{room}.{name}" for room in ROOMS for name in importlib.import_module(room).__all__}
    assert set(documented()) <= public
    assert len(documented()) == len(set(documented()))


def test_every_name_of_the_reference_is_an_attribute_reachable_from_ftrain() -> None:
    for name in documented():
        found = ftrain
        for part in name.split(".")[1:]:
            found = getattr(found, part)


def test_reference_name_shared_by_module_and_function_resolves_to_the_function() -> None:
    resolved = module("docs/hooks.py").on_page_markdown
    assert resolved("::: ftrain.transforms.unroll") == "::: ftrain.transforms.unroll.unroll"
    assert resolved("::: ftrain.tasks.distillation") == "::: ftrain.tasks.distillation.distillation"
    for name in ("ftrain.optim.adamw", "ftrain.core.debug.print", "ftrain.make_steps"):
        assert resolved(f"# Page\n\n::: {name}\n") == f"# Page\n\n::: {name}\n"


def test_site_navigation_lists_every_page() -> None:
    docs = ROOT / "docs"
    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(str(page.relative_to(docs)) for page in docs.rglob("*.md"))


def pages(nav: Any) -> list[str]:
    """Return the pages of a navigation tree."""
    if isinstance(nav, str):
        return [nav]
    return [
        page for child in (nav.values() if isinstance(nav, dict) else nav) for page in pages(child)
    ]


def test_ftrain_version_equals_the_distribution_version() -> None:
    assert ftrain.__version__ == importlib.metadata.version("ftrain")


def test_make_laws_target_runs_the_tests_of_every_law() -> None:
    rows = re.findall(
        r"^\| (\d+) .*`pytest ([^`]*)` \|$", (ROOT / "docs" / "guarantees.md").read_text(), re.M
    )
    assert [int(number) for number, _ in rows] == list(range(1, 13))
    recipe = re.findall(
        r"^laws:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text().replace("\\\n", ""), re.M
    )
    run = {ROOT / word for word in recipe[0].split() if word.startswith("tests/")}
    for number, command in rows:
        for word in command.split():
            if word.startswith("tests/"):
                path = ROOT / word
                assert path.exists(), f"law {number}: {word}"
                assert run & {path, *path.parents}, f"law {number}: {word}"


def module(path: str) -> Any:
    """Import a build-time file of the documentation, which is not in a package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_documentation_escapes_a_greater_than_sign_that_begins_an_argument_description() -> None:
    docstrings = module("docs/docstrings.py")
    text = "Return it.\n\nArgs:\n    eps: >= 0, added\n        >= 1 in half.\n\n>>> 2 > 1\nTrue\n"
    docstring = griffe.Docstring(docstrings.as_section(docstrings.without_quotations(text)))
    _, parameters, examples = docstring.parse("google")
    (eps,) = parameters.value
    assert markdown.markdown(eps.description) == "<p>&gt;= 0, added\n&gt;= 1 in half.</p>"
    assert examples.value[0][1] == ">>> 2 > 1\nTrue"


def test_display_equation_becomes_mathml_in_a_box_that_scrolls() -> None:
    hooks = module("docs/hooks.py")
    shown = hooks.on_page_content(r'<div class="arithmatex">\[a &lt; b\]</div>')
    assert shown.startswith('<div class="equation"><math')
    assert shown.endswith("</math></div>")
    assert "arithmatex" not in shown
    inline = hooks.on_page_content(r'<p>of <span class="arithmatex">\(a\)</span></p>')
    assert inline.startswith("<p>of <math")
    assert "equation" not in inline
