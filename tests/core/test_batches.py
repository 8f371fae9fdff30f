"""Law 12: the result of a step depends on the batch's leaves, not on the containers around them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ftrain
from ftrain import tree
from ftrain.loop import _out_of_memory
from ftrain.testing import assert_close_norm, assert_same_bits
from tests.core import batches
from tests.core.batches import FORMS, rows

names = st.sampled_from(sorted(FORMS))


@functools.cache
def made(accumulate: int) -> Any:
    found = batches.steps(accumulate)
    return found, found.init_state(0)


@functools.cache
def expected(accumulate: int, k: int) -> Any:
    """Return the result for a plain dict, split by the out-of-memory recovery if k is not 1."""
    steps, state = made(accumulate)
    x, y = rows()
    return steps.train_step(state, _out_of_memory.cut({"x": x, "y": y}, k))


def build(nesting: list[str]) -> Any:
    """Nest the batch in the named containers, each with a vector of y beside the inner one."""
    x, y = rows()
    batch: Any = FORMS[nesting[0]](x, y)
    for name in nesting[1:]:
        batch = FORMS[name if name != "Plain" else "Frozen"](batch, y)
    return batch


@given(
    nesting=st.lists(names, min_size=1, max_size=3),
    accumulate=st.sampled_from([1, 2, 3, 4]),
    cut=st.booleans(),
)
def test_train_step_depends_on_batch_leaves_not_on_containers(
    nesting: list[str], accumulate: int, cut: bool
) -> None:
    steps, state = made(accumulate)
    batch = build(nesting)
    before = [x.clone() for x in tree.leaves(batch)]
    k = 12 if cut else 1
    found = steps.train_step(state, _out_of_memory.cut(batch, k))
    assert_same_bits(found, expected(accumulate, k))
    assert_same_bits(tree.leaves(batch), before)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_compiled_train_step_accepts_every_batch_container(name: str) -> None:
    steps, state = made(2)
    step = ftrain.compile(steps.train_step, backend="eager")
    for _ in range(2):  # traced, and read by the structure's reader
        assert_same_bits(step(state, build(["list", name, "Encoding"])), expected(2, 1))
    assert step.n_compiles == 1


@pytest.mark.parametrize("name", sorted(FORMS))
def test_tree_map_keeps_container_class_attributes_and_key_order(name: str) -> None:
    batch = FORMS[name](*rows())
    again = tree.map(lambda x: x + 1, batch)
    assert type(again) is type(batch)
    assert torch.equal(batches.first(again), batches.first(batch) + 1)
    if isinstance(batch, dict):
        assert list(again) == list(batch)
    if name == "Encoding":
        assert again._encodings is batch._encodings
        assert again._n_sequences == 1
    if name in ("Mirrored", "Itself"):
        assert again.x is again["x"]


def test_train_step_accepts_micro_batches_with_a_single_part() -> None:
    """Out-of-memory recovery cuts a batch of one row in this way."""
    steps, state = made(1)
    x, y = rows()
    found, _ = steps.train_step(state, ftrain.MicroBatches(({"x": x, "y": y},)))
    assert int(found.step) == 1


@pytest.mark.parametrize("n", [5, 7, 11])
def test_batch_cut_unequally_after_out_of_memory_has_the_mean_loss_of_the_whole_batch(
    n: int,
) -> None:
    """A loss without weights is the mean over all rows, not the mean of the parts' means."""

    def loss_fn(model: Any, batch: Any) -> Any:
        return (model(batch["x"]) - batch["y"]).square().mean(), {"y": batch["y"].mean()}

    steps = ftrain.make_steps(lambda: torch.nn.Linear(3, 1), loss_fn, ftrain.optim.sgd(0.1))
    state = steps.init_state(0)
    x, y = rows(n)
    whole, expected = steps.train_step(state, {"x": x, "y": y})
    for k in (2, 3, 4):
        cut, metrics = steps.train_step(state, _out_of_memory.cut({"x": x, "y": y}, k))
        # Sums of n rows in another order.
        assert_close_norm(cut.params, whole.params, 4e-7)
        for name in ("loss", "y"):
            assert metrics[name].item() == pytest.approx(expected[name].item(), rel=1e-6)
        value = gradients_value(steps, state, _out_of_memory.cut({"x": x, "y": y}, k))
        assert value == pytest.approx(expected["loss"].item(), rel=1e-6)


def gradients_value(steps: Any, state: Any, batch: Any) -> float:
    """Return the loss that `value_fn` passes to an optimizer."""
    seen: list[float] = []

    def update(grads: Any, opt_state: Any, params: Any, **extra: Any) -> Any:
        seen.append(float(extra["value_fn"](params)))
        return grads, opt_state

    def loss_fn(model: Any, batch: Any) -> Any:
        return (model(batch["x"]) - batch["y"]).square().mean()

    optimizer = ftrain.optim.GradientTransformation(lambda params: (), update)
    made = ftrain.make_steps(lambda: torch.nn.Linear(3, 1), loss_fn, optimizer)
    made.train_step(state.replace(opt_state=()), batch)
    return seen[0]


def test_out_of_memory_recovery_does_not_cut_a_batch_whose_tensors_differ_in_length() -> None:
    """Cutting a vector of class weights along with the rows would change the loss."""
    batch = {"x": torch.zeros(8, 3), "class_weights": torch.ones(4)}
    assert _out_of_memory.next_cut(batch, 1) is None
    said = _out_of_memory.advice(None, batch, 1, MemoryError("full"))
    assert (
        "The batch cannot be cut: batch['class_weights'] has 4 rows, and batch['x'] has 8." in said
    )
    named = {"x": torch.zeros(8, 3), "names": ["a"] * 8}
    assert _out_of_memory.next_cut(named, 1) is None
    assert "batch['names'] is a list of 8 Python values" in _out_of_memory.advice(
        None, named, 1, MemoryError()
    )


def test_constants_in_a_batch_are_passed_to_every_micro_batch() -> None:
    x, y = rows(4)

    def loss_fn(model: Any, batch: Any) -> Any:
        loss = (model(batch["x"]) - batch["y"]).square().mean() * batch["scale"]
        return loss * (2.0 if batch["task"] == "double" else 1.0)

    batch = {"x": x, "y": y, "scale": 0.5, "task": "double"}
    found = []
    for accumulate in (1, 2):
        steps = ftrain.make_steps(
            lambda: torch.nn.Linear(3, 1), loss_fn, ftrain.optim.sgd(0.1), accumulate=accumulate
        )
        for step in (steps.train_step, ftrain.compile(steps.train_step, backend="eager")):
            found.append(step(steps.init_state(0), batch)[0].params)
    for each in found[1:]:
        assert_close_norm(each, found[0], 4e-7)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (ftrain.MicroBatches({"x": torch.zeros(2)}), "a tuple of batches, got a dict"),  # type: ignore[arg-type]
        (ftrain.MicroBatches(torch.zeros(2, 3)), "a tuple of batches, got a Tensor"),  # type: ignore[arg-type]
        (
            ftrain.MicroBatches((torch.zeros(2),), (1, 2)),
            "one positive weight for each of 1 batches",
        ),
        (ftrain.MicroBatches((torch.zeros(2),), (0,)), "one positive weight for each of 1 batches"),
    ],
)
def test_invalid_micro_batches_arguments_raise(batch: Any, said: str) -> None:
    steps, state = made(1)
    with pytest.raises((TypeError, ValueError), match=said):
        steps.train_step(state, batch)


def test_numpy_arrays_in_a_batch_raise_an_error_that_suggests_torch_as_tensor() -> None:
    steps, state = made(1)
    x, y = rows()
    for batch in ({"x": x.numpy(), "y": y}, {"x": x, "y": y, "n": y.numpy().sum()}):
        for step in (steps.train_step, ftrain.compile(steps.train_step, backend="eager")):
            with pytest.raises(TypeError, match=r"torch.as_tensor\("):
                step(state, batch)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_nested_and_sparse_batches_are_refused_by_accumulate_and_taken_as_micro_batches() -> None:
    def loss_fn(model: Any, batch: Any) -> Any:
        if batch["x"].is_nested:
            return model(batch["x"]).values().square().mean()
        return (torch.sparse.mm(batch["x"], model.weight.T) + model.bias).square().mean()

    rows = [torch.randn(2, 3), torch.randn(3, 3)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
    for x, found in ((nested, "a nested tensor"), (torch.eye(3).to_sparse_csr(), "sparse_csr")):
        for accumulate in (1, 2):
            steps = ftrain.make_steps(
                torch.nn.Linear(3, 1), loss_fn, ftrain.optim.sgd(0.1), accumulate=accumulate
            )
            state = steps.init_state(0)
            if accumulate == 2:
                with pytest.raises(TypeError, match=rf"batch\['x'\].*got .*{found}.*MicroBatches"):
                    steps.train_step(state, {"x": x})
            micro = ftrain.MicroBatches(({"x": x}, {"x": x}))  # twice the same, so the same mean
            new, _ = steps.train_step(state, micro)
            whole, _ = ftrain.make_steps(
                torch.nn.Linear(3, 1), loss_fn, ftrain.optim.sgd(0.1)
            ).train_step(state, {"x": x})
            torch.testing.assert_close(new.params, whole.params)
