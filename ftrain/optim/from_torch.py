"""Any `torch.optim.Optimizer` as a pair of pure functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core._graph_leaves import requires_grad_outside
from ftrain.core._kept_graph import keeps_graph, may_keep_graph
from ftrain.core._torch import is_dual
from ftrain.core._words import a_or_an
from ftrain.core.optimizer import like
from ftrain.optim._checked import checked
from ftrain.optim._leaves import compute_dtype, first_device, matching_leaves, parameters
from ftrain.optim._partial_trees import Masked
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at, zero_count
from ftrain.optim._torch_hidden_state import preserved_generator, refuse_hidden_state
from ftrain.optim._torch_step import Entries, first_entries, own_algorithm, step_once
from ftrain.optim.protocol import Count, GradientTransformation, PyTree

__all__ = ["FromTorchState", "from_torch"]

Shapes = dict[str, tuple[int, ...]]


class FromTorchState(NamedTuple):
    """State of `from_torch`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        entries: the optimizer's state: for each entry's name, a tree like the parameters, with
            `Masked()` for parameters without this entry. Numbers are 0-d tensors.
    """

    count: Count
    learning_rate: torch.Tensor
    entries: dict[str, PyTree]


def from_torch(
    optimizer: type[torch.optim.Optimizer], *, lr: LearningRate | None = None, **options: Any
) -> GradientTransformation:
    """Convert an optimizer class of `torch.optim`, or a similar one, to a `GradientTransformation`.

    Each update constructs a torch optimizer for copies of the parameters, loads its state, runs one
    step, and returns the change. No argument is modified, and the result is torch's, except for the
    rounding of `p + (p_new - p)`. Parameters of low precision are updated in float32. The update
    compiles together with a training step if `torch.compile` can compile the optimizer. If ftrain has
    the same algorithm, that one is faster, because every update here copies parameters, gradients and
    state.

    Compiled with `backend="eager"`, the updates of SGD, RMSprop, Adagrad, Adadelta, Rprop and Muon have
    the bits of eager ones. For Adam, AdamW, NAdam, RAdam, Adamax and ASGD torch computes a step without
    values (`capturable`) by another formula: they are within 4 ulps of the larger of parameter and step
    (ASGD: 64).

    Args:
        optimizer: the class, such as `torch.optim.Adagrad`.
        lr: a finite number >= 0, a 0-d tensor, or a schedule; default: the class's default.
        **options: the other arguments of the class. `foreach=False` unless given.

    Returns:
        A transformation with a `FromTorchState`. `update` needs `params`.

    Raises:
        TypeError: `optimizer` is not an optimizer class, an option is unknown, or the algorithm needs a
            closure (L-BFGS).
        ValueError: an option is out of the class's range, or the class has other state than that of
            its parameters: in its parameter groups, its attributes, or a hook; or what it does with a
            gradient depends on whether it is the first.
        NotImplementedError: an update is differentiated (`ftrain.transforms.differentiable`).
        TraceError: raised by a compiled or mapped update if the class's step reads values of tensors,
            as `torch.optim.Adafactor`'s does; the message names ftrain's algorithm, if there is one.

    Example:
        >>> from ftrain import optim
        >>> adagrad = from_torch(torch.optim.Adagrad, lr=0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> updates, state = adagrad.update(params, adagrad.init(params), params)
        >>> updates, optim.get(state, "sum")
        ({'w': tensor([-0.1000,  0.1000])}, {'w': tensor([1., 4.])})
    """
    if lr is not None:
        check_learning_rate(lr)
    options, default, numbers, scalars = _probed(optimizer, options, lr)
    rate: LearningRate = default if lr is None else lr

    @functools.cache  # a dict in the closure would be state that a step changes
    def shapes_of(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Shapes:
        zeros = torch.zeros(shape, dtype=dtype, device=device)
        (first,) = first_entries(optimizer, options, None, [zeros])
        return _shapes(first)

    def at(count: torch.Tensor) -> torch.Tensor:
        return rate_at(rate, count)

    def init(params: PyTree) -> FromTorchState:
        leaves, treedef = parameters(params)
        wide = [p.to(compute_dtype(p.dtype)) for p in leaves]
        count = zero_count(first_device(leaves))
        first = at(count)
        entries = first_entries(optimizer, options, first, wide) if leaves else []
        return FromTorchState(count, first.float(), _by_name(entries, treedef, wide))

    def update(
        grads: PyTree, state: FromTorchState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, FromTorchState]:
        if params is None:
            raise ValueError(
                f"`from_torch({optimizer.__name__})`: expected the parameters, got None. Call "
                "`update(grads, state, params)`."
            )
        (ps, gs), treedef = matching_leaves(("params", params), ("grads", grads))
        now = at(state.count)
        new_state = FromTorchState(state.count + 1, now.float(), state.entries)
        if not ps:
            return grads, new_state
        old = _by_leaf(state.entries, params, treedef)
        _refuse_derivatives(optimizer, [*ps, *gs, now, *tree.leaves(old)])
        wide = [p.to(compute_dtype(p.dtype)) for p in ps]
        for index, (p, entry) in enumerate(zip(wide, old, strict=True)):
            expected = shapes_of(p.shape, p.dtype, p.device)
            if _shapes(entry) != expected:
                path = tree.paths(params)[index] or "the root"
                raise _other_state(optimizer, path, _shapes(entry), expected)
        new, entries = step_once(
            optimizer,
            options,
            now,
            wide,
            [g.to(p.dtype) for g, p in zip(gs, wide, strict=True)],
            old,
            numbers,
            scalars,
        )
        kept = [_like(optimizer, entry, was) for entry, was in zip(entries, old, strict=True)]
        updates = [after - before for after, before in zip(new, wide, strict=True)]
        return tree.unflatten(treedef, updates), new_state._replace(
            entries=_by_name(kept, treedef, wide)
        )

    return checked("from_torch", FromTorchState, init, update)


def _refuse_derivatives(optimizer: type, inputs: list[torch.Tensor]) -> None:
    """Raise if an input requires a gradient inside of `ftrain.transforms.differentiable`."""
    tracked = keeps_graph() and any(map(requires_grad_outside, inputs))
    if tracked or (may_keep_graph() and any(map(is_dual, inputs))):
        own = own_algorithm(optimizer.__name__)
        instead = f"optim.{own}" if own else "a GradientTransformation"
        raise NotImplementedError(
            f"`from_torch({optimizer.__name__})`: expected a step through which no derivative is taken, "
            "because torch's optimizers update in place, got inputs that require a gradient. Write "
            f"{instead}, whose updates are differentiable."
        )


def _probed(
    optimizer: type[torch.optim.Optimizer], options: dict[str, Any], lr: LearningRate | None
) -> tuple[dict[str, Any], float, frozenset[str], frozenset[str]]:
    """Return a torch optimizer's options, default learning rate, and the names of scalars in its state.

    Returns:
        The options, the rate, the names of state entries that are Python numbers, and the names of
        those that are numbers or 0-d tensors for a matrix.
    """
    if not isinstance(optimizer, type) or not issubclass(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer: expected a class such as torch.optim.Adagrad, got {optimizer!r}. "
            "Write `from_torch(torch.optim.Adagrad, lr=0.1)`."
        )
    name = optimizer.__name__
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"optimizer: expected a class whose step needs gradients only, got {name}, whose step needs "
            "a closure that evaluates the loss again. For L-BFGS write `optim.lbfgs`."
        )
    if issubclass(optimizer, torch.optim.SGD) and options.get("dampening", 0):
        raise ValueError(
            f"dampening: expected 0, got {options['dampening']}: torch.optim.SGD does not dampen the "
            "first gradient, and its state does not record whether there was one. Write "
            "`optim.sgd(rate, momentum, dampening=...)`."
        )
    if options.get("capturable"):
        raise ValueError(
            "capturable: expected False, got True: `from_torch` sets it itself in a compiled step. "
            "Leave it out."
        )
    if "foreach" in inspect.signature(optimizer).parameters:
        options = {"foreach": False, **options}
    options = _with_rate(optimizer, options, lr)
    param = torch.zeros(2, 2)
    param.grad = torch.zeros(2, 2)
    probe = optimizer([param], **options)
    (group,) = probe.param_groups
    before = {key: value for key, value in group.items() if key != "params"}
    if lr is None and "lr" in before and not isinstance(before["lr"], (int, float, torch.Tensor)):
        raise TypeError(
            f"lr: expected a number or a schedule, got {before['lr']!r}, the default of {name}. Write "
            f"`from_torch({name}, lr=1e-3)`."
        )
    try:
        with preserved_generator():
            probe.step()
    except Exception as error:
        own = own_algorithm(name)
        instead = "" if own is None else f" Write `optim.{own}`, which does."
        raise TypeError(
            f"`from_torch({name})`: expected a step that works with dense gradients on the CPU, got "
            f"{type(error).__name__}: {str(error).strip().rstrip('.')}.{instead}"
        ) from error
    changed = [key for key, value in before.items() if group[key] is not value]
    if changed:
        raise ValueError(
            f"optimizer: expected a class that keeps its state per parameter, got {name}, which also "
            f"changes its parameter groups ({', '.join(changed)}): these changes would be lost. "
            "Write it as a GradientTransformation."
        )
    entries = probe.state.get(param, {})
    for key, value in entries.items():
        if value is not None and not isinstance(value, (int, float, torch.Tensor)):
            raise TypeError(
                f"optimizer: expected state entries that are tensors or numbers, got {key!r} of {name}, "
                f"{a_or_an(type(value).__name__)}. Write it as a GradientTransformation."
            )
    numbers = frozenset(key for key, value in entries.items() if isinstance(value, (int, float)))
    zero_d = {k for k, v in entries.items() if isinstance(v, torch.Tensor) and v.ndim == 0}
    refuse_hidden_state(optimizer, options, numbers)
    return options, before.get("lr", 0.0), numbers, numbers | zero_d


def _with_rate(
    optimizer: type[torch.optim.Optimizer], options: dict[str, Any], lr: LearningRate | None
) -> dict[str, Any]:
    """Add a learning rate to an optimizer's options, since a class may compute other values from it.

    Raises:
        ValueError: the class derives other values from the rate, and the rate is not a number.
    """
    parameter = inspect.signature(optimizer).parameters.get("lr")
    if parameter is None or lr is None:
        return options
    if isinstance(lr, (int, float)):
        return {"lr": float(lr), **options}
    make: Any = optimizer
    groups = []
    for number in (1e-3, 2e-3):
        (group,) = make([torch.zeros(2, 2)], lr=number, **options).param_groups
        groups.append({key: value for key, value in group.items() if key not in ("params", "lr")})
    derived = [key for key, value in groups[0].items() if repr(value) != repr(groups[1][key])]
    if derived:
        raise ValueError(
            f"lr: expected a number for {optimizer.__name__}, whose constructor computes {derived[0]!r} "
            "from it, got a schedule or a tensor. Write `lr=1e-3`, or the class as a "
            "GradientTransformation."
        )
    return {"lr": 1e-3, **options} if parameter.default is inspect.Parameter.empty else options


def _by_name(
    entries: Sequence[Entries], treedef: tree.TreeDef, params: Sequence[torch.Tensor]
) -> dict[str, PyTree]:
    """Convert one dict per parameter to one tree per state name; numbers become 0-d tensors."""
    found = {}
    for name in dict.fromkeys(name for entry in entries for name in entry):
        column = [
            _as_tensor(entry[name], p.device) if entry.get(name) is not None else Masked()
            for entry, p in zip(entries, params, strict=True)
        ]
        if any(isinstance(value, torch.Tensor) for value in column):
            found[name] = tree.unflatten(treedef, column)
    return found


def _by_leaf(entries: dict[str, PyTree], params: PyTree, treedef: tree.TreeDef) -> list[Entries]:
    """Convert one tree per state name back to one dict per parameter."""
    columns = {}
    for name, values in entries.items():
        try:
            columns[name] = treedef.flatten_up_to(values)
        except ValueError as error:
            raise ValueError(
                f"`state.entries[{name!r}]` and `params` differ in structure "
                f"{tree.first_difference(values, params)}. The state was made for other "
                "parameters: create a new one with this optimizer's `init(params)`."
            ) from error
    return [
        {name: column[i] for name, column in columns.items() if isinstance(column[i], torch.Tensor)}
        for i in range(treedef.num_leaves)
    ]


def _shapes(entry: Entries) -> Shapes:
    """Return the shape of each optimizer state entry of one parameter, by name; `()` for a number."""
    return {
        name: tuple(value.shape) if isinstance(value, torch.Tensor) else ()
        for name, value in entry.items()
        if value is not None
    }


def _other_state(optimizer: type, path: str, found: Shapes, expected: Shapes) -> ValueError:
    return ValueError(
        f"`from_torch({optimizer.__name__})`: expected {_listed(expected)} at {path}, got "
        f"{_listed(found)}: the state of another class, of other options or of other parameters. "
        "Pass the state of this optimizer, or create a new one with its `init(params)`."
    )


def _listed(shapes: Shapes) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items())) or "nothing"


def _as_tensor(value: Any, device: torch.device) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    dtype = torch.int64 if isinstance(value, int) else torch.float64
    return torch.full((), value, dtype=dtype, device=device)


def _like(optimizer: type, entry: Entries, was: Entries) -> Entries:
    entry = {name: value for name, value in entry.items() if value is not None}
    if entry.keys() != was.keys():
        raise ValueError(
            f"optimizer: expected the same state entries after each step, {sorted(was)}, got "
            f"{sorted(entry)} from {optimizer.__name__}. Write it as a GradientTransformation."
        )
    found = {}
    for name, old in was.items():
        new = _as_tensor(entry[name], old.device)
        if new.shape != old.shape:
            raise ValueError(
                f"optimizer: expected {name!r} to keep its shape {tuple(old.shape)}, got "
                f"{tuple(new.shape)} from {optimizer.__name__}. Write it as a GradientTransformation."
            )
        found[name] = like(new, old)
    return found
