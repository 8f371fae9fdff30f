"""The optimizer protocol: a pair of pure functions.

Everything in `ftrain.optim` is a `GradientTransformation`: gradients go in, updates come out, and
all memory is a tree of tensors that the caller holds. A training step composes them like any
function.

Read next: `adam.py` for a whole algorithm, `chain.py` for composition.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

import torch

__all__ = [
    "Count",
    "GradientTransformation",
    "Hyperparameter",
    "Init",
    "PyTree",
    "Schedule",
    "Update",
]

PyTree: TypeAlias = Any

Count: TypeAlias = Any
"""Number of updates so far, int64, 0-d. Typed `Any`, because tuples have a method `count`."""

Hyperparameter: TypeAlias = float | torch.Tensor
"""A number, or a 0-d floating tensor, which can be vmapped in sweeps and differentiated."""


class Init(Protocol):
    """Function from the parameters to the initial state of the optimizer."""

    def __call__(self, params: PyTree, /) -> PyTree:
        """Return the initial state, on the devices of `params`.

        It has the structure, shapes, dtypes, devices and strides of every later state.
        """
        ...


class Update(Protocol):
    """Function from gradients and optimizer state to updates and the new optimizer state."""

    def __call__(
        self, grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        """Return the updates, which are to be added to the parameters, and the new state.

        Nothing is mutated. `params` may be omitted if the algorithm does not read them. Unknown extra
        arguments, such as `loss=`, are ignored.
        """
        ...


class Schedule(Protocol):
    """Learning rate as a pure function of the number of updates so far."""

    def __call__(self, count: torch.Tensor, /) -> torch.Tensor | float:
        """Return the learning rate after `count` updates, as a 0-d tensor on the device of `count`."""
        ...


class GradientTransformation(NamedTuple):
    """A pair of pure functions, `init(params)` and `update(grads, state, params, **extra)`.

    Attributes:
        init: `params -> state`.
        update: `(grads, state, params, **extra) -> (updates, state)`. `updates` are added to the
            parameters by `apply_updates`. They have the structure and shapes of the parameters and their
            dtype, or float32 for parameters of lower precision.

    A custom algorithm consists of two functions:

    Example:
        >>> def sign_descent(rate):
        ...     def update(grads, state, params=None, **extra):
        ...         return {name: -rate * g.sign() for name, g in grads.items()}, state
        ...     return GradientTransformation(lambda params: (), update)
        >>> optimizer = sign_descent(0.1)
        >>> params = {"w": torch.tensor([1.0, -1.0])}
        >>> updates, state = optimizer.update({"w": torch.tensor([3.0, -0.5])}, optimizer.init(params))
        >>> updates["w"]
        tensor([-0.1000,  0.1000])
    """

    init: Init
    update: Update

    def __repr__(self) -> str:
        """Return the names of both functions, without their memory addresses."""
        names = (getattr(f, "__qualname__", type(f).__name__) for f in self)
        init, update = (name.replace(".<locals>", "") for name in names)
        return f"{type(self).__name__}(init={init}, update={update})"
