"""Hypothesis strategy of small networks of `torch.nn` layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ftrain.testing.strategies.network import LAYERS, Network

__all__ = ["modules"]


def modules(
    layers: Sequence[str] = tuple(LAYERS),
    *,
    max_layers: int = 3,
    frozen: bool = True,
    shared: bool = True,
) -> SearchStrategy[Network]:
    """Return a strategy of small networks, which shrink to `Network(())`: one linear layer.

    A `Network` builds its module when called, so it is the `model` of `make_steps`.

    Args:
        layers: the kinds of layers to draw from, by name; default: all that `Network` knows.
        max_layers: the largest number of layers before the last linear layer.
        frozen: True to draw layers without gradients too.
        shared: True to draw submodules that occur twice and tied weights too.

    Raises:
        ValueError: a name is unknown.

    Example:
        >>> from hypothesis import find
        >>> find(modules(), lambda network: "dropout" in network.layers)
        Network(layers=('dropout',), length=2, width=2)
    """
    Network(tuple(layers))

    @st.composite
    def drawn(draw: Any) -> Network:
        count = draw(st.integers(0, max_layers))
        texts: list[str] = []
        for _ in range(count):
            texts.append(draw(_layer(texts, tuple(layers), frozen, shared)))
        return Network(tuple(texts))

    return drawn()


@st.composite
def _layer(
    draw: Any, earlier: list[str], names: tuple[str, ...], frozen: bool, shared: bool
) -> str:
    forms = ["plain"] + (["frozen"] if frozen else [])
    linear = [i for i, text in enumerate(earlier) if text.startswith("linear")]
    if shared:
        forms += ["again"] if earlier else []
        forms += ["tied"] if linear and "linear" in names else []
    form = draw(st.sampled_from(forms))
    if form == "again":
        return f"layer {draw(st.integers(0, len(earlier) - 1))} again"
    if form == "tied":
        return f"linear tied to {draw(st.sampled_from(linear))}"
    name = draw(st.sampled_from(names))
    return name if form == "plain" else f"frozen {name}"
