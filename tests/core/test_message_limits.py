"""Long texts and lists in messages are cut at a limit, and the message shows that it cut them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ftrain.core import _loss_notes, remat
from ftrain.core._words import one_line
from ftrain.core.compile import _errors
from ftrain.core.cost import cost
from ftrain.core.cost.rates import Rates


def notes_of_shapes(n: int) -> str:
    error, tensors = ValueError("bad"), {f"item{i:02}": torch.zeros(()) for i in range(n)}
    _loss_notes.add_notes(error, "loss_fn", tensors, tensors)
    return error.__notes__[0]


def note_of_lists(n: int) -> str:
    others = [(f"item{i:02}", "a list of int") for i in range(n)]
    return _loss_notes._conversion(TypeError("bad"), others) or ""


def note_of_dtypes(n: int) -> str:
    tensors = {f"item{i:02}": torch.zeros((), dtype=torch.float64) for i in range(n)}
    return (
        _loss_notes.dtype_note(RuntimeError("expected dtype float but got double"), tensors) or ""
    )


def paths_of_modules(n: int) -> str:
    return remat._nothing({f"item{i:02}": nn.Identity() for i in range(n)}, "no")


def table_of_costs(n: int) -> str:
    rows = [cost.CostRow(f"item{i:02}", 1, 0.5, 10**6, 2 * 10**6, 0.25) for i in range(n)]
    whole = cost.Cost((), (), {}, 0.5 * n, 0.0, Rates({}, {}))
    return whole._table("kind", rows)


@pytest.mark.parametrize(
    ("text", "limit", "more"),
    [
        (notes_of_shapes, 32, "item31: float32[], ..."),
        (note_of_lists, 8, None),
        (note_of_dtypes, 8, None),
        (paths_of_modules, 8, "'item07', ...)"),
        (lambda n: _errors.listed([f"item{i:02}" for i in range(n)]), 8, "\n  ... and 1 more"),
        (table_of_costs, 20, "\n... 1 more kinds"),
    ],
)
def test_list_in_a_message_is_whole_up_to_its_limit_and_cut_beyond_it(
    text: Callable[[int], str], limit: int, more: str | None
) -> None:
    names = [f"item{i:02}" for i in range(limit + 1)]
    whole, cut = text(limit), text(limit + 1)
    assert [name for name in names if name in whole] == names[:-1]
    assert [name for name in names if name in cut] == names[:-1]
    if more is not None:
        assert more not in whole
        assert more in cut


@pytest.mark.parametrize(
    ("shown", "limit", "cut"),
    [
        (one_line, 200, "a" * 197 + "..."),
        (cost._shortened, 60, "a" * 48 + "…" + "a" * 11),
    ],
)
def test_text_in_a_message_is_whole_up_to_its_limit_and_cut_to_it_beyond(
    shown: Callable[[str], str], limit: int, cut: str
) -> None:
    assert shown("a" * limit) == "a" * limit
    assert shown("a" * (limit + 1)) == cut
    assert len(cut) == limit


def test_cost_table_adds_up_the_rows_beyond_its_limit() -> None:
    first, *_, rest, total = (line.split() for line in table_of_costs(25).splitlines()[1:])
    assert first == ["item00", "1", "500.000", "4.0%", "1.00", "2.00", "250.000"]
    assert rest == [
        "...",
        "5",
        "more",
        "kinds",
        "5",
        "2500.000",
        "20.0%",
        "5.00",
        "10.00",
        "1250.000",
    ]
    assert total == ["together", "25", "12500.000", "25.00", "50.00", "6250.000"]
