"""An exponential moving average of the parameters, which the loss can read."""

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

__all__ = ["with_ema"]


def with_ema(steps: Steps, decay: Hyperparameter = 0.999, *, name: str = "ema") -> Steps:
    r"""Return steps that keep an average of the parameters in `state.extras[name]`.

    $$a \leftarrow a + (1 - d) (p - a)$$

    The average $a$ of the parameters $p$ is updated after each applied step, in float32 or wider, and is
    $p$ before the first step. The loss may read it (`loss_fn(model, batch, extras)`: mean teachers,
    self-distillation). To evaluate it, pass it as the parameters:
    `eval_step(state.replace(params=state.extras["ema"]), batch)`. `optim.ema` keeps an average in the
    optimizer's state instead, with a warmup.

    Args:
        steps: of `make_steps`, or of another transformation.
        decay: $d$ in [0, 1).
        name: the entry of the extras.

    Returns:
        Steps whose `init_state` adds the average and whose `train_step` updates it.

    Raises:
        ValueError: `decay` is out of its range; the extras have an entry `name`.

    Example:
        >>> import ftrain
        >>> from ftrain import optim
        >>> steps = ftrain.make_steps(
        ...     lambda: torch.nn.Linear(3, 1), lambda m, x: m(x).square().mean(), optim.sgd(0.1)
        ... )
        >>> init_state, train_step, eval_step = with_ema(steps, 0.9)
        >>> state, _ = train_step(init_state(0), torch.ones(4, 3))
        >>> sorted(state.extras["ema"])
        ['bias', 'weight']

    References:
        Tarvainen, Valpola (2017), [Mean teachers are better role
        models](https://arxiv.org/abs/1703.01780).
    """
    _checks.fraction("decay", decay)

    def init_state(seed: int) -> TrainState:
        state = steps.init_state(seed)
        check_free("with_ema", state, name)
        start = tree.map(lambda p: p.to(compute_dtype(p.dtype), copy=True), state.params)
        return state.replace(extras={**state.extras, name: start})

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        new, metrics = steps.train_step(state, batch)
        applied = is_applied(state, new)

        def moved(a: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
            return torch.where(applied, a + (p.to(a.dtype) - a) * (1 - decay), a)

        average = tree.map(moved, state.extras[name], new.params)
        return new.replace(extras={**new.extras, name: average}), metrics

    return wrapped(steps, init_state, train_step)
