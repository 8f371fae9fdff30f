"""The search of an autograd graph finds outside leaves, and operators that lack a derivative."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ftrain.core import _graph_leaves, _torch
from ftrain.core._graph_leaves import survey, unknown_leaves

LIBRARY = torch.library.Library("ftrain_graph_leaves", "DEF")
LIBRARY.define("opaque(Tensor x) -> Tensor")
LIBRARY.impl("opaque", lambda x: x.detach().sin(), "CPU")


def leaf(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


def of_dropped() -> Tensor:
    """Return a tensor whose autograd leaf nothing references."""
    return leaf(2) * 2


def test_graph_leads_outside_to_unknown_leaves_that_are_still_referenced() -> None:
    x, captured = leaf(2), leaf(2)
    y = x * 2
    for tensors, expected in (
        ([], False),
        ([y], False),
        ([x], False),
        ([torch.ones(2)], False),
        ([of_dropped()], False),
        ([captured], True),
        ([captured, x, torch.ones(2)], True),
        ([y * captured], True),
        ([y, captured * 2, of_dropped()], True),
        ([of_dropped(), captured * 2, y], True),
        ([of_dropped() * captured * of_dropped()], True),
    ):
        assert survey(tensors, [x]).outside == expected
    assert survey([y], []).outside


def test_graph_leads_outside_to_nodes_made_before_the_function() -> None:
    x = leaf(3, 3)
    before = of_dropped().sum()
    start = _torch.sequence_number()
    y = x * 2
    assert not survey([y], [x], start).outside
    assert survey([y * before], [x], start).outside
    for tensors in ([torch.linalg.det(y), before], [before, torch.linalg.det(y)]):
        found = survey(tensors, [x], start)
        assert (found.outside, len(found.determinants)) == (True, 1)


def test_search_ends_at_given_tensors() -> None:
    x, captured = leaf(2), leaf(2)
    end = x * captured
    assert survey([end * 2], [x]).outside
    assert not survey([end * 2], [x], ends=[end]).outside
    assert not survey([end], [x], ends=[end]).outside
    assert unknown_leaves([end * 2], [x], ends=[end]) == []
    assert unknown_leaves([end], [x], ends=[end]) == []


def test_each_node_without_a_derivative_is_found_once() -> None:
    x = leaf(3, 3)
    for node, kind in (
        (torch.linalg.det(x), "determinants"),
        (torch.linalg.slogdet(x * 2)[1], "determinants"),
        (torch.ops.ftrain_graph_leaves.opaque(x), "cuts"),
    ):
        found = survey([(node + node) * node], [x])
        assert {name: len(part) for name, part in found._asdict().items() if part} == {kind: 1}
        assert getattr(found, kind)[0] is node.grad_fn


def test_class_shared_by_nodes_with_and_without_a_derivative_is_checked_at_each_node() -> None:
    """Nodes without a class of their own differ in their name only."""
    kind = type("CppFunction", (), {"name": lambda self: self.named})
    found = survey([], [])._replace(cuts=[])
    for name in ("Graph", "torch::autograd::WarnNotImplemented", "torch::autograd::Error"):
        node: Any = kind()
        node.named = name
        _graph_leaves._sort(node, found)
        assert kind not in _graph_leaves._ORDINARY
        assert (node in found.cuts) == (name != "Graph")
    y: Any = (leaf(2) * 2).grad_fn
    survey([leaf(2) * 2], [])
    assert type(y) in _graph_leaves._ORDINARY


class Once(torch.autograd.Function):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def test_function_that_holds_itself_and_a_once_differentiable_one_is_once_differentiable() -> None:
    def wrapper(a: Any, b: Any, is_first: bool) -> Any:
        class Wrapper(torch.autograd.Function):
            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> Any:
                return grad, a, b

        if is_first:
            a = Wrapper
        else:
            b = Wrapper
        return Wrapper

    assert _graph_leaves._is_once(wrapper(None, Once, True))
    assert _graph_leaves._is_once(wrapper(Once, None, False))
    assert not _graph_leaves._is_once(wrapper(None, "text", True))
    assert not _graph_leaves._is_once(wrapper(None, None, False))


def test_unknown_leaves_are_those_of_the_graph_except_inputs_and_ends() -> None:
    x, a, b = leaf(2), leaf(2), leaf(2)
    first, second = (x * a).unbind()
    total = (first * 3 + second) * 2 * x.sum() * b.sum() + a.sum()

    def found(tensors: list[Tensor], *inputs: Tensor, **options: Any) -> set[int]:
        leaves = unknown_leaves(tensors, inputs, **options)
        assert len({*map(id, leaves)}) == len(leaves)
        return {"xab".index(name) for name, t in zip("xab", (x, a, b), strict=True)
                for each in leaves if each is t}  # fmt: skip

    assert found([total]) == {0, 1, 2}
    assert found([total], x) == {1, 2}
    assert found([total], x, a, b) == set()
    assert found([total], ends=[a]) == {0, 2}
    assert found([first * second], ends=[first, second]) == set()
    assert found([first + second * b], ends=[first]) == {0, 1, 2}  # through the other output
    assert found([a], x) == {1}
    assert found([a], a) == set()
    assert found([a.detach()], x) == set()


def test_leaves_that_nothing_references_are_left_out_if_only_held_ones_are_asked_for() -> None:
    x, captured = leaf(2), leaf(2)
    y = x * captured + of_dropped()
    assert len(unknown_leaves([y], [x])) == 2
    assert [each is captured for each in unknown_leaves([y], [x], held=True)] == [True]
    assert unknown_leaves([of_dropped()], [], held=True) == []


def tracked(x: Any) -> tuple[bool, bool]:
    return (
        _graph_leaves.requires_grad_outside(x),
        _graph_leaves.any_requires_grad_outside([1, x, "text"]),
    )


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: f(x),
        lambda f, x: torch.vmap(f)(x),
        lambda f, x: torch.vmap(torch.vmap(f))(x[None]),
        lambda f, x: torch.vmap(lambda _: f(x))(torch.zeros(2)),
    ],
    ids=["plain", "vmap", "nested vmap", "vmap over another tensor"],
)
def test_tensors_are_tracked_if_they_require_a_gradient_outside_of_transforms(
    transform: Callable[..., Any],
) -> None:
    found: list[Any] = []

    def note(x: Tensor) -> Tensor:
        several = [_graph_leaves.any_requires_grad_outside([y, x]) for y in (torch.ones(2), x)]
        found.append((*tracked(x), *several))
        found.append(_graph_leaves.innermost(x))
        return x

    for x in (torch.ones(2), leaf(2), nn.Parameter(torch.ones(2)), leaf(2).detach()):
        found.clear()
        transform(note, x)
        assert found[0] == (x.requires_grad,) * 4
        assert not _torch.is_wrapped(found[1])
    assert not _graph_leaves.any_requires_grad_outside([])
    assert not _graph_leaves.any_requires_grad_outside([1, nn.Parameter(torch.ones(1), False)])


def test_tensors_that_a_transform_differentiates_by_are_tracked() -> None:
    found = []
    torch.func.grad(lambda x: (found.append(tracked(x)), x.sum())[1])(torch.ones(2))
    torch.func.grad(lambda x: torch.vmap(lambda r: (found.append(tracked(r)), r)[1])(x).sum())(
        torch.ones(2)
    )
    assert found == [(True, True)] * 2


@pytest.mark.parametrize("by", ["func", "forward_ad"])
@pytest.mark.parametrize("slope", [torch.ones(2), leaf(2)], ids=["constant", "tracked"])
def test_tensor_is_tracked_if_its_tangent_requires_a_gradient(slope: Tensor, by: str) -> None:
    found = []
    if by == "func":
        torch.func.jvp(lambda x: (found.append(tracked(x)), x)[1], (torch.ones(2),), (slope,))
    else:
        with forward_ad.dual_level():
            found.append(tracked(forward_ad.make_dual(torch.ones(2), slope)))
            assert tracked(torch.ones(2)) == (False, False)
            assert tracked(leaf(2)) == (True, True)
    assert found == [(slope.requires_grad,) * 2]


def test_message_names_the_operator_without_a_derivative() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = torch.ops.ftrain_graph_leaves.opaque(leaf(2))
        assert _graph_leaves._named(y.grad_fn) == " (ftrain_graph_leaves::opaque)"
        assert _graph_leaves._named((leaf(2) * 2).grad_fn) == ""
