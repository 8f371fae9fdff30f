"""Subjects of the checks: training steps with batches, or a function with arguments.

Every check reduces its subject to calls, each of which it may repeat with copies of the arguments.

Read next: `_held_objects.py`, which collects the objects that functions hold; `pure.py`, the first law.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ftrain.core._words import a_or_an
from ftrain.testing._copies import copied
from ftrain.testing.difference import Difference

__all__ = [
    "Call",
    "InapplicableError",
    "Subject",
    "calls_of",
    "each_call",
    "imported",
    "name_of",
    "outputs_of",
    "parts_of",
    "subject_of",
]

Batches = Sequence[Any]


class InapplicableError(ValueError):
    """Error for a law that does not apply to the steps under check; `check_all` continues after it."""


class Call(NamedTuple):
    """Call of a pure function with fixed arguments, which a check may repeat.

    Attributes:
        label: the call in messages, such as "train_step(state, batches[1])".
        fn: the function.
        args: its arguments; a check passes copies of them.
        names: the name of each argument in messages.
        outputs: the names of the entries of a tuple that it returns; empty if it returns one tree.
    """

    label: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    names: tuple[str, ...]
    outputs: tuple[str, ...] = ()

    def __call__(self) -> Any:
        """Call the function with copies of the arguments; return its outputs."""
        return self.run(copied(self.args))

    def run(self, args: tuple[Any, ...]) -> Any:
        """Call the function with other arguments; raise if it is a step that does not return a pair."""
        output = self.fn(*args)
        return outputs_of(output) if self.outputs else output

    def input_named(self, difference: Difference) -> Difference:
        """Return a copy of a difference whose path names the argument: `state['w']`, not `[0]['w']`."""
        return dataclasses.replace(difference, path=self.path(difference.path))

    def output_named(self, difference: Difference) -> Difference:
        """Return a copy of a difference whose path names the output: `state['w']`, not `[0]['w']`."""
        return dataclasses.replace(difference, path=self.output_path(difference.path))

    def path(self, path: str) -> str:
        """Return a leaf's path in the arguments, beginning with the argument's name: `state['w']`."""
        return _renamed(path, self.names)

    def output_path(self, path: str) -> str:
        """Return a leaf's path in the outputs, beginning with the output's name: `metrics['loss']`."""
        return _renamed(path, self.outputs) if self.outputs else f"the output{path}"


@dataclasses.dataclass(frozen=True)
class Subject:
    """Training steps under check, with their initial state and batches.

    Attributes:
        step: `(state, batch) -> (state, metrics)`.
        evaluate: `(state, batch) -> metrics`; `None` if the subject is a step alone.
        init_state: `(seed) -> state`; `None` if the subject is a step alone.
        state: the state before the first batch.
        batches: the batches.
    """

    step: Callable[[Any, Any], tuple[Any, Any]]
    evaluate: Callable[[Any, Any], Any] | None
    init_state: Callable[[int], Any] | None
    state: Any
    batches: tuple[Any, ...]

    def states(self) -> list[Any]:
        """Return the states of a run: before each batch, and after the last."""
        found = [copied(self.state)]
        for batch in self.batches:
            found.append(self.stepped(found[-1], batch)[0])
        return found

    def stepped(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Run one step on copies of a state and a batch; return the new state and metrics."""
        return outputs_of(self.step(copied(state), copied(batch)))


def subject_of(subject: Any, batches: Batches, state: Any = None, seed: int = 0) -> Subject:
    """Return the steps, initial state and batches of a check, from the arguments of the check.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there are no batches, or no state.
    """
    if isinstance(batches, (str, dict)) or not isinstance(batches, Sequence):
        raise TypeError(
            f"batches: expected a list or tuple of batches, got {a_or_an(type(batches).__name__)}. "
            "Write [batch] for one batch, list(loader) for a loader or a generator."
        )
    if not batches:
        raise ValueError("batches: expected one batch or more, got none. Pass [batch].")
    if isinstance(subject, str):
        subject = imported(subject)
    step, evaluate, init_state = parts_of(subject)
    if state is None:
        if init_state is None:
            raise ValueError(
                "state: expected the state before the first batch, since the subject is a step "
                "without init_state, got None. Pass state=..."
            )
        state = init_state(seed)
    return Subject(step, evaluate, init_state, state, tuple(batches))


def calls_of(
    subject: Any,
    batches: Batches,
    state: Any = None,
    seed: int = 0,
    args: tuple[Any, ...] | None = None,
    *,
    evaluate: bool = True,
) -> list[Call]:
    """Return the calls to check: each step of a run, and one evaluation of its first state.

    Args:
        subject: steps or a function, as every check accepts them.
        batches: the batches of the run.
        state: the state before the first batch; `None` to call `init_state(seed)`.
        seed: the seed of the initial state.
        args: the arguments of the subject, if it is a pure function.
        evaluate: add the evaluation, if the subject has one.
    """
    return list(each_call(subject, batches, state, seed, args, evaluate=evaluate))


def each_call(
    subject: Any,
    batches: Batches,
    state: Any = None,
    seed: int = 0,
    args: tuple[Any, ...] | None = None,
    *,
    evaluate: bool = True,
) -> Iterator[Call]:
    """Yield the calls to check; a step is computed only when the next call is requested.

    In this way, checks also find what only the first call in a process changes (a cache, a seed, a
    setting).
    """
    if args is not None:
        if isinstance(subject, str):
            subject = imported(subject)
        if not callable(subject):
            raise TypeError(
                f"subject: expected a function, since args is given, got "
                f"{a_or_an(type(subject).__name__)}. Pass batches instead of args."
            )
        names = tuple(f"args[{i}]" for i in range(len(args)))
        yield Call(f"{name_of(subject)}(*args)", subject, tuple(args), names)
        return
    whole = subject_of(subject, batches, state, seed)
    current = copied(whole.state)
    for i, batch in enumerate(whole.batches):
        label = f"{name_of(whole.step)}(state, batches[{i}])"
        yield Call(label, whole.step, (current, batch), ("state", "batch"), ("state", "metrics"))
        if i + 1 < len(whole.batches):
            current = whole.stepped(current, batch)[0]
    if evaluate and whole.evaluate is not None:
        label = f"{name_of(whole.evaluate)}(state, batches[0])"
        first = (copied(whole.state), whole.batches[0])
        yield Call(label, whole.evaluate, first, ("state", "batch"))


def outputs_of(output: Any) -> tuple[Any, Any]:
    """Return state and metrics from the output of a step; raise if it is not such a pair.

    Raises:
        TypeError: it is not a pair.
    """
    is_sequence = isinstance(output, (tuple, list))
    if not is_sequence or len(output) != 2:
        size = f" of {len(output)} entries" if is_sequence else ""
        raise TypeError(
            f"subject: expected a step that returns (state, metrics), got "
            f"{a_or_an(type(output).__name__)}{size}. Return a pair."
        )
    return output[0], output[1]


def name_of(fn: Any) -> str:
    """Return the name of a function for messages."""
    return getattr(fn, "__name__", None) or type(fn).__name__


def imported(path: str) -> Any:
    """Import the object at `module:name` or `path/file.py:name`.

    Raises:
        ValueError: the text has no colon.
        AttributeError: the module has no such name.
    """
    module_name, colon, name = path.rpartition(":")
    if not colon:
        raise ValueError(
            f"subject: expected 'module:name' or 'path/file.py:name', got {path!r}. Add the name."
        )
    module = (
        _module_at(module_name)
        if module_name.endswith(".py")
        else importlib.import_module(module_name)
    )
    if not hasattr(module, name):
        raise AttributeError(
            f"subject: {module_name} has no global variable {name!r}. Write the name of a global "
            "variable."
        )
    return getattr(module, name)


def _module_at(path: str) -> Any:
    name = f"_ftrain_testing_{pathlib.Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"subject: expected a Python file, got {path}. Name a file that exists.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def parts_of(subject: Any) -> tuple[Any, Any, Any]:
    """Return `train_step`, `eval_step` and `init_state` of `subject`; `None` for a missing one."""
    if hasattr(subject, "train_step"):
        evaluate, init = (getattr(subject, name, None) for name in ("eval_step", "init_state"))
        return subject.train_step, evaluate, init
    if isinstance(subject, (tuple, list)) and len(subject) == 3:
        return subject[1], subject[2], subject[0]
    if callable(subject):
        return subject, None, None
    raise TypeError(
        f"subject: expected Steps, (init_state, train_step, eval_step) or a step, got "
        f"{a_or_an(type(subject).__name__)}. Pass ftrain.make_steps(...) or a function "
        "(state, batch) -> (state, metrics)."
    )


def _renamed(path: str, names: tuple[str, ...]) -> str:
    """Replace the first index of a path by a name: `[0]['w']` becomes `state['w']`."""
    head, _, tail = path.partition("]")
    place = head.removeprefix("[")
    if place.isdigit() and int(place) < len(names):
        return names[int(place)] + tail
    return path
