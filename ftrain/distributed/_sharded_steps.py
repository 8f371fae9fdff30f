"""Conversion of the steps of one process to steps on ranks that each have a part of the state.

Read next: `fully_sharded.py` and `tensor_parallel.py`, which differ in the model and in the rows of a
batch that each rank takes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

from ftrain.core import tree
from ftrain.core._torch_collectives import Group
from ftrain.core._words import a_or_an
from ftrain.core.evaluate import EvalStep
from ftrain.core.functional import Bound
from ftrain.core.metrics import Metrics
from ftrain.core.ranks import BuildRanks
from ftrain.core.state import TrainState
from ftrain.core.step import Composition, Steps, TrainStep, initial_state
from ftrain.distributed._metrics import merged_over_ranks
from ftrain.distributed._sharded_optimizer import Rows, ShardedOptimizer, local_tensors
from ftrain.distributed.sharding import Sharding

__all__ = ["Parts", "ShardedStep", "checked_steps", "sharded_steps"]


@dataclasses.dataclass(frozen=True, eq=False)
class ShardedStep(TrainStep):
    """Training step on this rank's part of a state.

    Attributes:
        sharding: the layout of the state.
        batch: the ranks that share a batch, each with rows of its own. With `tensor_parallel`, other
            ranks take the same rows as one of them.
    """

    sharding: Sharding
    batch: Group


class Parts(NamedTuple):
    """Model whose parameters are divided over ranks, with the process groups of these ranks.

    Attributes:
        model: the model as a function of this rank's part of its parameters.
        rows: the whole number of rows of each parameter; `None` for a replicated one.
        holders: the ranks that hold the rows of one copy of the parameters.
        batch: the ranks that share a batch.
    """

    model: Bound
    rows: Rows
    holders: Group
    batch: Group


def checked_steps(steps: Any) -> tuple[TrainStep, EvalStep]:
    """Return the training and the evaluation step of `steps`; raise unless `make_steps` made them.

    Raises:
        TypeError: the steps are not those of `make_steps`.
    """
    step, evaluate = getattr(steps, "train_step", None), getattr(steps, "eval_step", None)
    if not isinstance(step, TrainStep) or not isinstance(evaluate, EvalStep):
        is_wrapped = isinstance(step, TrainStep)
        got = a_or_an(type(steps if step is None else step).__name__)
        raise TypeError(
            "steps: expected the result of make_steps, got "
            f"{'steps that are parallel or wrapped already' if is_wrapped else got}. Pass the result of "
            "make_steps, and compile or wrap the parallel steps instead."
        )
    return step, evaluate


def sharded_steps(steps: Steps, parts: Parts, build: BuildRanks) -> Steps:
    """Convert the steps of one process to steps on several ranks that each have a part of the state.

    Args:
        steps: of `make_steps`.
        parts: the model.
        build: returns the ranks that share a batch; their totals have whole shapes.
    """
    step, evaluate = checked_steps(steps)
    bound, rows, group = parts.model, parts.rows, parts.holders
    gradients = step.gradients.over(build, bound)
    sharded = step.with_gradients(gradients, step.accumulate)
    assert isinstance(sharded.fn, Composition)
    module = bound.skeleton.module
    whole = {name: module.get_parameter(name).detach() for name in bound.skeleton.trainable}
    params = step.policy.cast(whole)  # on the meta device
    optimizer = ShardedOptimizer(sharded.fn.optimizer, params, rows, group)
    fields = {f.name: getattr(sharded, f.name) for f in dataclasses.fields(TrainStep)}
    fields |= {"fn": Composition(gradients, optimizer), "model": bound}
    layout = _sharding(params, optimizer, group)
    train_step = ShardedStep(**fields, sharding=layout, batch=parts.batch)
    initial = _FromWhole(optimizer)

    def init_state(seed: int) -> TrainState:
        state = initial_state(bound, initial, seed, step.policy)
        return state.replace(params=local_tensors(state.params, rows, group))

    local_eval = evaluate.with_model(bound)

    @functools.wraps(evaluate)
    def eval_step(state: TrainState, batch: Any) -> Metrics:
        metrics = local_eval(state, batch)
        return merged_over_ranks(metrics, parts.batch) if parts.batch.size > 1 else metrics

    eval_step.one_rank = local_eval  # type: ignore[attr-defined]  # read by Trainer
    return Steps(init_state, train_step, eval_step)


class _FromWhole:
    """Sharded optimizer with an `init` that takes whole parameters instead of this rank's rows."""

    def __init__(self, optimizer: ShardedOptimizer) -> None:
        self.optimizer, self.update = optimizer, optimizer.update

    def init(self, params: Any) -> Any:
        local = local_tensors(params, self.optimizer.param_rows, self.optimizer.group)
        return self.optimizer.init(local)


def _sharding(params: Any, optimizer: ShardedOptimizer, group: Group) -> Sharding:
    shapes = {
        f".params{path}": tuple(x.shape)
        for path, x, n in zip(
            tree.paths(params), tree.leaves(params), optimizer.param_rows, strict=True
        )
        if n is not None
    }
    shapes |= {
        f".opt_state{path}": shape
        for path, shape, n in zip(
            optimizer.state_paths, optimizer.state_shapes, optimizer.state_rows, strict=True
        )
        if n is not None
    }
    return Sharding(shapes, group)
