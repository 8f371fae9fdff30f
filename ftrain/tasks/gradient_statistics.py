"""Statistics of gradients by module, as metrics of a step, computed on the device.

Read next: `ftrain/loop/callbacks/gradient_norms.py`, which adds them to a step, and
`_nonfinite_modules.py`, which finds the module where a non-finite value begins.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ftrain.core._words import did_you_mean
from ftrain.core.metrics import Max, Mean, Sum
from ftrain.core.norm import global_norm
from ftrain.tasks.metrics.histogram import Histogram, check_edges, histogram

__all__ = ["check_statistics", "gradient_statistics", "module_of"]


def gradient_statistics(
    grads: Mapping[str, Tensor],
    finite: Tensor | None = None,
    *,
    statistics: Sequence[str] = ("norm",),
    depth: int | None = None,
    vanishing_below: float | None = None,
    exploding_above: float | None = None,
    histogram_edges: Sequence[float] | None = None,
) -> dict[str, Any]:
    r"""Return statistics of gradients by module, as metrics called `grad_STATISTIC/PATH`.

    Nothing waits for the device. A skipped step is left out of all statistics.

    Args:
        grads: gradients by name of the parameter, such as `GradientResult.grads`.
        finite: bool, 0-d: False for a step that is skipped, as `GradientResult.finite`.
        statistics: any of `"norm"` ($\lVert g \rVert_2$), `"rms"` (the norm over the square root of the
            number of elements), `"max"` (the largest magnitude; over several steps the largest of
            those), `"mean"` and `"zeros"` (the share of elements that are 0).
        depth: `None` for one entry for each module that has parameters. With a number, paths are cut to
            this number of names, and parameters whose cut paths are equal form one vector: with 1,
            `blocks.0.mlp` belongs to `blocks`; with 0, all parameters belong to `model`.
        vanishing_below: report `grad_vanishing/PATH`, the number of steps in which the norm was at most
            this fraction of the largest norm of all modules.
        exploding_above: report `grad_exploding/PATH`, the number of steps in which the norm was above
            this number.
        histogram_edges: report `grad_histogram/PATH`, a `tasks.metrics.Histogram` with these edges.

    Returns:
        `{name: metric}`, sorted by statistic, then in the order of `grads`.

    Raises:
        ValueError: a statistic is unknown; a number is out of range; the edges do not increase.

    Example:
        >>> grads = {"a.weight": torch.tensor([3.0, 0.0]), "a.bias": torch.tensor(4.0)}
        >>> found = gradient_statistics(grads, statistics=("norm", "zeros"), exploding_above=1.0)
        >>> {name: round(metric.value.item(), 4) for name, metric in found.items()}
        {'grad_norm/a': 5.0, 'grad_zeros/a': 0.3333, 'grad_exploding/a': 1}
    """
    check_statistics(statistics, depth, vanishing_below, exploding_above, histogram_edges)
    groups: dict[str, list[Tensor]] = {}
    for name, grad in grads.items():
        groups.setdefault(module_of(name, depth), []).append(grad)
    if not groups:
        return {}
    # The norm is computed once for `norm`, `rms` and both counts.
    needs_norm = {"norm", "rms"} & {*statistics} or vanishing_below is not None
    norms: dict[str, Tensor] = {}
    if needs_norm or exploding_above is not None:
        norms = {path: global_norm(leaves) for path, leaves in groups.items()}
    found: dict[str, Any] = {}
    for statistic in statistics:
        for path, leaves in groups.items():
            value = (
                norms[path]
                if statistic == "norm"
                else _STATISTICS[statistic](leaves, norms.get(path))
            )
            found[f"grad_{statistic}/{path}"] = _metric(statistic, value, finite)
    if vanishing_below is not None:
        largest = torch.stack(list(norms.values())).amax()
        for path, norm in norms.items():
            is_small = (norm <= vanishing_below * largest) & (largest > 0)
            found[f"grad_vanishing/{path}"] = _count(is_small, finite)
    if exploding_above is not None:
        for path, norm in norms.items():
            found[f"grad_exploding/{path}"] = _count(~(norm <= exploding_above), finite)
    if histogram_edges is not None:
        for path, leaves in groups.items():
            counts = torch.stack([histogram(x, histogram_edges).counts for x in leaves]).sum(0)
            if finite is not None:
                counts = torch.where(finite, counts, torch.zeros_like(counts))
            found[f"grad_histogram/{path}"] = Histogram(counts)
    return found


def module_of(name: str, depth: int | None = None) -> str:
    """Return the path of the module that holds a parameter, cut to `depth` names.

    >>> module_of("blocks.0.mlp.weight"), module_of("blocks.0.mlp.weight", 1), module_of("scale")
    ('blocks.0.mlp', 'blocks', 'model')
    """
    names = name.split(".")[:-1]
    return ".".join(names if depth is None else names[:depth]) or "model"


def check_statistics(
    statistics: Any,
    depth: Any,
    vanishing_below: Any,
    exploding_above: Any,
    histogram_edges: Any,
) -> None:
    """Raise for arguments of `gradient_statistics` that are out of range."""
    known = ("norm", *_STATISTICS)
    if isinstance(statistics, str) or not isinstance(statistics, Iterable):
        raise TypeError(
            f"statistics: expected a tuple of names, some of {', '.join(map(repr, known))}, got "
            f"{statistics!r}. Write statistics=('norm', 'max')."
        )
    for statistic in statistics:
        if statistic not in known:
            raise ValueError(
                f"statistics: expected some of {', '.join(map(repr, known))}, got {statistic!r}."
                f"{did_you_mean(statistic, known)} Write statistics=('norm', 'max')."
            )
    for name, value in (
        ("vanishing_below", vanishing_below),
        ("exploding_above", exploding_above),
    ):
        if value is not None and not isinstance(value, numbers.Real):
            raise TypeError(f"{name}: expected a number or None, got {value!r}. Write {name}=1e-6.")
    if depth is not None and (not isinstance(depth, int) or depth < 0):
        raise ValueError(
            f"depth: expected the number of names of a module path to keep, or None, got {depth!r}. "
            "Write depth=2."
        )
    if vanishing_below is not None and not 0 <= vanishing_below < 1:
        raise ValueError(
            f"vanishing_below: expected a fraction from 0 to below 1, got {vanishing_below!r}. Write "
            "vanishing_below=1e-6."
        )
    if exploding_above is not None and not exploding_above > 0:
        raise ValueError(
            f"exploding_above: expected a norm above 0, got {exploding_above!r}. Write "
            "exploding_above=1000."
        )
    if histogram_edges is not None:
        check_edges(histogram_edges)


def _count_elements(leaves: list[Tensor]) -> int:
    return sum(x.numel() for x in leaves)


def _rms(leaves: list[Tensor], norm: Tensor | None) -> Tensor:
    assert norm is not None
    return norm / math.sqrt(max(_count_elements(leaves), 1))


def _max(leaves: list[Tensor], norm: Tensor | None) -> Tensor:
    each = [x.abs().amax() if x.numel() else x.new_zeros(()) for x in leaves]
    return torch.stack([x.to(torch.promote_types(x.dtype, torch.float32)) for x in each]).amax()


def _mean(leaves: list[Tensor], norm: Tensor | None) -> Tensor:
    dtypes = [torch.promote_types(x.dtype, torch.float32) for x in leaves]
    totals = [x.sum(dtype=dtype) for x, dtype in zip(leaves, dtypes, strict=True)]
    mean: Tensor = torch.stack(totals).sum() / max(_count_elements(leaves), 1)
    return mean


def _zeros(leaves: list[Tensor], norm: Tensor | None) -> Tensor:
    counts = torch.stack([(x == 0).sum() for x in leaves])
    share: Tensor = counts.sum().to(torch.float32) / max(_count_elements(leaves), 1)
    return share


_STATISTICS: dict[str, Callable[[list[Tensor], Tensor | None], Tensor]] = {
    "rms": _rms,
    "max": _max,
    "mean": _mean,
    "zeros": _zeros,
}


def _metric(statistic: str, value: Tensor, finite: Tensor | None) -> Mean | Max:
    if finite is not None:
        value = torch.where(finite, value, torch.zeros_like(value))
    if statistic == "max":
        return Max(value)
    weight = torch.ones_like(value) if finite is None else finite.to(value.dtype)
    return Mean(value, weight)


def _count(flag: Tensor, finite: Tensor | None) -> Sum:
    return Sum((flag if finite is None else flag & finite).to(torch.int64))
