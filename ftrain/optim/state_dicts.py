"""Conversion of optimizer states to and from the `state_dict` of `torch.optim`.

A run that was started with `torch.optim` continues with ftrain, and the other way round. Moments,
sums and counts are converted. Hyper-parameters are not: pass them to the call that makes the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ftrain.core import tree
from ftrain.core.optimizer import like
from ftrain.optim.adadelta import AdadeltaState
from ftrain.optim.adafactor import AdafactorState
from ftrain.optim.adagrad import AdagradState
from ftrain.optim.adam import AdamState
from ftrain.optim.adamax import AdamaxState
from ftrain.optim.amsgrad import AMSGradState
from ftrain.optim.asgd import ASGDState
from ftrain.optim.from_torch import FromTorchState
from ftrain.optim.get import nodes
from ftrain.optim.masks import names as names_of
from ftrain.optim.nadam import NAdamState
from ftrain.optim.protocol import PyTree
from ftrain.optim.radam import RAdamState
from ftrain.optim.rmsprop import RMSpropState
from ftrain.optim.rprop import RpropState
from ftrain.optim.sgd import SGDState

__all__ = ["export_state_dict", "import_state_dict"]

Names = nn.Module | Sequence[str]

_MOMENTS = {"mu": "exp_avg", "nu": "exp_avg_sq"}

# Counterparts in torch.optim of each state, and their names for its fields.
_TWINS: dict[type, tuple[tuple[str, ...], dict[str, str]]] = {
    SGDState: (("SGD",), {"momentum": "momentum_buffer"}),
    AdamState: (("Adam", "AdamW"), _MOMENTS),
    AMSGradState: (("Adam", "AdamW"), {**_MOMENTS, "nu_max": "max_exp_avg_sq"}),
    NAdamState: (("NAdam",), _MOMENTS),
    RAdamState: (("RAdam",), _MOMENTS),
    AdamaxState: (("Adamax",), {"mu": "exp_avg", "nu": "exp_inf"}),
    AdagradState: (("Adagrad",), {"nu": "sum"}),
    AdadeltaState: (("Adadelta",), {"nu": "square_avg", "delta": "acc_delta"}),
    RMSpropState: (
        ("RMSprop",),
        {"nu": "square_avg", "mu": "grad_avg", "momentum": "momentum_buffer"},
    ),
    ASGDState: (("ASGD",), {"average": "ax"}),
    RpropState: (("Rprop",), {"step_size": "step_size", "previous": "prev"}),
    AdafactorState: (("Adafactor",), {"row": "row_var", "column": "col_var", "nu": "variance"}),
}


def import_state_dict(
    state_dict: Mapping[str, Any], opt_state: PyTree, names: Names, *, count: int | None = None
) -> PyTree:
    """Convert the `state_dict` of the same algorithm in `torch.optim` to an optimizer state.

        optimizer = optim.adamw(1e-3, weight_decay=0.01, mask=optim.everything)
        opt_state = optim.import_state_dict(torch_optimizer.state_dict(), optimizer.init(params), model)

    Args:
        state_dict: of `SGD`, `Adam`, `AdamW`, `NAdam`, `RAdam`, `Adamax`, `Adagrad`, `Adadelta`,
            `RMSprop`, `ASGD`, `Rprop` or `Adafactor`, or of any class for `from_torch`.
        opt_state: a state of the ftrain optimizer for the same parameters, from its `init`; it selects
            the algorithm. It may be nested, in `chain`, `ema` or `partition`: every part with a
            counterpart is filled, the others are unchanged.
        names: the parameters' names in the order in which the torch optimizer was given them: the
            module, for `model.parameters()`, or a list, group after group. Names in the dict itself
            (`param_names`) take precedence.
        count: the number of updates so far; only for SGD, whose state does not store it.

    Returns:
        A new state.

    Raises:
        ValueError: the dict belongs to another algorithm; parameters or shapes differ; parameters were
            not all updated equally often. The message names the parameter.

    Example:
        >>> from ftrain import optim
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> theirs = torch.optim.Adam([weight], lr=0.1)
        >>> weight.grad = torch.ones(2)
        >>> theirs.step()
        >>> state = optim.adam(0.1).init({"w": torch.ones(2)})
        >>> import_state_dict(theirs.state_dict(), state, ["w"]).mu
        {'w': tensor([0.1000, 0.1000])}
    """
    entries, rates = _by_name(state_dict, names)
    leaves, treedef = tree.flatten(opt_state)
    index_of = {path: index for index, path in enumerate(tree.paths(opt_state))}
    parts = _parts(opt_state)
    _check_algorithm(state_dict, parts)
    _check_all_taken(entries, {name for part in parts for name in part.names})
    for part in parts:
        for path, value in _imported(part, entries, rates, count).items():
            leaves[index_of[path]] = _fitted(path, value, leaves[index_of[path]])
    return tree.unflatten(treedef, leaves)


def export_state_dict(
    opt_state: PyTree, twin: torch.optim.Optimizer, names: Names
) -> dict[str, Any]:
    """Convert an optimizer state to the `state_dict` of the same algorithm in `torch.optim`.

        theirs = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
        theirs.load_state_dict(optim.export_state_dict(state.opt_state, theirs, model))

    Args:
        opt_state: the state, nested or not, of an optimizer that `torch.optim` has as well.
        twin: an instance of the same algorithm, made with its hyper-parameters; it is not changed.
        names: the parameters' names in the order of `twin`'s, or their module.

    Returns:
        A dict like `twin.state_dict()`, with the groups of `twin` and the memory of `opt_state`.

    Raises:
        ValueError: `twin` has another algorithm, or lacks a parameter of the state.

    Example:
        >>> from ftrain import optim
        >>> params = {"w": torch.ones(2)}
        >>> optimizer = optim.adam(0.1)
        >>> _, state = optimizer.update(params, optimizer.init(params), params)
        >>> theirs = torch.optim.Adam([torch.nn.Parameter(params["w"])], lr=0.1)
        >>> theirs.load_state_dict(export_state_dict(state, theirs, ["w"]))
        >>> theirs.state_dict()["state"][0]["exp_avg"]
        tensor([0.1000, 0.1000])
    """
    order = _order_of(twin, names)
    state: dict[int, dict[str, Any]] = {}
    for part in _parts(opt_state):
        _check_twin(part, twin)
        for name, entry in _exported(part, twin).items():
            if name not in order:
                raise ValueError(
                    f"names: expected {name}, a parameter of the state, among the parameters of "
                    f"{type(twin).__name__}, got {_listed(order)}. Give the names as in the state."
                )
            state[order[name]] = entry
    groups = twin.state_dict()["param_groups"]
    return {"state": dict(sorted(state.items())), "param_groups": groups}


class _Part(NamedTuple):
    """Part of an optimizer's state: the state of one algorithm that `torch.optim` also has.

    Attributes:
        path: the path of the state.
        state: the state.
        columns: `{torch's name of a state entry: {parameter name: (path, tensor)}}`.
        names: the names of the parameters in the state.
    """

    path: str
    state: Any
    columns: dict[str, dict[str, tuple[str, torch.Tensor]]]
    names: list[str]


def _parts(opt_state: PyTree) -> list[_Part]:
    found = []
    for path, state in nodes(opt_state):
        if isinstance(state, FromTorchState):
            trees = {
                key: (f"{path}.entries[{key!r}]", value) for key, value in state.entries.items()
            }
        elif type(state) in _TWINS:
            _, fields = _TWINS[type(state)]
            trees = {to: (f"{path}.{own}", getattr(state, own)) for own, to in fields.items()}
        else:
            continue
        columns = {key: _column(where, value) for key, (where, value) in trees.items()}
        names = list(dict.fromkeys(name for column in columns.values() for name in column))
        found.append(_Part(path, state, columns, names))
    if not found:
        raise ValueError(
            "opt_state: expected the state of an algorithm that torch.optim has as well, got a state "
            "of another algorithm. Supported are "
            f"{', '.join(kind.__name__.removesuffix('State') for kind in _TWINS)}, and `from_torch`."
        )
    return found


def _column(path: str, values: PyTree) -> dict[str, tuple[str, torch.Tensor]]:
    flat, treedef = tree.flatten(values)
    rows = zip(names_of(treedef), tree.paths(values), flat, strict=True)
    return {name: (path + below, leaf) for name, below, leaf in rows}


def _imported(
    part: _Part, entries: Mapping[str, dict[str, Any]], rates: Mapping[str, Any], count: int | None
) -> dict[str, Any]:
    """Return `{path of a leaf of the state: its value}`, with values from a torch state dict."""
    missing = [name for name in part.names if name not in entries]
    if missing:
        raise ValueError(
            f"state_dict: expected the parameters {_listed(missing)}, got "
            f"{_listed(entries) or 'none'}. Give the names in the order in which the torch "
            "optimizer was given the parameters."
        )
    mine = {name: entries[name] for name in part.names}
    done = _count(part, mine, count)
    found: dict[str, Any] = {f"{part.path}.count": done}
    rate = next((rates[name] for name in mine), None)
    if rate is not None and hasattr(part.state, "learning_rate"):
        found[f"{part.path}.learning_rate"] = rate
    if not any(mine.values()):
        return found
    for key, column in part.columns.items():
        for name, (path, old) in column.items():
            if old.numel() == 0 and key not in mine[name]:
                continue  # Adafactor has no rows and columns for vectors and scalars
            if mine[name].get(key) is None:
                raise ValueError(
                    f"state_dict: expected {key!r} for {name}, which {type(part.state).__name__} needs, "
                    f"got {_listed(mine[name]) or 'nothing'}. Pass the state of the same algorithm with "
                    "the same options."
                )
            found[path] = mine[name][key]
    known = {*part.columns, "step", "eta", "mu", "mu_product"}
    unknown = {key for entry in mine.values() for key, v in entry.items() if v is not None} - known
    if unknown:
        raise ValueError(
            f"state_dict: expected only entries of {type(part.state).__name__}, got "
            f"{_listed(sorted(unknown))}. Pass the state of the same algorithm with the same options "
            "(amsgrad, centered, momentum)."
        )
    if isinstance(part.state, NAdamState):
        found[f"{part.path}.mu_product"] = _one("mu_product", mine)
    return found


def _count(part: _Part, mine: Mapping[str, dict[str, Any]], count: int | None) -> int:
    if any("step" in entry for entry in mine.values()):
        return int(_one("step", mine))
    if count is not None:
        return count
    if not any(mine.values()):
        return 0
    if isinstance(part.state, (SGDState, FromTorchState)):
        raise ValueError(
            "count: expected the number of updates so far, which schedules need and this state_dict "
            "does not contain, got None. Write `import_state_dict(..., count=1000)`."
        )
    raise ValueError(
        "state_dict: expected 'step' for each parameter, got no 'step'. Pass the state of the same "
        "algorithm."
    )


def _one(key: str, mine: Mapping[str, dict[str, Any]]) -> float:
    """Return the value of a state entry that must be equal for all parameters; raise if it is not."""
    values = {name: float(entry[key]) if key in entry else 0.0 for name, entry in mine.items()}
    (first, value), *rest = values.items()
    for name, other in rest:
        if other != value:
            raise ValueError(
                f"state_dict: expected the same `{key}` for all parameters, got {value:g} for {first} "
                f"and {other:g} for {name}. ftrain counts updates once for all parameters, so it cannot "
                "continue with parameters that were updated unequally often. Pass the state of a run in "
                "which every step updated all parameters."
            )
    return value


def _fitted(path: str, value: Any, old: torch.Tensor) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        return torch.full_like(old, value)
    if value.shape != old.shape:
        raise ValueError(
            f"state_dict: expected shape {tuple(old.shape)} for state{path}, got {tuple(value.shape)}. "
            "Give the names in the order of the torch optimizer's parameters."
        )
    return like(value.detach().to(device=old.device, dtype=old.dtype, copy=True), old)


def _by_name(
    state_dict: Mapping[str, Any], names: Names
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return `{parameter: state entries}` and `{parameter: learning rate}` of a torch state dict."""
    if not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(
            f"state_dict: expected 'state' and 'param_groups', got {_listed(state_dict)}. "
            "From a torch checkpoint, pass the optimizer's entry alone."
        )
    groups = state_dict["param_groups"]
    ids = [index for group in groups for index in group["params"]]
    if all("param_names" in group for group in groups):
        order = [name for group in groups for name in group["param_names"]]
    elif isinstance(names, nn.Module):
        if len(groups) > 1:  # parameters of one shape could be swapped silently
            raise ValueError(
                f"names: expected a list of names for {len(groups)} parameter groups without names, got "
                "a module, whose order may differ. Give the names group after group: "
                "[*names_of_the_first, *names_of_the_second]."
            )
        order = [name for name, _ in names.named_parameters()]
    else:
        order = list(names)
    _check_length(order, ids)
    rate = {index: group.get("lr") for group in groups for index in group["params"]}
    entries = {name: state_dict["state"].get(i, {}) for name, i in zip(order, ids, strict=True)}
    return entries, {name: rate[i] for name, i in zip(order, ids, strict=True)}


def _check_all_taken(entries: Mapping[str, dict[str, Any]], taken: set[str]) -> None:
    left = [name for name, entry in entries.items() if entry and name not in taken]
    if left and taken:
        raise ValueError(
            f"state_dict: expected only parameters that this optimizer updates, got {_listed(left)}. "
            "Pass the state of an optimizer of the same parameters."
        )


def _check_algorithm(state_dict: Mapping[str, Any], parts: Sequence[_Part]) -> None:
    """Raise if a torch state dict is of SGD, but a part of the state is of another algorithm."""
    of_sgd = any("dampening" in group for group in state_dict["param_groups"])
    for part in parts if of_sgd else ():
        if not isinstance(part.state, (SGDState, FromTorchState)):
            raise ValueError(
                f"state_dict: expected torch.optim.{' or '.join(_TWINS[type(part.state)][0])} for "
                f"{type(part.state).__name__}, got torch.optim.SGD. To change the algorithm, keep "
                "the parameters and start from the optimizer's own `init(params)`."
            )


def _order_of(twin: torch.optim.Optimizer, names: Names) -> dict[str, int]:
    """Return the index of each parameter in the torch optimizer, by name."""
    params = [p for group in twin.param_groups for p in group["params"]]
    if isinstance(names, nn.Module):
        called = {id(p): name for name, p in names.named_parameters()}
        return {called[id(p)]: index for index, p in enumerate(params) if id(p) in called}
    order = list(names)
    _check_length(order, params)
    return {name: index for index, name in enumerate(order)}


def _check_length(order: Sequence[str], ids: Sequence[Any]) -> None:
    if len(order) != len(ids):
        raise ValueError(
            f"names: expected {len(ids)}, one for each parameter of the torch optimizer, got "
            f"{len(order)}: {_listed(order)}. Give them in its order, frozen parameters included."
        )


def _check_twin(part: _Part, twin: torch.optim.Optimizer) -> None:
    if isinstance(part.state, FromTorchState):
        return
    classes, columns = _TWINS[type(part.state)]
    amsgrad = bool(twin.param_groups[0].get("amsgrad"))
    fits = type(twin).__name__ in classes and amsgrad == ("max_exp_avg_sq" in columns.values())
    if not fits:
        raise ValueError(
            f"{type(part.state).__name__}: expected torch.optim.{' or '.join(classes)}"
            f"{' with amsgrad=True' if 'max_exp_avg_sq' in columns.values() else ''}, got "
            f"{type(twin).__name__}{' with amsgrad=True' if amsgrad else ''}. Pass such an optimizer."
        )


def _exported(part: _Part, twin: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Return `{parameter name: its state entries}`, with the entries that `torch.optim` expects."""
    step = float(part.state.count)
    if not step:
        return {}  # torch creates the entries at its first step
    common: dict[str, torch.Tensor] = {}
    if not isinstance(part.state, (SGDState, FromTorchState)):
        common["step"] = torch.tensor(step)
    if isinstance(part.state, NAdamState):
        common["mu_product"] = part.state.mu_product.to(torch.float32)
    if isinstance(part.state, ASGDState):
        group = twin.param_groups[0]
        shrunk = (1 + group["lambd"] * float(group["lr"]) * step) ** group["alpha"]
        common["eta"] = torch.tensor(float(group["lr"]) / shrunk)
        common["mu"] = torch.tensor(1 / max(1.0, step - group["t0"]))
    found: dict[str, dict[str, Any]] = {}
    for name in part.names:
        found[name] = {key: value.clone() for key, value in common.items()}
        for key, column in part.columns.items():
            if name in column and not _is_left_out(part.state, column[name][1]):
                found[name][key] = column[name][1].detach().clone()
    return found


def _is_left_out(state: Any, leaf: torch.Tensor) -> bool:
    return isinstance(state, AdafactorState) and leaf.numel() == 0


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:5]) + (", ..." if len(every) > 5 else "")
