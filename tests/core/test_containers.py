"""Container classes as tree nodes: flattened, rebuilt, or refused with an error."""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
import types
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.utils._pytree as torch_pytree

import ftrain
from ftrain import data, tree
from ftrain.core._count_samples import count_samples
from ftrain.core.errors import DonatedStateError, RecompileWarning
from ftrain.testing import assert_same_bits
from tests.core.batches import FORMS, Encoding, rows


@pytest.mark.parametrize("name", sorted(FORMS))
def test_torch_pytree_leaf_order_matches_ftrain_tree(name: str) -> None:
    x, y = rows()
    batch = FORMS[name](x, {"b": y, "a": x})
    leaves, spec = torch_pytree.tree_flatten(FORMS[name](x, y))
    again = torch_pytree.tree_unflatten(leaves, spec)
    tree.leaves(batch)  # registers the class, if nobody has
    if name in ("dict", "OrderedDict", "defaultdict", "tuple", "list", "NamedTuple"):
        return  # torch keeps the insertion order of these
    leaves, spec = torch_pytree.tree_flatten(batch)
    assert [id(leaf) for leaf in leaves] == [id(leaf) for leaf in tree.leaves(batch)]
    again = torch_pytree.tree_unflatten(leaves, spec)
    assert type(again) is type(batch)
    assert tree.structure(again) == tree.structure(batch)


def test_vmap_accepts_and_returns_a_custom_mapping() -> None:
    x, y = rows()
    batch = Encoding({"x": x, "y": y})
    tree.leaves(batch)
    found = torch.vmap(lambda row: tree.map(lambda t: t * 2, row))(batch)
    assert type(found) is Encoding
    assert_same_bits(dict(found), {"x": x * 2, "y": y * 2})


def test_compiled_functions_return_containers_of_real_not_traced_tensors() -> None:
    @dataclasses.dataclass
    class Out:
        logits: Any
        name: str = "head"

    def fn(x: torch.Tensor) -> Any:
        return Out(x + 1), Encoding({"x": x})

    compiled = ftrain.compile(fn, backend="eager")
    for x in (torch.arange(3.0), torch.ones(3)):
        out, encoding = compiled(x)
        assert_same_bits((out.logits, encoding["x"]), (x + 1, x))
        assert out.name == "head"


def test_tensor_attributes_of_a_custom_mapping_are_leaves() -> None:
    batch = Encoding({"x": torch.zeros(2)})
    batch.mask = torch.ones(2)
    assert tree.paths(batch) == ["['x']", ".mask"]
    assert tree.map(lambda x: x + 1, batch).mask.tolist() == [2.0, 2.0]


def test_list_attribute_of_a_batch_object_raises_when_read_in_compiled_steps_and_micro_batches() -> (
    None
):
    """Reading them there would give the values of the traced or whole batch."""
    x, y = rows()
    batch = Encoding({"x": x, "y": y})

    def loss_fn(model: Any, batch: Any) -> Any:
        if batch._encodings:
            return (model(batch["x"]) - batch.y).square().mean()
        raise AssertionError

    def step(accumulate: int) -> Any:
        made = ftrain.make_steps(
            lambda: torch.nn.Linear(3, 1), loss_fn, ftrain.optim.sgd(0.1), accumulate=accumulate
        )
        return made.init_state(0), made.train_step

    state, plain = step(1)
    plain(state, batch)
    said = "`_encodings` of an Encoding is a list, and cannot be used in a compiled function"
    with pytest.raises(TypeError, match=said):
        ftrain.compile(plain, backend="eager")(state, batch)
    state, cut = step(2)
    with pytest.raises(TypeError, match="cannot be used in a micro-batch"):
        cut(state, batch)


@pytest.mark.parametrize(
    "use",
    [
        bool, len, list, next, lambda x: x[0], lambda x: x(), lambda x: 1 in x, lambda x: x.ids,
        lambda x: setattr(x, "ids", 1), lambda x: x.__setitem__(0, 1), lambda x: x.__delitem__(0),
    ],
)  # fmt: skip
def test_attribute_that_would_belong_to_another_batch_raises_at_any_use(use: Any) -> None:
    with tree.withheld("a test"):
        batch = tree.map(torch.clone, Encoding({"x": torch.ones(2)}))
    with pytest.raises(
        TypeError, match="`_encodings` of an Encoding is a list.* be used in a test:"
    ):
        use(batch._encodings)
    assert not hasattr(batch._encodings, "__array__")  # which checks of its kind may look up
    assert batch._n_sequences == 1
    assert isinstance(tree.map(torch.clone, Encoding({"x": torch.ones(2)}))._encodings, list)


def test_fields_of_a_dataclass_are_leaves_in_their_order_whatever_they_hold() -> None:
    @dataclasses.dataclass
    class Fields:
        z: Any
        a: Any

    value = Fields(1, ["text", None])
    value.extra, value.more = torch.ones(1), "constant"  # type: ignore[attr-defined]
    assert tree.paths(value) == [".z", ".a[0]", ".extra"]
    again = tree.map(lambda x: x, value)
    assert vars(again) == vars(value)
    del value.z
    assert tree.paths(value) == [".a[0]", ".extra"]
    assert vars(tree.map(lambda x: x, value)) == vars(value)


def test_changed_constant_attribute_of_an_argument_compiles_a_second_program() -> None:
    def fn(batch: Any) -> Any:
        return batch["x"] * batch._n_sequences

    one, two = Encoding({"x": torch.ones(2)}), Encoding({"x": torch.ones(2)})
    two._n_sequences = 2
    compiled = ftrain.compile(fn, backend="eager")
    assert compiled(one).tolist() == [1.0, 1.0]
    with pytest.warns(RecompileWarning):
        assert compiled(two).tolist() == [2.0, 2.0]
    assert compiled(one).tolist() == [1.0, 1.0]
    assert tree.first_difference(one, two) is not None


class Lazy(Mapping[str, Any]):
    """Mapping that creates its tensors on access, so that it cannot be rebuilt."""

    def __getitem__(self, name: str) -> Any:
        return torch.zeros(2)

    def __iter__(self) -> Iterator[str]:
        return iter(("x", "y"))

    def __len__(self) -> int:
        return 2


def test_mapping_that_holds_tensors_but_cannot_be_rebuilt_raises_with_its_path() -> None:
    said = r"\['inputs'\]\[1\] is a Lazy, a mapping that cannot be rebuilt.*Pass dict\(x\) instead"
    with pytest.raises(TypeError, match=said):
        tree.leaves({"inputs": [torch.zeros(2), Lazy()]})


def test_mapping_that_cannot_be_rebuilt_is_named_by_its_own_path() -> None:
    with pytest.raises(TypeError, match=r"^the root is a Lazy, a mapping that"):
        tree.leaves(Lazy())

    class Numbers(Doubling):
        pass

    value = {"a": [Numbers({"x": 1}), (Numbers({"x": torch.ones(2)}),)]}
    with pytest.raises(TypeError, match=r"^\['a'\]\[1\]\[0\] is a Numbers, a mapping that"):
        tree.leaves(value)


class Doubling(Mapping[str, Any]):
    """Mapping whose constructor does not keep the items that it is given."""

    def __init__(self, items: dict[str, Any]) -> None:
        self._pairs = tuple((name, 2 * value) for name, value in items.items())

    def __getitem__(self, name: str) -> Any:
        return dict(self._pairs)[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


def test_mapping_whose_constructor_changes_its_items_is_refused() -> None:
    with pytest.raises(TypeError, match=r"is a Doubling, a mapping that cannot be rebuilt"):
        tree.leaves({"inputs": Doubling({"x": torch.ones(2)})})


def test_mapping_that_cannot_be_rebuilt_is_a_leaf_if_it_holds_no_tensors() -> None:
    assert tree.leaves([os.environ, {"x": 1}])[1] == 1


def test_mapping_with_tensors_is_refused_after_one_of_its_class_without_tensors() -> None:
    class Repeated(Doubling):
        pass

    assert len(tree.leaves({"inputs": Repeated({"x": 1})})) == 1
    with pytest.raises(TypeError, match="is a Repeated, a mapping that cannot be rebuilt"):
        tree.leaves({"inputs": Repeated({"x": torch.ones(2)})})


def test_classes_registered_in_torch_pytree_are_tree_nodes() -> None:
    class Boxed:
        def __init__(self, x: Any, size: list[int]) -> None:
            self.x, self.size = x, size

    torch_pytree.register_pytree_node(
        Boxed, lambda b: ([b.x], {"size": b.size}), lambda x, context: Boxed(*x, context["size"])
    )
    boxed = Boxed(torch.zeros(2), [2])
    leaves, treedef = tree.flatten(boxed)
    assert len(leaves) == 1
    assert hash(treedef) == hash(tree.structure(Boxed(torch.ones(2), [2])))
    assert treedef != tree.structure(Boxed(torch.ones(2), [3]))
    assert tree.map(lambda x: x + 1, boxed).x.tolist() == [1.0, 1.0]


def test_concurrent_threads_register_a_container_class_once() -> None:
    class Own(collections.UserDict[str, Any]):
        pass

    found: list[Any] = []
    start = threading.Barrier(8)

    def flatten() -> None:
        start.wait()
        found.append(len(tree.leaves([Own(x=torch.zeros(1), y=torch.zeros(1))])))

    threads = [threading.Thread(target=flatten) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2] * 8


def test_loader_reads_datasets_that_are_dataclasses_or_lists() -> None:
    """A dataset that is a dataclass or a subclass of list is read sample by sample."""

    @dataclasses.dataclass
    class Samples:
        values: torch.Tensor

        def __len__(self) -> int:
            return len(self.values)

        def __getitem__(self, i: int) -> torch.Tensor:
            return self.values[i] + 100

    class Listed(list[Any]):
        pass

    (batch,) = data.Loader(Samples(torch.arange(4.0)), 4, shuffle=False)
    assert batch.tolist() == [100.0, 101.0, 102.0, 103.0]
    (batch,) = data.Loader(Listed([torch.tensor(1.0), torch.tensor(2.0)]), 2, shuffle=False)
    assert batch.tolist() == [1.0, 2.0]


def test_modules_and_classes_are_tree_leaves() -> None:
    @dataclasses.dataclass(eq=False)
    class Net(torch.nn.Module):
        width: int

        def __post_init__(self) -> None:
            super().__init__()

    for leaf in (Net(3), Net, data.Loader):
        assert tree.leaves([leaf]) == [leaf]


def test_compiled_functions_can_donate_frozen_dataclasses() -> None:
    @dataclasses.dataclass(frozen=True)
    class State:
        w: torch.Tensor

    step = ftrain.compile(lambda s: State(s.w + 1), donate=True, backend="eager")
    old = State(torch.zeros(2))
    assert step(old).w.tolist() == [1.0, 1.0]
    with pytest.raises(DonatedStateError):
        print(old.w)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_padding_loader_keeps_the_batch_container_class(name: str) -> None:
    x, y = rows(3)
    samples = [(x[i], y[i]) for i in range(3)]

    def collate(found: Any) -> Any:
        return FORMS[name](*map(torch.stack, zip(*found, strict=True)))

    loader = data.Loader(samples, 2, shuffle=False, last_batch="pad", collate=collate)
    *_, last = loader
    if isinstance(last, tuple):
        last, weight = last
    else:
        weight = last["weight"]
    assert type(last) is type(FORMS[name](x, y))
    assert weight.tolist() == [1.0, 0.0]


def test_count_samples_counts_rows_and_tokens_in_any_container() -> None:
    ids, labels = torch.zeros(5, 7, dtype=torch.int64), torch.zeros(5)
    fields = collections.namedtuple("Fields", "input_ids labels")
    plain = dataclasses.make_dataclass("Plain", ["input_ids", "labels"])
    slotted = dataclasses.make_dataclass("Slotted", ["labels", "input_ids"], slots=True)
    for batch in (
        {"input_ids": ids, "labels": labels},
        Encoding({"input_ids": ids, "labels": labels}),
        fields(ids, labels),
        plain(ids, labels),
        slotted(labels, ids),
    ):
        assert count_samples(batch) == (5, 35)
    assert count_samples([{"z": ids, "a": torch.zeros(3)}]) == (5, 0)
    ordered = dataclasses.make_dataclass("Ordered", ["z", "a"])
    assert count_samples([ordered(ids, torch.zeros(3))]) == (5, 0)
    assert count_samples({"scale": torch.tensor(1.0), "rows": {"x": labels}}) == (5, 0)
    assert count_samples([1.0, "text"]) == (0, 0)


def test_compiled_function_refuses_an_object_that_holds_tensors() -> None:
    """The program would keep using the tensor that the object held at trace time."""

    class Graph:
        def __init__(self, x: Any) -> None:
            self.features = {"x": x}

    unhashable_graph = type("Unhashable", (Graph,), {"__hash__": None})
    compiled = ftrain.compile(lambda graph: graph.features["x"] * 2, backend="eager")
    with pytest.raises(
        TypeError, match="is a Graph, whose attribute 'features' holds a tensor.*dataclass"
    ):
        compiled(Graph(torch.ones(2)))
    for unhashable in (
        unhashable_graph(torch.ones(2)),
        types.SimpleNamespace(features=torch.ones(2)),
    ):
        with pytest.raises(TypeError, match="whose attribute 'features' holds a tensor"):
            compiled(unhashable)
    by_module = ftrain.compile(lambda module, x: module(x), backend="eager")
    assert by_module(torch.nn.Identity(), torch.ones(2)).tolist() == [1.0, 1.0]
