"""Optimizers, problems and trees that the tests of this folder combine."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import ftrain
from ftrain import optim
from ftrain.core import tree


class Rates(NamedTuple):
    """Learning rates at which an algorithm reduces the loss of each problem."""

    parabola: float
    rosenbrock: float
    mlp: float


GRADIENT_SIZED = Rates(1e-2, 5e-4, 1e-1)  # steps as long as the gradient is
RATE_SIZED = Rates(1e-1, 1e-2, 1e-2)  # steps about as long as the rate is


class Case(NamedTuple):
    """One optimizer of the table, with the options that the tests and the documentation need.

    `build` takes a rate (number, 0-d tensor or schedule). `oracles` names the independent
    implementations that `parity.py` holds it against. `needs` names the extra arguments
    without which `update` raises ("loss", "value_fn", "grad_fn"). `one_rate` says that it takes a
    schedule, and that its state holds one `learning_rate` and only counts of updates as `count`.
    `exact_rows` says that a vmapped row is a single run to the bit (no reductions or products
    inside), else to rounding.
    """

    build: Callable[[Any], optim.GradientTransformation]
    rates: Rates = RATE_SIZED
    oracles: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    one_rate: bool = True
    exact_rows: bool = True
    row_tolerance: float = 1e-5


CASES: dict[str, Case] = {
    "sgd": Case(optim.sgd, GRADIENT_SIZED, ("torch", "optax")),
    "momentum": Case(lambda rate: optim.sgd(rate, 0.9, dampening=0.5), GRADIENT_SIZED),
    "nesterov": Case(
        lambda rate: optim.sgd(rate, 0.8, nesterov=True, weight_decay=1e-4), GRADIENT_SIZED
    ),
    "adam": Case(optim.adam, oracles=("torch", "optax")),
    "adamw": Case(lambda rate: optim.adamw(rate, weight_decay=1e-3), oracles=("torch", "optax")),
    "nadam": Case(optim.nadam, oracles=("torch", "optax")),
    "radam": Case(
        lambda rate: optim.radam(rate, weight_decay=1e-3),
        Rates(1e-1, 1e-2, 1e-1), ("torch", "optax"),
    ),
    "adamax": Case(optim.adamax, Rates(1e-1, 1e-2, 3e-2), ("torch", "optax")),
    "amsgrad": Case(optim.amsgrad, oracles=("torch", "optax")),
    "adagrad": Case(optim.adagrad, Rates(1.0, 1e-1, 1e-1), ("torch", "optax")),
    "adadelta": Case(optim.adadelta, Rates(10.0, 1.0, 1.0), ("torch", "optax")),
    "rmsprop": Case(optim.rmsprop, oracles=("torch", "optax")),
    "rmsprop, centered": Case(
        lambda rate: optim.rmsprop(rate, 0.9, momentum=0.5, centered=True),
        Rates(3e-2, 1e-3, 1e-2),
    ),
    "lion": Case(optim.lion, Rates(1e-1, 1e-2, 1e-2), ("optax",)),
    "lamb": Case(
        lambda rate: optim.lamb(rate, weight_decay=1e-3, mask=optim.everything),
        Rates(3e-2, 3e-2, 2e-2), ("optax",), exact_rows=False,
    ),
    "lars": Case(
        lambda rate: optim.lars(rate, trust_coefficient=0.1, mask=optim.everything),
        Rates(3e-2, 3e-2, 3e-2), ("optax",), exact_rows=False,
    ),
    "lars, some": Case(lambda rate: optim.lars(rate, nesterov=True), Rates(1e-2, 5e-4, 1.0)),
    "adafactor": Case(
        lambda rate: optim.adafactor(rate, weight_decay=1e-3),
        Rates(3e-2, 1e-1, 3e-2), ("torch", "optax"), exact_rows=False,
    ),
    "adan": Case(optim.adan, oracles=("optax", "paper")),
    "yogi": Case(optim.yogi, oracles=("optax",)),
    "adabelief": Case(optim.adabelief, oracles=("optax",)),
    "asgd": Case(lambda rate: optim.asgd(rate, t0=10), Rates(1e-2, 1e-3, 3e-1), ("torch",)),
    "rprop": Case(optim.rprop, Rates(1e-2, 1e-2, 1e-2), ("torch",), one_rate=False),
    "muon": Case(
        lambda rate: optim.muon(rate, ns_dtype=None), oracles=("torch", "optax"), exact_rows=False
    ),
    "soap": Case(  # eigenvectors magnify rounding without bound: rows are in test_soap.py
        optim.soap, exact_rows=False, row_tolerance=math.inf
    ),
    "sophia": Case(
        lambda rate: optim.sophia(rate, gamma=0.1, update_interval=3),
        oracles=("optax",), needs=("value_fn",), exact_rows=False,
    ),
    "schedule-free sgd": Case(
        lambda rate: optim.schedule_free_sgd(rate, weight_decay=1e-3),
        Rates(1e-2, 1e-3, 1e-1), ("optax",),
    ),
    "schedule-free adamw": Case(
        lambda rate: optim.schedule_free_adamw(rate, weight_decay=1e-3),
        Rates(3e-1, 1e-1, 1e-2), ("optax",),
    ),
    "prodigy": Case(  # steps of 1e-6, from which it starts otherwise, would not move a bfloat16
        lambda rate: optim.prodigy(rate, d0=1e-2),
        Rates(1.0, 1.0, 1.0), ("optax",), exact_rows=False,
    ),
    "lbfgs": Case(
        optim.lbfgs, Rates(1.0, 1.0, 1.0), ("torch", "optax"), ("value_fn",), exact_rows=False
    ),
    "lbfgs, no search": Case(
        lambda rate: optim.lbfgs(rate, 3, line_search_fn=None), Rates(0.5, 0.5, 0.5), exact_rows=False
    ),
    "clipped adamw": Case(
        lambda rate: optim.chain(
            optim.clip_by_global_norm(1.0), optim.adamw(rate, 0.8, 0.9, mask=optim.everything)
        )
    ),
    "adamw from parts": Case(
        lambda rate: optim.chain(
            optim.scale_by_adam(),
            optim.add_decayed_weights(1e-3),
            optim.scale_by_learning_rate(rate),
        )
    ),
    "momentum from parts": Case(
        lambda rate: optim.chain(
            optim.identity(), optim.trace(0.5, nesterov=True), optim.scale(0.5),
            optim.scale_by_learning_rate(rate),
        ),
        GRADIENT_SIZED,
    ),
    "ema of lookahead": Case(lambda rate: optim.ema(optim.lookahead(optim.adam(rate)), 0.9)),
    "sam": Case(lambda rate: optim.sam(optim.adam(rate), 0.01), needs=("grad_fn",)),
}  # fmt: skip

OPTIMIZERS = {name: case.build for name, case in CASES.items() if not case.needs}
"""Those that need nothing but gradients and parameters."""


def algorithms() -> set[str]:
    """Return the public functions whose first argument is a learning rate."""
    found = set()
    for name in optim.__all__:
        value = getattr(optim, name)
        if inspect.isfunction(value) and not name.startswith("scale_by"):
            first = next(iter(inspect.signature(value).parameters), None)
            found |= {name} if first == "learning_rate" else set()
    return found


class Problem(NamedTuple):
    params: dict
    loss: Callable[[dict], torch.Tensor]
    steps: int
    falls_to: float  # of the first loss


def parabola(dtype: torch.dtype) -> Problem:
    target = torch.tensor([1.0, -2.0, 3.0], dtype=dtype)
    params = {"x": torch.tensor([-1.0, 10.0, 1.0], dtype=dtype)}
    return Problem(params, lambda p: (p["x"] - target).square().sum(), 200, 0.2)


def rosenbrock(dtype: torch.dtype) -> Problem:
    """The Rosenbrock problem: two 0-d parameters in a tuple."""
    params = (torch.tensor(0.0, dtype=dtype), torch.tensor(0.0, dtype=dtype))

    def loss(p: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2

    return Problem(params, loss, 300, 0.8)


def mlp(dtype: torch.dtype) -> Problem:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, y = normal(32, 4), torch.arange(32) % 3
    params = {
        "layers": [
            {"weight": normal(8, 4) / 2, "bias": torch.zeros(8, dtype=dtype)},
            {"weight": normal(3, 8) / 3, "bias": torch.zeros(3, dtype=dtype)},
        ]
    }

    def loss(p: dict) -> torch.Tensor:
        first, second = p["layers"]
        hidden = F.linear(x, first["weight"], first["bias"]).tanh()
        return F.cross_entropy(F.linear(hidden, second["weight"], second["bias"]), y)

    return Problem(params, loss, 150, 0.9)


PROBLEMS = {"parabola": parabola, "rosenbrock": rosenbrock, "mlp": mlp}


def gradient(loss: Callable[[dict], torch.Tensor], params: dict) -> tuple[torch.Tensor, dict]:
    """Return loss and gradient by the fastest way in eager mode, for code that is not transformed."""
    flat, treedef = tree.flatten(params)
    flat = [p.detach().requires_grad_() for p in flat]
    value = loss(tree.unflatten(treedef, flat))
    return value.detach(), tree.unflatten(treedef, torch.autograd.grad(value, flat))


def advance(optimizer, loss, params, state, differentiate=gradient) -> tuple:
    """Take one step with every argument that a training step passes to the optimizer."""
    value, grads = differentiate(loss, params)
    updates, state = optimizer.update(
        grads,
        state,
        params,
        loss=value,
        value_fn=loss,
        grad_fn=lambda p: differentiate(loss, p)[1],
    )
    return optim.apply_updates(params, updates), state


def composable(loss: Callable[[dict], torch.Tensor], params: dict) -> tuple[torch.Tensor, dict]:
    """Return loss and gradient for code that is compiled, vmapped or scanned."""
    return ftrain.value_and_grad(loss)(params)


def bowl(params: Any) -> torch.Tensor:
    """Return a loss of any tree: the sum of squared distances of its elements from 1."""
    terms = [(x.double() - 1).square().sum() for x in tree.leaves(params)]
    return sum(terms, torch.zeros((), dtype=torch.float64))


def handed_in(params: Any) -> dict[str, Any]:
    """Return the extra arguments that a training step passes, for the loss `bowl`."""
    return {
        "loss": bowl(params), "value_fn": bowl, "grad_fn": lambda p: composable(bowl, p)[1]
    }  # fmt: skip


def spec(t) -> tuple:
    """Return everything about a tree except its values."""
    return tree.structure(t), [
        (x.dtype, tuple(x.shape), x.stride(), x.device) for x in tree.leaves(t)
    ]


def random_tree(seed: int, shapes, dtype: torch.dtype, spread: float = 3.0) -> dict:
    """Return normal leaves, each scaled by 10 to a power of up to ± `spread`."""
    g = torch.Generator().manual_seed(seed)
    return {
        f"p{i}": (
            torch.randn(shape, generator=g, dtype=torch.float64)
            * 10 ** (spread * (2 * torch.rand((), generator=g, dtype=torch.float64) - 1))
        ).to(dtype)
        for i, shape in enumerate(shapes)
    }


SHAPES = [(), (0,), (7,), (33, 5), (4, 3, 2)]


def ulps(found: torch.Tensor, expected: torch.Tensor, *terms: torch.Tensor) -> float:
    """Return the largest difference, in units in the last place of the largest operand."""
    if not found.numel():
        return 0.0
    size = torch.stack([x.abs().broadcast_to(found.shape) for x in (found, expected, *terms)])
    size = size.amax(0)
    unit = torch.nextafter(size, torch.full_like(size, torch.inf)) - size
    return ((found.double() - expected.double()).abs() / unit.double()).max().item()


def steps(optimizer, seed, n, *, params=None, extra=lambda step: {}):
    """Return the parameters after each of `n` updates with random gradients, and the last state."""
    params = params or random_tree(seed, SHAPES, torch.float32, 1.0)
    state, history = optimizer.init(params), []
    for step in range(n):
        grads = random_tree(seed + step + 1, SHAPES, torch.float32)
        grads = {name: grads[name] for name in params}
        updates, state = optimizer.update(grads, state, params, **extra(step))
        params = optim.apply_updates(params, updates)
        history.append(params)
    return history, state
