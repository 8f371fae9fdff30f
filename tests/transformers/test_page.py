"""The page of the documentation is that of the tables."""

from __future__ import annotations

import re

from tests.transformers import page
from tests.transformers.architectures import ARCHITECTURES


def test_transformers_page_of_the_documentation_matches_the_test_tables() -> None:
    """Regenerate it with `python -m tests.transformers.page` if this fails."""
    assert page.PAGE.read_text(encoding="utf-8") == page.text()


def test_transformers_page_of_the_documentation_lists_every_architecture_once() -> None:
    listed = "\n".join(page.text().partition("## Decoders")[2].splitlines()[1:])
    lists = [line for line in listed.splitlines() if line and not line.startswith("#")]
    names = [re.sub(r"\*\*| \(refused\)", "", each) for line in lists for each in line.split(", ")]
    assert sorted(names) == sorted(ARCHITECTURES)
    assert sum(map(len, page.KINDS.values())) == len(ARCHITECTURES)
    assert {name for names in page.KINDS.values() for name in names} == set(ARCHITECTURES)
