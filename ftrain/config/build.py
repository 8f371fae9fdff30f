"""Components of a run, built from its configuration: data, model, loss, optimizer, steps.

    parts = build(load("digits.yaml"))
    state = parts.init_state()
    for batch in parts.train: state, metrics = parts.steps.train_step(state, batch)

Read next: `run.py`, which passes the parts to a `Trainer`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ftrain import optim
from ftrain.checkpoint import CheckpointError
from ftrain.config._aliases import value_alias
from ftrain.config._checkpoints import trained_model
from ftrain.config._component_errors import made
from ftrain.config._loading import load_data, loaders
from ftrain.config._optimizer import optimizer_of, schedule_of, total_steps
from ftrain.config._ranks import over_ranks
from ftrain.config._source_locations import join
from ftrain.config.errors import ConfigError
from ftrain.config.registry import imported
from ftrain.config.resolve import Resolved, Target, reference, resolve
from ftrain.config.schema import Config
from ftrain.core import tree
from ftrain.core._nearest import nearest
from ftrain.core._words import a_or_an
from ftrain.core.errors import DataError
from ftrain.core.functional import bind
from ftrain.core.state import TrainState
from ftrain.core.step import Steps, make_steps
from ftrain.data.sources import Data
from ftrain.loop import Trainer
from ftrain.tasks import Task, Teacher, self_taught, with_teacher

__all__ = ["Parts", "build"]


@dataclasses.dataclass(frozen=True)
class Parts:
    """Constructed parts of a run that has not started: data, model, loss, optimizer, steps, callbacks.

    Attributes:
        resolved: the named components, and the configuration itself with every value filled in.
        train: a loader, stream or list of training batches; `None`: nothing will be trained.
        held_out: a loader, stream or list of evaluation batches; `None`: nothing is held out.
        facts: the facts that the data source reports.
        fitted: the preprocessing fitted on these training data; `None`: none.
        sizes: `batch -> (samples, tokens)`; `None`: the default of `Trainer`.
        total_steps: updates in the whole run; `None`: unknown.
        model: the bound model.
        loss_fn: `loss_fn(model, batch)`.
        eval_fn: the function of model and batch for evaluation; `None`: `loss_fn`.
        taught: the function that adds the teacher of the loss to steps; without a teacher, the identity.
        schedule: count to learning rate; `None`: constant.
        steps: `init_state`, `train_step` and `eval_step` of the run.
        callbacks: the callbacks of the configuration.
        device: the device of state and batches.
        mesh: the ranks that train together; `None`: this process alone.
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
    eval_fn: Callable[..., Any] | None
    taught: Callable[[Steps], Steps]
    schedule: Callable[[torch.Tensor], torch.Tensor] | None
    steps: Steps
    callbacks: tuple[Any, ...]
    device: torch.device
    mesh: Any = None

    @property
    def config(self) -> Config:
        """The configuration, with every value filled in."""
        return self.resolved.config

    def trainer(self, callbacks: Sequence[Any] = (), **options: Any) -> Trainer:
        """Return a trainer of the run's steps; it counts samples by the data source's own function."""
        if self.sizes is not None:
            options["count_samples"] = self.sizes
        return Trainer(self.steps, callbacks, mesh=self.mesh, **options)

    def steps_at(self, learning_rate: Any) -> Steps:
        """Return the run's step functions with a constant learning rate, a number or a 0-d tensor."""
        optimizer = optimizer_of(self.resolved, learning_rate)
        made_steps = _steps(self.resolved, self.model, self.loss_fn, self.eval_fn, optimizer)
        return self.taught(made_steps)

    def steps_with(self, hyperparams: Mapping[str, float]) -> Steps:
        """Return the run's step functions with optimizer hyper-parameters as tensors in the state.

        Args:
            hyperparams: initial values by argument of the configuration's optimizer. With a schedule,
                `learning_rate` is its peak.

        Raises:
            ConfigError: the optimizer does not take such an argument, or refuses its value.
        """
        target = self.resolved.optimizer

        def chain(**values: Any) -> Any:
            rate = values.pop("learning_rate", self.config.optimizer.learning_rate)
            arguments = {**target.arguments, **values}
            own = dataclasses.replace(target, arguments=arguments)
            resolved = dataclasses.replace(self.resolved, optimizer=own)
            schedule = schedule_of(resolved, self.total_steps, False, rate)
            return optimizer_of(resolved, schedule or rate)

        optimizer = optim.with_hyperparams(chain, **hyperparams)
        made_steps = _steps(self.resolved, self.model, self.loss_fn, self.eval_fn, optimizer)
        return self.taught(made_steps)

    def init_state(self) -> TrainState:
        """Return the initial training state, which is bitwise equal on every device."""
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
    mesh: Any = None,
) -> Parts:
    """Import, check and construct everything that a configuration names.

    Args:
        config: from `load`.
        folder: the value of `${run}` in arguments of callbacks; default: `config.folder`.
        fitted: the run's fitted preprocessing, with which all data is read; empty: the run stored none;
            `None`: a new run.
        evaluation: True: nothing will be trained, and all data at a `data.path` that the command line
            sets is held out.
        facts: stored facts about the data, so that no data is read. `None`: read the data.
        mesh: the ranks that train together; `None`: this process alone.

    Raises:
        ConfigError: a component cannot be imported, does not take its arguments, or refuses them. An
            error in the user's code is its `__cause__`.
    """
    resolved = resolve(config)
    config = resolved.config
    device = _device(config)
    train = held_out = None
    found = Data(None, facts=facts or {})
    if facts is None:
        found = load_data(resolved, fitted, evaluation)
        train, held_out = loaders(config, found, device, evaluation, mesh)
    total = total_steps(config, train)
    facts = dict(found.facts)

    target = resolved.model
    arguments = _filled(target, facts, resolved)
    model = made(config, target, lambda: bind(lambda: target.function(**arguments)))
    loss_fn, eval_fn, taught = _objective(resolved, model, facts)
    schedule = schedule_of(resolved, total, evaluation)
    optimizer = optimizer_of(resolved, schedule or config.optimizer.learning_rate)
    callbacks = tuple(
        made(config, one, functools.partial(one.function, **_in_run(one, facts, resolved, folder)))
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
        eval_fn=eval_fn,
        taught=taught,
        schedule=schedule,
        steps=over_ranks(
            config, taught(_steps(resolved, model, loss_fn, eval_fn, optimizer)), mesh
        ),
        callbacks=callbacks,
        device=device,
        mesh=mesh,
    )


def _objective(
    resolved: Resolved, model: Any, facts: Mapping[str, Any]
) -> tuple[Callable[..., Any], Callable[..., Any] | None, Callable[[Steps], Steps]]:
    """Return the loss, the evaluation loss (or `None`), and a function that adds a teacher to steps.

    The teacher is the second model of a distillation loss; without one, the steps stay the same.
    """
    config, target = resolved.config, resolved.objective
    function, arguments = target.function, _filled(target, facts, resolved)
    if resolved.task is not None:
        task = made(config, target, functools.partial(function, **arguments))
        if not isinstance(task, Task):
            says = f"expected a function that returns a Task, got {a_or_an(type(task).__name__)}"
            remedy = "Return ftrain.tasks.Task(loss_fn, eval_fn, metrics)."
            place = config.places.of(target.path)
            raise ConfigError.at(join(target.path), place, f"{says}. {remedy}")
        return task.loss_fn, task.eval_fn, lambda steps: steps
    most, classes = target.needs.max_classes, facts.get("classes")
    if most is not None and isinstance(classes, int) and classes > most:
        raise ConfigError.at(
            "loss",
            config.places.of(("loss",)),
            f"{target.component.name} expects data of at most {most} classes, got {classes} from "
            f"{config.data.name}. Choose another loss, such as cross_entropy, and a model with as many "
            "outputs.",
        )
    if target.needs.builds:
        loss_fn = made(config, target, functools.partial(function, **arguments))
        return loss_fn, None, lambda steps: steps
    teacher, taught = _teacher(resolved, target, model, arguments)
    arguments |= teacher
    return functools.partial(function, **arguments) if arguments else function, None, taught


def _device(config: Config) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(config.device)
        if found.type == "meta":
            raise RuntimeError("meta tensors have a shape but no data")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        # Without torch's list of all its devices.
        why = "" if "at start of device string" in reason else f" ({reason})"
        near = value_alias("device", config.device)
        names = "cpu, cuda, cuda:1 or auto" if torch.cuda.is_available() else "cpu or auto"
        remedy = f"Did you mean {near}?" if near else f"Write {names}."
        if near and near != "auto" and not torch.cuda.is_available():
            remedy += (
                " This machine has no CUDA device. Write cpu or auto to train on its processor."
            )
        message = f"expected a device of this machine, got {config.device!r}{why}. {remedy}"
        raise ConfigError.at("device", config.places.of(("device",)), message) from None
    return found


def _steps(resolved: Resolved, model: Any, loss_fn: Any, eval_fn: Any, optimizer: Any) -> Steps:
    config = resolved.config
    declared = {
        one.component.name: imported(one.needs.make_steps)
        for one in resolved.callbacks
        if one.needs.make_steps is not None
    }
    if len({*declared.values()}) > 1:
        raise ConfigError.at(
            "callbacks",
            config.places.of(("callbacks",)),
            f"expected at most one callback that replaces make_steps, got {', '.join(declared)}. Remove "
            "all but one.",
        )
    make = next(iter(declared.values()), make_steps)
    shared = [
        _arguments_in_common(one.function, one.arguments, make)
        for one in resolved.callbacks
        if one.needs.make_steps is not None
    ]
    return make(
        model,
        loss_fn,
        optimizer,
        eval_fn=eval_fn,
        precision=config.precision,
        accumulate=config.accumulate,
        nonfinite="raise" if config.detect_anomaly else config.nonfinite,
        **{name: value for each in shared for name, value in each.items()},
    )


def _teacher(
    resolved: Resolved, loss: Target, model: Any, arguments: Mapping[str, Any]
) -> tuple[dict[str, Teacher], Callable[[Steps], Steps]]:
    """Return `{loss argument: teacher model}`, and a function that adds the teacher to the steps.

    Without a teacher, the dict is empty and the function returns the steps unchanged.
    """
    config, needs = resolved.config, loss.needs
    if needs.self_teacher is not None:
        if config.ema is None:
            raise ConfigError.at(
                "ema",
                config.places.of(("loss",)),
                f"expected the decay of an average of the weights, which is the teacher of "
                f"{loss.component.name}, got null. Write ema: 0.99.",
            )
        own = Teacher(model)
        return {needs.self_teacher: own}, lambda steps: self_taught(steps, own)
    name = needs.teacher
    if name is None or arguments.get(name) is None:
        return {}, lambda steps: steps
    try:
        found = trained_model(arguments[name], build, code=not config.builtin_only)
    except (ConfigError, CheckpointError, DataError) as error:
        key = ("loss", name)
        raise ConfigError.at(
            join(key), config.places.of(key), f"the teacher's run: {error}"
        ) from None
    teacher = Teacher(found.model)
    return {name: teacher}, lambda steps: with_teacher(steps, teacher, found.params, found.buffers)


def _arguments_in_common(callback: Any, written: Mapping[str, Any], make: Any) -> Mapping[str, Any]:
    """Return the callback's arguments that its own variant of `make_steps` takes as well."""
    parameters = inspect.signature(callback).parameters
    values = {name: p.default for name, p in parameters.items()} | dict(written)
    own = {*inspect.signature(make).parameters} - {*inspect.signature(make_steps).parameters}
    return {name: value for name, value in values.items() if name in own}


def _filled(target: Target, facts: Mapping[str, Any], resolved: Resolved) -> dict[str, Any]:
    """Return the arguments with each `${data.NAME}` replaced, for example by the number of classes."""
    filled = dict(target.arguments)
    written = {name: reference(value) for name, value in filled.items()}
    asked = {name: fact for name, fact in written.items() if fact is not None}
    for name, fact in target.needs.facts.items():
        if name not in filled and (fact in facts or target.requires(name)):
            asked[name] = fact
    for name, fact in asked.items():
        if fact not in facts:
            config, near = resolved.config, nearest(fact, facts)
            remedy = (
                f"Did you mean {near}?"
                if near
                else "Write one of these names, or a number or text."
            )
            if resolved.data.takes(fact):
                switch = ": true, or write a number" if resolved.data.takes_switch(fact) else ""
                remedy = f"Set data.{fact}{switch}."
            known = ", ".join(sorted(facts)) or "none"
            says = (
                f"expected the name of a value that data source {config.data.name} reports ({known}), "
                f"got {fact!r}. {remedy}"
            )
            key = (*target.path, name)
            raise ConfigError.at(join(key), config.places.of(key), says)
        filled[name] = facts[fact]
    return filled


def _in_run(
    target: Target, facts: Mapping[str, Any], resolved: Resolved, folder: pathlib.Path | None
) -> dict[str, Any]:
    """Return a callback's arguments with defaults added, and with `${run}` and `${name}` replaced.

    The defaults are those of `Needs.in_run`, such as a folder in the run's directory.
    """
    config, needs = resolved.config, target.needs
    run = str(config.folder if folder is None else folder)
    found = {**needs.in_run, **_filled(target, facts, resolved)}
    if needs.config is not None:
        found.setdefault(needs.config, config.model_dump(mode="json"))
    return {
        name: value.replace("${run}", run).replace("${name}", config.folder.name)
        if isinstance(value, str)
        else value
        for name, value in found.items()
    }
