"""Build-time steps of the documentation site: equations become MathML, which needs no script.

Names of functions that a module shares are resolved to the function.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import re
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each name of a function that is a module's too, `ftrain.optim.adam`, by its full path."""
    return re.sub(r"^::: (\S+)$", lambda match: f"::: {_full_path(match[1])}", markdown, flags=re.M)


def _full_path(name: str) -> str:
    """Return `ftrain.optim.adam.adam` for `ftrain.optim.adam`, and most other names unchanged."""
    package, _, last = name.rpartition(".")
    if importlib.util.find_spec(package) is None:
        return name
    found = getattr(importlib.import_module(package), last)
    shared = not isinstance(found, type(importlib)) and importlib.util.find_spec(name) is not None
    return f"{name}.{last}" if shared else name


def on_page_content(content: str, **_: Any) -> str:
    """Replace each equation that `pymdownx.arithmatex` marked."""

    def mathml(match: re.Match[str]) -> str:
        tag, source = match.groups()
        display = "inline" if tag == "span" else "block"
        equation = convert(html.unescape(source).strip(), display=display)
        return equation if tag == "span" else f'<div class="equation">{equation}</div>'

    return _EQUATION.sub(mathml, content)
