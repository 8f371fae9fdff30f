"""Parameter groups, each with an optimizer of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftrain.core import tree
from ftrain.core._words import a_or_an
from ftrain.optim._leaves import matching_leaves
from ftrain.optim._partial_trees import narrowed, part
from ftrain.optim.masks import Mask, mask_leaves, names
from ftrain.optim.protocol import GradientTransformation, PyTree

__all__ = ["partition"]


def partition(groups: Mapping[str, tuple[Mask, GradientTransformation]]) -> GradientTransformation:
    """Combine optimizers: the first group whose mask selects a parameter updates that parameter.

        optimizer = optim.partition({
            "frozen": ("^embed", optim.set_to_zero()),
            "backbone": ("^backbone", optim.adamw(1e-4)),
            "head": (optim.everything, optim.adamw(1e-3)),
        })

    Each optimizer updates its own parameters as it would alone. A `clip_by_global_norm` inside a group
    uses the norm of that group's gradients; to clip by the norm of all gradients, write
    `chain(clip_by_global_norm(1.0), partition(...))`. The weight decay of `adamw` follows its own mask,
    by default without norms and biases.

    Args:
        groups: name -> (mask, optimizer), tried in this order. A mask is a pattern of names, a tree of
            bools, or a function from parameters to one, such as `optim.matching(predicate)`. Use
            `optim.everything` in the last group to select all remaining parameters.

    Returns:
        A transformation whose state is a dict of the groups' states: `optim.get(state, "head",
        "learning_rate")` is a group's learning rate, and a training step reports each.

    Raises:
        ValueError: a parameter is in no group; a pattern occurs in no name; earlier groups contain every
            parameter that a pattern or a tree selects (a function may select none); gradients and
            parameters differ in structure. The message names the path.
        TypeError: a group is not a pair of mask and optimizer.

    Example:
        >>> import torch
        >>> from ftrain import optim
        >>> optimizer = partition({
        ...     "backbone": ("^backbone", optim.sgd(0.1)),
        ...     "head": (optim.everything, optim.sgd(1.0)),
        ... })
        >>> params = {"backbone.w": torch.ones(1), "head.w": torch.ones(1)}
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
        >>> updates
        {'backbone.w': tensor([-0.1000]), 'head.w': tensor([-1.])}
        >>> optim.get(state, "backbone", "learning_rate")
        tensor(0.1000)
    """
    _check_groups(groups)
    for name, group in groups.items():
        _check_group(name, group)
    optimizers = {name: optimizer for name, (_, optimizer) in groups.items()}

    def owners(params: PyTree) -> list[str]:
        """Return the name of the group that updates each parameter, in the order of the leaves."""
        flat = [mask_leaves(mask, params) for mask, _ in groups.values()]
        found = []
        for index, path in enumerate(names(tree.structure(params))):
            mine = [name for name, mask in zip(groups, flat, strict=True) if mask[index]]
            if not mine:
                raise ValueError(
                    f"groups: expected a group for each parameter, got {path} in none of "
                    f"{', '.join(groups)}. Add a last group for all others, "
                    '`"rest": (optim.everything, optim.adamw(1e-3))`, with `optim.set_to_zero()` as its '
                    "optimizer to keep them unchanged."
                )
            found.append(mine[0])
        for (name, (mask, _)), bools in zip(groups.items(), flat, strict=True):
            if name not in found and any(bools) and not callable(mask):
                before = dict.fromkeys(g for g, mine in zip(found, bools, strict=True) if mine)
                raise ValueError(
                    f"groups[{name!r}]: expected at least one parameter, got none: all parameters that "
                    f"its mask selects belong to earlier groups ({', '.join(before)}), as the first "
                    "match wins. Write the narrower mask first."
                )
        return found

    def init(params: PyTree) -> dict[str, PyTree]:
        of = owners(params)
        return {
            name: optimizer.init(part(params, [owner == name for owner in of]))
            for name, optimizer in optimizers.items()
        }

    def update(
        grads: PyTree, state: dict[str, PyTree], params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, dict[str, PyTree]]:
        if params is not None:
            matching_leaves(("params", params), ("grads", grads))
        if not isinstance(state, dict) or state.keys() != groups.keys():
            raise ValueError(
                f"state: expected a dict of the states of {', '.join(groups)}, got "
                f"{list(state) if isinstance(state, dict) else type(state).__name__}. Pass the state "
                "that the partition's `init` or `update` returned."
            )
        of = owners(grads if params is None else params)
        moved, states = {}, {}
        for name, optimizer in optimizers.items():
            keep = [owner == name for owner in of]
            given = None if params is None else part(params, keep)
            updates, states[name] = optimizer.update(
                part(grads, keep), state[name], given, **narrowed(extra, params, keep)
            )
            moved[name] = iter(tree.leaves(updates))
        merged = [next(moved[owner]) for owner in of]
        return tree.unflatten(tree.structure(grads), merged), states

    return GradientTransformation(init, update)


def _check_groups(groups: object) -> None:
    if not isinstance(groups, Mapping):
        raise TypeError(
            "groups: expected a dict from a group's name to its mask and its optimizer, got "
            f"{a_or_an(type(groups).__name__)}. Write "
            '`{"rest": (optim.everything, optim.adamw(1e-3))}`.'
        )
    if not groups:
        raise ValueError(
            "groups: expected at least one group, got an empty dict. Write "
            '`{"rest": (optim.everything, optim.adamw(1e-3))}`.'
        )


def _check_group(name: str, group: object) -> None:
    if (
        not isinstance(group, tuple)
        or isinstance(group, GradientTransformation)
        or len(group) != 2
        or not isinstance(group[1], GradientTransformation)
    ):
        raise TypeError(
            f"groups[{name!r}]: expected a pair of a mask and an optimizer, got {group!r}. Write "
            f'`{{{name!r}: ("^backbone", optim.adamw(1e-4)), ...}}`.'
        )
