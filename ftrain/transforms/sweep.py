"""`sweep`: many training runs as one, over seeds and hyper-parameters.

    steps = sweep(steps, over={"learning_rate": [1e-3, 1e-2], "seed": range(4)})
    states = steps.init_state(0)                               # eight states, stacked
    step = ftrain.compile(steps.train_step, donate=True)      # one graph for all of them
    states, metrics = step(states, batch)                     # metrics["loss"]: (8,)

Read next: `members.py`, `stoppable.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ftrain import optim
from ftrain.core import tree
from ftrain.core._words import a_or_an, kind
from ftrain.core.scan import scan
from ftrain.core.state import TrainState
from ftrain.core.step import Steps
from ftrain.optim._starting_values import StartingValues, starting_with
from ftrain.transforms._order import check_not_compiled
from ftrain.transforms.grid import grid
from ftrain.transforms.members import size, stack

__all__ = ["sweep"]

Batches = Literal["shared", "own"]
Over = Mapping[str, Iterable[Any]] | Sequence[Mapping[str, Any]]


def sweep(
    steps: Steps,
    n: int | None = None,
    *,
    over: Over | None = None,
    batches: Batches = "shared",
    chunk_size: int | None = None,
) -> Steps:
    """Return steps that train many members at once; leaves of the state have a leading axis of members.

    Row `i` is the single run with the seed and the hyper-parameters of member `i`: the same random bits
    and counts, and the same numbers but for rounding, since a batched product may add in another order.
    Compile the result, `ftrain.compile(sweep(...).train_step)`.

    A name in `over` is `"seed"`; a hyper-parameter that `optim.with_hyperparams` keeps in the state of
    the optimizer; or an entry of `state.extras`, which a loss with a parameter `extras` reads (a loss
    weight).

    Args:
        steps: of `ftrain.make_steps`, or other pure steps.
        n: the number of seeds, 0 to n - 1. With `over`, each of its combinations is trained with each
            seed; the seed varies fastest.
        over: name -> values: all combinations are trained, in the order of `grid`; or a list with one
            dict for each member.
        batches: `"shared"`: one batch for all members; `"own"`: each leaf of a batch has a leading axis
            of members (`transforms.stack`), in training and in evaluation.
        chunk_size: the number of members computed at a time; default: all. Fewer need less memory for
            activations; the loop over chunks is compiled once.

    Returns:
        `Steps`. `init_state(seed)` gives each member the initial state of a single run with the sum of
        `seed` and the member's own seed (0 if `over` has none). Metrics have a leading axis of members,
        which `Trainer` takes.

    Raises:
        ValueError: there is no member, names differ between members, or an option is out of range; in
            `init_state`, a hyper-parameter is out of its range, or its name is not unique.
        LookupError: in `init_state`, the state has no such hyper-parameter and no such extra.
        TypeError: a step is compiled already, or a value is not a number.

    Example:
        >>> import ftrain
        >>> from ftrain import optim
        >>> optimizer = optim.with_hyperparams(optim.sgd, learning_rate=0.1)
        >>> steps = ftrain.make_steps(
        ...     lambda: torch.nn.Linear(3, 1), lambda m, x: m(x).square().mean(), optimizer
        ... )
        >>> swept = sweep(steps, 2, over={"learning_rate": [0.01, 0.1]})
        >>> states, metrics = swept.train_step(swept.init_state(0), torch.ones(4, 3))
        >>> metrics["learning_rate"]
        tensor([0.0100, 0.0100, 0.1000, 0.1000])
    """
    for step in steps:
        check_not_compiled("sweep", step)
    members = _members(n, over)
    if batches not in ("shared", "own"):
        raise ValueError(
            f"batches: expected 'shared' or 'own', got {batches!r}. Write batches='shared'."
        )
    if chunk_size is not None and (isinstance(chunk_size, bool) or chunk_size < 1):
        raise ValueError(
            f"chunk_size: expected an integer of at least 1, got {chunk_size!r}. Write None for all "
            "members at once."
        )

    def init_state(seed: int) -> Any:
        return _initial_states(steps.init_state, members, seed)

    init_state.__qualname__ = "init_state"  # in Python's message about a missing seed
    return Steps(
        init_state,
        _mapped(steps.train_step, batches, chunk_size),
        _mapped(steps.eval_step, batches, chunk_size),
    )


def _mapped(
    step: Callable[..., Any], batches: Batches, chunk_size: int | None
) -> Callable[[Any, Any], Any]:
    """Return a step of all members, `chunk_size` of them at a time."""
    own = batches == "own"
    mapped = torch.vmap(step, in_dims=(0, 0 if own else None))

    @functools.wraps(step)
    def swept(states: Any, batch: Any) -> Any:
        members = size(states, "state")
        if own and size(batch, "batch") != members:
            raise ValueError(
                f"batch: expected a leading axis of {members} members, got {size(batch, 'batch')}. "
                'Stack one batch for each member, or write batches="shared".'
            )
        if chunk_size is None or chunk_size >= members:
            return mapped(states, batch)
        whole = members - members % chunk_size
        rows, rest = ((states, batch), ()) if own else ((states,), (batch,))
        chunks = tree.map(
            lambda x: x[:whole].reshape(whole // chunk_size, chunk_size, *x.shape[1:]), rows
        )
        _, found = scan(lambda _, chunk: ((), mapped(*chunk, *rest)), (), chunks)
        found = tree.map(lambda x: x.flatten(0, 1), found)
        if whole == members:
            return found
        left = mapped(*tree.map(lambda x: x[whole:], rows), *rest)
        return tree.map(lambda a, b: torch.cat([a, b]), found, left)

    return swept


def _members(n: int | None, over: Over | None) -> list[dict[str, Any]]:
    """Return one dict of values for each member, its seed included."""
    if n is None and over is None:
        raise ValueError(
            "sweep: expected the argument n or over, got neither. Write sweep(steps, 16) for 16 seeds."
        )
    if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1):
        raise ValueError(
            f"n: expected an integer of at least 1, got {n!r}. Write sweep(steps, 16)."
        )
    rows: list[Any] = [{}]
    if over is not None:
        rows = grid(**over) if isinstance(over, Mapping) else list(over)
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(
                f"over[{i}]: expected a dict of one member's values, got {a_or_an(type(row).__name__)}. "
                "Write over={name: values}, or a list of dicts."
            )
        if row.keys() != rows[0].keys():
            raise ValueError(
                f"over[{i}]: expected the names {sorted(rows[0])} of the first member, got "
                f"{sorted(row)}. Give every member a value for each name."
            )
        for name, value in row.items():
            _check_value(f"over[{i}][{name!r}]", name, value)
    if not rows:
        raise ValueError("over: expected at least one member, got 0. Write over={name: values}.")
    if n is not None and "seed" in rows[0]:
        raise ValueError(
            f"n: expected None, since `over` has an entry 'seed', got {n}. Leave one of them out."
        )
    seeds = [{}] if n is None else [{"seed": i} for i in range(n)]
    return [{"seed": 0, **row, **seed} for row in rows for seed in seeds]


def _check_value(where: str, name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(
            f"{where}: expected a number, got {type(value).__name__} {value!r}. Sweep over numbers; "
            "train other choices in runs of their own."
        )
    if name == "seed" and not isinstance(value, (int, np.integer)):
        raise TypeError(f"{where}: expected an integer, got {value!r}. Write seed=range(4).")
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value!r}. Leave the member out.")


def _initial_states(
    init_state: Callable[[Any], Any], members: list[dict[str, Any]], seed: int
) -> Any:
    """Return the stacked initial states of all members, each made with its own values."""
    names = [name for name in members[0] if name != "seed"]
    rows = [{name: float(row[name]) for name in names} for row in members]
    offsets = [int(row["seed"]) for row in members]
    if isinstance(seed, (int, np.integer)):
        for offset in offsets:  # this raises for a seed of more than 64 bits
            torch.tensor(seed + offset, dtype=torch.int64)

    def initial(own_seed: Any, values: dict[str, torch.Tensor]) -> Any:
        starting = StartingValues(values, rows)
        with starting_with(starting):
            state = init_state(own_seed)
        return _with_values(state, values, starting)

    columns = {
        name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in names
    }
    try:
        states = torch.vmap(initial)(seed + torch.tensor(offsets), columns)
    except Exception:  # an init_state that needs a Python int; any real fault is raised again below
        rows_alone = (tree.map(lambda x, i=i: x[i], columns) for i in range(len(members)))
        singles = zip(offsets, rows_alone, strict=True)
        states = stack([initial(seed + offset, values) for offset, values in singles])
    # Under vmap, equal rows share memory, and a compiled step has one program for each set of strides.
    return tree.map(lambda x: x.clone(memory_format=torch.contiguous_format), states)


def _with_values(state: Any, values: dict[str, torch.Tensor], starting: StartingValues) -> Any:
    """Set swept values that are not hyper-parameters of the optimizer, such as extras, in the states."""
    if values and not isinstance(state, TrainState):
        raise TypeError(
            f"over: expected steps on an ftrain.TrainState, which has an optimizer's state and extras, "
            f"got {a_or_an(type(state).__name__)}. Sweep such steps over seeds alone: sweep(steps, n)."
        )
    for name, value in values.items():
        places = [p for p in tree.paths(state.opt_state) if p.endswith(f".hyperparams[{name!r}]")]
        places = [f".opt_state{path}" for path in places]
        places += [f".extras[{name!r}]"] if name in state.extras else []
        if len(places) > 1:
            raise ValueError(
                f"{name}: expected the name of one value in the state, got the name of {len(places)}: "
                f"{', '.join(places)}. Give each its own name in one with_hyperparams: "
                "optim.with_hyperparams(lambda rate_a, rate_b: ..., rate_a=0.1, rate_b=0.01)."
            )
        if name in state.extras:
            new = _converted(name, state.extras[name], value, starting.rows)
            state = state.replace(extras={**state.extras, name: new})
        elif not starting.taken[name]:
            state = state.replace(opt_state=_set(state.opt_state, name, value))
    return state


def _converted(
    name: str, old: Any, value: torch.Tensor, rows: Sequence[Mapping[str, float]]
) -> torch.Tensor:
    """Return swept values for `state.extras[name]`, in the dtype and on the device of its tensor."""
    where = f"state.extras[{name!r}]"
    if not isinstance(old, torch.Tensor) or old.ndim:
        raise TypeError(
            f"{where}: expected a 0-d tensor to sweep over, got {kind(old)}. Store the swept "
            "number in state.extras as a 0-d tensor of its own."
        )
    lost = [row[name] for row in rows if not row[name].is_integer()]
    if lost and not old.is_floating_point():
        raise ValueError(
            f"{where}: expected integers, because the entry is {kind(old)}, got {lost[0]!r}. Make the "
            "entry a floating tensor."
        )
    return value.to(old.device, old.dtype)


def _set(opt_state: Any, name: str, value: torch.Tensor) -> Any:
    try:
        return optim.set_hyperparams(opt_state, **{name: value})
    except LookupError as error:
        if "Did you mean" in str(error):
            raise
        known = "learning_rate" if name == "lr" else name  # torch's name
        raise LookupError(
            f"{error} Build the optimizer with optim.with_hyperparams(optim.adamw, {known}=...) and "
            f"sweep over {known!r}, or keep the number in state.extras[{name!r}]."
        ) from None
