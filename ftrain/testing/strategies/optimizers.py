"""Hypothesis strategy of optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ftrain import optim
from ftrain.core._words import did_you_mean
from ftrain.testing.strategies.schedules import rates, schedules

__all__ = ["optimizers"]

# Algorithms whose first argument is the learning rate and that need nothing but gradients.
_NAMES = (
    "sgd", "adam", "adamw", "adabelief", "adadelta", "adafactor", "adagrad", "adamax", "adan",
    "amsgrad", "asgd", "lamb", "lars", "lion", "muon", "nadam", "prodigy", "radam", "rmsprop",
    "rprop", "yogi",
)  # fmt: skip

# Algorithms whose learning rate is a number only.
_CONSTANT = ("rprop",)

# Further options: an algorithm listed here is also drawn with these options set.
_FORMS: dict[str, dict[str, float]] = {"sgd": {"momentum": 0.9}, "adamw": {"weight_decay": 0.1}}


def optimizers(
    names: Sequence[str] = _NAMES,
    *,
    learning_rates: SearchStrategy[Any] | None = None,
    wrappers: bool = True,
) -> SearchStrategy[optim.GradientTransformation]:
    """Return a strategy of optimizers, which shrink to the first one in `names`, without wrappers.

    Hypothesis prints them as the call that made them: `chain(clip_by_global_norm(1.0), sgd(0.001))`.

    Args:
        names: algorithms of `ftrain.optim` by name: those that take the learning rate first and need
            nothing but gradients; default: all of these.
        learning_rates: a strategy of numbers and schedules; default: numbers and `schedules()`.
        wrappers: False to draw bare algorithms; True: clipping, `multi_steps` and `lookahead` too.

    Raises:
        ValueError: a name is unknown.

    Example:
        >>> from hypothesis import find
        >>> optimizer = find(optimizers(), lambda optimizer: True)
        >>> optimizer.init({})
        SGDState(count=tensor(0), learning_rate=tensor(0.0010), momentum=())
    """
    for name in names:
        if name not in _NAMES:
            raise ValueError(
                f"names: expected names from {', '.join(_NAMES)}, got {name!r}."
                f"{did_you_mean(name, _NAMES) or ' Write one of these names.'}"
            )
    return _optimizers(tuple(names), learning_rates, wrappers)


@st.composite
def _optimizers(
    draw: Any, names: tuple[str, ...], learning_rates: SearchStrategy[Any] | None, wrappers: bool
) -> Any:
    bare = _bare(names, learning_rates)
    if not wrappers:
        return draw(bare)
    clip = st.builds(optim.clip_by_global_norm, st.sampled_from([1.0, 0.1]))
    return draw(
        st.one_of(
            bare,
            st.builds(optim.chain, clip, bare),
            st.builds(optim.multi_steps, bare, st.integers(2, 3)),
            st.builds(optim.lookahead, bare),
        )
    )


@st.composite
def _bare(draw: Any, names: tuple[str, ...], learning_rates: SearchStrategy[Any] | None) -> Any:
    forms: list[tuple[str, dict[str, float]]] = [(name, {}) for name in names]
    forms += [(name, _FORMS[name]) for name in names if name in _FORMS]
    name, options = draw(st.sampled_from(forms))
    # The union has two branches for every algorithm: Hypothesis shrinks to the form with fewer choices,
    # which would be `rprop` instead of `sgd`.
    rate: SearchStrategy[Any] = rates() | (rates() if name in _CONSTANT else schedules())
    if learning_rates is not None:
        rate = learning_rates
    given = {option: st.just(value) for option, value in options.items()}
    return draw(st.builds(getattr(optim, name), rate, **given))
