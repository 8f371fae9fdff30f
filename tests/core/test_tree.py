"""Trees: leaf order, paths that are Python expressions, and digests."""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Any, NamedTuple

import pytest
import torch
import torch.utils._pytree as torch_pytree
from hypothesis import given
from hypothesis import strategies as st

from ftrain import testing
from ftrain.core import tree
from ftrain.core.state import TrainState


class Point(NamedTuple):
    x: Any
    y: Any


@tree.register_dataclass
class Box:
    inside: Any
    beside: Any


leaf = st.sampled_from([0, 1, 2, 3]).map(lambda n: torch.arange(n, dtype=torch.float32))
trees = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from("zyxab"), inner, max_size=4),
        st.tuples(inner, inner).map(lambda p: Point(*p)),
        st.tuples(inner, inner).map(lambda p: Box(*p)),
    ),
    max_leaves=10,
)


@given(trees)
def test_tree_unflatten_inverts_flatten(value: Any) -> None:
    leaves, treedef = tree.flatten(value)
    assert tree.digest(tree.unflatten(treedef, leaves)) == tree.digest(value)
    assert len(tree.paths(value)) == len(leaves)


@given(trees)
def test_tree_paths_evaluate_to_their_leaves(value: Any) -> None:
    for path, leaf in zip(tree.paths(value), tree.leaves(value), strict=True):
        assert eval("value" + path, {"value": value}) is leaf


@given(trees)
def test_torch_pytree_flattens_to_the_same_leaves_in_order(value: Any) -> None:
    boxed = Box({"z": value, "a": value}, value)
    ours, theirs = tree.leaves(boxed), torch_pytree.tree_leaves(boxed)
    assert len(ours) == len(theirs)
    assert all(a is b for a, b in zip(ours, theirs, strict=True))
    leaves, spec = torch_pytree.tree_flatten(boxed)
    assert tree.digest(torch_pytree.tree_unflatten(leaves, spec)) == tree.digest(boxed)


@given(trees, trees)
def test_digest_and_first_difference_both_detect_structure_changes(a: Any, b: Any) -> None:
    same_structure = tree.structure(a) == tree.structure(b)
    assert (tree.first_difference(a, b) is None) == same_structure
    if not same_structure:
        assert tree.digest(a) != tree.digest(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"x": torch.tensor(0.0)}, {"x": torch.tensor(-0.0)}),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(0, 3), torch.zeros(3, 0)),
        ([torch.zeros(1)], (torch.zeros(1),)),
        ({"a": torch.zeros(1)}, {"b": torch.zeros(1)}),
        ({"a": {}}, {}),
        ({"a": ()}, {"a": []}),
        (Point(torch.zeros(1), torch.ones(1)), (torch.zeros(1), torch.ones(1))),
        ([torch.zeros(2), torch.zeros(2)], [torch.zeros(4)]),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int32)),
    ],
)
def test_digest_differs_for_trees_that_differ_in_structure_or_a_leaf(a: Any, b: Any) -> None:
    assert tree.digest(a) != tree.digest(b)


def test_digest_ignores_layout_and_insertion_order() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert tree.digest(x) == tree.digest(x.t().contiguous().t())
    assert tree.digest({"a": x, "b": x}) == tree.digest({"b": x, "a": x})
    assert tree.digest(x.flatten()[::2][:1]) == tree.digest(torch.zeros(1))
    nan = torch.tensor(float("nan"))
    assert tree.digest(nan) == tree.digest(nan.clone())


def test_digest_of_a_fixed_tree_equals_a_value_stored_in_the_test() -> None:
    """The digest is a stable format, so it is the same in every process."""
    state = {"w": torch.arange(3.0), "layers": [torch.tensor(7), (torch.zeros(0, 2),)]}
    assert tree.digest(state) == (
        "a7b8f765731acb4a5a1bc9202b1b674c137f8a56d8fa6f6056c1a029438ac822"
    )


def test_digest_refuses_leaves_that_are_not_tensors() -> None:
    with pytest.raises(TypeError, match=r"leaf at the root: expected a tensor, got int 3\. Wrap"):
        tree.digest(3)
    with pytest.raises(TypeError, match=r"leaf at \['a'\]\[0\]: expected a tensor, got int 3"):
        tree.digest({"a": [3]})


@given(trees)
def test_first_difference_names_the_missing_key(value: Any) -> None:
    message = tree.first_difference({"k": value}, {"k": value, "z": 1})
    assert message is not None
    assert "['z'] is missing" in message


def test_tree_map_of_different_structures_raises_with_the_path() -> None:
    with pytest.raises(ValueError, match=r"at \['a'\]: expected a tuple of 2 entries, got 1"):
        tree.map(lambda a, b: a, {"a": (1, 2)}, {"a": (1,)})


def test_train_state_is_immutable_and_works_with_vmap_and_grad() -> None:
    state = TrainState(torch.tensor(1), {"w": torch.ones(3)}, {}, (), (), torch.zeros(2), {})
    with pytest.raises(AttributeError):
        state.step = torch.tensor(2)  # type: ignore[misc]
    stacked = tree.map(lambda x: torch.stack([x, x + 1]), state)
    doubled = torch.vmap(lambda s: s.replace(params={"w": s.params["w"] * 2}))(stacked)
    assert doubled.params["w"].tolist() == [[2.0] * 3, [4.0] * 3]
    grads = torch.func.grad(lambda s: s.params["w"].sum() * 2)(
        state.replace(step=torch.tensor(1.0))
    )
    assert grads.params["w"].tolist() == [2.0] * 3


def test_train_state_works_with_torch_compile() -> None:
    state = TrainState(torch.tensor(1), {"w": torch.ones(3)}, {}, (), (), torch.zeros(2), {})

    @torch.compile(backend="eager", fullgraph=True)
    def double(state: TrainState) -> TrainState:
        return state.replace(params={k: v * 2 for k, v in state.params.items()})

    assert double(state).params["w"].tolist() == [2.0] * 3


def test_tree_find_returns_fields_and_keys_by_name() -> None:
    nested = {"a": (Point(x=1, y=2),), "x": 3}
    assert tree.find(nested, "x") == {"['a'][0].x": 1, "['x']": 3}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, {}),
        ({"y": 1}, {}),
        (Box(inside={"x": 1}, beside=2), {".inside['x']": 1}),
        ([Box(inside=1, beside=2)], {}),
    ],
)
def test_tree_find_returns_only_leaves_directly_in_the_field(value: Any, expected: Any) -> None:
    assert tree.find(value, "x") == expected
    assert tree.find([Box(inside=1, beside=(2,))], "inside") == {"[0].inside": 1}
    assert tree.find([Box(inside=1, beside=(2,))], "beside") == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, {}),
        (None, {}),
        ([], {}),
        ([None, (1,)], {"[0]": None, "[1]": (1,)}),
        (Point(1, [2]), {".x": 1, ".y": [2]}),
        (Box({"a": 1}, None), {".inside": {"a": 1}, ".beside": None}),
    ],
)
def test_one_level_returns_the_children_of_a_node(value: Any, expected: Any) -> None:
    assert tree.one_level(value) == expected
    assert tree.is_leaf(value) is (value == 1)


def test_object_of_a_class_that_is_first_seen_is_a_leaf() -> None:
    class New:
        pass

    assert tree.is_leaf(New())
    assert tree.one_level(New()) == {}


def test_tree_nbytes_counts_each_meta_tensor() -> None:
    """Tensors without memory have no address by which they could be told apart."""
    x = torch.zeros(10, device="meta")
    assert tree.nbytes([x, torch.zeros(3, device="meta")]) == 40 + 12
    assert tree.nbytes([x, x]) == 40


def test_tree_nbytes_counts_shared_storage_once() -> None:
    x = torch.zeros(10)
    assert tree.nbytes({"a": x, "b": x[2:], "c": torch.zeros(3)}) == 40 + 12


class Base:
    __slots__ = ("left",)


def declared() -> dict[str, type]:
    """Return dataclasses that cannot be built from their fields alone."""

    @tree.register_dataclass
    class Plain:
        left: Any
        right: Any = 0

    @tree.register_dataclass
    class Checked:
        left: Any
        right: Any

        def __post_init__(self) -> None:
            object.__setattr__(self, "built", True)

    @tree.register_dataclass
    class OwnInit:
        left: Any
        right: Any

        def __init__(self, left: Any, right: Any) -> None:
            object.__setattr__(self, "left", left)
            object.__setattr__(self, "right", right)
            object.__setattr__(self, "built", True)

    @tree.register_dataclass
    class Derived:
        left: Any
        right: Any
        built: bool = dataclasses.field(default=True, init=False)

    @tree.register_dataclass
    class Keywords:
        left: Any
        right: Any = dataclasses.field(kw_only=True)

    @tree.register_dataclass
    class OnSlots(Base):
        left: Any
        right: Any

    @tree.register_dataclass
    class Heir(Checked):  # type: ignore[valid-type, misc]
        third: Any = 3

    @tree.register_dataclass
    @dataclasses.dataclass(frozen=True, order=True)
    class Frozen:
        left: Any
        right: Any

    @tree.register_dataclass
    class OwnNew:
        left: Any
        right: Any

        def __new__(cls, *values: Any, **fields: Any) -> Any:
            self = object.__new__(cls)
            object.__setattr__(self, "built", True)
            return self

    classes = (OwnNew, Plain, Checked, OwnInit, Derived, Keywords, OnSlots, Heir, Frozen)
    return {cls.__name__: cls for cls in classes}


@pytest.mark.parametrize("name", declared())
def test_rebuilt_dataclasses_equal_those_made_by_the_constructor(name: str) -> None:
    cls = declared()[name]
    node = cls(left=1, right=2)
    leaves, structure = tree.flatten(node)
    for again in (
        tree.unflatten(structure, leaves),
        tree.map(lambda leaf: leaf, node),
        torch_pytree.tree_map(lambda leaf: leaf, node),
    ):
        assert type(again) is cls
        assert again == node
        assert vars(again) == vars(node)
        with pytest.raises(dataclasses.FrozenInstanceError):
            again.left = 3


def test_dataclasses_of_no_field_and_of_one_field_are_nodes() -> None:
    @tree.register_dataclass
    class Empty:
        pass

    @tree.register_dataclass
    class Single:
        inside: Any

    value = [Empty(), Single((1, 2)), Single(Single(3))]
    assert tree.leaves(value) == [1, 2, 3]
    assert tree.paths(value) == ["[1].inside[0]", "[1].inside[1]", "[2].inside.inside"]
    assert tree.map(lambda x: x, value) == value


def test_register_dataclass_keeps_the_options_of_a_frozen_dataclass() -> None:
    frozen = declared()["Frozen"]
    assert frozen(1, 2) < frozen(1, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen(1, 2).left = 3


def test_register_dataclass_refuses_a_dataclass_that_is_not_frozen() -> None:
    @dataclasses.dataclass
    class Open:
        left: Any

    with pytest.raises(TypeError, match=r"got the dataclass Open, .* @dataclass\(frozen=True\)"):
        tree.register_dataclass(Open)

    class Heir(Open):
        right: Any

    with pytest.raises(TypeError, match="got Heir, which inherits from the dataclass Open"):
        tree.register_dataclass(Heir)


def test_first_difference_reports_its_second_argument_as_the_expected_value() -> None:
    """In the order of `ftrain.testing.first_difference`."""
    message = tree.first_difference({"a": (1, 2, 3)}, {"a": (1, 2)})
    assert message == "at ['a']: expected a tuple of 2 entries, got 3"
    found = testing.first_difference({"a": (1, 2, 3)}, {"a": (1, 2)})
    assert f"{found}" == message


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        ({}, 1, "at the root: expected a leaf (int), got a dict of 0 entries"),
        (None, 1.5, "at the root: expected a leaf (float), got a NoneType"),
        ([{}], [(1,)], "at [0]: expected a tuple of 1 entries, got a dict of 0 entries"),
        ([1], [()], "at [0]: expected a tuple of 0 entries, got a leaf (int)"),
        ([()], [1], "at [0]: expected a leaf (int), got a tuple of 0 entries"),
        ((1, 2), Point(1, 2), "at the root: expected a Point, got a tuple of 2 entries"),
        ({"b": 1}, {"a": 1}, "at the root: ['a'] is missing"),
        ({"a": 1, "b": 1, "c": 2}, {"a": 1}, "at the root: ['b'] was not expected"),
        (Box(1, (2,)), Box(1, 2), "at .beside: expected a leaf (int), got a tuple of 1 entries"),
        ([1, 2], [1], "at the root: expected a list of 1 entries, got 2"),
        ([1], [1, 2], "at the root: expected a list of 2 entries, got 1"),
        (
            collections.OrderedDict(a=1, b=2),
            collections.OrderedDict(b=2, a=1),
            "at the root: expected an OrderedDict with ['b', 'a'], got one with ['a', 'b']",
        ),
    ],
)
def test_first_difference_says_what_was_expected_where(
    got: Any, expected: Any, message: str
) -> None:
    assert tree.first_difference(got, expected) == message
    assert tree.first_difference(expected, expected) is None
    with pytest.raises(ValueError, match=re.escape(f"{message}. Pass trees with the same")):
        tree.map(lambda *leaves: leaves, expected, expected, got)


def test_map_passes_one_leaf_of_each_tree_in_their_order() -> None:
    found = tree.map(
        lambda *leaves: leaves, {"a": 1, "b": [2]}, {"a": 3, "b": [4]}, {"b": [6], "a": 5}
    )
    assert found == {"a": (1, 3, 5), "b": [(2, 4, 6)]}


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        (
            collections.defaultdict(int, a=1),
            collections.defaultdict(list, a=1),
            r"at the root: expected a defaultdict with .*list.*, got one with .*int",
        ),
        (
            [collections.deque([1], maxlen=2)],
            [collections.deque([1], maxlen=3)],
            r"at \[0\]: expected a deque with 3, got one with 2",
        ),
    ],
)
def test_first_difference_names_both_values_of_data_that_is_not_a_child(
    got: Any, expected: Any, message: str
) -> None:
    assert re.fullmatch(f"{message}.*", tree.first_difference(got, expected) or "")
    assert tree.first_difference(got, got) is None
