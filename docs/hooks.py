"""Build-time steps of the documentation site: equations become MathML, which needs no script."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace each equation that `pymdownx.arithmatex` marked."""

    def mathml(match: re.Match[str]) -> str:
        tag, source = match.groups()
        display = "inline" if tag == "span" else "block"
        equation = convert(html.unescape(source).strip(), display=display)
        return equation if tag == "span" else f'<div class="equation">{equation}</div>'

    return _EQUATION.sub(mathml, content)
