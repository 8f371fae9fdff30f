"""Layout of sharded states, and conversions between a whole state and the part of a rank.

Read next: `fully_sharded.py`, whose steps take and return such parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ftrain.checkpoint.shard import Layout, Shard
from ftrain.core import tree
from ftrain.core._torch_collectives import Group
from ftrain.core._words import a_or_an
from ftrain.core.state import TrainState
from ftrain.core.step import Steps
from ftrain.distributed._sharded_tensor import local_rows, rows_of, whole

__all__ = ["Sharding", "layout_of", "shard", "sharding_of", "unshard"]

T = TypeVar("T")
_PARAMS = ".params"
_EXTRAS = ".extras"


@dataclass(frozen=True)
class Sharding:
    """Layout of a state over ranks: the leaves whose rows are divided among the ranks.

    A sharded leaf with `n` rows is cut along its first axis. Each of `W` ranks holds `ceil(n / W)` rows;
    those of the last ranks may be padding, which is zero. All other leaves are the same on all ranks.

    Attributes:
        shapes: the whole shape of each sharded leaf, by its path in the state, such as
            `.params['weight']`. An entry of `state.extras` is sharded like the parameter whose name ends
            its path, if it has that parameter's shape.
        group: the ranks.
    """

    shapes: Mapping[str, tuple[int, ...]]
    group: Group

    def layout(self, state: Any) -> dict[str, Shard]:
        """Return the rows that this rank holds of each sharded leaf, for `save` and `load`.

        Args:
            state: this rank's part.

        Raises:
            ValueError: a leaf has another shape than on this rank.
        """
        rank, ranks = self.group.rank, self.group.size
        return {
            path: Shard.even(shape, rank, ranks)
            for path, _, shape in self.leaves(state, is_local=True)
            if shape is not None
        }

    def local_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one rank's part, with padding, of a sharded leaf of shape `shape`."""
        return (rows_of(shape[0], self.group)[0], *shape[1:])

    def leaves(
        self, state: Any, *, is_local: bool
    ) -> Iterator[tuple[str, Any, tuple[int, ...] | None]]:
        """Yield path, tensor and whole shape of each leaf; the shape is `None` for a replicated leaf.

        Args:
            state: a `TrainState`.
            is_local: True if the leaves are this rank's parts.

        Raises:
            ValueError: a leaf has another shape than in the layout.
        """
        for path, leaf in zip(tree.paths(state), tree.leaves(state), strict=True):
            shape = self.shapes.get(path)
            if shape is None and path.startswith(_EXTRAS):
                shape = self._of_extra(path, leaf, is_local)
            elif shape is not None:
                expected = self.local_shape(shape) if is_local else shape
                if tuple(leaf.shape) != expected:
                    raise ValueError(
                        f"state{path}: expected shape {expected}, that of {_KINDS[is_local]}, got "
                        f"{tuple(leaf.shape)}. {_REMEDIES[is_local]}"
                    )
            yield path, leaf, shape

    def _of_extra(self, path: str, leaf: Any, is_local: bool) -> tuple[int, ...] | None:
        """Return the whole shape of a leaf in `extras` that is sharded like a parameter, else `None`."""
        for name, shape in self.shapes.items():
            expected = self.local_shape(shape) if is_local else shape
            is_same = name.startswith(_PARAMS) and path.endswith(name.removeprefix(_PARAMS))
            if is_same and tuple(leaf.shape) == expected:
                return shape
        return None


_KINDS = {False: "a whole state", True: "the part of a state on one rank"}
_REMEDIES = {
    False: "Pass a state that is not sharded yet.",
    True: "Call distributed.shard(state, steps) first, or init_state of the sharded steps.",
}


def shard(state: TrainState, steps: Steps | Sharding) -> TrainState:
    """Return this rank's part of a whole state, in new memory.

    Args:
        state: a state of one process, or of `data_parallel`; the same on all ranks.
        steps: the steps of `fully_sharded`, or their `Sharding`.

    Raises:
        ValueError: a leaf has another shape than in the layout.
        TypeError: the steps are not sharded.

    Example:
        >>> import torch
        >>> layout = Sharding({".params['w']": (3, 2)}, Group("", rank=1, size=2))
        >>> state = TrainState(
        ...     torch.tensor(0), {"w": torch.arange(6.0).view(3, 2)}, {}, (), (), torch.zeros(2), {}
        ... )
        >>> shard(state, layout).params["w"]
        tensor([[4., 5.],
                [0., 0.]])
    """
    layout = sharding_of(steps)
    leaves = [
        leaf.clone() if shape is None else local_rows(leaf, layout.group).clone()
        for _, leaf, shape in layout.leaves(state, is_local=False)
    ]
    return tree.unflatten(tree.structure(state), leaves)  # type: ignore[no-any-return]


def unshard(state: TrainState, steps: Steps | Sharding) -> TrainState:
    """Return the whole state, gathered from the parts of all ranks; every rank must call it.

    The result is an ordinary state: the steps of one process take it, `checkpoint.save` stores it.
    `shard(unshard(state, steps), steps)` has the bytes of `state`.

    Args:
        state: this rank's part.
        steps: the steps of `fully_sharded`, or their `Sharding`.

    Raises:
        ValueError: a leaf has another shape than in the layout.
        TypeError: the steps are not sharded.

    Example:
        >>> import torch
        >>> layout = Sharding({}, Group("", rank=0, size=1))
        >>> state = TrainState(torch.tensor(0), {"w": torch.ones(2)}, {}, (), (), torch.zeros(2), {})
        >>> unshard(state, layout).params["w"]
        tensor([1., 1.])
    """
    layout = sharding_of(steps)
    leaves = [
        leaf.clone() if shape is None else whole(leaf, shape[0], layout.group).clone()
        for _, leaf, shape in layout.leaves(state, is_local=True)
    ]
    return tree.unflatten(tree.structure(state), leaves)  # type: ignore[no-any-return]


def layout_of(layout: Layout | Sharding | None, state: Any) -> Layout:
    """Return the rows that this rank holds of each sharded leaf of a state.

    Args:
        layout: these rows, or the layout of all states of sharded steps; `None`: every leaf is whole.
        state: this rank's part.

    Raises:
        ValueError: a leaf of the state has another shape than in the layout.
    """
    return layout.layout(state) if isinstance(layout, Sharding) else layout or {}


def sharding_of(steps: Any) -> Sharding:
    """Return the layout of the states of sharded steps.

    Args:
        steps: the steps of `fully_sharded`, wrapped by transformations or not; a `Sharding` is returned
            as it is.

    Raises:
        TypeError: the steps are not sharded.

    Example:
        >>> layout = Sharding({}, Group("", rank=0, size=1))
        >>> sharding_of(layout) is layout
        True
    """
    layout = getattr(getattr(steps, "train_step", steps), "sharding", steps)
    if not isinstance(layout, Sharding):
        raise TypeError(
            "steps: expected the steps of distributed.fully_sharded, or their Sharding, got "
            f"{a_or_an(type(steps).__name__)}. Call fully_sharded(steps, mesh) first."
        )
    return layout
