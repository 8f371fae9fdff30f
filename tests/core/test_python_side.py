"""Python values in place of tensors, and other container classes: accepted, or a clear error."""

from __future__ import annotations

import collections
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import ftrain
from ftrain import checkpoint, optim, random
from ftrain.testing import assert_same_bits, assert_skips

STEPS = ftrain.make_steps(
    lambda: nn.Linear(2, 1), lambda model, batch: model(batch).square().mean(), optim.adam(0.1)
)
X = torch.tensor([[1.0, 2.0], [3.0, -1.0]])


@pytest.mark.parametrize("bad", [0, None, 1.5])
@pytest.mark.parametrize(
    "call",
    [
        lambda key: random.split(key),
        lambda key: random.fold_in(key, 1),
        lambda key: random.uniform(key, (2,)),
        lambda key: ftrain.bind(nn.Linear(2, 1)).init(random.key(0)) and apply(key),
    ],
)
def test_random_functions_refuse_arguments_that_are_not_keys(call: Any, bad: Any) -> None:
    said = rf"key: expected an int32 tensor of shape \(2,\), got an? {type(bad).__name__}.*random.key\("
    with pytest.raises(TypeError, match=said):
        call(bad)


def apply(key: Any) -> Any:
    bound = ftrain.bind(nn.Linear(2, 1))
    params, buffers = bound.init(random.key(0))
    return bound(params, buffers, key, X)


@pytest.mark.parametrize("num", [-1, 2.0, None, (2, -1), "3"])
def test_random_split_refuses_an_invalid_number_of_keys(num: Any) -> None:
    with pytest.raises(ValueError, match="num: expected an int >= 0, the number of keys"):
        random.split(random.key(0), num)
    assert random.split(random.key(0), 0).shape == (0, 2)


def test_replace_copies_only_the_fields_of_a_state_not_other_attributes() -> None:
    state = STEPS.init_state(0)
    object.__setattr__(state, "note", 1)
    new = state.replace(extras={"a": X})
    assert new.params is state.params
    assert new.extras == {"a": X}
    assert not hasattr(new, "note")


@pytest.mark.parametrize("compiled", [False, True])
def test_replace_converts_an_integer_step_to_a_tensor(compiled: bool) -> None:
    state = STEPS.init_state(0).replace(step=7)
    step = ftrain.compile(STEPS.train_step, backend="eager") if compiled else STEPS.train_step
    assert (state.step.dtype, state.step.shape) == (torch.int64, ())
    assert step(state, X)[0].step.item() == 8
    rows = ftrain.tree.map(lambda x: torch.stack([x, x]), state)
    assert rows.replace(step=3).step.tolist() == [3, 3]
    spec = ftrain.tree.map(lambda _: 0, state)
    assert spec.replace(step=1).step == 1  # as in_dims of a vmap


@pytest.mark.parametrize("step", [torch.tensor(0.0), torch.tensor(0, dtype=torch.int32), 1.5, None])
def test_state_step_of_another_dtype_or_shape_raises(step: Any) -> None:
    state = STEPS.init_state(0).replace(step=step)
    for fn in (
        STEPS.train_step,
        STEPS.eval_step,
        ftrain.compile(STEPS.train_step, backend="eager"),
    ):
        with pytest.raises(
            TypeError, match=r"state.step: expected an int64 0-d tensor, got .*replace"
        ):
            fn(state, X)


def test_params_may_be_an_ordered_dict() -> None:
    state, module = STEPS.init_state(0), nn.Linear(2, 1)
    expected = state.replace(params=dict(module.state_dict()))
    found = state.replace(params=module.state_dict())
    assert type(module.state_dict()) is OrderedDict
    assert type(found.params) is dict
    assert_same_bits(STEPS.train_step(found, X), STEPS.train_step(expected, X))
    bound = ftrain.bind(module)
    out, _ = bound(OrderedDict(state.params), {}, random.key(0), X)
    assert_same_bits(out, bound(state.params, {}, random.key(0), X)[0])


def test_store_with_an_empty_path_raises() -> None:
    with pytest.raises(ValueError, match=r"expected a path, got an empty text.*Store\('.'\)"):
        checkpoint.Store("")


class Own(NamedTuple):
    w: torch.Tensor
    rng: torch.Tensor


def own_step(state: Own, batch: torch.Tensor) -> Any:
    good = torch.isfinite(batch).all()
    w = torch.where(good, state.w - batch, state.w)
    return Own(w, state.rng + 1), {"skipped": (~good).to(torch.int64)}


def test_assert_skips_checks_states_of_custom_classes() -> None:
    state, poisoned = Own(torch.zeros(2), torch.tensor(0)), torch.tensor([torch.nan, 1.0])
    assert_skips(own_step, state, poisoned)
    assert_skips(STEPS.train_step, STEPS.init_state(0), X * torch.nan)

    def writes(state: Own, batch: Any) -> Any:
        return Own(state.w + 1, state.rng + 1), {"skipped": torch.tensor(1)}

    def stays(state: Own, batch: Any) -> Any:
        return state, {"skipped": torch.tensor(1)}

    for step, said in (
        (writes, r"changed the state at .w: "),
        (stays, r"state\.rng: expected another value after a skipped step"),
        (lambda state, batch: (state, {}), "metrics: expected an entry 'skipped'"),
        (lambda state, batch: ((state.w,), {"skipped": 1}), "changed the state: at the root"),
    ):
        with pytest.raises(AssertionError, match=said):
            assert_skips(step, state, poisoned)


def state_of(params: Any, device: str = "cpu", **fields: Any) -> ftrain.TrainState:
    step = torch.zeros((), dtype=torch.int64, device=device)
    key = torch.zeros(2, dtype=torch.int32, device=device)
    return ftrain.TrainState(step, params, {}, fields.get("opt_state", ()), (), key, {})


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (999, "999 bytes"),
        (1000, "1 kB"),
        (1234, "1.234 kB"),
        (999_999, "1,000 kB"),
        (10**6, "1 MB"),
        (10**9 - 1, "1,000 MB"),
        (10**9, "1 GB"),
        (10**13, "1e+04 GB"),
    ],
)
def test_repr_of_a_state_gives_its_size_in_the_largest_unit_that_it_fills(
    size: int, text: str
) -> None:
    # Step and key take 16 bytes.
    state = state_of({"w": torch.empty(size - 16, dtype=torch.uint8, device="meta")}, "meta")
    assert repr(state).endswith(f", meta, {text})")


def test_repr_of_a_state_counts_the_elements_of_each_dtype_and_names_parts_of_the_optimizer() -> (
    None
):
    params = {"a": torch.ones(1000), "b": torch.ones(3, dtype=torch.int64), "c": torch.ones(2)}
    text = repr(state_of(params, opt_state={"a": (torch.ones(1), ()), "b": [torch.ones(1)]}))
    assert "params=3 tensors of 1,002 float32 and 3 int64, buffers=()" in text
    assert "opt_state={a: (Tensor, ()), b: list}" in text


def test_replace_converts_mappings_only_where_the_state_has_a_dict() -> None:
    new = collections.OrderedDict(w=torch.ones(2))
    state = state_of({"w": torch.zeros(2)}, opt_state=new)
    assert type(state.replace(params=new).params) is dict
    assert type(state.replace(opt_state=new).opt_state) is collections.OrderedDict
    with pytest.raises(TypeError, match=r"a TrainState has no field 'w'\. It has step, params"):
        state.replace(w=1)
