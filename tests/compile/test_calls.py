"""Arguments of a call: names, refused values, differences from earlier calls, and their remedies."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain.core.compile._call import Call
from ftrain.core.errors import RecompileWarning


def several(state: Any, *rest: Any, **options: Any) -> Any:
    return state


def keyword_only(state: Any, *rest: Any, training: bool = True) -> Any:
    return state


@pytest.mark.parametrize(
    ("fn", "args", "kwargs", "names"),
    [
        (lambda x, y: x, (1, 2), {}, ["x", "y"]),
        (lambda x, y: x, ({"b": 1, "a": [2]}, 3), {}, ["x['a'][0]", "x['b']", "y"]),
        (several, (1, 2, (3, 4)), {"b": 5, "a": [6]}, ["state", "args[1]", "args[2][0]",
                                                      "args[2][1]", "a[0]", "b"]),
        (keyword_only, (1, 2, 3), {"training": 4}, ["state", "args[1]", "args[2]", "training"]),
        (max, (1, 2), {}, ["args[0]", "args[1]"]),  # without a signature
    ],
)  # fmt: skip
def test_leaves_of_arguments_are_named_by_parameter_and_path_in_their_order(
    fn: Any, args: Any, kwargs: Any, names: list[str]
) -> None:
    call = Call(fn, args, kwargs)
    assert call.names == names
    values = {"args": args, "x": args[0], "state": args[0], "y": args[-1], **kwargs}
    assert [eval(name, {}, values) for name in names] == call.leaves


SHAPE, LENGTH = "divides the data", "Pad sequences"
TEXT, NUMBER, OTHER = (
    "A text is a constant",
    "A Python number is a constant",
    "not tensors the same",
)
STRUCTURE = "the same containers"


@pytest.mark.parametrize(
    ("first", "second", "remedies", "changes"),
    [
        (torch.ones(2, 3), torch.ones(4, 3), {SHAPE}, ["batch: float32[2, 3] -> float32[4, 3]"]),
        (torch.ones(2, 3), torch.ones(2, 4), {LENGTH}, ["batch: float32[2, 3] -> float32[2, 4]"]),
        (torch.ones(2, 3), torch.ones(2, 3, 1), {SHAPE}, None),
        (torch.ones(2, 3), torch.ones(2, 3).double(), {SHAPE}, None),
        ([torch.ones(2), torch.ones(2, 3)], [torch.ones(4), torch.ones(2, 4)], {LENGTH}, None),
        (1, torch.ones(2, 3), {SHAPE}, None),
        (torch.ones(2, 3), 1, {NUMBER}, None),
        (1.0, 2.0, {NUMBER}, ["batch: 1.0 -> 2.0"]),
        (1j, 2j, {NUMBER}, ["batch: 1j -> 2j"]),
        (True, False, {NUMBER}, ["batch: True -> False"]),
        (b"a", b"b", {TEXT}, ["batch: b'a' -> b'b'"]),
        (["a", 1, torch.ones(2)], ["b", 2, torch.ones(3)], {TEXT, NUMBER, SHAPE}, None),
        (["a", 1], ["a", 2], {NUMBER}, ["batch[1]: 1 -> 2"]),
        (torch.float32, torch.int64, {OTHER}, None),
        ({"a": 1}, {"b": 1}, {STRUCTURE}, ["batch['b'] is new", "batch['a'] is gone"]),
        ({"a": 1}, {"a": 1, "b": 1}, {STRUCTURE}, ["batch['b'] is new"]),
        ([1], (1,), {STRUCTURE}, None),
    ],
)
def test_warning_about_another_program_has_the_changes_and_the_remedies_for_them_alone(
    first: Any, second: Any, remedies: set[str], changes: list[str] | None
) -> None:
    compiled = ftrain.compile(lambda batch: torch.ones(2), backend="eager")
    compiled(first)
    with pytest.warns(RecompileWarning) as caught:
        compiled(second)
    text = str(caught[0].message)
    assert {each for each in (SHAPE, LENGTH, TEXT, NUMBER, OTHER, STRUCTURE) if each in text} == (
        remedies
    )
    lines = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    assert lines == changes or changes is None
    assert len(lines) >= 1
    if isinstance(first, list) and isinstance(second, tuple):
        assert lines[0].startswith("their structure: PyTreeSpec((([*],), {})")


def test_remedy_is_for_the_changes_from_the_program_that_is_nearest() -> None:
    compiled = ftrain.compile(lambda batch: torch.ones(2), backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in ([1, 2, "c"], [1, 3, "a"], [5, 6, "d"]):
            compiled(batch)
    with pytest.warns(RecompileWarning, match=r"\n  batch\[0\]: 1 -> 4\n[^ ]"):
        compiled([4, 3, "a"])


def with_hook() -> torch.Tensor:
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda grad: grad)
    return x


class Subclass(torch.Tensor):
    pass


class Holder:
    def __init__(self) -> None:
        self.kept = torch.ones(2)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "hook": (with_hook, RuntimeError, "`x` of `fn` has a hook"),
    "subclass": (
        lambda: torch.ones(2).as_subclass(Subclass),  # type: ignore[arg-type]
        TypeError,
        "not a subclass, got a Subclass",
    ),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        TypeError,
        "`x` of `fn` is a nested tensor",
    ),
    "sparse": (lambda: torch.eye(2).to_sparse(), TypeError, "has layout torch.sparse_coo"),
    "holder": (Holder, TypeError, "`x` of `fn` is a Holder, whose attribute 'kept' holds a tensor"),
    "unhashable": (lambda: bytearray(2), TypeError, "a hashable value, got a bytearray"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", REFUSED)
def test_argument_that_no_program_accepts_is_refused_in_every_call(name: str) -> None:
    make, error, message = REFUSED[name]

    def fn(x: Any) -> torch.Tensor:
        return torch.ones(2)

    compiled = ftrain.compile(fn, backend="eager")
    for _ in range(2):
        with torch.no_grad(), pytest.raises(error, match=message):
            compiled(make())
        compiled(torch.ones(2))
    assert compiled.n_compiles == 1


@pytest.mark.parametrize(
    "make",
    [lambda: torch.ones(2, requires_grad=True), lambda: nn.Parameter(torch.ones(2))],
)
def test_tensor_that_requires_a_gradient_is_accepted_without_grad_mode_alone(make: Any) -> None:
    compiled = ftrain.compile(lambda x: x + 1, backend="eager")
    with pytest.raises(RuntimeError, match="requires a gradient"):
        compiled(make())
    with torch.no_grad():
        x = make()
        found = compiled(x)
    assert (found.tolist(), found.requires_grad, x.requires_grad) == ([2.0, 2.0], False, True)


def test_conjugate_and_negative_views_are_read_by_their_values() -> None:
    z = torch.tensor([1 + 2j, 3 - 1j])
    seen = []

    def fn(x: torch.Tensor, y: torch.Tensor) -> Any:
        seen.append((x.is_conj(), y.is_neg()))
        return torch.view_as_real(x), y.view(torch.int32)  # reads the memory

    x, y = z.conj(), z.conj().imag
    found = ftrain.compile(fn, backend="eager")(x, y)
    assert seen == [(False, False)]
    assert torch.equal(found[0], torch.view_as_real(x.resolve_conj()))
    assert torch.equal(found[1], y.resolve_neg().view(torch.int32))


def test_tensor_behind_other_arguments_is_refused_if_it_requires_a_gradient() -> None:
    compiled = ftrain.compile(lambda batch: batch["z"] * batch["a"], backend="eager")
    with pytest.raises(RuntimeError, match=r"`batch\['z'\]` .* requires a gradient"):
        compiled({"a": 1, "z": torch.ones(2, requires_grad=True)})


def test_program_runs_without_the_autocast_in_which_it_was_traced() -> None:
    def product(a: torch.Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            full = a @ a
        return full, a @ a

    with torch.autocast("cpu", torch.bfloat16):
        compiled = ftrain.compile(product, backend="eager")
        for _ in range(2):
            full, half = compiled(torch.full((2, 2), 1.01))
            assert (full.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert compiled.n_compiles == 1
