"""Composition of transformations: the output of each is the input of the next."""

from __future__ import annotations

import inspect
from typing import Any

from ftrain.core._words import a_or_an
from ftrain.optim.protocol import GradientTransformation, PyTree

__all__ = ["chain", "identity"]


def chain(*links: GradientTransformation) -> GradientTransformation:
    """Compose transformations, applied from left to right.

    Args:
        *links: the transformations. Each gets the updates of the previous one, its own state, the
            parameters, and all extra arguments.

    Returns:
        A transformation whose state is the tuple of the links' states.

    Raises:
        TypeError: a link is not a `GradientTransformation`, or takes no `**extra`.

    Example:
        >>> import torch
        >>> from ftrain import optim
        >>> optimizer = chain(optim.clip_by_global_norm(1.0), optim.sgd(0.1))
        >>> params = {"w": torch.tensor([1.0, 1.0])}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"w": torch.tensor([30.0, 40.0])}, state, params)
        >>> optim.apply_updates(params, updates)
        {'w': tensor([0.9400, 0.9200])}
    """
    for index, link in enumerate(links):
        _check_link(index, link)

    def init(params: PyTree) -> tuple[PyTree, ...]:
        return tuple(link.init(params) for link in links)

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        own = isinstance(state, tuple) and not hasattr(state, "_fields")
        if not own or len(state) != len(links):
            raise ValueError(
                f"state: expected a tuple of the {len(links)} states of the links of the chain, got "
                f"{_described(state)}. Pass the state that the chain's `init` or `update` returned."
            )
        states = []
        for link, link_state in zip(links, state, strict=True):
            grads, new_state = link.update(grads, link_state, params, **extra)
            states.append(new_state)
        return grads, tuple(states)

    return GradientTransformation(init, update)


def identity() -> GradientTransformation:
    """Return the transformation that leaves gradients unchanged, the neutral element of `chain`.

    Example:
        >>> identity().update({"w": 1.0}, ())
        ({'w': 1.0}, ())
    """

    def init(params: PyTree) -> PyTree:
        return ()

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        return grads, state

    return GradientTransformation(init, update)


def _check_link(index: int, link: object) -> None:
    if not isinstance(link, GradientTransformation):
        raise TypeError(
            f"chain: expected a GradientTransformation as link {index}, got {_described(link)}. Write "
            "`chain(clip_by_global_norm(1.0), adamw(1e-3))`, with each link called and not in a list."
        )
    kinds = {p.kind for p in inspect.signature(link.update).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        raise TypeError(
            f"chain: expected the `update` of link {index} to accept `**extra`, because each link gets "
            "all extra arguments of the chain. Write `def update(grads, state, params=None, **extra):`."
        )


def _described(value: object) -> str:
    if isinstance(value, tuple):
        return f"{a_or_an(type(value).__name__)} of {len(value)}"
    return a_or_an(type(value).__name__)
