"""`debug.print` prints the same lines eager, compiled and vmapped, and changes no results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import optim
from ftrain.core import _printing
from tests.compile.cases import same_bytes

show = ftrain.debug.print
ROW, ROWS = torch.arange(3.0), torch.arange(6.0).view(2, 3)


def summed(x: Tensor) -> Tensor:
    def body(total: Tensor, value: Tensor) -> Any:
        total = total + value
        show("total {:.1f}", total)
        return total, None

    return ftrain.scan(body, torch.zeros(()), x)[0]


def grown(x: Tensor) -> Tensor:
    def goes_on(total: Tensor) -> Tensor:
        show("limit {}", x.sum())
        return total < 9

    def body(total: Tensor) -> Tensor:
        show("from {} by {}", total, x.sum())
        return total + x.sum()

    return ftrain.while_loop(goes_on, body, torch.zeros(()))


def chosen(x: Tensor) -> Tensor:
    def doubled(x: Tensor) -> Tensor:
        show("doubled {}", x)
        return 2 * x

    def halved(x: Tensor) -> Tensor:
        show("halved {}", x)
        return x / 2

    first = ftrain.cond(x[0] > 1, doubled, halved, x)
    return first + ftrain.cond(x[2] > 1, doubled, halved, x)


def twice(x: Tensor) -> Tensor:
    show("{0[a]} and {static!r}, {{}}", {"a": x}, static="three")
    show("no field")
    y = x.sin()
    show("{y}", y=y)
    return y


def nested(x: Tensor) -> Tensor:
    def body(total: Tensor, value: Tensor) -> Any:
        show("outer {}", total)
        return total + summed(x) * value, grown(x + 1)

    total, ys = ftrain.scan(body, torch.zeros(()), x)
    show("end {}", total)
    return total + ys.sum()


CASES: dict[str, tuple[Callable[..., Any], Tensor]] = {
    "scan": (summed, ROW),
    "while_loop": (grown, ROW),
    "cond": (chosen, ROW),
    "straight": (twice, ROW),
    "nested": (nested, ROW),
    "gradient": (ftrain.value_and_grad(lambda x: summed(x) ** 2), ROW),
    "torch.func.grad": (torch.func.grad(lambda x: twice(x).sum()), ROW),
    "vmap": (torch.vmap(twice), ROWS),
    "vmap of scan": (torch.vmap(summed), ROWS),
    "two maps": (torch.vmap(torch.vmap(twice)), ROWS),
}


def lines(capsys: pytest.CaptureFixture[str], call: Callable[[], Any]) -> tuple[str, Any]:
    capsys.readouterr()
    result = call()
    return capsys.readouterr().out, result


@pytest.mark.parametrize("name", CASES)
def test_debug_print_prints_the_same_lines_compiled_and_eager(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fn, x = CASES[name]
    compiled = ftrain.compile(fn, backend="eager")
    for each in (x, x + 1):
        expected, result = lines(capsys, lambda each=each: fn(each))
        assert expected
        printed, again = lines(capsys, lambda each=each: compiled(each))
        assert printed == expected
        assert same_bytes(again, result)


@pytest.mark.inductor
def test_debug_print_compiled_by_inductor_prints_the_same_lines_as_eager(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fn(x: Tensor) -> Any:
        return nested(x), chosen(x), ftrain.value_and_grad(summed)(x), torch.vmap(twice)(x[None])

    compiled = ftrain.compile(fn)
    for x in (ROW, ROW + 1):
        expected, _ = lines(capsys, lambda x=x: fn(x))
        found, _ = lines(capsys, lambda x=x: compiled(x))
        # Loops and branches that do not depend on each other may run in another order.
        assert sorted(found.splitlines()) == sorted(expected.splitlines())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(3, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.linear(x))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    hidden = model(x)
    show("hidden {}", hidden)
    return hidden.square().mean()


@pytest.mark.parametrize("accumulate", [1, 2])
@settings(max_examples=5)
@given(st.lists(st.floats(-3, 3, width=32), min_size=12, max_size=12))
def test_debug_print_does_not_change_the_bits_of_a_step(
    accumulate: int, values: list[float]
) -> None:
    x = torch.tensor(values).view(4, 3)

    def steps(loss: Callable[..., Any]) -> ftrain.Steps:
        return ftrain.make_steps(Net, loss, optim.sgd(0.1), accumulate=accumulate)

    plain = steps(lambda model, x: model(x).square().mean())
    state = plain.init_state(0)
    expected = plain.train_step(state, x)
    printing = steps(loss).train_step
    assert same_bytes(printing(state, x), expected)
    assert same_bytes(ftrain.compile(printing, backend="eager")(state, x), expected)


@pytest.mark.parametrize("donate", [False, True])
def test_debug_print_of_the_old_state_in_a_compiled_step_prints_its_old_values(
    donate: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(step: Callable[..., Any]) -> None:
        state = steps.init_state(0)
        for _ in range(2):
            state, _ = step(state, ROWS)

    def step(state: Any, x: Tensor) -> Any:
        new = steps.train_step(state, x)
        show("old {}", state.params["linear.bias"])
        return new

    steps = ftrain.make_steps(Net, loss, optim.sgd(0.1))
    expected, _ = lines(capsys, lambda: run(step))
    compiled = ftrain.compile(step, backend="eager", donate=donate)
    assert lines(capsys, lambda: run(compiled))[0] == expected


def test_eager_debug_print_stores_no_format_string_after_printing() -> None:
    before = len(_printing._lines)
    torch.vmap(twice)(ROWS)
    twice(ROW)
    assert len(_printing._lines) == before


@pytest.mark.parametrize(
    ("text", "error"),
    [
        *((text, ValueError) for text in ("{} {}", "{x}", "{", "{:.2f}", "{!r:d}")),
        (ROW, TypeError),
    ],
)
def test_debug_print_refuses_an_invalid_format_string(text: Any, error: type) -> None:
    def fn(x: Tensor) -> Tensor:
        show(text, x)
        return x + 1

    for each in (fn, ftrain.compile(fn, backend="eager")):
        with pytest.raises(error, match=r"ftrain\.debug\.print"):
            each(ROW)


@pytest.mark.parametrize("spec", ["", ".2f", ">8", "d", "s", "%", "zzz", ",.3e"])
@pytest.mark.parametrize("value", [1.5, 3, True, 1 + 2j])
def test_debug_print_refuses_exactly_the_format_specs_that_python_refuses(
    spec: str, value: complex, capsys: pytest.CaptureFixture[str]
) -> None:
    def fn(x: Tensor) -> Tensor:
        show(f"x {{:{spec}}} {{x[0]:{spec}}}", x, x=[x])
        return x + 1

    def outcome(fn: Callable[[Tensor], Tensor]) -> str:
        try:
            fn(torch.tensor(value))
        except ValueError as error:
            return "refused" if "ftrain.debug.print" in str(error) else repr(error)
        return capsys.readouterr().out

    x = torch.tensor(value)
    try:
        expected = f"x {x:{spec}} {x:{spec}}\n"
    except (TypeError, ValueError):
        expected = "refused"
    assert outcome(fn) == outcome(ftrain.compile(fn, backend="eager")) == expected
