"""Components of a run, built from its configuration: data, model, loss, optimizer, steps.

    parts = build(load("digits.yaml"))
    state = parts.init_state()
    for batch in parts.train: state, metrics = parts.steps.train_step(state, batch)

Read next: `run.py`, which passes the parts to a `Trainer`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ftrain import optim
from ftrain.config._loading import load_data, loaders
from ftrain.config._made import made
from ftrain.config.errors import ConfigError, did_you_mean
from ftrain.config.resolve import Resolved, Target, reference, resolve, run_length
from ftrain.config.schema import Config
from ftrain.core import tree
from ftrain.core.functional import bind
from ftrain.core.state import TrainState
from ftrain.core.step import Steps, make_steps
from ftrain.data.sources import Data
from ftrain.loop import Trainer
from ftrain.loop.callbacks import GradientMonitor, monitored_steps
from ftrain.tasks import binary_cross_entropy

__all__ = ["Parts", "build"]

#: The fact by which a loss says errors in the units of the data.
UNITS = "target_scale"


@dataclasses.dataclass(frozen=True)
class Parts:
    """A run that is built but has not started.

    Attributes:
        resolved: the named components, and the configuration itself with every value filled in.
        train: a loader, stream or list of training batches; `None`: nothing will be trained.
        held_out: the same for evaluation; `None`: nothing is held out.
        facts: the facts that the data source reports.
        fitted: the preprocessing fitted on these training data; `None`: none.
        sizes: `batch -> (samples, tokens)`; `None`: the trainer's.
        total_steps: updates in the whole run; `None`: unknown.
        model: the bound model.
        loss_fn: `loss_fn(model, batch)`.
        schedule: count to learning rate; `None`: constant.
        steps: the three functions.
        callbacks: the callbacks of the configuration.
        device: where the run takes place.
    """

    resolved: Resolved
    train: Any
    held_out: Any
    facts: Mapping[str, Any]
    fitted: Mapping[str, Any] | None
    sizes: Callable[[Any], tuple[int, int]] | None
    total_steps: int | None
    model: Any
    loss_fn: Callable[..., Any]
    schedule: Callable[[torch.Tensor], torch.Tensor] | None
    steps: Steps
    callbacks: tuple[Any, ...]
    device: torch.device

    @property
    def config(self) -> Config:
        """The configuration, every value filled in."""
        return self.resolved.config

    def trainer(self, callbacks: Sequence[Any] = (), **options: Any) -> Trainer:
        """Return a trainer of the steps, which counts samples and tokens as the data source does."""
        if self.sizes is not None:
            options["count"] = self.sizes
        return Trainer(self.steps, callbacks, **options)

    def steps_at(self, learning_rate: Any) -> Steps:
        """Return the steps with a constant learning rate, a number or 0-d tensor."""
        return _steps(self.config, self.model, self.loss_fn, _chain(self.resolved, learning_rate))

    def init_state(self) -> TrainState:
        """Return the state before the first step, with the same bits on every device."""
        state = self.steps.init_state(self.config.seed)
        moved: TrainState = tree.map(lambda leaf: leaf.to(self.device), state)
        return moved


def build(
    config: Config,
    folder: pathlib.Path | None = None,
    *,
    fitted: Mapping[str, Any] | None = None,
    evaluation: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Parts:
    """Import, check and construct everything that a configuration names.

    Args:
        config: from `load`.
        folder: the value of `${run}` in arguments of callbacks; default: `config.folder`.
        fitted: the run's fitted preprocessing, with which all data is read; empty: the run stored none;
            `None`: a new run.
        evaluation: nothing will be trained: a `data.path` of the command line is held out as a whole.
        facts: stored facts about the data, so that no data is read. `None`: read the data.

    Raises:
        ConfigError: something cannot be imported, does not take its arguments, or refuses them; the
            error in one's own code is its `__cause__`.
    """
    resolved = resolve(config)
    config = resolved.config
    device = _device(config)
    train = held_out = None
    found = Data(None, facts=facts or {})
    if facts is None:
        found = load_data(resolved, fitted, evaluation)
        train, held_out = loaders(config, found, device, evaluation)
    total = _total_steps(config, train)
    facts = dict(found.facts)

    target = resolved.model
    arguments = _filled(target, facts, config)
    model = made(config, target, lambda: bind(lambda: target.function(**arguments)))
    losses = _filled(resolved.loss, facts, config)
    if UNITS in facts and resolved.loss.takes(UNITS):
        losses.setdefault(UNITS, facts[UNITS])
    loss_fn = resolved.loss.function
    classes = facts.get("classes")
    if loss_fn is binary_cross_entropy and isinstance(classes, int) and classes > 2:
        says = (
            f"binary_cross_entropy is of yes and no, and {config.data.name} has {classes} classes: "
            "write cross_entropy, and a model that gives as many numbers"
        )
        raise ConfigError.at("loss", config.places.of(("loss",)), says)
    if losses:
        loss_fn = functools.partial(loss_fn, **losses)
    schedule = _schedule(resolved, total, evaluation)
    optimizer = _chain(resolved, schedule or config.optimizer.learning_rate)
    callbacks = tuple(
        made(config, one, functools.partial(one.function, **_in_run(one, facts, config, folder)))
        for one in resolved.callbacks
    )
    return Parts(
        resolved=resolved,
        train=train,
        held_out=held_out,
        facts=facts,
        fitted=found.fitted,
        sizes=found.sizes,
        total_steps=total,
        model=model,
        loss_fn=loss_fn,
        schedule=schedule,
        steps=_steps(config, model, loss_fn, optimizer),
        callbacks=callbacks,
        device=device,
    )


def _device(config: Config) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(config.device)
        if found.type == "meta":
            raise RuntimeError("its tensors have no values")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        message = f"cannot be used here ({reason}): write cpu, cuda, cuda:1, ... or auto"
        raise ConfigError.at("device", config.places.of(("device",)), message) from None
    return found


def _total_steps(config: Config, train: Any) -> int | None:
    limits = [config.max_steps]
    if config.epochs is not None and hasattr(train, "__len__"):
        with contextlib.suppress(TypeError):  # a stream over something without a length
            limits.append(config.epochs * len(train))
    return min((limit for limit in limits if limit is not None), default=None)


def _steps(config: Config, model: Any, loss_fn: Any, optimizer: Any) -> Steps:
    make = make_steps
    if any(one.name == GradientMonitor.__name__ for one in config.callbacks):
        make = monitored_steps  # bitwise the same steps, with the norms that the callback reads
    return make(
        model,
        loss_fn,
        optimizer,
        precision=config.precision,
        accumulate=config.accumulate,
        nonfinite="raise" if config.detect_anomaly else config.nonfinite,
    )


def _schedule(resolved: Resolved, total: int | None, evaluation: bool) -> Any:
    """Return the learning-rate schedule; `None` if the rate is constant."""
    config, course = resolved.config, resolved.schedule
    if course is None or course.function is optim.reduce_on_plateau:
        return None
    if evaluation:  # the state is the same for every schedule, and the run's length is not known
        return optim.constant(config.optimizer.learning_rate or 0.0)
    rate, arguments = config.optimizer.learning_rate, _in_steps(config, course, total)
    return made(config, course, functools.partial(course.function, rate, **arguments))


def _chain(resolved: Resolved, rate: Any) -> Any:
    """Return the optimizer: clipping, the algorithm, step scaling, and the average around all of it."""
    config, target, course = resolved.config, resolved.optimizer, resolved.schedule
    links = [optim.clip_by_global_norm(config.max_grad_norm)] if config.max_grad_norm else []
    links.append(made(config, target, functools.partial(target.function, rate, **target.arguments)))
    if course is not None and course.function is optim.reduce_on_plateau:
        links.append(made(config, course, functools.partial(course.function, **course.arguments)))
    whole = optim.chain(*links)
    return whole if config.ema is None else optim.ema(whole, config.ema)


def _in_steps(config: Config, course: Target, total: int | None) -> dict[str, Any]:
    """Return the schedule's arguments, shares and remainders of the run as steps."""
    arguments = dict(course.arguments)
    shares = [
        name
        for name, value in arguments.items()
        if name.endswith("steps") and isinstance(value, float) and 0 < value < 1
    ]
    left = [name for name in run_length(course.component.name) if course.takes(name)]
    left = [name for name in left if name not in arguments]
    if total is None and (shares or left):
        raise ConfigError.at(
            "max_steps",
            config.places.of(("schedule",)),
            "the schedule must know the run's length, and the data does not tell it: write max_steps",
        )
    for name in shares:
        arguments[name] = int(arguments[name] * (total or 0))
    for name in left:
        taken = sum(arguments.get(f"{part}_steps", 0) for part in ("warmup", "decay"))
        arguments[name] = (total or 0) - (taken if name == "stable_steps" else 0)
    return arguments


def _filled(target: Target, facts: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return the arguments with facts about the data in place of `${data.NAME}`."""
    filled = {}
    for name, value in target.arguments.items():
        asked = reference(value)
        if asked is not None and asked not in facts:
            key = ".".join(map(str, (*target.path, name)))
            says = f"{config.data.name} says nothing about {asked!r}"
            if config.data.name == "csv" and asked in ("classes", "names"):
                goal = config.data.arguments.get("target")
                says += f", as its target {goal!r} was read as numbers"
                says += ". If they are classes (1, 2, 3), write data.classes: true"
            says += f". {did_you_mean(asked, facts)}"
            raise ConfigError.at(key, config.places.of((*target.path, name)), says)
        filled[name] = value if asked is None else facts[asked]
    return filled


def _in_run(
    target: Target, facts: Mapping[str, Any], config: Config, folder: pathlib.Path | None
) -> dict[str, Any]:
    """Return the arguments of a callback, with the run's directory in place of `${run}`."""
    run = str(config.folder if folder is None else folder)
    return {
        name: value.replace("${run}", run) if isinstance(value, str) else value
        for name, value in _filled(target, facts, config).items()
    }
