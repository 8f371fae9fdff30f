"""Test that each mistake is found by its law's check, with a remedy, and that correct steps pass."""

from __future__ import annotations

import re
from typing import Any

import pytest

import ftrain
from ftrain import testing
from ftrain.core import errors
from tests.testing.gallery import entries

entries.load()
# `ftrain.compile` refuses some mistakes itself.
REFUSALS = (errors.TraceError, errors.ImpureFunctionError, errors.UnkeyedRandomError)
# An exception at each operator takes seconds for a large step; a sample takes as long for all.
SAMPLED = {"exception_safety": {"most": 12}}


def run(law: str, case: entries.Case, **options: Any) -> Any:
    check = getattr(testing, f"check_{law}")
    return check(case.subject, case.batches, state=case.state, **{**case.options, **options})


def named(found: list[Any]) -> Any:
    return pytest.mark.parametrize("entry", found, ids=[entry.name for entry in found])


@named(entries.BROKEN)
def test_law_check_finds_each_mistake_of_the_gallery_and_names_its_remedy(
    entry: entries.Broken,
) -> None:
    with pytest.raises(testing.LawViolation) as raised:
        run(entry.law, entry.make())
    assert raised.value.law == entry.law
    assert_says(str(raised.value), entry.says)


@pytest.mark.filterwarnings("ignore::ftrain.core.errors.RecompileWarning")
@named([entry for entry in entries.BROKEN if entry.compiled])
def test_law_check_finds_each_mistake_of_the_gallery_in_a_compiled_step(
    entry: entries.Broken,
) -> None:
    with pytest.raises((testing.LawViolation, *REFUSALS)) as raised:
        run(entry.compiled_law, compiled(entry.make()))
    assert_says(str(raised.value), entry.compiled)


@pytest.mark.parametrize(
    ("entry", "law"),
    [
        pytest.param(entry, law, id=f"{entry.name}-{law}")
        for entry in entries.CORRECT
        for law in entry.laws
    ],
)
def test_law_check_passes_on_each_correct_step_of_the_gallery(
    entry: entries.Correct, law: str
) -> None:
    options = {**SAMPLED.get(law, {}), **entry.options.get(law, {})}
    assert run(law, entry.make(), **options).passed


def assert_says(message: str, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        assert re.search(pattern, message), f"expected {pattern!r} in the message, got:\n{message}"


def compiled(case: entries.Case) -> entries.Case:
    """Return the case with a compiled step."""

    def compile(fn: Any) -> Any:
        return ftrain.compile(fn, backend="eager")

    subject = case.subject
    if "accumulated" in case.options:
        options = {**case.options, "accumulated": compile(case.options["accumulated"])}
        return case._replace(subject=compile(subject), options=options)
    if hasattr(subject, "_replace"):
        steps = {name: compile(getattr(subject, name)) for name in ("train_step", "eval_step")}
        return case._replace(subject=subject._replace(**steps))
    if hasattr(subject, "train_step"):
        steps = (subject.init_state, compile(subject.train_step), compile(subject.eval_step))
        return case._replace(subject=ftrain.Steps(*steps))
    return case._replace(subject=compile(subject))


def test_gallery_is_large_and_links_the_source_of_each_mistake() -> None:
    assert len(entries.BROKEN) >= 40
    assert len(entries.CORRECT) >= 20
    assert sum(bool(entry.compiled) for entry in entries.BROKEN) * 3 >= len(entries.BROKEN)
    for entry in entries.BROKEN:
        assert entry.seen.startswith("https://github.com/"), entry.name
        assert entry.make.__doc__, entry.name
        assert "\n" not in entry.make.__doc__, entry.name
