"""Wrapper of an optimizer that checks the arguments of `update` before each call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ftrain.core._words import a_or_an
from ftrain.optim.protocol import GradientTransformation, Init, PyTree

__all__ = ["checked", "other_options", "required_params"]


def checked(
    name: str,
    state_type: type,
    init: Init,
    update: Callable[..., Any],
    *,
    needs_params: str | bool = False,
    unused: Sequence[str] = (),
) -> GradientTransformation:
    """Return a transformation whose `update` first checks its state and its parameters.

    Args:
        name: the transformation's name, for messages.
        state_type: the class of its state.
        init: `params -> state`.
        update: `(grads, state, params, **extra) -> (updates, state)`.
        needs_params: True if `update` always reads the parameters; a string names the option for which
            it does.
        unused: fields of the state that are `()` with these options.

    Raises:
        TypeError: in `update`: the state is of another class.
        ValueError: in `update`: the state was made with other options, or the parameters are missing.
    """
    who = f"{name} with {needs_params}" if isinstance(needs_params, str) else name

    @functools.wraps(update)
    def with_checks(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        if not isinstance(state, state_type):
            raise _not_its_state(name, state_type, state)
        for field in unused:
            value = getattr(state, field)
            if not isinstance(value, tuple) or value:
                raise other_options(name, f"a `{field}`, which these options do not use")
        if needs_params:
            required_params(who, params)
        result: tuple[PyTree, PyTree] = update(grads, state, params, **extra)
        return result

    return GradientTransformation(init, with_checks)


def required_params(name: str, params: PyTree | None) -> PyTree:
    """Return the parameters; raise an error that names the caller if they are `None`.

    Raises:
        ValueError: they are missing.
    """
    if params is None:
        raise ValueError(
            f"`{name}`: expected the parameters, got None. Call `update(grads, state, params)`."
        )
    return params


def other_options(name: str, difference: str) -> ValueError:
    """Return the error for a state that was made by the same optimizer with other options."""
    return ValueError(
        f"`{name}`: expected a state made with the same options, got one with {difference}. "
        "Pass the options with which the state was made, or create a new state with `init(params)`."
    )


def _not_its_state(name: str, state_type: type, state: object) -> TypeError:
    return TypeError(
        f"`{name}`: expected its own {state_type.__name__}, got {a_or_an(type(state).__name__)}: the "
        "state of another optimizer, or the pair that `update` returned. Write `state = "
        "optimizer.init(params)` and `updates, state = optimizer.update(grads, state, params)`; with "
        "`make_steps`, start from the `init_state` that it returned together with this `train_step`."
    )
