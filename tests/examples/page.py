"""Generate the parts of `docs/configuration.md` that come from the schema and the registry.

python -m tests.examples.page
"""

from __future__ import annotations

import inspect
import pathlib
import re
from typing import Any

from ftrain.config import registry
from ftrain.config.keys import described, keys

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "configuration.md"


def key_table() -> str:
    """Return a row for each key: its default and its purpose."""
    said = re.split(r"\n(?=\S)", described())
    rows = ["| key | default | what it is for |", "|---|---|---|"]
    for (key, _), text in zip(keys(), said, strict=True):
        head, *lines = text.splitlines()
        default = head.removeprefix(f"{key}:").strip()
        shown = "needed" if default == "(needed)" else f"`{default}`" if default else ""
        rows.append(f"| `{key}` | {shown} | {' '.join(map(str.strip, lines))} |")
    return "\n".join(rows)


def name_table() -> str:
    """Return a row for each built-in name with its arguments, or only names if there are many."""
    rows = ["| kind | name | what it is |", "|---|---|---|"]
    filled: tuple[tuple[registry.Kind, int], ...] = (
        ("model", 0),
        ("data", 0),
        ("loss", 2),
        ("task", 0),
    )
    for kind, count in filled:
        for name, function in _built_in(kind).items():
            line = (inspect.getdoc(function) or "").partition("\n")[0]
            own = registry.needs_of(kind, function).self_teacher
            rows.append(f"| {kind} | `{name}({_arguments(function, count, own)})` | {line} |")
    many: tuple[registry.Kind, ...] = ("optimizer", "schedule", "callback")
    for kind in many:
        listed = ", ".join(f"`{name}`" for name in _built_in(kind))
        rows.append(f"| {kind} | {listed} | |")
    return "\n".join(rows)


def _built_in(kind: registry.Kind) -> dict[str, Any]:
    """Return the components that ftrain itself registers, without those of other tests."""
    found = {n: registry.find(kind, n, pathlib.Path(), "", "") for n in registry.names(kind)}
    rooms = ("ftrain.tasks.", "ftrain.data.", "ftrain.optim.", "ftrain.loop.")
    return {n: one for n, one in found.items() if f"{one.__module__}.".startswith(rooms)}


def _arguments(function: Any, filled: int, own: str | None) -> str:
    parameters = list(inspect.signature(function).parameters.values())[filled:]
    parameters = [
        p for p in parameters if p.name not in ("fitted", "extras", own)
    ]  # the run's part
    return ", ".join(
        p.name if p.default is p.empty else f"{p.name}={_yaml(p.default)}" for p in parameters
    )


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)) if isinstance(value, tuple) else repr(value).replace("'", '"')


def written(page: str) -> str:
    """Return the page with both tables up to date."""
    for name, table in (("keys", key_table()), ("names", name_table())):
        pattern = rf"<!-- {name} -->\n.*?<!-- end -->"
        block = f"<!-- {name} -->\n{table}\n<!-- end -->"
        page, found = re.subn(pattern, lambda _, block=block: block, page, flags=re.S)
        assert found == 1, name
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
