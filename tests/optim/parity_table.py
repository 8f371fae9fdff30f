"""Table of algorithms, their reference implementations, and hyper-parameters equivalent for both."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from hypothesis import strategies as st

from ftrain import optim
from tests.optim.parity import (
    EVERY,
    Parity,
    adam,
    betas,
    decays,
    drawn,
    fractions,
    l2,
    powers,
    slow,
    small,
    torch_,
)

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
        "amsgrad", "optax", drawn(b1=fractions, b2=slow),
        lambda h: optim.amsgrad(h["rate"], h["b1"], h["b2"], 0.0),
        lambda h: optax.chain(
            optax.scale_by_amsgrad(h["b1"], h["b2"], 0.0, bias_correction_nu=False),
            optax.scale_by_schedule(lambda count: jnp.sqrt(1 - h["b2"] ** (count + 1))),
            optax.scale(-h["rate"]),
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
    """Return optax's Yogi with a first moment that starts at 0, as in the paper."""

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
