"""Build-time steps of the documentation site: equations become MathML, which needs no script.

Names of functions that a module shares are resolved to the function.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

_ROOT = Path(__file__).parent.parent
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each name of a function that is a module's too, `ftrain.optim.sgd`, by its full path."""
    return re.sub(r"^::: (\S+)$", lambda match: f"::: {_full_path(match[1])}", markdown, flags=re.M)


def _full_path(name: str) -> str:
    """Return `ftrain.optim.sgd.sgd` for `ftrain.optim.sgd`, and most other names unchanged."""
    last = name.rpartition(".")[2]
    path = _ROOT / name.replace(".", "/")
    texts = [
        file.read_text("utf-8")
        for file in (path.with_suffix(".py"), path / "__init__.py")
        if file.exists()
    ]
    # Defined in the module, or listed in the `__all__` of the package.
    own = re.compile(rf'^(def|class) {last}\b|^    "{last}",$', re.M)
    shared = any(own.search(text) for text in texts)
    return f"{name}.{last}" if shared else name


def on_page_content(content: str, **_: Any) -> str:
    """Replace each equation that `pymdownx.arithmatex` marked."""

    def mathml(match: re.Match[str]) -> str:
        tag, source = match.groups()
        display = "inline" if tag == "span" else "block"
        equation = convert(html.unescape(source).strip(), display=display)
        return equation if tag == "span" else f'<div class="equation">{equation}</div>'

    return _EQUATION.sub(mathml, content)
