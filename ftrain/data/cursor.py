"""Position of a run in its data, (seed, epoch, position), as a value that the caller stores.

Read next: `loader.py`, which yields the batches after a cursor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import NoneType
from typing import Any

import numpy as np

from ftrain.data import _json

__all__ = ["Cursor"]

#: Version of the order of samples; increased when (seed, epoch, position) select other samples.
ORDER = 1

# The largest number of epochs, for which a count of samples over all epochs (of up to 2^32 samples) fits
# into 63 bits.
_EPOCHS = 2**31


@dataclasses.dataclass(frozen=True, slots=True)
class Cursor:
    """Position in the data, which alone determines the batches that follow.

    A loader yields each batch with the cursor after it. Keep the cursor of the last batch that you used;
    prefetched batches are not counted. Save `to_json()` together with the state.

    Attributes:
        seed: the seed of the order and of the augmentations.
        epoch: the number of completed passes over the data.
        position: the number of samples of this epoch that all ranks together have consumed (for a
            `Stream`, the number of batches). A run may therefore resume with another batch size or
            number of ranks.
        state: the state from which a stateful `Stream` resumes; `None` for every `Loader`.
        of: a description of the data: "100 samples", "a stream". A loader of data with another
            description raises for this cursor. `None`, in a cursor written by hand or by an earlier
            version, is accepted for any data.
        sampler: a description of the order, with a hash of the samples at 256 positions of the first
            epoch: "shuffle=True 5bb5a1a0c1d8". A loader whose `shuffle` or `sampler` gives another order
            raises for this cursor. `None` for a `Stream`.

    Example:
        >>> cursor = Cursor(seed=0, epoch=2, position=128)
        >>> cursor.to_json()
        {'order': 1, 'seed': 0, 'epoch': 2, 'position': 128}
        >>> Cursor.from_json(cursor.to_json()) == cursor
        True
    """

    seed: int
    epoch: int = 0
    position: int = 0
    state: Any = None
    of: str | None = dataclasses.field(default=None, compare=False, repr=False)
    sampler: str | None = dataclasses.field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` accepts.

        Raises:
            TypeError: the state of a stream has a value that JSON cannot represent; the message names
                it.
        """
        found: dict[str, Any] = {
            "order": ORDER,
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
        }
        if self.of is not None:
            found["of"] = self.of
        if self.sampler is not None:
            found["sampler"] = self.sampler
        if self.state is not None:
            found["state"] = _json.encode(self.state, "the stream's state")
        return found

    def check(self, of: str | None = None, sampler: str | None = None) -> None:
        """Raise unless the cursor is valid and was made for the given data and the given order.

        Args:
            of: a description of the data, as in the attribute `of`; `None` to accept any data.
            sampler: a description of the order, as in the attribute `sampler`; `None` to accept any.

        Raises:
            TypeError, ValueError: the cursor is invalid or does not fit; the message names both
                descriptions.
        """
        check_seed(self.seed)
        for name in ("epoch", "position"):
            value = getattr(self, name)
            if not is_count(value, 0):
                raise ValueError(
                    f"cursor.{name}: expected an integer >= 0, got {value!r}. Pass a cursor that "
                    "the loader yielded."
                )
        if self.epoch >= _EPOCHS or self.position >= 2**63:
            raise ValueError(
                f"cursor: expected epoch < 2**31 and position < 2**63, got {self}. Pass a cursor "
                "that the loader yielded."
            )
        for name in ("of", "sampler"):
            if not isinstance(value := getattr(self, name), (str, NoneType)):
                raise ValueError(
                    f"cursor.{name}: expected a string or None, got {value!r}. Pass a cursor that "
                    "the loader yielded."
                )
        if None not in (of, self.of) and of != self.of:
            raise ValueError(
                f"cursor: expected a cursor for {of}, got one that was made for other data: {self.of}. "
                "Pass the data that the run began with; or, to begin an epoch of this data, pass "
                f"data.Cursor({self.seed}, {self.epoch})."
            )
        # Only the hashes are compared, so that a sampler can be renamed.
        if sampler and self.sampler and sampler.split()[-1:] != self.sampler.split()[-1:]:
            raise ValueError(
                f"cursor: expected a cursor for the order of {sampler}, got one that was made for "
                f"another order: that of {self.sampler}. Pass the `shuffle` or `sampler` that the run "
                "began with, with the same arguments; or, to begin an epoch in this order, pass "
                f"data.Cursor({self.seed}, {self.epoch})."
            )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Cursor:
        """Return the cursor that `to_json` converted.

        Raises:
            ValueError: an entry is missing, is not a count, or comes from a newer version of ftrain.
        """
        try:
            order, seed, epoch, position = (
                content[name] for name in ("order", "seed", "epoch", "position")
            )
        except (KeyError, TypeError):
            raise ValueError(
                f"content: expected a dict with order, seed, epoch and position, got {content!r}. Pass "
                "the dict that `cursor.to_json()` returned."
            ) from None
        if order != ORDER:
            raise ValueError(
                f"content['order']: expected {ORDER}, the data order of this version of ftrain, got "
                f"{order!r}. Continue with the version that saved the cursor, or start the data anew "
                "with loader.start()."
            )
        try:
            state = _json.decode(content.get("state"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"content['state']: the position of the data stream is damaged: {error!r}. Load "
                "another checkpoint."
            ) from None
        cursor = cls(seed, epoch, position, state, content.get("of"), content.get("sampler"))
        cursor.check()
        return cursor


def checked(cursor: object, of: str, sampler: str | None = None) -> Cursor:
    """Return the cursor; raise unless it was made for the data described by `of`, in the same order."""
    if not isinstance(cursor, Cursor):
        raise TypeError(
            f"cursor: expected a data.Cursor, got {type(cursor).__name__}. Pass loader.start(), or "
            "data.Cursor.from_json(...) for a saved cursor."
        )
    cursor.check(of, sampler)
    return cursor


def check_seed(seed: object) -> None:
    """Raise unless a seed is a signed or unsigned 64-bit integer."""
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(
            f"seed: expected an integer, got {type(seed).__name__} {seed!r}. Write seed=0."
        )
    if not -(2**63) <= seed < 2**64:
        raise ValueError(
            f"seed: expected a 64-bit integer, in [-2**63, 2**64), got {seed}. Write seed=0."
        )


def is_count(value: object, least: int) -> bool:
    """Return True if the value is an integer of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def convert_integers(owner: object, *names: str) -> None:
    """Convert attributes of a frozen object that are integers of another kind, such as NumPy's."""
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            object.__setattr__(owner, name, int(value))
