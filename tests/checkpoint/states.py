"""States for checkpoint tests, and Hypothesis strategies that generate them."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

from ftrain import TrainState, checkpoint, random

DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint16, torch.uint32, torch.uint64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex32, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)  # fmt: skip


class Moments(NamedTuple):
    mu: Any
    nu: Any


def random_bytes(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return a tensor of any bit pattern, including NaNs with payloads (booleans: 0 and 1)."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    flat = torch.randint(
        0, 256, (torch.Size(shape).numel() * dtype.itemsize,), generator=generator
    ).to(torch.uint8)
    return flat.view(dtype).reshape(shape)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Generate tensors of every dtype, rank and layout: permuted, strided, expanded, overlapping."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    dtype = draw(st.sampled_from(DTYPES))
    dense = random_bytes(shape, dtype, draw(st.integers(0, 2**31)))
    layout = draw(st.sampled_from(["dense", "permuted", "gapped", "expanded", "window", "offset"]))
    if layout == "permuted" and shape:
        return dense.permute(draw(st.permutations(range(len(shape)))))
    if layout == "gapped" and shape:
        wide = random_bytes((*shape[:-1], shape[-1] * 2 + 1), dtype, 7)
        return wide[..., 1::2]
    if layout == "expanded":
        return dense.unsqueeze(0).expand(draw(st.integers(1, 3)), *shape)
    if layout == "window":
        return random_bytes((6,), dtype, 3).as_strided((4, 3), (1, 1))
    if layout == "offset" and shape:
        return random_bytes((2, *shape), dtype, 5)[1]
    return dense


KEYS = st.text(max_size=6) | st.integers(-3, 3)


def trees(leaves: Any = None) -> st.SearchStrategy[Any]:
    """Generate pytrees of tensors with containers of every kind."""
    return st.recursive(
        tensors() if leaves is None else leaves,
        lambda children: st.one_of(
            st.dictionaries(st.text(max_size=6), children, max_size=3),
            st.dictionaries(st.integers(-3, 3), children, max_size=3),
            st.lists(children, max_size=3),
            st.tuples(children, children),
            st.builds(Moments, children, st.none() | children),
            st.dictionaries(st.text(max_size=3), children, max_size=2).map(collections.OrderedDict),
        ),
        max_leaves=6,
    )


def train_state(step: int, size: int = 5) -> TrainState:
    """Return a state whose every bit is a function of the step."""
    generator = torch.Generator().manual_seed(step)
    w = torch.randn(size, 3, generator=generator)
    return TrainState(
        step=torch.tensor(step),
        params={"w": w, "b": torch.randn(3, generator=generator).to(torch.bfloat16)},
        buffers={"mean": torch.randn(3, generator=generator)},
        opt_state=Moments({"w": w * 2, "b": w[0] * 3}, torch.tensor(0.5)),
        scaler=(),
        rng=random.key(step),
        extras={"ema": w.t()},
    )


def bytes_of(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().cpu().clone(memory_format=torch.contiguous_format)
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def flip(path: Path, offset: int = -1) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def filled(directory: Path, steps: Sequence[int] = (1, 2, 3), **options: Any) -> checkpoint.Store:
    """Return a store that contains checkpoints of the given steps."""
    store = checkpoint.Store(directory, **options)
    for step in steps:
        store.save(train_state(step), step=step, metadata={"at": step}, metrics={"loss": -step})
    return store
