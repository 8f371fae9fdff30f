"""Law 1: a call changes no input and no outside state, and its outputs share no memory with inputs.

Read next: `deterministic.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._python_objects import GENERATORS
from ftrain.core._words import a_or_an
from ftrain.testing._copies import copied
from ftrain.testing._global_state import changes, restore, world
from ftrain.testing.difference import Difference, first_difference
from ftrain.testing.laws._draws import drawn_in
from ftrain.testing.laws._held_objects import Held, memory_of, roots_of
from ftrain.testing.laws._restored_state import unchanging
from ftrain.testing.laws._sites import find_write, located
from ftrain.testing.laws._subject import Call, each_call
from ftrain.testing.laws._words import KEYS, amount, plural
from ftrain.testing.report import LawViolation, Report, Row

__all__ = ["check_pure"]

_REMEDIES = {
    "random state": "Draw from a key that is part of the state: ftrain.random, or a torch.Generator "
    "that the step makes from it.",
    "grad mode": "Write `with torch.enable_grad():` or `torch.no_grad()` around the lines that need it.",
    "autocast": "Write `with torch.autocast(...):` around the lines that need it.",
}
_NEW = (
    "Write the result into a new tensor, `x = x + y` instead of `x += y`, and put it into a new "
    "container, `return {'x': x, ...}` instead of `state['x'] = x`."
)
_BUFFERS = (
    "Pass copies of the buffers, `{name: b.clone() for name, b in buffers.items()}`, and return the "
    "copies in the new state: the layer writes its statistics into them."
)
_SETTING = "Set it once before training, outside of the step, or restore it in a finally clause."


@unchanging
def check_pure(
    subject: Any,
    batches: Sequence[Any] = (),
    *,
    state: Any = None,
    seed: int = 0,
    args: tuple[Any, ...] | None = None,
    model: Any = None,
) -> Report:
    """Check law 1: no input and no global state changes, and no output shares memory with an input.

    The global state is the random states of torch, NumPy and Python, torch's modes and settings, print
    options and the environment variables. All objects that the function holds are compared too: its
    closure, the global variables that it reads, the attributes of classes that it names, tensors in the
    caches of functions, modules with their tensors, gradients, attributes and hooks. They are restored
    after each call.

    Args:
        subject: `Steps`, another `(init_state, train_step, eval_step)`, a step
            `(state, batch) -> (state, metrics)`, or a pure function if `args` is given. A string
            `"module:name"` names one.
        batches: a list of batches; each one is a step of the run.
        state: the state before the first batch; default: `init_state(seed)`.
        seed: of the initial state.
        args: the arguments of a pure function, instead of batches and a state.
        model: a module or other object that the function reads, whose name the messages give.

    Returns:
        The report.

    Raises:
        LawViolation: the law is violated; the message names the leaf, the operator and the line.

    Example:
        >>> print(check_pure(lambda x: x + 1, args=(torch.zeros(3),)).passed)
        True
        >>> check_pure(lambda x: x.add_(1), args=(torch.zeros(3),))
        Traceback (most recent call last):
            ...
        ftrain.testing.report.LawViolation: law "pure": an input changed: args[0] at (0,): expected 0.0,
        got 1.0 (... ulps; 3 of 3 elements differ)
          operator: aten.add_.Tensor
          cause: an operator in <lambda>(*args) writes into its input.
          remedy: Write the result into a new tensor, `x = x + y` instead of `x += y`, ...
    """
    start = time.perf_counter()
    calls, sizes = [], []
    for call in each_call(subject, batches, state, seed, args):
        sizes.append(_check(call, model))
        calls.append(call)
    rows = (
        Row("calls", plural(len(calls), "call"), "no global state changed"),
        Row("inputs", amount([call.args for call in calls]), "same bytes"),
        Row("objects held", plural(max(sizes), "object"), "unchanged"),
        Row("outputs", plural(len(calls), "call"), "new memory"),
    )
    return Report("pure", True, rows, time.perf_counter() - start)


def _check(call: Call, model: Any) -> int:
    """Raise unless law 1 holds for one call; return the number of objects that were compared."""
    args, before = copied(call.args), copied(call.args)
    models = Held(model)
    others = Held(*roots_of(call.fn), *_objects(args), follow_globals=True)
    around = world()
    try:
        out = call.run(args)
        difference = first_difference(args, before)
        if difference is not None:
            raise _input_changed(call, difference)
        for what in changes(around):
            raise _world_changed(call, what)
        _check_held(call, models, "of the model" if model is not None else "")
        _check_held(call, others, "that the function holds")
    finally:
        for held in (models, others):
            held.restore()
            held.restore_tensors()
        restore(around)
    _check_memory(call, args, out, {**models.tensors}, {**others.tensors})
    return len(models) + len(others)


def _objects(args: Any) -> list[Any]:
    return [leaf for leaf in tree.leaves(args) if not isinstance(leaf, torch.Tensor)]


def _input_changed(call: Call, difference: Difference) -> LawViolation:
    if isinstance(difference.got, GENERATORS):
        kind = (
            f"{type(difference.got).__module__.partition('.')[0]}.{type(difference.got).__name__}"
        )
        return LawViolation(
            "pure",
            f"an input changed: {call.path(difference.path)}, {a_or_an(kind)}, was advanced",
            cause=f"{call.label} draws from the generator, whose state is not a tensor of the state.",
            remedy=KEYS,
        )
    site = None
    if difference.index is not None:
        place = tree.paths(call.args).index(difference.path)
        site = find_write(call, lambda args: tree.leaves(args)[place])
    cause = f"an operator in {call.label} writes into its input."
    if site is None:
        cause = f"{call.label} changes a container or an object of its input."
    return LawViolation(
        "pure",
        f"an input changed: {call.input_named(difference)}",
        difference=difference,
        **located(site),
        cause=cause,
        remedy=_BUFFERS if site is not None and "Norm" in (site.module or "") else _NEW,
    )


def _world_changed(call: Call, what: str) -> LawViolation:
    drawn = drawn_in(call) if what.startswith("random state") else None
    remedy = next((text for name, text in _REMEDIES.items() if what.startswith(name)), _SETTING)
    return LawViolation(
        "pure",
        f"the call changed the {what}",
        operator=None if drawn is None else drawn.operator,
        line=None if drawn is None else drawn.line,
        cause=f"{call.label} draws from a global generator."
        if what.startswith("random state")
        else f"{call.label} changes a setting of the whole process and does not restore it.",
        remedy=remedy,
    )


def _check_held(call: Call, held: Held, whose: str) -> None:
    for path in held.restore():
        if path.startswith("!"):
            raise LawViolation("pure", path[1:], cause=f"{call.label} advances it.", remedy=_STATE)
        changed = f"{path} {whose}".strip() if path else f"{whose.removeprefix('of ')} itself"
        raise LawViolation(
            "pure",
            f"the call changed {changed}",
            cause=_KEPT.format(call.label),
            remedy=next((text for name, text in _KEPT_REMEDIES.items() if name in path), _STATE),
        )
    found = held.changed_tensor()
    if found is not None:
        name, difference = found
        tensor = held.tensors[name]
        held.restore_tensors()
        site = find_write(call, lambda args: tensor)
        raise LawViolation(
            "pure",
            f"a tensor {whose} changed: [{name!r}]{difference}".replace("the tree", ""),
            difference=difference,
            **located(site),
            cause=_KEPT.format(call.label),
            remedy=_STATE,
        )
    grad = held.changed_grad()
    if grad is not None:
        raise LawViolation(
            "pure",
            f"the call changed the gradient of {grad} {whose}",
            cause=f"{call.label} calls backward(), which adds to the .grad of each parameter, or sets "
            "requires_grad.",
            remedy="Take gradients with torch.autograd.grad or ftrain.value_and_grad.",
        )


_KEPT = "{} keeps state outside of its arguments, so its next call computes something else."
_STATE = (
    "Make it a part of the state: read it from the argument `state`, return it in the new state."
)
_KEPT_REMEDIES = {
    "_hooks": "Remove the hook: write `with module.register_forward_hook(...):` around the lines that "
    "need it, or handle.remove() in a finally clause.",
    "'training'": "Restore the mode: write `model.train(mode)` in a finally clause, with the value that "
    "model.training had before.",
}


def _check_memory(
    call: Call,
    args: tuple[Any, ...],
    out: Any,
    of_model: dict[str, torch.Tensor],
    of_function: dict[str, torch.Tensor],
) -> None:
    owners = {p: f"input {call.path(path)}" for p, path in memory_of(list(args)).items()}
    for tensors, whose in ((of_function, "that the function holds"), (of_model, "of the model")):
        for name, tensor in tensors.items():
            if tensor.numel():
                owners[tensor.untyped_storage().data_ptr()] = f"{name} {whose}"
    for pointer, path in memory_of(out).items():
        if pointer in owners:
            raise LawViolation(
                "pure",
                f"{_output(call, path)} shares memory with {owners[pointer]}",
                cause=f"{call.label} returns a tensor that it was given, or a view of it.",
                remedy=f"Return a copy: write .clone() at {call.output_path(path)}.",
            )


def _output(call: Call, path: str) -> str:
    return f"output {call.output_path(path).removeprefix('the output')}".strip()
