"""Warning about models whose loss depends on Python state that a step does not carry to the next one.

A step restores the attributes that a model assigns in its forward pass, so that every step starts with
the values of the first one: a counter, a running mean or the position of a queue does not advance. A
loop by hand would go on with the assigned values. If the first call of a loss assigned attributes, the
loss is computed up to four times more: with other values; once with and once without the attributes
that this call assigned; and if the results differ, once more without, since operators may not be
deterministic. With several ranks nothing is computed again: losses may contain collectives.

Read next: `_skeleton.py`, which restores the attributes; `_model_calls.py`, which calls the loss.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import distributed as dist

from ftrain.core import _torch, tree
from ftrain.core._object_contents import Change
from ftrain.core._skeleton import Skeleton
from ftrain.core.compile._trace import is_tracing

__all__ = ["LostAttributes"]


class LostAttributes:
    """Check of whether a loss needs the attributes that its first call assigned to the model.

    Args:
        skeleton: the model.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        # Fake and mapped tensors have no values to compare.
        has_values = not (is_tracing() or _torch.is_faking() or _torch.inside_functorch())
        self._skeleton, self._is_on = skeleton, has_values and not _several_ranks()
        self._changes: list[Change] | None = None

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record, inside the context, the attribute changes that the skeleton undoes after a call."""
        self._skeleton.undone = [] if self._is_on else None
        try:
            yield
        finally:
            self._changes, self._skeleton.undone = self._skeleton.undone, None

    def warn(self, again: Callable[[Any], tuple[Any, Any]], where: str) -> None:
        """Warn if the next call depends on the changes that the first one made.

        Args:
            again: `again(buffers)` returns the results of a call that starts with `buffers`, and the
                buffers after it; `again(None)` those of half the parameters and half the batch.
            where: the name of the loss in the message.
        """
        if self._changes and self._matter(again):
            warnings.warn(
                f"{where} depends on Python state that the model changes in its forward pass: "
                f"{_changed(self._changes, self._skeleton.path)}. It is not part of the state: every "
                "step starts with the values from before the first one, unlike in a loop of your own. "
                "Register a buffer, self.register_buffer(name, tensor), and write to it in place; or "
                "pass the value in the batch.",
                UserWarning,
                stacklevel=2,
            )

    def _matter(self, again: Callable[[Any], tuple[Any, Any]]) -> bool:
        """Return True if a call has other results if the changes of an earlier call are not undone."""
        skeleton = self._skeleton
        with skeleton.lock:  # calls of other threads must not start with these changes
            try:
                # The earlier call has other values, without which a running mean would stay the same.
                skeleton.undone = []
                _, buffers = again(None)
                skeleton.carried_over, skeleton.undone = skeleton.undone, None
                kept = tree.digest(again(buffers))
                skeleton.carried_over = []
                lost = tree.digest(again(buffers))
                # Nondeterministic operators have other results each time.
                return kept != lost and lost == tree.digest(again(buffers))
            except Exception:  # a loop by hand may fail here too, or half a batch may not be valid
                return False
            finally:
                skeleton.carried_over, skeleton.undone = [], None


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _changed(changes: Sequence[Change], path: Callable[[Any], str]) -> str:
    """Return the paths of at most five changed attributes, with their numbers before and after."""
    names: list[str] = []
    for node, keys, values, _ in changes:
        if keys is None or not isinstance(node, dict):
            names.append(f"`{path(node)}`")
            continue
        for key, value in zip(keys, values, strict=True):
            before = node.get(key)
            if before is not value and key != "training":
                text = f"`{path(node)}.{key}`".replace("`.", "`")
                is_number = isinstance(before, (int, float)) and isinstance(value, (int, float))
                names.append(f"{text} ({before!r}, then {value!r})" if is_number else text)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
