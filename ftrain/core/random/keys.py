"""Keys, the source of all randomness of a run.

A key is an int32 tensor of shape `(2,)`: the bit patterns of JAX's two uint32 words (torch has few
uint32 operations, and a key must survive stacking, indexing and checkpoints). An array of keys is
`(..., 2)`.

Read next: `sample.py`, which draws from a key.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftrain.core._words import a_or_an
from ftrain.core.random import _operators
from ftrain.core.random._threefry import low_word, signed

__all__ = ["fold_in", "key", "key_data", "split"]


def key(seed: int | Tensor, *, device: torch.device | str | None = None) -> Tensor:
    """Return the key of an integer seed: the two words of its 64-bit two's complement, upper word first.

    Args:
        seed: an integer in [-2^63, 2^64), or an integer tensor of any shape (of `(n,)`: n keys). As in
            JAX, an integer tensor of 32 bits or fewer has no upper word: the upper word of `int32(-1)`
            is 0.
        device: the key's device; default: torch's default device, or that of a tensor `seed`.

    Returns:
        int32 `(2,)`, or `(*seed.shape, 2)`: the words of `jax.random.key(seed)` under `jax_enable_x64`.
        Without that mode JAX drops the upper word, which changes the key of seeds outside [0, 2^32).

    Raises:
        ValueError: if the seed needs more than 64 bits.
        TypeError: if it is not an integer.

    >>> key_data(key(2**40 + 7))
    tensor([256,   7], dtype=torch.uint32)
    """
    if isinstance(seed, Tensor):
        if seed.dtype == torch.bool or seed.is_floating_point() or seed.is_complex():
            raise TypeError(
                f"seed: expected an integer, got a tensor of {seed.dtype}. Convert it: seed.long()."
            )
        if seed.dtype == torch.uint64:
            seed = seed.view(torch.int64)
        low = low_word(seed)
        wide = seed.dtype == torch.int64
        high = (seed >> 32).to(torch.int32) if wide else torch.zeros_like(low)
        words = torch.stack([high, low], dim=-1)
        return words if device is None else words.to(device)
    try:
        seed = operator.index(seed)  # integers of NumPy too
    except TypeError:
        raise TypeError(
            f"seed: expected an integer, got {type(seed).__name__}. Write key(0)."
        ) from None
    if not -(2**63) <= seed < 2**64:
        raise ValueError(
            f"seed: expected an integer of 64 bits, in [-2**63, 2**64), got {seed}. Write key(0)."
        )
    pair = [signed(seed >> 32), signed(seed)]
    return torch.tensor(pair, dtype=torch.int32, device=device)


def key_data(key: Tensor) -> Tensor:
    """Return a view of keys as torch.uint32 words `(..., 2)`, like `jax.random.key_data`.

    >>> key_data(fold_in(key(0), 7))
    tensor([2716826189,  292468403], dtype=torch.uint32)
    """
    _check(key)
    return key.view(torch.uint32)


def split(key: Tensor, num: int | Sequence[int] = 2, *, folds: Sequence[int] = ()) -> Tensor:
    """Return `num` new independent keys, derived from one key; row `i` is `fold_in(key, i)`.

    Args:
        key: a single key, int32 `(2,)`.
        num: the number of keys, or the shape of the array of keys.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        int32 `(num, 2)` or `(*num, 2)`, equal to `jax.random.split`.

    Raises:
        ValueError: for an array of keys (`torch.vmap` over them instead), or a negative `num`.
        TypeError: `key` is not a tensor.

    >>> params_key, data_key = split(key(0))
    >>> split(params_key, (3, 4)).shape
    torch.Size([3, 4, 2])
    """
    _check_single(key, "split")
    shape = tuple(num) if isinstance(num, Sequence) else (num,)
    if not all(isinstance(n, (int, np.integer)) and n >= 0 for n in shape):
        raise ValueError(
            f"num: expected an int >= 0, the number of keys, or a tuple of such ints, got {num!r}. "
            "Write `split(key, 3)` or `split(key, (2, 3))`."
        )
    return _operators.threefry_split(key, _folds(folds), [int(n) for n in shape])


def fold_in(key: Tensor, data: int | Tensor, *, folds: Sequence[int] = ()) -> Tensor:
    """Return a new key from a key and an integer (a step, a rank, a layer's number).

    Args:
        key: a key, or an array of keys `(..., 2)`.
        data: an integer in [0, 2^32), or an integer tensor (for instance `state.step`), which is taken
            modulo 2^32 and broadcast against the keys: `n` integers and one key give `n` keys.
        folds: integers in [0, 2^32) to fold into the key before `data`.

    Returns:
        int32 `(..., 2)`, equal to `jax.random.fold_in` of each pair.

    Raises:
        ValueError: if an integer lies outside [0, 2^32).
        TypeError: if `data` is a tensor of floats.

    >>> step_key = fold_in(key(0), torch.tensor(7))
    >>> bool((step_key == fold_in(key(0), 7)).all())
    True
    """
    _check(key)
    if not isinstance(data, Tensor):
        return _operators.threefry_fold(key, _folds((*folds, data)))
    if data.dtype == torch.bool or data.is_floating_point() or data.is_complex():
        raise TypeError(
            f"fold_in: expected data to be an integer or an integer tensor, got {data.dtype}. "
            "Convert it: .long()."
        )
    if folds:
        key = _operators.threefry_fold(key, _folds(folds))
    return _operators.threefry_fold_in(key, data)


def _folds(folds: Sequence[int]) -> Sequence[int]:
    for data in folds:
        if not 0 <= data < 2**32:
            raise ValueError(
                f"data: expected an integer in [0, 2**32) to fold into a key, got {data}. "
                f"Fold its upper 32 bits in first, or write `{data} % 2**32`."
            )
    return folds


def _check(key: Any) -> None:
    if not isinstance(key, Tensor):
        seed = key if isinstance(key, int) else "seed"
        raise TypeError(
            f"key: expected an int32 tensor of shape (2,), got {a_or_an(type(key).__name__)} {key!r}. "
            f"Make one with `ftrain.random.key({seed})`."
        )
    if key.dtype != torch.int32 or key.ndim == 0 or key.shape[-1] != 2:
        remedy = (
            "View it as torch.int32"
            if key.dtype == torch.uint32
            else "Make one with `ftrain.random.key(seed)`"
        )
        got = f"{key.dtype} {tuple(key.shape)}"
        raise ValueError(f"key: expected an int32 tensor of shape (2,), got {got}. {remedy}.")


def _check_single(key: Any, name: str) -> None:
    if not isinstance(key, Tensor) or (
        key.dtype != torch.int32 or key.ndim != 1 or key.shape[0] != 2
    ):
        _check(key)
        raise ValueError(
            f"{name}: expected one key of shape (2,), got an array of keys {tuple(key.shape)}. Write "
            f"`torch.vmap(lambda key: random.{name}(key, ...))(keys)`."
        )
