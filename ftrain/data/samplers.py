"""Samplers, which determine the order of the samples in each epoch.

An order is a pure function of (seed, epoch, position). Reading can therefore start anywhere without
delay, and the order is the same for every batch size, number of workers and number of ranks. A custom
order implements `__len__` and `at`.

Read next: `_permutation.py`, which shuffles a billion samples without storing a list of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ftrain.data._hash import uniform, words
from ftrain.data._permutation import LARGEST, permuted
from ftrain.data.cursor import is_count

__all__ = ["ByLength", "Mixed", "Sampler", "Sequential", "Shuffled", "Weighted"]

Positions = NDArray[np.int64]
Indices = NDArray[np.int64]


@runtime_checkable
class Sampler(Protocol):
    """Protocol of a sampler, which defines the order of the samples in each epoch."""

    def __len__(self) -> int:
        """Return the number of samples per epoch."""

    def at(self, positions: Positions, *, seed: int, epoch: int) -> Indices:
        """Return the sample indices at `positions`, int64 of any shape with values in [0, len(self))."""


class Sequential:
    """Sampler that visits the samples in the order of the dataset.

    Args:
        n: the number of samples.

    Example:
        >>> Sequential(3).at(np.arange(3), seed=0, epoch=0)
        array([0, 1, 2])
    """

    def __init__(self, n: int) -> None:
        self.n = _checked_length(n)

    def __len__(self) -> int:
        return self.n

    def at(self, positions: Positions, *, seed: int, epoch: int) -> Indices:
        """Return the positions, which are also the sample indices."""
        return positions


class Shuffled:
    """Sampler that visits each sample once per epoch, in an order that seed and epoch determine.

    The order is a keyed bijection of [0, n), eight rounds of a Feistel network. Any element is computed
    by itself, in constant memory (256 elements of a billion take 0.07 ms).

    Args:
        n: the number of samples, from 1 to 2^32.

    Example:
        >>> order = Shuffled(10**9)
        >>> order.at(np.array([0, 1, 999_999_999]), seed=0, epoch=0)
        array([...])
        >>> sorted(Shuffled(5).at(np.arange(5), seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]

    References:
        Black and Rogaway, "Ciphers with arbitrary finite domains", 2002.
    """

    def __init__(self, n: int) -> None:
        self.n = _checked_length(n)

    def __len__(self) -> int:
        return self.n

    def at(self, positions: Positions, *, seed: int, epoch: int) -> Indices:
        """Return the indices of the samples at these positions of the order."""
        return permuted(positions, self.n, words("shuffled", seed, epoch))


class Weighted:
    r"""Sampler that draws with replacement: sample $i$ with probability $w_i / \sum_j w_j$.

    Args:
        weights: float `(n,)`, all non-negative and at least one positive. A sample of weight zero is
            never drawn.
        samples: the number of draws per epoch; default: the number of weights.

    Raises:
        ValueError: a weight is negative, infinite or NaN, or no weight is positive.

    Example:
        >>> Weighted([0.0, 1.0, 0.0], samples=4).at(np.arange(4), seed=0, epoch=0)
        array([1, 1, 1, 1])
    """

    def __init__(self, weights: Sequence[float] | Tensor | Any, samples: int | None = None) -> None:
        values = np.asarray(weights, dtype=np.float64)
        _check_weights(values)
        self.n = _checked_length(len(values) if samples is None else samples)
        # Scaling the weights by a power of two does not change draws, and prevents overflow in sum and
        # products.
        self._ends = np.cumsum(np.ldexp(values, -np.frexp(values.max())[1]))
        self._last = int(np.nonzero(values)[0][-1])

    def __len__(self) -> int:
        return self.n

    def at(self, positions: Positions, *, seed: int, epoch: int) -> Indices:
        """Return the indices of the samples drawn at these positions."""
        drawn = uniform(positions, words("weighted", seed, epoch)) * self._ends[-1]
        found = np.searchsorted(self._ends, drawn, side="right")
        samples: Indices = np.minimum(found, self._last).astype(np.int64)
        return samples


class ByLength:
    """Sampler that groups samples of similar length, so that batches need little padding.

    Each sample occurs once per epoch. The shuffled order is cut into windows of `window * group`
    samples. Each window is sorted by length and cut into groups, whose order is shuffled. A group should
    be one batch.

    Args:
        lengths: the length of each sample, `(n,)` numbers.
        group: the number of samples in a group, such as the loader's `batch_size`.
        window: the number of groups in a window; with more, lengths are more similar and the order is
            less random.

    Example:
        >>> order = ByLength([5, 1, 4, 1, 5, 4], group=2)
        >>> order.at(np.arange(6), seed=0, epoch=0).reshape(3, 2).tolist()
        [[...], [...], [...]]
    """

    def __init__(
        self, lengths: Sequence[float] | Tensor | Any, group: int, window: int = 64
    ) -> None:
        self._lengths = np.asarray(lengths)
        if self._lengths.ndim != 1 or self._lengths.dtype.kind not in "iuf":
            raise ValueError(
                f"lengths: expected one number for each sample, got {self._lengths.dtype} of shape "
                f"{self._lengths.shape}. Pass a list of numbers."
            )
        for name, value in (("group", group), ("window", window)):
            if not is_count(value, 1):
                raise ValueError(
                    f"{name}: expected an integer >= 1, got {value!r}. Write {name}=1 or more."
                )
        self._shuffled = Shuffled(len(self._lengths))
        self.group, self.window = group, group * window

    def __len__(self) -> int:
        return len(self._shuffled)

    def at(self, positions: Positions, *, seed: int, epoch: int) -> Indices:
        """Return the indices of the samples at these positions of the order."""
        found = np.empty(positions.shape, dtype=np.int64)
        of = positions // self.window
        for number in np.unique(of).tolist():
            here = of == number
            order = self._in_window(number, seed, epoch)
            found[here] = order[positions[here] - number * self.window]
        return found

    def _in_window(self, number: int, seed: int, epoch: int) -> Indices:
        start = number * self.window
        places = np.arange(start, min(start + self.window, len(self)), dtype=np.int64)
        samples = self._shuffled.at(places, seed=seed, epoch=epoch)
        samples = samples[np.argsort(self._lengths[samples], kind="stable")]
        groups = len(samples) // self.group
        if groups < 2:
            return samples
        whole = samples[: groups * self.group].reshape(groups, self.group)
        turn = permuted(np.arange(groups), groups, words("groups", seed, epoch, number))
        return np.concatenate([whole[turn].ravel(), samples[groups * self.group :]])


class Mixed:
    """Sampler that mixes several sources by weight, each shuffled and traversed independently.

    Indices refer to the concatenated sources, as in `data.concat`. In every block of 1,024 positions,
    each source has its share (rounded to 1/1,024), in random order. A source continues from epoch to
    epoch: no sample repeats before all samples of its source have occurred.

    Args:
        sizes: the number of samples of each source.
        weights: the share of each source; default: proportional to its size.
        samples: the number of samples per epoch; default: the sum of the sizes.

    Raises:
        ValueError: sizes and weights differ in number, or a weight is negative or not finite.

    Example:
        >>> order = Mixed([100, 900], weights=[0.5, 0.5])
        >>> drawn = order.at(np.arange(1000), seed=0, epoch=0)
        >>> 480 < int((drawn < 100).sum()) < 520
        True
    """

    BLOCK = 1024

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float] | None = None,
        samples: int | None = None,
    ) -> None:
        self._sizes = [_checked_length(size) for size in sizes]
        shares = np.asarray(self._sizes if weights is None else weights, dtype=np.float64)
        _check_weights(shares)
        if len(shares) != len(self._sizes):
            raise ValueError(
                f"weights: expected {len(self._sizes)} numbers, one for each source, got {len(shares)}. "
                "Pass one weight per source."
            )
        self.n = _checked_length(sum(self._sizes) if samples is None else samples)
        self._counts = _shares(shares / shares.sum(), self.BLOCK)
        self._offsets = np.cumsum([0, *self._sizes[:-1]])

    def __len__(self) -> int:
        return self.n

    def at(self, positions: Positions, *, seed: int, epoch: int) -> Indices:
        """Return the indices of the samples at these positions of the order."""
        blocks, places = np.divmod(positions + epoch * self.n, self.BLOCK)
        found = np.empty(positions.shape, dtype=np.int64)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            found[here] = self._in_block(block, seed)[places[here]]
        return found

    def _in_block(self, block: int, seed: int) -> Indices:
        """Return the sample indices of one block of positions; each block has the same mixture."""
        drawn = [
            self._of_source(source, block * count + np.arange(count, dtype=np.int64), seed)
            for source, count in enumerate(self._counts)
            if count
        ]
        order = permuted(np.arange(self.BLOCK), self.BLOCK, words("block", seed, 0, block))
        samples: Indices = np.concatenate(drawn)[order]
        return samples

    def _of_source(self, source: int, turns: Positions, seed: int) -> Indices:
        """Return the index of the n-th sample drawn from a source, for each n in `turns`."""
        size = self._sizes[source]
        passes, places = np.divmod(turns, size)
        found = np.empty(turns.shape, dtype=np.int64)
        for number in np.unique(passes).tolist():
            here = passes == number
            found[here] = permuted(places[here], size, words("source", seed, number, source))
        return found + int(self._offsets[source])


def _shares(parts: NDArray[np.float64], total: int) -> list[int]:
    """Divide `total` into integers proportional to `parts`, by the largest-remainder method."""
    exact = parts * total
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[index] += 1
    starved = np.nonzero((counts == 0) & (parts > 0))[0]
    if len(starved):
        raise ValueError(
            f"weights[{starved[0]}]: expected a share of at least 1/{2 * total}, got "
            f"{parts[starved[0]]:.2g}: the source would never be drawn. Give it a larger weight, or "
            "leave it out."
        )
    found: list[int] = counts.tolist()
    return found


def _checked_length(n: int) -> int:
    if not is_count(n, 1) or n > LARGEST:
        raise ValueError(
            f"number of samples: expected an integer from 1 to 2**32, got {n!r}. Pass len(dataset)."
        )
    return n


def _check_weights(weights: NDArray[np.float64]) -> None:
    if weights.ndim != 1 or not len(weights):
        raise ValueError(
            f"weights: expected numbers of shape (n,), got shape {weights.shape}. Pass one weight "
            "per sample or source."
        )
    wrong = np.nonzero(~(np.isfinite(weights) & (weights >= 0)))[0]
    if len(wrong):
        raise ValueError(
            f"weights[{wrong[0]}]: expected a finite number >= 0, got {weights[wrong[0]]}. Write 0 "
            "to leave it out."
        )
    if not weights.any():
        raise ValueError(
            "weights: expected at least one positive weight, got zeros only. Increase one."
        )
