"""Import of the components that a configuration names, and checks of their arguments.

Arguments are checked against the annotations of the component: an unknown argument raises with a
suggestion, a text where a number is expected raises, and a list becomes a tuple where the annotation
is one. A file for an argument that is annotated as a `pathlib.Path` is searched beside the
configuration or, if given on the command line, in the current directory.

Read next: `build.py`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import pathlib
import re
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ftrain.config._aliases import unquoted, with_point
from ftrain.config._code import check_code
from ftrain.config._source_locations import Path, join
from ftrain.config.errors import ConfigError, Problem, did_you_mean
from ftrain.config.needs import Kind, Needs
from ftrain.config.registry import find, load_module, needs_of
from ftrain.config.schema import Component, Config

__all__ = ["Resolved", "Target", "reference", "resolve"]

#: Learning rate if neither the configuration nor the optimizer has one: the usual default of Adam.
DEFAULT_RATE = 1e-3

_REFERENCE = re.compile(r"\$\{data\.([A-Za-z_][A-Za-z_0-9]*)\}")


@dataclasses.dataclass(frozen=True)
class Target:
    """Imported function of a component, and the checked arguments with which to call it.

    Attributes:
        path: the component's key path in the configuration, such as `("optimizer",)`.
        component: the component in the configuration.
        function: the function that it names.
        arguments: keyword arguments; each `${data.NAME}` is not yet replaced.
        needs: what the function needs from the run.
        files: the names of arguments that are paths.
    """

    path: Path
    component: Component
    function: Any
    arguments: Mapping[str, Any]
    needs: Needs
    files: tuple[str, ...] = ()

    def takes(self, name: str) -> bool:
        """Return True if the function has a parameter called `name`."""
        return name in _parameters(self.function)

    def requires(self, name: str) -> bool:
        """Return True if the parameter called `name` has no default."""
        return _parameters(self.function)[name].default is inspect.Parameter.empty

    def takes_file(self, name: str) -> bool:
        """Return True if the parameter called `name` is annotated as a path."""
        return self._takes_a(pathlib.Path, name)

    def takes_switch(self, name: str) -> bool:
        """Return True if the parameter called `name` is annotated as a boolean."""
        return self._takes_a(bool, name)

    def _takes_a(self, kind: type, name: str) -> bool:
        hint = _hints(self.function).get(name)
        return kind in (hint, *typing.get_args(hint))


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Components of a configuration, imported and checked, but not yet called.

    `build` calls the functions to make the parts of a run.

    Attributes:
        config: the resolved configuration.
        model: the function that builds the module.
        data: the function that returns the data.
        loss: the loss function; `None`: the task has one.
        task: the function that makes the `Task`; `None`: the loss alone.
        optimizer: the function that makes the optimizer.
        schedule: the function that makes the schedule; `None` for a constant learning rate.
        callbacks: the functions that make the callbacks.
    """

    config: Config
    model: Target
    data: Target
    loss: Target | None
    task: Target | None
    optimizer: Target
    schedule: Target | None
    callbacks: tuple[Target, ...]

    @property
    def objective(self) -> Target:
        """The task, or the loss function of a configuration without a task."""
        found = self.task or self.loss
        assert found is not None  # a configuration has a task or a loss
        return found


#: Number of first parameters that the run fills in: model and batch of a loss, or the learning rate.
_FILLED: dict[Kind, int] = {"loss": 2, "optimizer": 1, "schedule": 1}


def resolve(config: Config) -> Resolved:
    """Import all components that a configuration names, and check every argument.

    If somebody else may have written the code, a line is printed before it runs (`_code.py`).

    Raises:
        ConfigError: a component may not be used, does not exist, cannot be imported, or does not take
            these arguments; the error lists all problems that were found.
    """
    check_code(config)
    for index, module in enumerate(config.imports):
        place = config.places.of(("imports", index))
        load_module(module, config.beside(("imports", index)), f"imports.{index}", place)
    problems: list[Problem] = []

    def target(kind: Kind, component: Component, *path: str | int) -> Target | None:
        try:
            return _target(config, kind, component, path)
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    found = {
        "model": target("model", config.model, "model"),
        "data": target("data", config.data, "data"),
        "loss": target("loss", config.loss, "loss") if config.loss else None,
        "task": target("task", config.task, "task") if config.task else None,
        "optimizer": target("optimizer", config.optimizer, "optimizer"),
        "schedule": target("schedule", config.schedule, "schedule") if config.schedule else None,
    }
    callbacks = [
        target("callback", one, "callbacks", index) for index, one in enumerate(config.callbacks)
    ]
    if found["data"] is not None:
        problems += _held_out(config, found["data"])
    if problems:
        raise ConfigError(problems)
    assert found["optimizer"] is not None  # otherwise a problem was raised above
    config = _with_rate(config, found["optimizer"])
    return Resolved(config, callbacks=tuple(callbacks), **found)  # type: ignore[arg-type]  # likewise


def _held_out(config: Config, data: Target) -> list[Problem]:
    """Return a problem if `data.held_out` names a file, but the data function does not accept a file."""
    if not isinstance(config.data.held_out, str) or data.takes("held_out"):
        return []
    says = (
        f"expected a number of samples or a share of them, got {config.data.held_out!r}: "
        f"{config.data.name} has no argument `held_out: pathlib.Path`. Write data.held_out=0.2."
    )
    return [Problem("data.held_out", config.places.of(("data", "held_out")), says)]


def reference(value: object) -> str | None:
    """Return `NAME` if a value is a reference `${data.NAME}`; `None` otherwise.

    Example:
        >>> reference("${data.classes}"), reference("classes")
        ('classes', None)
    """
    found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return found[1] if found else None


def _filled_in_later(kind: Kind, name: str, value: object) -> bool:
    """Return True if the value is replaced later: a `${data.NAME}`, or a fraction of the run's steps."""
    if kind == "schedule":
        return name.endswith("steps") and isinstance(value, float) and 0 < value < 1
    return kind in ("model", "loss", "task", "callback") and reference(value) is not None


def _with_rate(config: Config, optimizer: Target) -> Config:
    """Return the configuration; fill in a missing learning rate with the optimizer's default."""
    if config.optimizer.learning_rate is not None:
        return config
    parameters = _parameters(optimizer.function)
    default = next((p.default for p in parameters.values()), None)
    own = default if isinstance(default, float) else DEFAULT_RATE
    filled = config.optimizer.model_copy(update={"learning_rate": own})
    return config.model_copy(update={"optimizer": filled})


def _target(config: Config, kind: Kind, component: Component, path: Path) -> Target:
    key = join(path)
    at = (*path, "name")
    function = find(kind, component.name, config.beside(at), f"{key}.name", config.places.of(at))
    written = dict(component.arguments)
    parameters = _parameters(function)
    if kind == "data" and config.data.held_out is not None and "held_out" in parameters:
        written["held_out"] = config.data.held_out
    needs = needs_of(kind, function)
    filled = _filled_by_run(kind, needs, list(parameters))
    hints = {**_hints(function), **({needs.teacher: pathlib.Path} if needs.teacher else {})}
    problems, arguments, files = [], {}, []

    def problem(name: str, message: str) -> None:
        problems.append(Problem(f"{key}.{name}", config.places.of((*path, name)), message))

    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    open_to = [
        name
        for name, parameter in parameters.items()
        if name not in filled
        and parameter.kind
        in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    ]
    for name, value in written.items():
        if name in filled:
            problem(
                name,
                f"expected no value, because the run passes {name} to {component.name}. Remove {name}.",
            )
        elif name not in open_to and not open_ended:
            known = [*open_to, *(["learning_rate"] if kind == "optimizer" else [])]
            meant = {"lr": "learning_rate"}.get(name, name)
            problem(name, f"unknown argument of {component.name}. {did_you_mean(meant, known)}")
        elif _filled_in_later(kind, name, value):
            arguments[name] = value
        else:
            try:
                base = config.beside((*path, name))
                arguments[name], is_path = _converted(value, hints.get(name), base)
                files += [name] if is_path else []
            except ValueError as error:
                problem(name, str(error))
    for name in open_to:
        needed = parameters[name].default is inspect.Parameter.empty and name not in written
        by_run = (needs.total_steps, needs.remaining_steps, *needs.facts, *needs.in_run)
        if needed and name not in by_run:
            problem(name, f"missing required argument of {component.name}. Add this key.")
    if problems:
        raise ConfigError(problems)
    return Target(path, component, function, arguments, needs, tuple(files))


def _filled_by_run(kind: Kind, needs: Needs, parameters: list[str]) -> list[str]:
    """Return the parameters whose values come from the run; a configuration must not set them."""
    if kind == "data":
        return [name for name in parameters if name == "fitted"]  # the run's fitted preprocessing
    if needs.chained or needs.builds:
        return []  # called with its own arguments only, without a learning rate or a batch
    # Only losses have arguments for the extras of the state and for the average of the weights.
    more = ("extras", needs.self_teacher) if kind == "loss" else ()
    return parameters[: _FILLED.get(kind, 0)] + [name for name in parameters if name in more]


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature: any arguments
        return {"arguments": inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)}


def _hints(function: Any) -> Mapping[str, Any]:
    init = function.__init__ if inspect.isclass(function) else function
    try:
        return typing.get_type_hints(init)
    except Exception:  # an annotation that cannot be evaluated checks nothing
        return {}


def _converted(value: Any, hint: Any, base: pathlib.Path) -> tuple[Any, bool]:
    """Convert a value to the annotation `hint`; also return True if the result is a path."""
    if hint is None or hint is Any:
        return value, False
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # no schema, or a type with a pydantic configuration of its own
        try:
            adapter = TypeAdapter(hint)  # dataclasses and models have their own configuration
        except Exception:  # pydantic has no schema for this annotation: it checks nothing
            return value, False
    try:
        found = adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise ValueError(_refused(error, value, hint, adapter)) from None
    except ValueError as error:
        raise ValueError(f"{error}, got {value!r}. Change the value.") from None
    if isinstance(found, pathlib.Path):
        return base / found.expanduser(), True
    return found, False


def _refused(error: ValidationError, value: Any, hint: Any, adapter: TypeAdapter[Any]) -> str:
    reasons = [
        found["msg"].replace("Input should be", "expected").replace("a valid array", "a list")
        for found in error.errors()
    ]
    reason = reasons[0] if len(set(reasons)) == 1 else f"expected {_spelled(hint)}"
    plain = unquoted(value)
    remedy = f"Write {plain} without the quotes." if plain else ""
    for other in (with_point(value), [value] if not isinstance(value, (list, dict)) else None):
        if not remedy and other is not None and _fits(other, adapter):
            remedy = f"Write {other}."
    return f"{reason}, got {value!r}. {remedy or 'Change the value.'}"


def _fits(value: Any, adapter: TypeAdapter[Any]) -> bool:
    """Return True if a pydantic adapter accepts a value; a string such as `"0.5"` counts as a number."""
    try:
        adapter.validate_json(value if isinstance(value, str) else json.dumps(value), strict=True)
    except ValueError:
        return False
    return True


def _spelled(hint: Any) -> str:
    text = getattr(hint, "__name__", None) if inspect.isclass(hint) else str(hint)
    return re.sub(r"\b(?:[a-z_]+\.)+", "", text or str(hint))
