"""Comparison of two variants of a step, run side by side until they differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.compile import Compiled
from ftrain.testing._copies import copied
from ftrain.testing.difference import Difference, first_difference
from ftrain.testing.divergence.compare import compare_recorded, repetition_notes
from ftrain.testing.divergence.divergence import Divergence
from ftrain.testing.divergence.first_operator import FirstOperator
from ftrain.testing.divergence.leaves import differing
from ftrain.testing.divergence.machine_code import first_machine_operator
from ftrain.testing.divergence.record import record_step
from ftrain.testing.divergence.variant import Variant

__all__ = ["first_divergence"]


def first_divergence(
    a: Any, b: Any, state: Any, batches: Iterable[Any], *, relative: float = 0.0
) -> Divergence | None:
    """Run two variants of a step from one state; return their first difference, or `None`.

    Variants may be eager and compiled, of two precisions, two numbers of micro-batches, or two versions
    of a loss. Each continues from its own state. At the first step whose new states or metrics differ,
    both run again operator by operator, and the two sequences of operators are aligned by name and
    shapes. The operators of a step compiled by `ftrain.compile` are those of its graph; if all of them
    agree, the difference arises in the machine code. The graph is then compiled once more with all
    results as outputs, and a note names the first operator whose machine code differs.

    Variants that need different settings of the process, such as numbers of threads, can be compared
    with `record` in two processes.

    Args:
        a: the result of `ftrain.make_steps`, or a step `(state, batch) -> (state, metrics)`.
        b: the other variant, of the same kinds.
        state: the state to begin with. Not changed, nor donated.
        batches: one batch for each step.
        relative: largest distance of two floating-point tensors, relative to their norms, that counts
            as equal; 0 compares bytes. Distances are estimated from four random projections.

    Returns:
        The first difference; its `a` and `b` are the values of the first differing element.

    Raises:
        TypeError: `a` or `b` is not a step.

    Example:
        >>> def sum_first(state, batch):
        ...     return state - 0.1 * batch.sum(), {}
        >>> def scale_first(state, batch):
        ...     return state - (0.1 * batch).sum(), {}
        >>> batches = [torch.zeros(3), torch.tensor([1.0, 5.0, 7.0])]
        >>> found = first_divergence(sum_first, scale_first, torch.zeros(()), batches)
        >>> found.step, found.where, found.cause
        (2, 'aten.mul.Tensor', 'only B runs this operator')
    """
    one, two = Variant.of(a, "a"), Variant.of(b, "b")
    state_a = state_b = state
    for number, batch in enumerate(batches, 1):
        before_a, before_b = state_a, state_b
        results = one.run(state_a, batch), two.run(state_b, batch)
        (state_a, _), (state_b, _) = results
        if first_difference(*results) is None:
            continue
        records = [record_step(number, batch, result) for result in results]
        if compare_recorded(records[0], records[1], relative) is None:
            continue
        return _located(number, (one, two), (before_a, before_b), batch, results, relative)
    return None


def _located(
    number: int,
    variants: tuple[Variant, Variant],
    befores: tuple[Any, Any],
    batch: Any,
    results: tuple[Any, Any],
    relative: float,
) -> Divergence:
    """Repeat the step whose results differ, recording its operators; return the first difference."""
    records = [
        record_step(number, batch, result, variant.record(before, batch))
        for variant, before, result in zip(variants, befores, results, strict=True)
    ]
    notes = [
        note
        for name, variant, each in zip("AB", variants, records, strict=True)
        for note in repetition_notes(name, variant.form, each)
    ]
    found = compare_recorded(records[0], records[1], relative)
    assert found is not None  # the caller found a difference in this step
    divergence, operator = found
    divergence = dataclasses.replace(divergence, notes=(*notes, *divergence.notes))
    if operator is None:
        mine, theirs = (_leaf(result, divergence) for result in results)
        divergence = _with_values(divergence, first_difference(theirs, mine))
        if differing(records[0].recomputed, records[1].recomputed, relative):
            return divergence
        return _in_machine_code(divergence, variants, befores, batch)
    values = _results_of(operator, variants, befores, batch)
    return divergence if values is None else _with_values(divergence, first_difference(*values))


def _in_machine_code(
    divergence: Divergence, variants: tuple[Variant, Variant], befores: tuple[Any, Any], batch: Any
) -> Divergence:
    """Add a note on the first operator whose compiled code gives other bits than its eager kernel."""
    notes = []
    for name, variant, before in zip("AB", variants, befores, strict=True):
        if not isinstance(variant.step, Compiled):
            continue
        found = first_machine_operator(variant.step, (copied(before), copied(batch)))
        if found is not None:
            notes.append(
                f"machine code of {name}: {found.name} is the first operator with other bits than its "
                f"eager kernel, {found.place}; {found.difference}"
            )
    return dataclasses.replace(divergence, notes=(*divergence.notes, *notes))


def _leaf(result: Any, divergence: Divergence) -> Any:
    """Return the leaf of a result at the path of a difference; `None` if there is no such leaf."""
    value = result[0] if divergence.kind == "state" else result[1]
    pairs = zip(tree.paths(value), tree.leaves(value), strict=True)
    return dict(pairs).get(divergence.where)


def _results_of(
    operator: FirstOperator, variants: tuple[Variant, Variant], befores: tuple[Any, Any], batch: Any
) -> tuple[list[torch.Tensor], list[torch.Tensor]] | None:
    """Return an operator's results in variants B and A; `None` if only one of them ran it."""
    if operator.a is None or operator.b is None:
        return None
    kept = [
        variant.record(before, batch, keep=(place,))[0].kept.get(place)
        for variant, before, place in zip(variants, befores, (operator.a, operator.b), strict=True)
    ]
    if kept[0] is None or kept[1] is None:
        return None
    return kept[1], kept[0]


def _with_values(divergence: Divergence, difference: Difference | None) -> Divergence:
    """Add the first differing element to a divergence, if there is one."""
    if difference is None or difference.kind != "values":
        return divergence
    at = f" at {difference.index}" if difference.index is not None else ""
    count = f"{difference.count} of {difference.total} elements differ"
    return dataclasses.replace(
        divergence,
        a=f"{difference.expected!r}{at}; {divergence.a}",
        b=f"{difference.got!r}{at}; {divergence.b}; {count}",
        ulps=difference.ulps,
    )
