"""Law 11: gradients are the derivatives of the loss, compared with finite differences in float64.

Read next: `every.py`.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core.state import TrainState
from ftrain.core.step import TrainStep
from ftrain.testing._copies import copied
from ftrain.testing.difference import Difference
from ftrain.testing.laws._exact import doubled, in_float64, is_float
from ftrain.testing.laws._restored_state import unchanging
from ftrain.testing.laws._subject import InapplicableError, name_of, subject_of
from ftrain.testing.laws._traced import plain
from ftrain.testing.laws._words import plural
from ftrain.testing.report import LawViolation, Report, Row

__all__ = ["check_gradients"]

Point = dict[str, torch.Tensor]  # by path
_STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_FEW = 64  # largest number of elements of a leaf that are tried one by one


class _Function(NamedTuple):
    """Scalar function with the gradients to check at a point.

    Attributes:
        value: `(point) -> 0-d tensor`.
        point: the leaves with respect to which it is differentiated.
        grads: the gradients under check.
        dtype: the dtype in which the value is rounded.
    """

    value: Callable[[Point], torch.Tensor]
    point: Point
    grads: Point
    dtype: torch.dtype


@unchanging
def check_gradients(
    subject: Any,
    batches: Sequence[Any] = (),
    *,
    state: Any = None,
    seed: int = 0,
    args: tuple[Any, ...] | None = None,
    directions: int = 3,
    relative: float = 1e-4,
) -> Report:
    r"""Check law 11: gradients equal finite differences of the loss along random directions.

    $$\frac{f(x + h d) - f(x - h d)}{2 h} \approx \langle \nabla f(x), d \rangle$$

    in float64, for random signs $d$ of norm 1, and steps $h$ from 1e-6 to 1e-2, one of which must agree:
    a kink (ReLU, max pooling) may lie within a large step. A loss that stops gradients on purpose
    (`detach`, straight-through estimators) does not pass.

    Args:
        subject: `Steps` of `ftrain.make_steps`, whose `gradients` are checked; or a differentiable
            function if `args` is given.
        batches: a list of batches; each one is checked at the initial state.
        state: the state; default: `init_state(seed)`.
        seed: of the initial state and of the directions.
        args: the arguments of a differentiable function. The sum of its outputs, with random weights, is
            differentiated with respect to all floating tensors.
        directions: the number of directions.
        relative: the largest difference, relative to the derivative, or to its typical size
            $\lVert \nabla f \rVert / \sqrt n$.

    Returns:
        The report.

    Raises:
        LawViolation: a derivative differs; the message names the parameter.
        ValueError: the subject is a step that is not ftrain's.

    Example:
        >>> print(check_gradients(torch.sin, args=(torch.ones(3),)).passed)
        True
        >>> check_gradients(lambda x: x * x.detach(), args=(torch.ones(3),))
        Traceback (most recent call last):
            ...
        ftrain.testing.report.LawViolation: law "gradients": the gradient of [0] is wrong at (0,):
        expected the derivative ..., got ...
          cause: ...
    """
    start = time.perf_counter()
    functions = _functions(subject, batches, state, seed, args)
    generator = torch.Generator().manual_seed(seed)
    rows = [_check(name, make, directions, relative, generator) for name, make in functions]
    return Report("gradients", True, tuple(rows), time.perf_counter() - start)


def _functions(
    subject: Any, batches: Sequence[Any], state: Any, seed: int, args: tuple[Any, ...] | None
) -> list[tuple[str, Callable[[bool], _Function]]]:
    if args is not None:
        return [(name_of(subject), functools.partial(_of_function, subject, args))]
    whole = subject_of(subject, batches, state, seed)
    step = plain(whole.step)
    if not isinstance(step, TrainStep):
        raise InapplicableError(
            f"subject: expected a step of ftrain.make_steps or args=..., got {name_of(step)}, whose "
            "gradients are not visible. Pass the loss: check_gradients(loss_fn, args=(params, batch))."
        )
    return [
        (f"loss of batches[{i}]", functools.partial(_of_step, step, whole.state, batch))
        for i, batch in enumerate(whole.batches)
    ]


def _of_step(step: TrainStep, state: TrainState, batch: Any, exact: bool) -> _Function:
    cast = doubled if exact else copied
    state = state.replace(params=cast(state.params), buffers=cast(state.buffers))
    batch = cast(batch)

    def value(point: Point) -> torch.Tensor:
        params = tree.unflatten(tree.structure(state.params), list(point.values()))
        loss: torch.Tensor = step.gradients(state.replace(params=params), batch).metrics["loss"]
        return loss

    result = step.gradients(state, batch)
    return _Function(
        value, _by_path(state.params), _by_path(result.grads), result.metrics["loss"].dtype
    )


def _of_function(fn: Callable[..., Any], args: tuple[Any, ...], exact: bool) -> _Function:
    given = (doubled if exact else copied)(args)
    leaves, treedef = tree.flatten(given)
    paths = tree.paths(given)
    point = {
        path: leaf.detach() for path, leaf in zip(paths, leaves, strict=True) if is_float(leaf)
    }

    def value(at: Point) -> torch.Tensor:
        filled = [at.get(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
        outputs = [x for x in tree.leaves(fn(*tree.unflatten(treedef, filled))) if is_float(x)]
        if not outputs:
            raise InapplicableError(
                f"subject: expected an output of a floating-point dtype, got none from {name_of(fn)}. "
                "Return a differentiable output."
            )
        generator = torch.Generator().manual_seed(1)
        weights = [torch.rand(x.shape, generator=generator, dtype=x.dtype) + 0.5 for x in outputs]
        return torch.stack([(x * w).sum() for x, w in zip(outputs, weights, strict=True)]).sum()

    required = {path: x.clone().requires_grad_() for path, x in point.items()}
    total = value(required)
    if not total.requires_grad:
        raise InapplicableError(
            f"subject: expected outputs that depend on a float of args, got outputs of {name_of(fn)} "
            "that require no gradient. Return a differentiable output."
        )
    grads = torch.autograd.grad(total, list(required.values()), allow_unused=True)
    found = {
        path: torch.zeros_like(x) if g is None else g
        for (path, x), g in zip(point.items(), grads, strict=True)
    }
    return _Function(value, point, found, total.dtype)


def _by_path(values: Any) -> Point:
    return dict(zip(tree.paths(values), tree.leaves(values), strict=True))


def _check(
    name: str,
    make: Callable[[bool], _Function],
    directions: int,
    relative: float,
    generator: torch.Generator,
) -> Row:
    function, exact = _made(make)
    with in_float64() if exact else contextlib.nullcontext():
        for _ in range(directions):
            direction = _signs(function.point, generator)
            if _derivatives(function, direction, relative) is not None:
                raise _violation(function, relative, generator)
    n = sum(x.numel() for x in function.point.values())
    dtype = str(function.dtype).removeprefix("torch.")
    return Row(
        f"{name}, in {dtype}",
        f"{plural(n, 'element')}, {plural(directions, 'direction')}",
        "equal derivatives",
    )


def _made(make: Callable[[bool], _Function]) -> tuple[_Function, bool]:
    """Build the function to check, in float64 if it runs in float64, else in its own dtypes."""
    try:
        with in_float64():
            return make(True), True
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InapplicableError):
            raise
        return make(False), False


def _signs(point: Point, generator: torch.Generator) -> Point:
    """Return a random direction for all leaves: equal magnitudes, random signs, norm 1."""
    n = sum(x.numel() for x in point.values())
    return {
        path: (torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1) / n**0.5
        for path, x in point.items()
    }


def _derivatives(
    function: _Function, direction: Point, relative: float
) -> tuple[float, float] | None:
    """Return the derivative by finite differences and by the gradients; `None` if they agree."""
    n = sum(x.numel() for x in function.point.values())
    got = sum(float((function.grads[p].double() * d.double()).sum()) for p, d in direction.items())
    norm = sum(float(g.double().square().sum()) for g in function.grads.values()) ** 0.5
    allowed = relative * max(abs(got), norm / max(n, 1) ** 0.5)
    best: tuple[float, float] | None = None
    for h in _STEPS:
        up, down = (function.value(_moved(function.point, direction, s * h)) for s in (1.0, -1.0))
        found = (float(up.double()) - float(down.double())) / (2 * h)
        noise = 4 * torch.finfo(function.dtype).eps * max(abs(float(up)), abs(float(down))) / h
        apart = abs(found - got)
        if apart <= allowed + noise:
            return None
        if best is None or apart < abs(best[0] - got):
            best = found, got
    return best


def _moved(point: Point, direction: Point, step: float) -> Point:
    return {
        path: x + step * direction[path] if path in direction else x for path, x in point.items()
    }


def _violation(function: _Function, relative: float, generator: torch.Generator) -> LawViolation:
    """Return the violation, with the first leaf and element whose own derivative is wrong."""
    path, index, pair = "the tree", None, None
    for name, x in function.point.items():
        n = max(x.numel(), 1)
        signs = {name: (torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1) / n**0.5}
        pair = _derivatives(function, signs, relative)
        if pair is not None:
            path = name
            index, pair = _element(function, name, relative) if n <= _FEW else (None, pair)
            break
    expected, got = pair or (None, None)
    at = "" if index is None else f" at {index}"
    return LawViolation(
        "gradients",
        f"the gradient of {path} is wrong{at}: expected the derivative {expected}, got {got}",
        difference=Difference(path, index, got, expected, None, 1, 1),
        cause="a part of the loss is cut from the graph (detach, .data, torch.no_grad, a number made "
        "with .item()), or an autograd.Function has a wrong backward.",
        remedy="Remove the cut, or check the loss without the part that stops gradients on purpose.",
    )


def _element(function: _Function, name: str, relative: float) -> tuple[Any, Any]:
    x = function.point[name]
    for place in range(x.numel()):
        one = torch.zeros_like(x).reshape(-1)
        one[place] = 1.0
        pair = _derivatives(function, {name: one.reshape(x.shape)}, relative)
        if pair is not None:
            index = torch.unravel_index(torch.tensor(place), x.shape)
            return tuple(int(i) for i in index), pair
    return None, None
