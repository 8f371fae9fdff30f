"""A target network: a copy of the parameters that follows them slowly, or at intervals."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.metrics import Metrics
from ftrain.core.state import TrainState
from ftrain.core.step import Steps
from ftrain.optim import _checks
from ftrain.optim._leaves import compute_dtype
from ftrain.optim.protocol import Hyperparameter
from ftrain.transforms._wrapped import check_free, is_applied, wrapped

__all__ = ["with_target"]


def with_target(
    steps: Steps,
    *,
    rate: Hyperparameter | None = None,
    every: int | None = None,
    name: str = "target",
) -> Steps:
    r"""Return steps that keep a target network in `state.extras[name]`, as Q-learning needs it.

    The loss reads it: `loss_fn(model, batch, extras)`, with `ftrain.bind(net)(extras["target"], ...)` or
    `torch.func.functional_call(model, extras["target"], ...)`. No gradient is taken of it.

    Args:
        steps: of `make_steps`, or of another transformation.
        rate: in (0, 1]; a soft update $t \leftarrow t + \mathrm{rate} (p - t)$ after each applied
            step, in float32 or wider.
        every: at least 1; a hard update $t \leftarrow p$ whenever `state.step` becomes a multiple of it.
        name: the entry of the extras.

    Returns:
        Steps whose `init_state` adds the target, a copy of the parameters; `train_step` updates it.

    Raises:
        ValueError: not exactly one of `rate` and `every` is given, or it is out of its range; the extras
            have an entry `name`.

    Example:
        >>> import ftrain
        >>> from ftrain import optim
        >>> steps = ftrain.make_steps(
        ...     lambda: torch.nn.Linear(3, 1), lambda m, x: m(x).square().mean(), optim.sgd(0.1)
        ... )
        >>> init_state, train_step, eval_step = with_target(steps, every=2)
        >>> state, _ = train_step(init_state(0), torch.ones(4, 3))
        >>> torch.equal(state.extras["target"]["weight"], init_state(0).params["weight"])
        True
        >>> state, _ = train_step(state, torch.ones(4, 3))
        >>> torch.equal(state.extras["target"]["weight"], state.params["weight"])
        True

    References:
        Mnih et al. (2015), "Human-level control through deep reinforcement learning" (hard); Lillicrap
        et al. (2015), [Continuous control with deep reinforcement
        learning](https://arxiv.org/abs/1509.02971) (soft).
    """
    if (rate is None) == (every is None):
        raise ValueError(
            f"with_target: expected either `rate` or `every`, got rate={rate!r} and every={every!r}. "
            "Write with_target(steps, rate=0.005) or with_target(steps, every=1000)."
        )
    if every is not None:
        _checks.positive_int("every", every)
    if rate is not None:
        _checks.positive("rate", rate)
        _checks.closed_fraction("rate", rate)

    def start(p: torch.Tensor) -> torch.Tensor:
        return p.to(p.dtype if rate is None else compute_dtype(p.dtype), copy=True)

    def init_state(seed: int) -> TrainState:
        state = steps.init_state(seed)
        check_free("with_target", state, name)
        target = tree.map(start, state.params)
        return state.replace(extras={**state.extras, name: target})

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        new, metrics = steps.train_step(state, batch)
        due = is_applied(state, new)
        if every is not None:
            due = due & (new.step % every == 0)

        def moved(t: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
            return torch.where(due, p if rate is None else t + (p.to(t.dtype) - t) * rate, t)

        target = tree.map(moved, state.extras[name], new.params)
        return new.replace(extras={**new.extras, name: target}), metrics

    return wrapped(steps, init_state, train_step)
