"""Trace of a run: digests and norms of the inputs, operators and results of chosen steps.

Read next: `record.py`, which makes one; `compare.py`, which compares two.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ftrain.core import _file_output
from ftrain.core._available_memory import available_memory
from ftrain.core._leaf_digest import leaf_digest
from ftrain.core._regular_files import read_regular
from ftrain.core.errors import DataError
from ftrain.testing.divergence.operator_locations import Place

__all__ = ["OperatorRecord", "StepRecord", "TensorRecord", "Trace", "record_leaf", "record_tensor"]

FORMAT = "ftrain trace 1"

#: Bytes in memory of a parsed trace for each byte of its text, at most.
_PARSED = 40
_CHUNK = 1 << 20

_PROJECTIONS = 4
_BLOCK = 4096


class TensorRecord(NamedTuple):
    """Record of one tensor: dtype, shape, digest and norms.

    Attributes:
        dtype: the dtype, such as `"float32"`; for a value that is not a tensor, its class.
        shape: the sizes of its axes.
        digest: 16 hexadecimal digits of the sha256 of dtype, shape and bytes.
        norm: Euclidean norm, in float64.
        low: smallest element; NaN if any element is NaN or the tensor is empty.
        high: largest element; NaN in the same cases.
        sketch: four projections on fixed random signs. The root mean square of the differences of two
            sketches estimates the norm of the difference of their tensors.
    """

    dtype: str
    shape: tuple[int, ...]
    digest: str
    norm: float
    low: float
    high: float
    sketch: tuple[float, ...]

    def distance(self, other: TensorRecord) -> float:
        """Return the estimated norm of the difference, relative to the larger of the two norms.

        The result is 0 for equal digests, and infinity if the shapes differ or an element is not finite.
        The estimate is within a factor of two in nine cases of ten.
        """
        if self.digest == other.digest:
            return 0.0
        if self.shape != other.shape:
            return float("inf")
        pairs = zip(self.sketch, other.sketch, strict=True)
        apart = (sum((a - b) ** 2 for a, b in pairs) / _PROJECTIONS) ** 0.5
        size = max(self.norm, other.norm)
        return apart / size if apart < float("inf") and 0 < size < float("inf") else float("inf")

    def __str__(self) -> str:
        if not self.sketch:
            return f"{self.dtype} {self.digest}"
        return (
            f"{self.dtype}{list(self.shape)} {self.digest}, norm {self.norm:.9g}, "
            f"from {self.low:.6g} to {self.high:.6g}"
        )


class OperatorRecord(NamedTuple):
    """Record of one call of an operator that computes new values (not a view or a copy).

    Attributes:
        name: the operator, such as `"aten.addmm.default"`.
        inputs: the digests of its tensors.
        shapes: their shapes.
        arguments: its other arguments, as text.
        outputs: its results.
        place: the module and source line.
    """

    name: str
    inputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    arguments: str
    outputs: tuple[TensorRecord, ...]
    place: Place

    @property
    def signature(self) -> tuple[Any, ...]:
        """Name and shapes, by which the operators of two traces are aligned."""
        return (self.name, self.shapes, tuple(output.shape for output in self.outputs))


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """Record of one training step: leaves of batch, state and metrics, and its operators.

    Attributes:
        step: its number, counted from 1.
        batch: the leaves of the batch, by path.
        rows: digests of the rows of each of these tensors along the first axis.
        operators: the operators in the order of their execution; `None` if they were not recorded.
        state: the leaves of the new state, by path.
        metrics: the leaves of the metrics, by path.
        recomputed: the leaves of `(state, metrics)` that the recorded operators computed, by path. They
            differ from `state` and `metrics` for a compiled step whose machine code computes other bits
            than the operators of its graph, and for a step that is not deterministic.
    """

    step: int
    batch: Mapping[str, TensorRecord]
    rows: Mapping[str, tuple[str, ...]]
    operators: tuple[OperatorRecord, ...] | None
    state: Mapping[str, TensorRecord]
    metrics: Mapping[str, TensorRecord]
    recomputed: Mapping[str, TensorRecord] = dataclasses.field(default_factory=dict)

    @property
    def is_repeated(self) -> bool:
        """Return True if the second call of the step, which recorded operators, gave the same bits."""
        own = [*self.state.values(), *self.metrics.values()]
        again = [leaf.digest for leaf in self.recomputed.values()]
        return self.operators is None or [leaf.digest for leaf in own] == again


@dataclasses.dataclass(frozen=True)
class Trace:
    """Digests and norms of a run's batches, states, metrics and operators, as `record` returns them.

    Attributes:
        form: how the operators were run: `"eager"`, or `"graph"` for the graph of a compiled step,
            operator by operator. States and metrics are always those of the step itself.
        environment: the library versions and settings that bits depend on.
        initial: the leaves of the state before the first step, by path.
        steps: the steps, in order.

    Example:
        >>> import tempfile
        >>> from ftrain.testing import record
        >>> def step(state, batch):
        ...     return {"w": state["w"] - 0.1 * batch}, {"loss": batch.sum()}
        >>> trace = record(step, {"w": torch.zeros(2)}, [torch.ones(2)])
        >>> [operator.name for operator in trace.steps[0].operators]
        ['aten.mul.Tensor', 'aten.sub.Tensor', 'aten.sum.default']
        >>> path = tempfile.mkdtemp() + "/first.trace"
        >>> trace.save(path)
        >>> Trace.load(path) == trace
        True
    """

    form: str
    environment: Mapping[str, Any]
    initial: Mapping[str, TensorRecord]
    steps: tuple[StepRecord, ...]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace as gzipped JSON, with equal bytes for equal traces."""
        content = _adapter().dump_json((FORMAT, self))
        target = pathlib.Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        _file_output.replace(target, gzip.compress(content, compresslevel=6, mtime=0))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Trace:
        """Read a trace that `save` wrote.

        Raises:
            DataError: the file is missing, is not a trace, or was written by another version.
        """
        try:
            content = _unpacked(path)
            written, trace = _adapter().validate_json(content)
        except (OSError, EOFError, ValueError) as error:  # ValidationError is a ValueError
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise DataError(
                f"{os.fspath(path)}: expected a trace written by ftrain.testing.record, got a file that "
                f"cannot be read as one: {reason}. Record it again."
            ) from None
        if written != FORMAT:
            raise DataError(
                f"{os.fspath(path)}: expected the format {FORMAT!r}, got {written!r}. Read it with "
                "the version of ftrain that wrote it, or record it again."
            )
        assert isinstance(trace, Trace)
        return trace


def _unpacked(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a gzipped file.

    Raises:
        OSError: the file is missing, is not a regular file, or is damaged.
        ValueError: the content does not fit in memory.
    """
    most = available_memory() // _PARSED
    content = bytearray()
    with gzip.open(io.BytesIO(read_regular(path, most))) as file:
        while chunk := file.read(_CHUNK):
            content += chunk
            if len(content) > most:
                raise ValueError(f"expected at most {most:,} bytes, which fit in memory, got more")
    return bytes(content)


def _adapter() -> Any:
    """Return the pydantic adapter for a trace file, a JSON list `[format, trace]`."""
    import pydantic  # noqa: PLC0415  # 0.1 s that only reading and writing need

    config = pydantic.ConfigDict(ser_json_inf_nan="strings")
    return pydantic.TypeAdapter(tuple[str, Trace], config=config)


def record_leaf(leaf: Any, path: str) -> TensorRecord:
    """Return digest, norms, dtype and shape of a leaf of a tree."""
    if isinstance(leaf, torch.Tensor):
        return record_tensor(leaf)
    digest = leaf_digest(leaf, path)
    nan = float("nan")
    return TensorRecord(type(leaf).__name__, (), digest, nan, nan, nan, ())


def record_tensor(tensor: torch.Tensor) -> TensorRecord:
    """Return digest, norms, dtype and shape of a tensor."""
    with torch.no_grad():
        plain = tensor.detach().resolve_conj().resolve_neg()
        digest = leaf_digest(plain)
        flat = torch.view_as_real(plain) if plain.is_complex() else plain
        wide = flat.reshape(-1).to(torch.float64)
        low, high = (float("nan"),) * 2
        if wide.numel():
            least, most = wide.aminmax()
            low, high = float(least), float(most)
        norm = float(torch.linalg.vector_norm(wide))
        dtype = str(plain.dtype).removeprefix("torch.")
        return TensorRecord(dtype, tuple(plain.shape), digest, norm, low, high, _sketch(wide))


def _sketch(wide: torch.Tensor) -> tuple[float, ...]:
    n_rows, left = divmod(wide.numel(), _BLOCK)
    signs = _signs(_BLOCK).to(wide.device)
    end = wide[n_rows * _BLOCK :] @ signs[:left]
    blocks = wide[: n_rows * _BLOCK].reshape(n_rows, _BLOCK) @ signs
    return tuple((end + (blocks * _signs(n_rows).to(wide.device)).sum(0)).tolist())


@functools.cache
def _signs(n: int) -> torch.Tensor:
    """Return `n` rows of random signs, the same at each call."""
    generator = torch.Generator().manual_seed(n)
    draw = torch.randint(0, 2, (n, _PROJECTIONS), generator=generator, device="cpu")
    return 2.0 * draw.double() - 1.0
