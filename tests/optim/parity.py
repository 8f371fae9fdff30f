"""Every algorithm against independent implementations: the table, and the measure.

Both are run for 100 steps on the same random gradients, each on its own parameters and memory, and
never brought together again. The difference of two trajectories is, over all steps, the largest
`||ours - theirs|| / ||theirs||`, norms over the whole tree. `python -m tests.optim.parity` measures
it over many draws and writes `docs/optimizers.md`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ftrain import optim
from tests.optim.cases import random_tree

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
START, END = "<!-- parity: start -->\n", "<!-- parity: end -->\n"
STEPS = 100
BOUNDS = {torch.float64: 1e-12, torch.float32: 4e-6}
Hyper = dict[str, Any]


class Parity(NamedTuple):
    """One algorithm against one oracle.

    `hyper` draws hyper-parameters; `ours` and `theirs` build from them (`theirs` a function of
    the list of parameters for torch, a transformation for optax). Leaves have these `shapes`, and
    gradients magnitudes of 10 to the power of up to ± `spread`.
    """

    algorithm: str
    oracle: str
    hyper: st.SearchStrategy[Hyper]
    ours: Callable[[Hyper], optim.GradientTransformation]
    theirs: Callable[[Hyper], Any]
    shapes: tuple[tuple[int, ...], ...] = ((), (0,), (7,), (33, 5), (4, 3, 2))
    spread: float = 2.0


NOTES = {
    "sgd": "The same but for rounding. `mask` is `matrices` by default; both oracles decay all.",
    "adam": "The same but for rounding; torch's `weight_decay` is `add_decayed_weights` before it.",
    "adamw": "As `sgd`.",
    "nadam": "They disagree: torch's momentum rises (`momentum_decay`), optax's is constant. "
    "ftrain follows torch; `momentum_decay=None` is optax.",
    "radam": "They disagree on whether `eps` comes before the correction of the squares (torch) or "
    "after it (optax). ftrain follows torch; against optax at `eps=0`.",
    "adamax": "The same but for rounding.",
    "amsgrad": "They disagree: torch takes the maximum before the correction of the squares, optax "
    "after it. ftrain follows torch, and is not held against optax.",
    "adagrad": "They disagree: torch adds `eps` to the root and starts the sum at 0, optax adds it "
    "under the root and starts at 0.1. ftrain follows torch; against optax at `eps=0` and one start.",
    "adadelta": "The same but for rounding.",
    "rmsprop": "They disagree on defaults, on the place of `eps`, and optax has the rate inside the "
    "momentum. ftrain follows torch; against optax with `eps_in_sqrt=False` and a constant rate. A "
    "centered variance is never less than 0, where rounding gives torch NaN.",
    "lion": "As optax (no torch).",
    "lamb": "As optax (no torch), but that `mask` (default `matrices`) says what is adapted too; "
    "held with `everything`.",
    "lars": "As optax (no torch), but that one `mask` (default `matrices`) says what is adapted and "
    "what decays; held with `everything`.",
    "adafactor": "They disagree on which dimensions are factored, the cap `1 / sqrt(t)` on the rate, "
    "bounds and decay. ftrain follows torch; against optax on matrices, where none of these has a "
    "say, and with its `t ** -0.8` in float64.",
    "adan": "optax 0.2.8 weighs the differences of gradients by `1 - b2`, the paper and its authors' "
    "code by `b2`. ftrain follows the paper; against optax at `b2 = 1/2`, where they agree.",
    "yogi": "As optax (no torch), but that the mean of gradients starts at 0 as in the paper, not at "
    "1e-6; held with optax's set to 0.",
    "adabelief": "As optax (no torch).",
    "asgd": "As torch (optax has none).",
    "rprop": "As torch. optax 0.2.8 takes each step one update late and drops it if the sign has "
    "changed by then; ftrain is not held against it.",
    "muon": "In `test_muon.py`.",
    "soap": "No implementation to hold it against; laws in `test_soap.py`.",
    "sophia": "In `test_sophia.py`.",
    "schedule_free_sgd": "In `test_schedule_free.py`.",
    "schedule_free_adamw": "In `test_schedule_free.py`.",
    "prodigy": "In `test_prodigy.py`, on a parabola: the distance is found along the trajectory, "
    "which random gradients do not have.",
    "lbfgs": "In `test_lbfgs.py`: with a line search it needs a function, not random gradients.",
}
"""For every algorithm: where its oracles disagree, and which ftrain follows."""

ELSEWHERE = {
    "muon": ("torch", "optax"),
    "sophia": ("optax",),
    "schedule_free_sgd": ("optax",),
    "schedule_free_adamw": ("optax",),
    "prodigy": ("optax",),
    "lbfgs": ("torch", "optax"),
}
"""What is held against its oracles in a file of its own, on trajectories of its own."""


def powers(low: float, high: float) -> st.SearchStrategy[float]:
    """10 to a power between."""
    return st.floats(low, high).map(lambda e: 10.0**e)


def drawn(rate: tuple[float, float] = (-3, 0), **more: Any) -> st.SearchStrategy[Hyper]:
    return st.fixed_dictionaries({"rate": powers(*rate), **more})


fractions = st.floats(0.0, 0.99)
slow = powers(-4, -0.3).map(lambda x: 1 - x)  # decays of squares: 0.5 to 0.9999
small = powers(-10, -3)  # eps
decays = st.one_of(st.just(0.0), powers(-4, -1))
adam = {"b1": fractions, "b2": slow, "eps": small}
EVERY = optim.everything


def l2(h: Hyper, optimizer: optim.GradientTransformation) -> optim.GradientTransformation:
    """The L2 penalty of torch's `weight_decay`."""
    return optim.chain(optim.add_decayed_weights(h["decay"], mask=EVERY), optimizer)


def betas(h: Hyper) -> Hyper:
    return {"lr": h["rate"], "betas": (h["b1"], h["b2"]), "eps": h["eps"]}


def torch_(build: type[torch.optim.Optimizer], **kwargs: Any) -> Callable:
    return functools.partial(build, foreach=False, **kwargs)


PARITY = [
    Parity(
        "sgd", "torch",
        drawn(momentum=st.one_of(st.just(0.0), fractions), decay=decays, nesterov=st.booleans()),
        lambda h: optim.sgd(
            h["rate"], h["momentum"], weight_decay=h["decay"], mask=EVERY,
            nesterov=h["nesterov"] and h["momentum"] > 0,
        ),
        lambda h: torch_(
            torch.optim.SGD, lr=h["rate"], momentum=h["momentum"], weight_decay=h["decay"],
            nesterov=h["nesterov"] and h["momentum"] > 0,
        ),
    ),
    Parity(
        "sgd", "optax",
        drawn(momentum=fractions.filter(bool), nesterov=st.booleans()),
        lambda h: optim.sgd(h["rate"], h["momentum"], nesterov=h["nesterov"]),
        lambda h: optax.sgd(h["rate"], h["momentum"], nesterov=h["nesterov"]),
    ),
    Parity(
        "adam", "torch", drawn(decay=decays, **adam),
        lambda h: l2(h, optim.adam(h["rate"], h["b1"], h["b2"], h["eps"])),
        lambda h: torch_(torch.optim.Adam, weight_decay=h["decay"], **betas(h)),
    ),
    Parity(
        "adam", "optax", drawn(**adam),
        lambda h: optim.adam(h["rate"], h["b1"], h["b2"], h["eps"]),
        lambda h: optax.adam(h["rate"], h["b1"], h["b2"], h["eps"]),
    ),
    Parity(
        "adamw", "torch", drawn(decay=decays, **adam),
        lambda h: optim.adamw(
            h["rate"], h["b1"], h["b2"], h["eps"], weight_decay=h["decay"], mask=EVERY
        ),
        lambda h: torch_(torch.optim.AdamW, weight_decay=h["decay"], **betas(h)),
    ),
    Parity(
        "adamw", "optax", drawn(decay=decays, **adam),
        lambda h: optim.adamw(
            h["rate"], h["b1"], h["b2"], h["eps"], weight_decay=h["decay"], mask=EVERY
        ),
        lambda h: optax.adamw(h["rate"], h["b1"], h["b2"], h["eps"], weight_decay=h["decay"]),
    ),
    Parity(
        "nadam", "torch",
        drawn(
            decay=decays, decoupled=st.booleans(), momentum_decay=st.floats(0.0, 0.1), **adam
        ),
        lambda h: (
            optim.nadam(
                h["rate"], h["b1"], h["b2"], h["eps"], momentum_decay=h["momentum_decay"],
                weight_decay=h["decay"], mask=EVERY,
            )
            if h["decoupled"]
            else l2(h, optim.nadam(
                h["rate"], h["b1"], h["b2"], h["eps"], momentum_decay=h["momentum_decay"]
            ))
        ),
        lambda h: torch_(
            torch.optim.NAdam, weight_decay=h["decay"], momentum_decay=h["momentum_decay"],
            decoupled_weight_decay=h["decoupled"], **betas(h),
        ),
    ),
    Parity(
        "nadam", "optax", drawn(decay=decays, **adam),
        lambda h: optim.nadam(
            h["rate"], h["b1"], h["b2"], h["eps"], momentum_decay=None,
            weight_decay=h["decay"], mask=EVERY,
        ),
        lambda h: optax.nadamw(h["rate"], h["b1"], h["b2"], h["eps"], weight_decay=h["decay"]),
    ),
    Parity(
        "radam", "torch", drawn(decay=decays, decoupled=st.booleans(), **adam),
        lambda h: (
            optim.radam(
                h["rate"], h["b1"], h["b2"], h["eps"], weight_decay=h["decay"], mask=EVERY
            )
            if h["decoupled"]
            else l2(h, optim.radam(h["rate"], h["b1"], h["b2"], h["eps"]))
        ),
        lambda h: torch_(
            torch.optim.RAdam, weight_decay=h["decay"], decoupled_weight_decay=h["decoupled"],
            **betas(h),
        ),
    ),
    Parity(
        "radam", "optax", drawn(b1=fractions, b2=slow),
        lambda h: optim.radam(h["rate"], h["b1"], h["b2"], 0.0),
        lambda h: optax.radam(h["rate"], h["b1"], h["b2"], 0.0),
    ),
    Parity(
        "adamax", "torch", drawn(decay=decays, **adam),
        lambda h: l2(h, optim.adamax(h["rate"], h["b1"], h["b2"], h["eps"])),
        lambda h: torch_(torch.optim.Adamax, weight_decay=h["decay"], **betas(h)),
    ),
    Parity(
        "adamax", "optax", drawn(**adam),
        lambda h: optim.adamax(h["rate"], h["b1"], h["b2"], h["eps"]),
        lambda h: optax.adamax(h["rate"], h["b1"], h["b2"], h["eps"]),
    ),
    Parity(
        "amsgrad", "torch", drawn(decay=decays, decoupled=st.booleans(), **adam),
        lambda h: (
            optim.amsgrad(
                h["rate"], h["b1"], h["b2"], h["eps"], weight_decay=h["decay"], mask=EVERY
            )
            if h["decoupled"]
            else l2(h, optim.amsgrad(h["rate"], h["b1"], h["b2"], h["eps"]))
        ),
        lambda h: torch_(
            torch.optim.AdamW if h["decoupled"] else torch.optim.Adam,
            weight_decay=h["decay"], amsgrad=True, **betas(h),
        ),
    ),
    Parity(
        "adagrad", "torch",
        drawn(eps=small, decay=decays, slowing=st.floats(0.0, 0.1), start=st.floats(0.0, 1.0)),
        lambda h: l2(h, optim.adagrad(
            lambda count: h["rate"] / (1 + count.double() * h["slowing"]), h["eps"],
            initial_accumulator_value=h["start"],
        )),
        lambda h: torch_(
            torch.optim.Adagrad, lr=h["rate"], lr_decay=h["slowing"], weight_decay=h["decay"],
            initial_accumulator_value=h["start"], eps=h["eps"],
        ),
    ),
    Parity(
        "adagrad", "optax", drawn(start=st.floats(0.0, 1.0)),
        lambda h: optim.adagrad(h["rate"], 0.0, initial_accumulator_value=h["start"]),
        lambda h: optax.adagrad(h["rate"], h["start"], 0.0),
    ),
    Parity(
        "adadelta", "torch", drawn((-1, 1), rho=fractions, eps=small, decay=decays),
        lambda h: l2(h, optim.adadelta(h["rate"], h["rho"], h["eps"])),
        lambda h: torch_(
            torch.optim.Adadelta, lr=h["rate"], rho=h["rho"], eps=h["eps"],
            weight_decay=h["decay"],
        ),
    ),
    Parity(
        "adadelta", "optax", drawn((-1, 1), rho=fractions, eps=small, decay=decays),
        lambda h: l2(h, optim.adadelta(h["rate"], h["rho"], h["eps"])),
        lambda h: optax.adadelta(h["rate"], h["rho"], h["eps"], h["decay"]),
    ),
    Parity(
        "rmsprop", "torch",
        drawn(
            alpha=slow, eps=small, decay=decays, centered=st.booleans(),
            momentum=st.one_of(st.just(0.0), fractions),
        ),
        lambda h: l2(h, optim.rmsprop(
            h["rate"], h["alpha"], h["eps"], momentum=h["momentum"], centered=h["centered"]
        )),
        lambda h: torch_(
            torch.optim.RMSprop, lr=h["rate"], alpha=h["alpha"], eps=h["eps"],
            weight_decay=h["decay"], momentum=h["momentum"], centered=h["centered"],
        ),
    ),
    Parity(
        "rmsprop", "optax",
        drawn(alpha=slow, eps=small, centered=st.booleans(), momentum=fractions),
        lambda h: optim.rmsprop(
            h["rate"], h["alpha"], h["eps"], momentum=h["momentum"], centered=h["centered"]
        ),
        lambda h: optax.rmsprop(
            h["rate"], h["alpha"], h["eps"], eps_in_sqrt=False, momentum=h["momentum"],
            centered=h["centered"],
        ),
    ),
    Parity(
        "lion", "optax", drawn(b1=fractions, b2=slow, decay=decays),
        lambda h: optim.lion(h["rate"], h["b1"], h["b2"], weight_decay=h["decay"], mask=EVERY),
        lambda h: optax.lion(h["rate"], h["b1"], h["b2"], weight_decay=h["decay"]),
    ),
    Parity(
        "lamb", "optax", drawn((-3, -1), decay=decays, **adam),
        lambda h: optim.lamb(
            h["rate"], h["b1"], h["b2"], h["eps"], weight_decay=h["decay"], mask=EVERY
        ),
        lambda h: optax.lamb(h["rate"], h["b1"], h["b2"], h["eps"], weight_decay=h["decay"]),
    ),
    Parity(
        "lars", "optax",
        drawn(
            momentum=fractions, decay=decays, trust=powers(-3, -1), eps=small,
            nesterov=st.booleans(),
        ),
        lambda h: optim.lars(
            h["rate"], h["momentum"], weight_decay=h["decay"], trust_coefficient=h["trust"],
            eps=h["eps"], nesterov=h["nesterov"], mask=EVERY,
        ),
        lambda h: optax.lars(
            h["rate"], h["decay"], trust_coefficient=h["trust"], eps=h["eps"],
            momentum=h["momentum"], nesterov=h["nesterov"],
        ),
    ),
    Parity(
        "adafactor", "torch",
        drawn((-3, -1), power=st.floats(-1.0, -0.3), clip=st.floats(1.0, 3.0), decay=decays),
        lambda h: optim.adafactor(
            h["rate"], h["power"], d=h["clip"], weight_decay=h["decay"], mask=EVERY
        ),
        lambda h: torch_(
            torch.optim.Adafactor, lr=h["rate"], beta2_decay=h["power"], d=h["clip"],
            weight_decay=h["decay"],
        ),
        shapes=((), (7,), (33, 5), (4, 3, 2)),
    ),
    Parity(
        # The parts of `optax.adafactor`, with the decay in float64 where it has float32. Rates at
        # which `1 / sqrt(t)` has no say, and gradients far above its 1e-30.
        "adafactor", "optax",
        drawn((-3, -1), power=st.floats(-1.0, -0.3), clip=st.floats(0.3, 3.0)),
        lambda h: optim.adafactor(h["rate"], h["power"], eps1=1e-15, d=h["clip"]),
        lambda h: optax.chain(
            optax.scale_by_factored_rms(
                decay_rate=h["power"], min_dim_size_to_factor=1,
                decay_rate_fn=lambda i, power: 1.0 - jnp.asarray(i + 1.0, jnp.float64) ** power,
            ),
            optax.clip_by_block_rms(h["clip"]),
            optax.scale_by_learning_rate(h["rate"]),
            optax.scale_by_param_block_rms(),
        ),
        shapes=((), (7,), (33, 5), (4, 3)),
    ),
    Parity(
        # Only at b2 = 1/2 does optax weigh the differences as the paper does.
        "adan", "optax",
        drawn(b1=fractions, b3=slow, eps=small, eps_root=small, decay=decays),
        lambda h: optim.adan(
            h["rate"], h["b1"], 0.5, h["b3"], h["eps"], eps_root=h["eps_root"],
            weight_decay=h["decay"], mask=EVERY,
        ),
        lambda h: optax.adan(
            h["rate"], h["b1"], 0.5, h["b3"], h["eps"], h["eps_root"], h["decay"]
        ),
    ),
    Parity(
        "adan", "paper", drawn(b1=fractions, b2=fractions, b3=slow, eps=small),
        lambda h: optim.adan(h["rate"], h["b1"], h["b2"], h["b3"], h["eps"], eps_root=0.0),
        lambda h: adan_of_the_paper(h["rate"], 1 - h["b1"], 1 - h["b2"], 1 - h["b3"], h["eps"]),
    ),
    Parity(
        "yogi", "optax", drawn(**adam),
        lambda h: optim.yogi(h["rate"], h["b1"], h["b2"], h["eps"]),
        lambda h: from_zero_mean(optax.yogi(h["rate"], h["b1"], h["b2"], h["eps"])),
    ),
    Parity(
        "adabelief", "optax", drawn(b1=st.floats(0.5, 0.99), b2=slow, eps=small, eps_root=small),
        lambda h: optim.adabelief(h["rate"], h["b1"], h["b2"], h["eps"], eps_root=h["eps_root"]),
        lambda h: optax.adabelief(h["rate"], h["b1"], h["b2"], h["eps"], h["eps_root"]),
    ),
    Parity(
        "asgd", "torch",
        drawn(lambd=powers(-5, -1), alpha=fractions, t0=st.floats(0, 50), decay=decays),
        lambda h: l2(h, optim.asgd(h["rate"], h["lambd"], h["alpha"], t0=h["t0"])),
        lambda h: torch_(
            torch.optim.ASGD, lr=h["rate"], lambd=h["lambd"], alpha=h["alpha"], t0=h["t0"],
            weight_decay=h["decay"],
        ),
    ),
    Parity(
        "rprop", "torch",
        drawn((-3, -1), minus=st.floats(0.1, 0.9), plus=st.floats(1.01, 2.0), most=powers(-2, 1)),
        lambda h: optim.rprop(h["rate"], h["minus"], h["plus"], max_step_size=h["most"]),
        lambda h: torch_(
            torch.optim.Rprop, lr=h["rate"], etas=(h["minus"], h["plus"]),
            step_sizes=(1e-6, h["most"]),
        ),
    ),
]  # fmt: skip


def from_zero_mean(optimizer: Any) -> Any:
    """optax's Yogi with its mean of gradients started at 0, as in the paper."""

    def init(params: Any) -> Any:
        first, *rest = optimizer.init(params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return (first._replace(mu=zeros), *rest)

    return optax.GradientTransformation(init, optimizer.update)


def adan_of_the_paper(rate: Any, b1: Any, b2: Any, b3: Any, eps: Any) -> Any:
    """Algorithm 1 in its own notation, with the corrections of the authors' code."""

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return 0, zeros, zeros, zeros, zeros

    def update(grads: Any, state: Any, params: Any) -> Any:
        k, *memory = state

        def one(g: Any, m: Any, v: Any, n: Any, last: Any) -> Any:
            last = jnp.where(k == 0, g, last)
            m = (1 - b1) * m + b1 * g
            v = (1 - b2) * v + b2 * (g - last)
            n = (1 - b3) * n + b3 * (g + (1 - b2) * (g - last)) ** 2
            m_hat, v_hat, n_hat = (
                x / (1 - (1 - b) ** (k + 1)) for x, b in ((m, b1), (v, b2), (n, b3))
            )
            return -rate / (jnp.sqrt(n_hat) + eps) * (m_hat + (1 - b2) * v_hat), m, v, n, g

        columns = {name: one(g, *(tree[name] for tree in memory)) for name, g in grads.items()}
        u, *memory = ({name: c[i] for name, c in columns.items()} for i in range(5))
        return u, (k + 1, *memory)

    return optax.GradientTransformation(init, update)


def difference(row: Parity, h: Hyper, seed: int, dtype: torch.dtype) -> float:
    """The largest relative distance of the two trajectories, over steps."""
    params = random_tree(seed, row.shapes, dtype, 0.5)
    grads = [random_tree(seed + 1 + t, row.shapes, dtype, row.spread) for t in range(STEPS)]
    ours = _ours(row.ours(h), params, grads)
    theirs = (_torch if row.oracle == "torch" else _optax)(row, h, params, grads)
    x, y = (_flat(run) for run in (ours, theirs))
    assert torch.isfinite(y).all(), (row.algorithm, row.oracle, h)
    return ((x - y).norm(dim=1) / y.norm(dim=1)).max().item()


def _flat(run: dict[str, torch.Tensor]) -> torch.Tensor:
    """One vector for each step: all leaves, in float64."""
    return torch.cat([x.double().reshape(STEPS, x[0].numel()) for x in run.values()], 1)


def _ours(optimizer: optim.GradientTransformation, params: dict, grads: list[dict]) -> dict:
    state, found = optimizer.init(params), []
    for g in grads:
        updates, state = optimizer.update(g, state, params)
        params = optim.apply_updates(params, updates)
        found.append(params)
    return {name: torch.stack([p[name] for p in found]) for name in params}


def _torch(row: Parity, h: Hyper, params: dict, grads: list[dict]) -> dict:
    """In a default dtype of float64, in which torch then keeps its scalar states."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        theirs = {name: torch.nn.Parameter(p.clone()) for name, p in params.items()}
        optimizer, found = row.theirs(h)(list(theirs.values())), []
        for g in grads:
            for name, p in theirs.items():
                p.grad = g[name].clone()
            optimizer.step()
            found.append({name: p.detach().clone() for name, p in theirs.items()})
    finally:
        torch.set_default_dtype(before)
    return {name: torch.stack([p[name] for p in found]) for name in params}


def _optax(row: Parity, h: Hyper, params: dict, grads: list[dict]) -> dict:
    """With 64-bit types on: optax computes `1 - b ** t` in JAX's default float."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        numbers = {k: v for k, v in h.items() if type(v) is float}
        others = tuple((k, v) for k, v in h.items() if type(v) is not float)
        stacked = {name: np.stack([g[name].numpy() for g in grads]) for name in params}
        start = {name: p.numpy() for name, p in params.items()}
        found = _optax_run(row.theirs, others)(numbers, start, stacked)
        return {name: torch.tensor(np.asarray(x)) for name, x in found.items()}
    finally:
        jax.config.update("jax_enable_x64", before)


@functools.cache
def _optax_run(build: Callable[[Hyper], Any], others: tuple) -> Callable:
    """One program for all draws: Python numbers are weakly typed arguments."""

    @jax.jit
    def run(numbers: Hyper, params: Any, grads: Any) -> Any:
        optimizer = build({**numbers, **dict(others)})

        def step(carry: Any, g: Any) -> Any:
            params, state = carry
            updates, state = optimizer.update(g, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[1]

    return run


Figures = dict[tuple[str, str], tuple[str, ...]]
"""For an algorithm and an oracle: the worst difference found, by the order of `BOUNDS`."""


def measure(row: Parity, examples: int) -> tuple[str, ...]:
    """The worst difference over draws, in each dtype."""
    worst = dict.fromkeys(BOUNDS, 0.0)

    @given(row.hyper, st.integers(0, 2**31))
    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def run(h: Hyper, seed: int) -> None:
        for dtype in BOUNDS:
            worst[dtype] = max(worst[dtype], difference(row, h, seed, dtype))

    run()
    return tuple(f"{x:.1e}" if x else "0" for x in worst.values())


def render(figures: Figures) -> str:
    """The table of the documentation."""
    lines = [
        "| algorithm | held against | float64 | float32 | where they differ |",
        "|---" * 5 + "|",
    ]
    for algorithm, note in NOTES.items():
        here = [oracle for name, oracle in figures if name == algorithm]
        oracles = here or [", ".join(ELSEWHERE.get(algorithm, ()))]
        for index, oracle in enumerate(oracles):
            cells = " | ".join(figures.get((algorithm, oracle), ("", "")))
            lines.append(f"| `{algorithm}` | {oracle} | {cells} | {'' if index else note} |")
    return "\n".join(lines) + "\n"


def table() -> str:
    """The table as the page has it."""
    return PAGE.read_text().split(START)[1].split(END)[0]


def figures_in(text: str) -> Figures:
    """The figures of a rendered table."""
    cells = [[c.strip(" `") for c in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    return {(c[0], c[1]): (c[2], c[3]) for c in cells if c[2]}


def main() -> None:
    """Measure every line over so many draws (40 unless told), and write the page's table."""
    examples = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    torch.set_num_threads(1)
    figures: Figures = {}
    for row in PARITY:
        figures[row.algorithm, row.oracle] = measure(row, examples)
        print(row.algorithm, row.oracle, *figures[row.algorithm, row.oracle], flush=True)
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(before + START + render(figures) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
