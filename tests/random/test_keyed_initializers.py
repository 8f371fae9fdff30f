"""Test that initial weights are pure functions of the key and of each parameter's path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap

from ftrain.core.random import key, split
from ftrain.core.random._keyed_initializers import construct, observe

KEY = key(3)


class Layer(nn.Module):
    """Model with default, repeated, partial, computed and rejection-sampled initializations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        nn.init.orthogonal_(self.first.weight)
        self.second = nn.Linear(width, width)
        nn.init.trunc_normal_(self.second.weight, std=1.5)  # redraws what falls outside
        with torch.no_grad():
            self.second.weight[0].mul_(3)
        self.scale = nn.Parameter(torch.randn(width))
        self.attention = nn.MultiheadAttention(2, 1)

    def rescale(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d):
            nn.init.normal_(module.weight, std=0.02)


class Net(nn.Module):
    def __init__(self, names: tuple[str, ...], tied: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: Layer(3) for name in names})
        self.embedding = nn.Embedding(5, 3, padding_idx=1)
        self.head = nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.memory = nn.LSTM(3, 2)
        self.register_buffer("frequencies", torch.rand(4))
        self.apply(self.rescale)

    def rescale(self, module: nn.Module) -> None:
        if isinstance(module, nn.MultiheadAttention):
            nn.init.normal_(module.in_proj_weight, std=0.02)


def weights(build: Callable[[], nn.Module], key: Tensor = KEY) -> dict[str, Tensor]:
    before = torch.get_rng_state()
    _, plan = observe(build)
    module = construct(build, key, plan)
    assert torch.get_rng_state().equal(before)
    return {name: t.detach() for name, t in module.state_dict().items()}


def same(a: Tensor, b: Tensor) -> bool:
    return a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8))


@settings(max_examples=15)
@given(st.permutations("abcd"), st.integers(1, 4), st.booleans())
def test_adding_layers_does_not_change_the_initial_weights_of_other_layers(
    order: list[str], kept: int, tied: bool
) -> None:
    small = weights(partial(Net, tuple(sorted(order[:kept])), tied))
    large = weights(partial(Net, tuple(order), tied))
    assert all(same(small[name], large[name]) for name in small)


def test_initial_weights_depend_on_the_key_and_the_path() -> None:
    a, b = weights(partial(Net, ("x", "y"))), weights(partial(Net, ("x", "y")), key(4))
    constant = {"attention.in_proj_bias", "attention.out_proj.bias"}
    for name in a:
        assert same(a[name], b[name]) == any(name.endswith(end) for end in constant)
    for name in a:
        if name.startswith("layers.x.") and not any(name.endswith(end) for end in constant):
            assert not same(a[name], a[name.replace(".x.", ".y.")])


def test_values_that_a_constructor_writes_after_a_random_initialization_are_kept() -> None:
    net = weights(partial(Net, ("x",)))
    assert net["embedding.weight"][1].eq(0).all()
    assert net["layers.x.second.weight"][0].abs().max() > 2
    q = net["layers.x.first.weight"].double()
    # Three products a sum, in float32.
    assert (q @ q.T - torch.eye(3)).abs().max() < 1e-6
    assert net["layers.x.attention.in_proj_weight"].std() < 0.1


def test_vmapped_initial_weights_equal_those_of_single_models() -> None:
    build = partial(nn.TransformerEncoderLayer, 4, 2, 8)
    _, plan = observe(build)

    def init(key: Tensor) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in construct(build, key, plan).named_parameters()}

    keys = split(KEY, 3)
    rows = vmap(init)(keys)
    for i, one in enumerate(keys):
        assert all(same(rows[name][i], value) for name, value in init(one).items())


def test_observe_builds_a_model_and_lists_the_parameters_that_its_initial_draws_fill() -> None:
    module, plan = observe(lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    assert [type(layer) for layer in module] == [nn.Linear, nn.ReLU, nn.Linear]
    assert plan.sites == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_observe_attributes_each_draw_to_the_parameter_that_it_filled() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            flat = torch.empty(6)
            self.low, self.high = nn.Parameter(flat[:2]), nn.Parameter(flat[2:])
            nn.init.normal_(self.high)
            nn.init.normal_(self.high[3:])
            nn.init.normal_(self.low)
            self.scaled = nn.Parameter(torch.randn(2) * 0.1)  # the draw itself is thrown away
            self.constant = nn.Parameter(torch.empty(3))
            nn.init.ones_(self.constant)

    _, plan = observe(Odd)
    assert plan.sites == ["high", "high", "low", ""]
