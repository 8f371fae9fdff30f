"""Pytest plugin, loaded in every pytest run where ftrain is installed.

    pytest --ftrain-laws                  # check the laws of every Steps that the project exposes

It collects, from the test modules and the modules in the ini option `ftrain_subjects`: functions
marked by `ftrain.testing.subject`, and module-level `Steps` beside a sequence called `batches` (for
`steps` also `steps_batches`). Fixtures: `ftrain_key`, `ftrain_deterministic`, `ftrain_isolated`.

Nothing here imports torch before it is needed: most test suites that load this plugin do not use it.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from ftrain.testing.mark import MARK

__all__ = [
    "LawsItem",
    "ftrain_deterministic",
    "ftrain_isolated",
    "ftrain_key",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_pycollect_makeitem",
    "pytest_report_header",
]

_seen = pytest.StashKey[set[int]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option `--ftrain-laws` and the ini options."""
    parser.getgroup("ftrain").addoption(
        "--ftrain-laws",
        action="store_true",
        help="check the laws of pure training on every ftrain.Steps that the project exposes",
    )
    parser.addini(
        "ftrain_subjects",
        "modules whose Steps `--ftrain-laws` checks, besides the test modules: `package.module`, or "
        "`package.module:name` for one of them",
        type="linelist",
        default=[],
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    """Return a header line if `--ftrain-laws` is given."""
    on = config.getoption("ftrain_laws", default=False)
    return "ftrain: the laws of all Steps are checked (--ftrain-laws)" if on else None


def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> LawsItem | None:
    """Collect a test module's attribute as an item if its laws are to be checked."""
    if not collector.config.getoption("ftrain_laws", default=False):
        return None
    if not isinstance(collector, pytest.Module):
        return None
    return _item(collector, collector.obj, name, obj)


@pytest.hookimpl(tryfirst=True)  # before `-k` deselects
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add test items for the steps in the modules that the ini option `ftrain_subjects` lists."""
    if not config.getoption("ftrain_laws", default=False):
        return
    for entry in config.getini("ftrain_subjects"):
        module_name, _, only = entry.partition(":")
        module = _imported(module_name, entry)
        names = [only] if only else sorted(vars(module))
        n_subjects = 0
        for name in names:
            if not hasattr(module, name):
                raise pytest.UsageError(
                    f"ftrain_subjects: expected an attribute of {module_name}, got {name!r} in "
                    f"{entry!r}. Write `package.module:name`."
                )
            item = _item(session, module, name, getattr(module, name))
            items += [item] if item is not None else []
            n_subjects += _is_subject(getattr(module, name))
        if not n_subjects:
            raise pytest.UsageError(
                f"ftrain_subjects: expected Steps, or functions marked by ftrain.testing.subject, in "
                f"{entry!r}, got none. Mark a function that returns (steps, batches)."
            )


def _imported(module: str, entry: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise pytest.UsageError(
            f"ftrain_subjects: expected a module that can be imported, got {entry!r}: {error}. Install "
            "the project, or set `pythonpath`."
        ) from error


def _item(parent: pytest.Collector, module: Any, name: str, obj: object) -> LawsItem | None:
    """Return a test item for a subject: steps, or a function marked by `subject`.

    Returns:
        `None` for any other attribute, and for a subject that has an item already.
    """
    if not _is_subject(obj):
        return None
    seen = parent.config.stash.setdefault(_seen, set())
    if id(obj) in seen:
        return None
    seen.add(id(obj))
    item: LawsItem = LawsItem.from_parent(parent, name=f"laws[{name}]", subject=(module, name, obj))
    return item


def _is_subject(obj: object) -> bool:
    return _is_steps(obj) or (callable(obj) and getattr(obj, MARK, False) is True)


def _is_steps(obj: object) -> bool:
    kind = type(obj)
    return kind.__name__ == "Steps" and kind.__module__ == "ftrain.core.step"


class LawsItem(pytest.Item):
    """Pytest item that checks the laws (pure, deterministic, ...) of one step or function."""

    def __init__(self, *, subject: tuple[Any, str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._module, self._attribute, self._object = subject

    def runtest(self) -> None:
        """Check the laws of the subject, by default only those that need no compilation."""
        from ftrain.testing import check_all  # noqa: PLC0415  imports torch

        steps, batches, options = self._arguments()
        reports = check_all(steps, batches, **{"fast": True, **options})
        self.add_report_section("call", "laws", str(reports))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the message of a violated law, which names leaf and line, instead of a traceback."""
        if isinstance(excinfo.value, AssertionError):
            notes = getattr(excinfo.value, "__notes__", [])
            return "\n".join(
                [f"{self._module.__name__}.{self._attribute}", str(excinfo.value), *notes]
            )
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Return the file and the name of this item for pytest's reports."""
        return getattr(self._module, "__file__", None) or self.path, None, self.name

    def _arguments(self) -> tuple[Any, Sequence[Any], dict[str, Any]]:
        if not _is_steps(self._object):
            made = self._object()
            if isinstance(made, tuple) and not _is_steps(made):
                if len(made) == 2:
                    return *made, {}
                if len(made) == 3 and isinstance(made[2], dict):
                    return made
            raise TypeError(
                f"{self._attribute}: expected a function that returns (steps, batches), or "
                f"(steps, batches, options of check_all), because ftrain.testing.subject marks it, "
                f"got {type(made).__name__}. Return such a tuple."
            )
        for name in (f"{self._attribute}_batches", "batches"):
            if hasattr(self._module, name):
                return self._object, getattr(self._module, name), {}
        raise TypeError(
            f"{self._attribute}: expected a global variable `batches` for these Steps, got none in "
            f"{self._module.__name__}. Define it as a list of batches, or write a function marked by "
            "ftrain.testing.subject that returns (steps, batches)."
        )


@pytest.fixture
def ftrain_key(request: pytest.FixtureRequest) -> Any:
    """Return a random key derived from the test's name, the same in every run of the test."""
    from ftrain.core import random  # noqa: PLC0415  imports torch

    name = hashlib.sha256(request.node.nodeid.encode()).digest()
    return random.key(int.from_bytes(name[:8], "big", signed=True))


@pytest.fixture
def ftrain_deterministic() -> Iterator[None]:
    """Run the test with deterministic algorithms, one thread, and global generators seeded with 0."""
    from ftrain.testing import deterministic  # noqa: PLC0415  imports torch

    with deterministic(threads=1, seed=0):
        yield


@pytest.fixture
def ftrain_isolated() -> Iterator[None]:
    """Fail the test if it changes global state: random states, modes and settings of torch."""
    from ftrain.testing._global_state import changes, world  # noqa: PLC0415  imports torch

    before = world()
    yield
    changed = changes(before)
    if changed:
        pytest.fail(
            f"the test changed global state: {', '.join(changed)}. Restore it, or draw from a key.",
            pytrace=False,
        )
