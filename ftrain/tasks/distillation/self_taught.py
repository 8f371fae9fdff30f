"""Training steps of self-distillation: the teacher is a running average of the student's weights.

    optimizer = optim.ema(optim.adamw(1e-3), 0.996, warmup=False)
    steps = self_taught(ftrain.make_steps(model, loss_fn, optimizer), teacher)

Nothing is stored twice: the average stays in the optimizer's state, and during a step the loss reads it
as an entry of the extras.

Read next: `losses.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from ftrain import optim
from ftrain.core import tree
from ftrain.core._checks import isolated
from ftrain.core._words import a_or_an
from ftrain.core.metrics import Mean, Metrics
from ftrain.core.state import TrainState
from ftrain.core.step import Steps, TrainStep
from ftrain.tasks.distillation.teacher import Teacher

__all__ = ["self_taught", "with_running_mean"]


def self_taught(steps: Steps, teacher: Teacher, average: str = "ema") -> Steps:
    """Return steps of self-distillation, whose teacher has the averaged weights of the student.

    The teacher's parameters are the average, in the dtypes of the parameters; its buffers are the
    student's. A skipped step changes neither the average nor the teacher. State and checkpoints are
    those of `steps`. By default `optim.ema` increases its decay from 0.1, as for mean teachers; the
    teachers of BYOL and DINO change slowly from the start, so pass `warmup=False`.

    Args:
        steps: the result of `ftrain.make_steps`, with an optimizer that keeps an average.
        teacher: a teacher of the student's model: `Teacher(model)`.
        average: the field of the optimizer's state that holds the average: `"ema"` for `optim.ema`,
            `"swa"` for `optim.swa`.

    Raises:
        LookupError: in a step, the optimizer's state has no such average.
        TypeError: the train step was not made by `make_steps`, or is compiled.

    Example:
        >>> import functools, ftrain
        >>> from ftrain import optim, tasks
        >>> def model():
        ...     net = torch.nn.Linear(4, 3)
        ...     net.predictor = torch.nn.Linear(3, 3)
        ...     return net
        >>> teacher = Teacher(model)
        >>> loss_fn = functools.partial(tasks.byol, teacher=teacher)
        >>> optimizer = optim.ema(optim.sgd(0.1), 0.99, warmup=False)
        >>> steps = self_taught(ftrain.make_steps(model, loss_fn, optimizer), teacher)
        >>> views = {"first": torch.ones(2, 4), "second": torch.zeros(2, 4)}
        >>> state, metrics = steps.train_step(steps.init_state(0), views)
        >>> state.extras
        {}

    References:
        Grill et al. (2020), [Bootstrap Your Own Latent](https://arxiv.org/abs/2006.07733); Tarvainen,
        Valpola (2017), [Mean teachers are better role models](https://arxiv.org/abs/1703.01780).
    """

    def tensors(state: TrainState) -> dict[str, Any]:
        try:
            found = optim.get(state.opt_state, average)
        except LookupError as error:
            raise LookupError(
                f"average: expected an average of the weights in the optimizer's state, got "
                f"{average!r}: {error} Wrap the optimizer: optim.ema(optimizer, 0.996, warmup=False)."
            ) from None
        params = tree.map(lambda a, p: a.to(p.dtype), found, state.params)
        return {"params": params, "buffers": state.buffers}

    return _lent(steps, teacher.name, tensors)


def with_running_mean(
    steps: Steps, name: str, shape: int | tuple[int, ...], *, decay: float = 0.9
) -> Steps:
    r"""Return steps that keep a running mean of one metric in `state.extras`, such as DINO's center.

    $$c = d c + (1 - d) \bar{m}$$

    with the mean $\bar{m}$ of the metric over all micro-batches of a batch, so that it does not depend
    on `accumulate`. The loss reads the $c$ of the earlier batches, which starts at 0; a skipped step or
    a metric of weight 0 does not change it. The steps do not report the metric.

    Args:
        steps: the result of `ftrain.make_steps`; the loss returns the metric as `Mean(total, weight)`,
            and reads `extras[name]`.
        name: the name of the metric, and of the entry of the extras.
        shape: the shape of the metric's total, such as `(width,)`.
        decay: $d$, in [0, 1).

    Raises:
        ValueError: the decay is out of range; the extras already have the entry; in a step, the loss
            does not return the metric.
        TypeError: the train step was not made by `make_steps`, or is compiled.

    Example:
        >>> import ftrain
        >>> from ftrain import optim
        >>> def loss_fn(model, batch, extras):
        ...     total = ftrain.Mean(batch.sum(0), torch.tensor(len(batch)))
        ...     return (model(batch) - extras["middle"]).square().mean(), {"middle": total}
        >>> steps = ftrain.make_steps(torch.nn.Linear(2, 2), loss_fn, optim.sgd(0.1))
        >>> steps = with_running_mean(steps, "middle", (2,), decay=0.75)
        >>> state, metrics = steps.train_step(steps.init_state(0), torch.ones(4, 2))
        >>> state.extras["middle"]
        tensor([0.2500, 0.2500])
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), got {decay}. Write decay=0.9.")
    step = _train_step(steps, "with_running_mean")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)

    def init_state(seed: int) -> TrainState:
        state = steps.init_state(seed)
        if name in state.extras:
            raise ValueError(
                f"state.extras: expected no entry {name!r}, where the running mean is kept, got one. "
                "Choose another name."
            )
        start = torch.zeros(shape, device=state.step.device)
        return state.replace(extras={**state.extras, name: start})

    def fn(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        new, metrics = step.fn(state, batch)
        mean, others = _taken(metrics, name, shape)
        with isolated(state.step.device.type):
            old = state.extras[name]
            applies = (mean.weight > 0) & (metrics.entries["skipped"].total == 0)
            moved = decay * old + (1 - decay) * mean.value.to(old.dtype)
            extras = {**new.extras, name: torch.where(applies, moved, old)}
        return new.replace(extras=extras), others

    def eval_step(state: TrainState, batch: Any) -> Metrics:
        return _taken(steps.eval_step(state, batch), name, shape)[1]

    return Steps(init_state, dataclasses.replace(step, fn=fn), eval_step)


def _lent(steps: Steps, name: str, value: Callable[[TrainState], Any]) -> Steps:
    """Return steps that compute `value(state)` and pass it to the loss as `extras[name]`."""
    step = _train_step(steps, "self_taught")

    def view(state: TrainState) -> TrainState:
        if name in state.extras:
            raise ValueError(
                f"state.extras: expected no entry {name!r}, which self_taught computes in each step, "
                "got one. Make the state with init_state of self_taught(steps, teacher), or give the "
                "teacher another name: Teacher(model, name=...)."
            )
        with isolated(state.step.device.type):
            return state.replace(extras={**state.extras, name: value(state)})

    def fn(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        new, metrics = step.fn(view(state), batch)
        kept = {each: x for each, x in new.extras.items() if each != name}
        return new.replace(extras=kept), metrics

    return Steps(
        steps.init_state,
        dataclasses.replace(step, fn=fn, gradients=step.gradients.viewing(view)),
        lambda state, batch: steps.eval_step(view(state), batch),
    )


def _train_step(steps: Steps, name: str) -> TrainStep:
    if not isinstance(steps.train_step, TrainStep):
        raise TypeError(
            f"steps: expected the result of ftrain.make_steps, got a train_step that is "
            f"{a_or_an(type(steps.train_step).__name__)}. Compile the result of {name} instead: "
            f"ftrain.compile({name}(...).train_step)."
        )
    return steps.train_step


def _taken(metrics: Metrics, name: str, shape: tuple[int, ...]) -> tuple[Mean, Metrics]:
    """Split metrics into the mean called `name` and the others; raise unless it has shape `shape`."""
    found = metrics.entries.get(name)
    if not isinstance(found, Mean) or found.total.shape != torch.Size(shape):
        got = "none" if found is None else f"{type(found).__name__} of {tuple(found.value.shape)}"
        raise ValueError(
            f"metric {name!r}: expected ftrain.Mean(total, weight) with a total of shape {shape} from "
            f"the loss, got {got}. Return it: return loss, {{{name!r}: ftrain.Mean(x.sum(0), count)}}."
        )
    return found, Metrics({each: x for each, x in metrics.entries.items() if each != name})
