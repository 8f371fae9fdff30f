"""Helpers for module and operator tests: scalar losses, byte comparison, outcome counts."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from ftrain.core._torch_dispatch import DispatchMode

#: `make databases`: every input of every entry.
WHOLE = bool(os.environ.get("FTRAIN_CAMPAIGN"))

Outcomes = Counter[str]


class AsInTraces(DispatchMode):
    """Dispatch mode that changes no operator, but in which torch takes the formulas of a trace.

    Some of torch's composite operators and derivatives read values to choose a formula or a size. If a
    dispatch mode is active or a tensor has no values (`isTensorSubclassLike` in ATen), they take another
    formula, which rounds differently.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Return the tensors of an output of any type."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def weighted_sum(output: Any) -> torch.Tensor:
    """Return a real scalar that weights each element of an output differently: a fixed cotangent."""
    total = torch.zeros((), dtype=torch.float64)
    for tensor in tensors_of(output):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        # A product of a CSR tensor and weights has a dense gradient (2.13).
        dense = tensor.to_dense() if tensor.layout == torch.sparse_csr else tensor
        real = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
        n = real.numel()
        weights = torch.linspace(0.5, 1.5, n, dtype=real.dtype).reshape(real.shape)
        total = total.to(real.dtype) + (real * weights).sum()
    return total


def difference(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Return the difference of two tensors in dtype, shape or bytes; `None` if they are equal."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return f"{found.dtype}{list(found.shape)}, not {expected.dtype}{list(expected.shape)}"
    one, two = _bytes(found), _bytes(expected)
    if torch.equal(one, two):
        return None
    apart = (found.detach() - expected.detach()).abs().double()
    return f"differs by up to {float(apart.max()):.3g} of {float(expected.abs().max()):.3g}"


def first_difference(found: Any, expected: Any) -> str | None:
    """Return the first difference of two lists of tensors; `None` if they are equal."""
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        said = difference(a, b)
        if said is not None:
            return f"[{i}] {said}"
    return None


def distance(found: Any, expected: Any) -> float:
    """Return the largest distance of paired tensors, relative to the norm of the expected one."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if difference(a, b) is not None:
            norm = b.detach().double().norm() if b.is_floating_point() else torch.tensor(0.0)
            apart = (a.detach().double() - b.detach().double()).norm()
            worst = max(worst, float(apart / norm) if norm else float("inf"))
    return worst


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    flat = tensor.resolve_neg().reshape(-1).clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8) if flat.numel() else flat


def assert_says(error: Exception, pattern: str | None, *words: str) -> None:
    """Raise unless a refusal is expected, and its message is as expected and has these words."""
    assert pattern is not None, f"not expected: {error}"
    assert re.search(pattern, str(error), re.DOTALL), str(error)
    assert all(word in str(error) for word in words), str(error)


def told(request: pytest.FixtureRequest, title: str) -> Iterator[Outcomes]:
    """Yield a counter of outcomes, printed at the end of a campaign."""
    outcomes: Outcomes = Counter()
    yield outcomes
    if WHOLE:
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\n{title}: {outcomes.total()} cases")
            for outcome, n in sorted(outcomes.items()):
                print(f"  {outcome}: {n}")
