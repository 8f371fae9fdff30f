"""Error messages for unknown arguments of an optimizer, most often torch's names such as `lr`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

from ftrain.core._words import did_you_mean
from ftrain.optim.protocol import GradientTransformation

__all__ = ["algorithm"]

_P = ParamSpec("_P")

_NO_SUCH_OPTION = " Leave it out: `ftrain.compile` makes one graph of the whole step."
_TORCH = {
    "lr": " Write `learning_rate=`.",
    "betas": " Write `b1=` and `b2=`.",
    "amsgrad": " AMSGrad is an algorithm of its own, `optim.amsgrad`.",
    "maximize": " Negate the loss.",
    "decoupled_weight_decay": " `weight_decay` is decoupled here. For an L2 penalty write "
    "`chain(add_decayed_weights(...), ...)`.",
    **dict.fromkeys(("foreach", "fused", "capturable", "differentiable"), _NO_SUCH_OPTION),
}


def algorithm(
    build: Callable[_P, GradientTransformation],
) -> Callable[_P, GradientTransformation]:
    """Wrap an optimizer function so that an unknown argument raises an error with a remedy.

    Example:
        >>> @algorithm
        ... def walk(learning_rate): ...
        >>> walk(lr=0.1)
        Traceback (most recent call last):
        TypeError: `walk` has no argument 'lr'. Write `learning_rate=`. It takes learning_rate.
    """
    known = list(inspect.signature(build).parameters)

    @functools.wraps(build)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> GradientTransformation:
        for name in kwargs:
            if name not in known:
                remedy = _TORCH.get(name) or did_you_mean(name, known)
                raise TypeError(
                    f"`{build.__name__}` has no argument {name!r}.{remedy} It takes {', '.join(known)}."
                )
        return build(*args, **kwargs)

    return checked
