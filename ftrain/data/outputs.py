"""Outputs of a function per sample (such as a teacher's logits), computed once and stored in a file.

The file is a safetensors file with digests of the data, of the function's tensors and of its own
content, so that outputs of another teacher or for other data raise.

Read next: `loader.py`, which reads the result like any dataset.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ftrain.core import tree
from ftrain.core._words import a_or_an
from ftrain.core.errors import DataError, UnkeyedRandomError
from ftrain.core.random._watch import Watch
from ftrain.data._fetch import Arrays, Gather, as_dataset
from ftrain.data._files import PathLike
from ftrain.data._output_file import Draft, is_storable, opened
from ftrain.data.loader import Loader

__all__ = ["with_outputs"]


_REMEDY = "Delete it to compute them again, or give another path."


def with_outputs(
    dataset: Any,
    fn: Callable[[Any], Any],
    path: PathLike,
    *,
    source: Any,
    name: str = "teacher",
    batch_size: int = 256,
    version: str | None = None,
) -> Any:
    """Return the dataset with a function's outputs as further entries of each sample, stored in a file.

    If the file does not exist, `fn` is called on all samples, in their stored order, and the file
    appears when it is complete. If it exists, `fn` is not called, and outputs are read from the disk
    when they are indexed. Outputs belong to the indices of samples, independently of a loader's order.
    They are computed from the stored samples, before a loader's `augment`.

    Args:
        dataset: a mapping of tensors, or a dataset whose samples (or gathered batches) are mappings.
        fn: `batch -> outputs`, called without gradients; returns a tensor `(n, ...)` or a mapping from
            names to such tensors. It is called with batches of `batch_size` samples, the last of which
            may be smaller.
        path: the file, such as `teacher.safetensors`.
        source: the tree of tensors (numbers, strings) that determines the outputs: the teacher's
            weights.
        name: the name of the new entry, if `fn` returns a tensor.
        batch_size: the number of samples in a batch.
        version: a name for the content of the data, which replaces a digest of all samples. The digest
            reads data that are accessed sample by sample once more.

    Returns:
        A mapping of tensors, or a dataset of the same length.

    Raises:
        DataError: the file has outputs of another teacher or for other data, or is damaged.
        TypeError: samples are not mappings; `fn` returns neither a tensor nor a mapping of tensors.
        ValueError: `source` has no tensor; `fn` draws random numbers, as a teacher in training mode
            does; an output has another number of rows than the batch, or its name is already an entry of
            the batch.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "teacher.safetensors"
        >>> teacher = torch.nn.Linear(2, 3)
        >>> weights = dict(teacher.state_dict())
        >>> training = with_outputs(
        ...     {"x": torch.ones(4, 2)}, lambda b: teacher(b["x"]), file, source=weights
        ... )
        >>> {name: tuple(value.shape) for name, value in training.items()}
        {'x': (4, 2), 'teacher': (4, 3)}
    """
    path = Path(path)
    if not tree.leaves(source):
        raise ValueError(
            f"source: expected the tensors that determine the outputs, got {source!r}, which is the "
            "same for every teacher. Write source=dict(teacher.state_dict())."
        )
    found = as_dataset(dataset)
    if isinstance(found, Arrays) and not isinstance(dataset, Mapping):
        raise TypeError(
            f"dataset: expected a mapping, to which entries can be added, got "
            f"{a_or_an(type(dataset).__name__)}. Name the tensors: {{'x': ..., 'y': ...}}."
        )
    expected = {"source": _digest(source)}
    if version is not None:
        expected["data"] = _hashed(version)
    elif isinstance(found, Arrays):
        expected["data"] = _digest(tree.map(torch.as_tensor, dict(dataset)))
    if not path.exists():
        _compute(dataset, len(found), fn, path, expected, name, batch_size)
    file = opened(path)
    if not file.is_whole():
        raise DataError(
            f"{path}: expected the bytes that were written, got a damaged file. {_REMEDY}"
        )
    if "data" not in expected and file.rows == len(found):
        expected["data"] = _digest_of_batches(dataset, int(file.metadata["batch_size"]))
    _check(path, file.metadata, expected, (file.rows, len(found)))
    outputs = file.tensors()
    if file.metadata.get("single"):
        outputs = dict(zip((name,), outputs.values(), strict=True))
    if isinstance(found, Arrays):
        _refuse_taken(dataset, outputs)
        return {**dataset, **outputs}
    return (_Gathered if isinstance(found, Gather) else _Sampled)(found, outputs)


class _Sampled:
    """Map-style dataset with entries added to each sample."""

    def __init__(self, dataset: Any, outputs: dict[str, Tensor]) -> None:
        self.dataset, self.outputs = dataset, outputs

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[index]
        _require_mapping(sample, "samples that are mappings", "from __getitem__")
        _refuse_taken(sample, self.outputs)
        return {**sample, **{name: x[index] for name, x in self.outputs.items()}}


class _Gathered:
    """Dataset of whole batches with entries added to each batch."""

    def __init__(self, dataset: Any, outputs: dict[str, Tensor]) -> None:
        self.dataset, self.outputs = dataset, outputs

    def __len__(self) -> int:
        return len(self.dataset)

    def gather(self, indices: Tensor) -> Any:
        """Return the rows with these indices."""
        batch = self.dataset.gather(indices)
        _require_mapping(batch, "gather to return a mapping", "from gather")
        _refuse_taken(batch, self.outputs)
        return {**batch, **{name: x.index_select(0, indices) for name, x in self.outputs.items()}}


def _require_mapping(value: Any, what: str, where: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(
            f"dataset: expected {what}, to which entries can be added, got "
            f"{a_or_an(type(value).__name__)}. Return {{'x': ..., 'y': ...}} {where}."
        )


def _refuse_taken(entries: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    taken = sorted(entries.keys() & outputs.keys())
    if taken:
        raise ValueError(
            "name: expected names that are not yet keys of the samples, got "
            f"{', '.join(map(repr, taken))}. Choose another name."
        )


def _batches(dataset: Any, batch_size: int) -> Iterator[Any]:
    return iter(Loader(dataset, batch_size, shuffle=False, last_batch="keep"))


def _digest_of_batches(dataset: Any, batch_size: int) -> str:
    found = hashlib.sha256()
    for batch in _batches(dataset, batch_size):
        found.update(_digest(batch).encode())
    return found.hexdigest()[:16]


def _digest(value: Any) -> str:
    """Return a hash (16 hexadecimal digits) of tensors, numbers and strings, and of their paths."""
    return hashlib.sha256(json.dumps(tree.digests(value)).encode()).hexdigest()[:16]


def _hashed(version: str) -> str:
    return "version " + hashlib.sha256(version.encode()).hexdigest()[:16]


def _compute(
    dataset: Any,
    rows: int,
    fn: Callable[[Any], Any],
    path: Path,
    digests: dict[str, str],
    name: str,
    batch_size: int,
) -> None:
    """Write the outputs for all samples; the file appears when it is complete."""
    seen, watch, single = hashlib.sha256(), Watch(fn), False
    with Draft(path, rows) as draft:
        for i, batch in enumerate(_batches(dataset, batch_size)):
            if "data" not in digests:
                seen.update(_digest(batch).encode())
            with torch.no_grad(), _refusing_draws():
                found = watch(functools.partial(fn, batch))
            outputs, single = _named(found, name), isinstance(found, Tensor)
            if isinstance(batch, Mapping):
                _refuse_taken(batch, outputs)
            _check_rows(outputs, min(batch_size, rows - i * batch_size))
            draft.put(outputs, i * batch_size)
        data = digests.get("data", seen.hexdigest()[:16])
        more = {"batch_size": str(batch_size), "single": "yes" if single else ""}
        draft.publish({**digests, "data": data, **more})


@contextlib.contextmanager
def _refusing_draws() -> Iterator[None]:
    """Raise at a random draw, because outputs that are stored once must not depend on draws."""
    try:
        yield
    except UnkeyedRandomError as error:
        raise ValueError(
            "fn: expected outputs that depend on the batch and on `source` alone, got random draws, "
            "such as those of a dropout in training mode. Call teacher.eval()."
        ) from error


def _check_rows(outputs: dict[str, Tensor], count: int) -> None:
    for name, x in outputs.items():
        if not x.ndim or len(x) != count or not x.numel():
            raise ValueError(
                f"fn: expected {count} rows, as in the batch, got {name!r} of shape {tuple(x.shape)}. "
                "Return one row a sample."
            )


def _named(outputs: Any, name: str) -> dict[str, Tensor]:
    named = {name: outputs} if isinstance(outputs, Tensor) else outputs
    if not isinstance(named, Mapping) or not all(isinstance(x, Tensor) for x in named.values()):
        raise TypeError(
            f"fn: expected a tensor or a mapping of tensors, got {a_or_an(type(outputs).__name__)}. "
            "Return the logits, or {'teacher': logits, 'features': features}."
        )
    for each, x in named.items():
        if not is_storable(x.dtype):
            raise TypeError(
                f"fn: expected real numbers of at most 64 bits, got {each!r} of {x.dtype}. Convert it."
            )
    return {each: x.detach().cpu() for each, x in sorted(named.items())}


def _check(
    path: Path, stored: dict[str, str], expected: dict[str, str], rows: tuple[int, int]
) -> None:
    """Raise if the stored outputs were computed with other weights or for other data."""
    if stored["source"] != expected["source"]:
        raise DataError(
            f"{path}: expected outputs of the source {expected['source']} (the teacher's weights), got "
            f"those of {stored['source']}. {_REMEDY}"
        )
    if rows[0] != rows[1]:
        raise DataError(
            f"{path}: expected outputs for {rows[1]} samples, got outputs for {rows[0]}, which were "
            f"computed from other data. {_REMEDY}"
        )
    if stored["data"] != expected["data"]:
        raise DataError(
            f"{path}: expected outputs for the data {expected['data']}, got those for "
            f"{stored['data']}. {_REMEDY}"
        )
