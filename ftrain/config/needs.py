"""Declaration of the values that a component needs from a run, such as its number of steps.

Read next: `registry.py`, which stores the needs with the component's name.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from ftrain.config.errors import did_you_mean

__all__ = ["KINDS", "Kind", "Needs"]

Kind = Literal["model", "data", "loss", "task", "optimizer", "schedule", "callback"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: The kinds of component that may declare each field of `Needs`.
_DECLARED_BY: dict[str, tuple[Kind, ...]] = {
    "total_steps": ("schedule",),
    "remaining_steps": ("schedule",),
    "chained": ("schedule",),
    "facts": ("model", "loss", "task", "callback"),
    "max_classes": ("loss",),
    "builds": ("loss",),
    "make_steps": ("callback",),
    "config": ("callback",),
    "in_run": ("callback",),
    "inputs": ("data",),
    "teacher": ("loss",),
    "self_teacher": ("loss",),
}


@dataclasses.dataclass(frozen=True)
class Needs:
    """Values that a component needs from a run, such as its total number of steps.

    A value in the configuration takes precedence over a declared value. Instead of a callable, an import
    path `package.module:NAME` may be given, which is imported when it is used.

    Attributes:
        total_steps: of a schedule: the argument that receives the number of updates in the run.
        remaining_steps: of a schedule: the argument that receives the number of updates in the run minus
            the values of its other arguments called `..._steps`.
        chained: of a schedule: True if it is a gradient transformation. It is called without a learning
            rate, and placed after the optimizer.
        facts: of a model, loss, task or callback: the fact about the data that each argument receives,
            if the data reports it.
        max_classes: of a loss: the largest number of classes that it suits. With 2, `ftrain predict`
            reads a single output as the logit of the second class.
        builds: of a loss: True if the component, called with its arguments, returns the loss function.
        make_steps: of a callback: a function that replaces `ftrain.make_steps` and takes its arguments.
            Further arguments with names of the callback's arguments get the callback's values.
        config: of a callback: the argument that receives the run's configuration, a dict of JSON values.
        in_run: of a callback: a default for each argument, in which `${run}` is the run's directory and
            `${name}` its name.
        inputs: of data: a function with the same arguments that returns samples without targets, for
            `ftrain predict`: the tensor of a table's rows, or `ftrain.data.sources.Inputs`.
        teacher: of a loss: the argument that receives a `tasks.Teacher`. In the configuration its value
            is the directory of a trained run; without one, the loss gets no teacher.
        self_teacher: of a loss: the argument that receives a `tasks.Teacher` of the run's own averaged
            weights; the run needs `ema`.
    """

    total_steps: str | None = None
    remaining_steps: str | None = None
    chained: bool = False
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_classes: int | None = None
    builds: bool = False
    make_steps: Callable[..., Any] | str | None = None
    config: str | None = None
    in_run: Mapping[str, str] = dataclasses.field(default_factory=dict)
    inputs: Callable[..., Any] | str | None = None
    teacher: str | None = None
    self_teacher: str | None = None

    def check(self, kind: Kind, component: Any) -> None:
        """Raise `ValueError` unless these needs fit a component: its kind, and its arguments' names."""
        for name, kinds in _DECLARED_BY.items():
            if getattr(self, name) != getattr(Needs(), name) and kind not in kinds:
                listed = " or ".join(kinds)
                raise ValueError(
                    f"Needs.{name}: expected a component of the kind {listed}, got {kind}, to which "
                    f"{name} does not apply. Remove {name}."
                )
        arguments = (self.total_steps, self.remaining_steps, self.teacher, self.self_teacher)
        named = [name for name in (*arguments, self.config, *self.facts, *self.in_run) if name]
        known = inspect.signature(component).parameters
        for name in named:
            if name not in known:
                raise ValueError(
                    f"Needs: expected names of arguments of {component.__qualname__}, got {name!r}. "
                    f"{did_you_mean(name, known)}"
                )
