"""Test that strategies draw the documented values, and shrink to small, readable counter-examples."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from torch import nn

from ftrain import make_steps, optim
from ftrain.core import random, tree
from ftrain.testing import strategies
from ftrain.testing.strategies import Box, Network, Pair
from ftrain.testing.strategies.network import LAYERS

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPES = [*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]

quick = settings(
    database=None, deadline=None, derandomize=True, max_examples=300,
    suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
)  # fmt: skip


def smallest(strategy: Any, condition: Any = lambda value: True) -> Any:
    """Return the counter-example to which Hypothesis shrinks."""
    return find(strategy, condition, settings=settings(quick, max_examples=2000))


def counter_example(test: Any) -> str:
    """Return the text that Hypothesis prints about a failing test."""
    with pytest.raises(AssertionError) as caught:
        quick(test)()
    return "\n".join(getattr(caught.value, "__notes__", []))


def without_spaces(text: str) -> str:
    return "".join(text.split())


@given(st.data(), st.sampled_from(DTYPES))
def test_tensors_have_the_dtype_and_values_within_the_bounds(data, dtype) -> None:
    x = data.draw(strategies.tensors(dtype=dtype, min_value=0, max_value=3, strides="any"))
    assert x.dtype == dtype
    assert x.numel() == 0 or (x.min().item() >= 0 and x.max().item() <= 3)


@given(st.data(), st.sampled_from(FLOATS))
def test_tensors_are_ordinary_numbers_unless_special_ones_are_allowed(data, dtype) -> None:
    x = data.draw(strategies.tensors(dtype=dtype)).double()
    assert bool(x.isfinite().all())
    assert not bool((x == 0).logical_and(x.signbit()).any())


@settings(max_examples=200)
@given(st.tuples(*(strategies.tensors((2,), dtype) for dtype in FLOATS)))
def test_tensors_strategy_draws_subnormal_numbers_only_on_request(drawn) -> None:
    for x in drawn:
        tiny = torch.finfo(x.dtype).smallest_normal
        assert not bool(((x != 0) & (x.double().abs() < tiny)).any())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("option", "is_special"),
    [
        ("allow_nan", lambda x, tiny: x.isnan()),
        ("allow_infinity", lambda x, tiny: x.isinf()),
        ("allow_negative_zero", lambda x, tiny: (x == 0) & x.signbit()),
        ("allow_subnormal", lambda x, tiny: (x != 0) & (x.abs() < tiny)),
    ],
)
def test_special_values_are_drawn_on_request_and_shrink_to_one_element(
    dtype, option, is_special
) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    drawn = strategies.tensors(dtype=dtype, **{option: True})
    found = smallest(drawn, lambda x: bool(is_special(x.double(), tiny).any()))
    assert found.numel() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_tensors_reach_the_bounds_of_their_dtype(dtype) -> None:
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    drawn = strategies.tensors(dtype=dtype, min_value=limits.min, max_value=limits.max)
    assert smallest(drawn, lambda x: bool((x > limits.max / 2).any())).numel() == 1


def test_tensors_shrink_to_zeros_of_few_elements() -> None:
    assert smallest(strategies.tensors()).tolist() == 0.0
    assert smallest(strategies.tensors(), lambda x: x.numel() >= 2).tolist() == [0.0, 0.0]
    assert smallest(strategies.tensors(), lambda x: bool((x > 1).any())).tolist() == 2.0


def test_tensors_with_strides_any_have_every_layout_and_shrink_to_the_contiguous_one() -> None:
    drawn = strategies.tensors((2, 3), strides="any")
    assert smallest(drawn).stride() == (3, 1)
    transposed = smallest(drawn, lambda x: x.stride(0) < x.stride(1))
    assert transposed.stride() == (1, 2)
    assert smallest(drawn, lambda x: x.storage_offset() > 0).storage_offset() == 1
    assert smallest(drawn, lambda x: x.stride(1) == 2).stride() == (6, 2)


def test_tensors_refuse_bounds_without_a_value_and_unknown_dtypes() -> None:
    with pytest.raises(ValueError, match="bounds with a value of torch.int64"):
        strategies.tensors(dtype=torch.int64, min_value=0.2, max_value=0.8)
    with pytest.raises(ValueError, match="dtype: expected one of float64.* got torch.complex64"):
        strategies.tensors(dtype=torch.complex64)
    with pytest.raises(ValueError, match="strides: expected"):
        strategies.tensors(strides="all")  # type: ignore[arg-type]


def test_keys_print_as_the_call_that_made_them() -> None:
    @given(strategies.keys())
    def fails(key: torch.Tensor) -> None:
        assert not bool(random.bernoulli(key, 0.5, ()))

    assert "key=key(" in counter_example(fails)
    assert torch.equal(smallest(strategies.keys()), random.key(0))


@given(strategies.trees())
def test_trees_survive_flatten_and_unflatten(drawn) -> None:
    leaves, structure = tree.flatten(drawn)
    assert tree.structure(tree.unflatten(structure, leaves)) == structure


@pytest.mark.parametrize("kind", [tuple, list, dict, Pair, Box, type(None)])
def test_trees_have_every_kind_of_container_and_shrink_to_one_node(kind) -> None:
    found = smallest(strategies.trees(st.just(0)), lambda drawn: type(drawn) is kind)
    small = {tuple: (), list: [], dict: {}, Pair: Pair(0, 0), Box: Box(0), type(None): None}
    assert found == small[kind]


def test_trees_shrink_to_the_leaf_that_fails() -> None:
    found = smallest(
        strategies.trees(st.integers(0, 9)),
        lambda drawn: ("['a'][0]", 3) in zip(tree.paths(drawn), tree.leaves(drawn), strict=True),
    )
    assert found in ({"a": (3,)}, {"a": [3]})


EXAMPLE = {"x": torch.zeros(4, 3), "y": torch.tensor([0, 1, 2, 2]), "weight": torch.ones(4)}


@given(strategies.batches(EXAMPLE, rows=st.integers(1, 5), weight="weight"))
def test_batches_have_the_structure_and_value_range_of_the_example(batch) -> None:
    rows = batch["x"].shape[0]
    assert batch["x"].shape == (rows, 3)
    assert batch["y"].shape == batch["weight"].shape == (rows,)
    assert set(batch["y"].tolist()) <= {0, 1, 2}
    assert set(batch["weight"].tolist()) <= {0.0, 1.0}
    assert batch["weight"].sum() > 0


@given(strategies.batches({"mask": torch.ones(3, 4, dtype=torch.bool)}, weight="['mask']"))
def test_ragged_weights_are_ones_then_zeros_in_each_row(batch) -> None:
    counts = batch["mask"].sum(1)
    assert torch.equal(batch["mask"], torch.arange(4) < counts[:, None])
    assert counts.sum() > 0


def test_batches_strategy_draws_a_total_weight_of_zero_only_on_request() -> None:
    spec = (torch.ones(2, 3), torch.ones(2))
    drawn = strategies.batches(spec, weight="[1]", allow_zero_weight=True)
    assert smallest(drawn, lambda batch: batch[1].sum() == 0)[1].tolist() == [0.0, 0.0]


def test_batches_take_meta_tensors_and_strategies_as_specs() -> None:
    spec = (
        torch.empty(2, 2, device="meta"),
        st.just("text"),
        torch.empty(2, dtype=torch.int64, device="meta"),
    )
    x, text, y = smallest(strategies.batches(spec), lambda batch: bool((batch[2] == 1).any()))
    assert (x.tolist(), text) == ([[0.0, 0.0], [0.0, 0.0]], "text")
    assert set(y.tolist()) <= {0, 1}


def test_batches_refuse_a_weight_that_is_missing_and_rows_of_a_scalar() -> None:
    with pytest.raises(ValueError, match=r"weight: expected the path .*\['x'\].* got 'mask'"):
        strategies.batches(EXAMPLE, weight="mask")
    with pytest.raises(ValueError, match=r"rows: .* at spec\['a'\], got a 0-d tensor"):
        strategies.batches({"a": torch.tensor(1.0)}, rows=3)


@pytest.mark.parametrize("name", LAYERS)
def test_networks_with_every_kind_of_layer_train_with_make_steps(name) -> None:
    network = Network((name, f"frozen {name}", "layer 0 again"))
    init_state, train_step, eval_step = network.steps(optim.sgd(0.1))
    state, metrics = train_step(init_state(0), network.batch())
    assert bool(eval_step(state, network.batch())["loss"].isfinite())
    assert bool(metrics["loss"].isfinite())


@settings(max_examples=15)
@given(strategies.modules(), strategies.optimizers())
def test_drawn_modules_and_optimizers_train_with_make_steps(network, optimizer) -> None:
    init_state, train_step, _ = make_steps(network, network.loss_fn, optimizer)
    state = init_state(0)
    new_state, metrics = train_step(state, network.batch())
    assert tree.structure(new_state) == tree.structure(state)
    assert int(new_state.step) == 1
    assert bool(metrics["loss"].isfinite())


def test_network_with_tied_and_shared_layers_has_one_weight_for_them() -> None:
    module = Network(("linear", "linear tied to 0", "layer 0 again"))()
    assert module[1].weight is module[0].weight
    assert module[2] is module[0]
    assert isinstance(module[3], nn.Linear)


def test_network_strategy_freezes_layers_marked_as_frozen() -> None:
    state = Network(("frozen linear", "linear")).steps(optim.sgd(0.1)).init_state(0)
    assert sorted(state.buffers) == ["0.bias", "0.weight"]
    assert sorted(state.params) == ["1.bias", "1.weight", "2.bias", "2.weight"]


@pytest.mark.parametrize(
    "layer",
    ["conv", "layer 1 again", "linear tied to 1", "tanh tied to 0", "frozen", "layer x again"],
)
def test_network_refuses_an_unknown_layer(layer) -> None:
    with pytest.raises(ValueError, match=r"layers\[1\]: expected a name"):
        Network(("tanh", layer))


@pytest.mark.parametrize(
    ("condition", "layers"),
    [
        (lambda layers: True, ()),
        (lambda layers: "dropout" in layers, ("dropout",)),
        (lambda layers: any("frozen" in each for each in layers), ("frozen linear",)),
        (lambda layers: any("again" in each for each in layers), ("linear", "layer 0 again")),
        (lambda layers: any("tied" in each for each in layers), ("linear", "linear tied to 0")),
    ],
)
def test_modules_shrink_to_the_layer_that_fails(condition, layers) -> None:
    found = smallest(strategies.modules(), lambda network: condition(network.layers))
    assert found == Network(layers)


def test_optimizers_shrink_to_sgd_and_print_as_the_call_that_made_them() -> None:
    @given(strategies.optimizers())
    def fails(optimizer: Any) -> None:
        assert optimizer is None

    assert "optimizer=sgd(0.001" in without_spaces(counter_example(fails))


def test_a_wrapped_optimizer_prints_with_its_wrapper() -> None:
    @given(strategies.optimizers(["adam"]))
    def fails(optimizer: Any) -> None:
        assert "MultiSteps" not in type(optimizer.init({})).__name__

    assert "optimizer=multi_steps(adam(0.001" in without_spaces(counter_example(fails))


def test_schedules_shrink_to_a_constant_and_include_joined_schedules() -> None:
    @given(strategies.schedules())
    def fails(schedule: Any) -> None:
        assert float(schedule(torch.tensor(3))) == float(schedule(torch.tensor(0)))

    assert "schedule=" in counter_example(fails)
    found = smallest(strategies.schedules())
    assert [float(found(torch.tensor(i))) for i in (0, 9)] == [0.001, 0.001]


@given(strategies.schedules(), st.integers(0, 100))
def test_schedules_are_finite_and_not_negative(schedule, count) -> None:
    rate = float(schedule(torch.tensor(count)))
    assert 0.0 <= rate <= 1.0


def test_states_shrink_to_the_initial_state_and_include_later_states() -> None:
    network = Network(())
    steps = network.steps(optim.sgd(0.1))
    drawn = strategies.states(steps, [network.batch()])
    assert tree.digest(smallest(drawn)) == tree.digest(steps.init_state(0))
    assert int(smallest(drawn, lambda state: int(state.step) >= 2).step) == 2
    later = strategies.states(steps, strategies.batches(network.batch()), seeds=st.just(3))
    found = smallest(later, lambda state: int(state.step) == 1)
    assert tree.digest(found.rng) != tree.digest(steps.init_state(3).rng)


def test_states_strategy_refuses_an_argument_that_is_not_steps() -> None:
    with pytest.raises(TypeError, match="steps: expected init_state"):
        strategies.states(3)


def test_testing_works_without_hypothesis_and_strategies_name_the_remedy() -> None:
    script = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import importlib.util; real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'hypothesis' else real(name, *a)\n"
        "import torch\n"
        "from ftrain import testing\n"
        "testing.assert_same_bits(torch.ones(1), torch.ones(1))\n"
        "for name in ('strategies', 'machine'):\n"
        "    try:\n"
        "        getattr(testing, name)\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("which is not installed. Run `pip install 'ftrain[testing]'`.") == 2
