"""Test that functions covered by `keyed` draw from the key alone, equally under every transform."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from ftrain.core.errors import UnkeyedRandomError
from ftrain.core.random import _key_stream, key, sample, split
from ftrain.core.random._keyed_reach import is_random, unkeyed
from ftrain.core.random.keyed import HANDLERS, keyed

from ._keyed_cases import CASES, Case, X

KEYS = split(key(1), 3)
XS = torch.stack([X, X * 0.5, -X])


@pytest.fixture(autouse=True)
def _global_generator_is_untouched() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.get_rng_state().equal(before)


def run(case: Case, key: Tensor, x: Tensor) -> list[Tensor]:
    with keyed(key):
        return tree_leaves(case.run(case.params, x))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Return True if dtypes, shapes and bytes are equal."""
    return len(a) == len(b) and all(
        p.dtype == q.dtype
        and p.shape == q.shape
        and p.detach()
        .contiguous()
        .view(-1)
        .view(torch.uint8)
        .equal(q.detach().contiguous().view(-1).view(torch.uint8))
        for p, q in zip(a, b, strict=True)
    )


def close(case: Case, a: list[Tensor], b: list[Tensor]) -> bool:
    """Return True if bytes are equal, or values up to rounding where torch's transforms differ.

    Batched products sum in another order: 1e-5 is 100 times what was seen; another mask is off by 1.
    """
    if case.exact:
        return same(a, b)
    return len(a) == len(b) and all(
        torch.allclose(p, q, rtol=1e-5, atol=1e-5) for p, q in zip(a, b, strict=True)
    )


def row(outputs: list[Tensor], i: int) -> list[Tensor]:
    return [output[i] for output in outputs]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_keyed_draws_depend_on_the_key(case: Case) -> None:
    first, again, other = (run(case, k, X) for k in (KEYS[0], KEYS[0], KEYS[1]))
    assert same(first, again)
    assert not same(first, other)


def test_vmapped_keyed_draws_match_single_draws(case: Case) -> None:
    over_keys = vmap(lambda k: run(case, k, X * 1))
    over_both = vmap(lambda k, x: run(case, k, x))
    # Torch writes no batched values into unbatched data; the straight-through estimate would, inside.
    if "inplace" not in case.name and "hard" not in case.name:
        outputs = over_keys(KEYS)
        assert all(close(case, row(outputs, i), run(case, KEYS[i], X)) for i in range(3))
    outputs = over_both(KEYS, XS)
    assert all(close(case, row(outputs, i), run(case, KEYS[i], XS[i])) for i in range(3))


def test_unbatched_key_gives_every_vmapped_row_the_same_draws(case: Case) -> None:
    outputs = vmap(lambda x: run(case, KEYS[0], x))(XS)
    assert all(close(case, row(outputs, i), run(case, KEYS[0], XS[i])) for i in range(3))


def test_traced_keyed_draws_match_eager(case: Case) -> None:
    def traced(key: Tensor, params: dict[str, Tensor], x: Tensor) -> list[Tensor]:
        with keyed(key):
            return tree_leaves(case.run(params, x))

    graph = make_fx(traced, tracing_mode="fake")(KEYS[0], case.params, X)
    assert close(case, graph(KEYS[1], case.params, X), run(case, KEYS[1], X))


def test_keyed_draws_under_vjp_match_eager(case: Case) -> None:
    def differentiable(x: Tensor) -> list[Tensor]:
        return [y.float() + 0 * x.sum() for y in run(case, KEYS[0], x)]

    outputs, pull = vjp(differentiable, X)
    assert close(case, outputs, [y.float() for y in run(case, KEYS[0], X)])
    assert pull([torch.ones_like(y) for y in outputs])[0].shape == X.shape


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Net(nn.Module):
    """Model of dropout blocks that returns each block's output, so that tests can read the masks."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({name: Block() for name in names})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: block(x) for name, block in self.blocks.items()}


ONES = torch.ones(64)


def masks(model: Callable[[Tensor], Any], key: Tensor = KEYS[0], **options: Any) -> Any:
    with keyed(key, **options):
        return model(ONES)


def test_adding_a_layer_does_not_change_the_dropout_masks_of_other_layers() -> None:
    small, large = masks(Net("a", "c")), masks(Net("extra", "a", "b", "c"))
    assert all(small[name].equal(large[name]) for name in small)
    assert len({tuple(mask.tolist()) for mask in large.values()}) == 4


def test_draw_outside_a_model_does_not_change_its_dropout_masks() -> None:
    net = Net("a", "b")

    def noisy(x: Tensor) -> dict[str, Tensor]:
        torch.rand(3)
        return net(x + F.dropout(x, 0.5))

    plain = masks(net)
    assert all(((noisy_ > 0) == (plain[k] > 0)).all() for k, noisy_ in masks(noisy).items())


def test_module_called_twice_draws_different_masks() -> None:
    net = Net("a", "b")
    first, second = masks(lambda x: (net(x), net(x)))
    assert first["a"].equal(masks(net)["a"])
    assert not first["a"].equal(second["a"])


def test_submodule_called_alone_draws_the_same_masks_as_in_its_model() -> None:
    net = Net("a", "b")
    whole = masks(net)
    a, b = masks(lambda x: (net.blocks["a"](x), net.blocks["b"].inner(x)), root=net)
    assert a.equal(whole["a"])
    assert b.equal(whole["b"])


def test_modules_outside_the_keyed_block_do_not_change_its_draws() -> None:
    net = Net("a")

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            return masks(self.net)

    assert Around()(ONES)["a"].equal(masks(net)["a"])


def test_path_of_a_keyed_draw_is_the_module_name_or_the_class_and_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    path = _key_stream.KeyStream._path

    def recorded(stream: Any, chain: Any) -> str:
        seen.append(path(stream, chain))
        return seen[-1]

    monkeypatch.setattr(_key_stream.KeyStream, "_path", recorded)
    net = Net("a")
    masks(lambda x: (F.dropout(x), net(x), nn.Sequential(net, net.blocks["a"])))
    masks(lambda x: net.apply(lambda module: torch.rand(1)))
    masks(lambda x: (nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1)), nn.MultiheadAttention(2, 1)))
    assert seen == [
        *["", "blocks.a.inner"],
        *["blocks.a.inner", "blocks.a", "blocks", ""],
        *["Linear#0", "Linear#0", "Linear#1", "Linear#1"],
        *["MultiheadAttention#0.NonDynamicallyQuantizableLinear#0"] * 2,
        "MultiheadAttention#0",
    ]


def test_key_of_a_keyed_draw_is_folded_from_the_module_path_and_the_draw_count() -> None:
    """Keys of call sites, by blake2b of path and count, are public, since runs resume after years."""
    digest = int.from_bytes(hashlib.blake2b(b"blocks.a.inner", digest_size=8).digest())
    folds = (digest >> 33, (digest & 0xFFFFFFFF) >> 1, 0)
    assert masks(Net("a"))["a"].bool().equal(sample.bernoulli(KEYS[0], 0.5, (64,), folds=folds))


def test_outer_keyed_block_continues_its_draws_after_an_inner_one() -> None:
    with keyed(KEYS[0]):
        a, b = torch.rand(3), torch.rand(3)
    with keyed(KEYS[0]):
        c = torch.rand(3)
        with contextlib.suppress(ZeroDivisionError), keyed(KEYS[1]):
            inner = torch.rand(3)
            1 / 0  # noqa: B018
        d = torch.rand(3)
    with keyed(KEYS[1]):
        assert inner.equal(torch.rand(3))
    assert a.equal(c)
    assert b.equal(d)


@pytest.mark.parametrize(
    "call",
    [lambda: torch.ops.aten.bernoulli(X.sigmoid()), lambda: torch.ops.aten.rand.default([3])],
)
def test_draws_called_through_torch_ops_are_keyed(call: Callable[[], Any]) -> None:
    drawn = []
    before = torch.get_rng_state()
    for context in (KEYS[0], KEYS[0], KEYS[1]):
        with keyed(context):
            drawn.append(torch.cat([call().flatten() for _ in range(8)]))
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])
    assert torch.get_rng_state().equal(before)


def test_explicit_generator_under_keyed_raises() -> None:
    for draw in (torch.rand, lambda n, generator: torch.empty(n).normal_(generator=generator)):
        with keyed(KEYS[0]), pytest.raises(UnkeyedRandomError, match="generator="):
            draw(3, generator=torch.Generator())


def test_in_place_dropout_of_unbatched_data_with_batched_keys_raises() -> None:
    x = ONES.clone()
    with pytest.raises(UnkeyedRandomError, match="inplace=False"):
        vmap(lambda k: masks(lambda _: F.dropout(x, 0.5, inplace=True), k))(KEYS)


def test_checkpointed_region_with_its_own_keyed_block_uses_that_key() -> None:
    net, x = (
        nn.Sequential(nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.5)),
        ONES.clone().requires_grad_(),
    )

    def inside(x: Tensor, key: Tensor) -> Tensor:
        with keyed(key):
            return net(x)

    with keyed(KEYS[0]):
        checkpointed = torch.utils.checkpoint.checkpoint(inside, x, KEYS[1], use_reentrant=False)
        (recomputed,) = torch.autograd.grad(checkpointed.sum(), x)
    (expected,) = torch.autograd.grad(inside(x, KEYS[1]).sum(), x)
    assert recomputed.equal(expected)


class NoisyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g + torch.randn_like(g)


@pytest.mark.parametrize(
    "pull",
    [lambda y, _: y.backward(), torch.autograd.grad],
    ids=["backward", "grad"],
)
def test_draw_in_a_custom_backward_pass_raises(pull: Callable[[Tensor, Tensor], Any]) -> None:
    x = ONES.clone().requires_grad_()
    with keyed(KEYS[0]), pytest.raises(UnkeyedRandomError, match="in a backward pass"):
        pull(NoisyGradient.apply(x).sum(), x)


def test_draw_in_torch_cond_requires_its_own_keyed_block() -> None:
    def branch(x: Tensor) -> Tensor:
        with keyed(KEYS[1]):
            return F.dropout(x, 0.5)

    cond = torch.ops.higher_order.cond
    for outer in (contextlib.nullcontext(), keyed(KEYS[0])):
        with outer:
            out = cond(torch.tensor(True), branch, torch.neg, (ONES,))
        assert out.equal(branch(ONES))
    with keyed(KEYS[0]), pytest.raises(UnkeyedRandomError, match="higher-order"):
        cond(torch.tensor(True), F.dropout, torch.neg, (ONES,))


def test_unkeyed_lists_the_operators_of_a_graph_that_draw_without_a_key() -> None:
    def step(key: Tensor, x: Tensor) -> Tensor:
        with keyed(key):
            x = F.scaled_dot_product_attention(x, x, x) + F.dropout(x)
        return torch.bernoulli(x.sigmoid()) if draws else x

    x = torch.ones(2, 2, 3, 4)
    draws = False
    assert unkeyed(make_fx(step, tracing_mode="fake")(KEYS[0], x)) == []
    draws = True
    assert unkeyed(make_fx(step, tracing_mode="fake")(KEYS[0], x)) == ["aten.bernoulli.default"]


def test_every_operator_with_a_generator_argument_is_keyed_or_refused() -> None:
    names = {
        schema.name.removeprefix("aten::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("aten::")
        and any("Generator" in str(argument.type) for argument in schema.arguments)
    }
    assert {"rand", "random_", "poisson", "rrelu"} <= names
    # These have no overload in torch.ops.aten: TorchScript's own, and the global generator's.
    names -= {"_no_grad_uniform_", "_no_grad_normal_", "manual_seed", "initial_seed", "seed"}
    for owner in (torch, torch.Tensor, torch._C._nn):
        for name in names & set(dir(owner)):
            func = getattr(owner, name)
            if func is torch.random:  # a module
                continue
            assert func in HANDLERS or is_random(func), func
    assert not any(
        is_random(func) for func in (torch.add, torch.Tensor.__and__, torch.ops.aten.relu)
    )


@pytest.mark.parametrize("wrong", [KEYS, torch.zeros(2), torch.zeros(3, dtype=torch.int32)])
def test_keyed_refuses_a_key_of_wrong_shape_or_dtype(wrong: Tensor) -> None:
    with pytest.raises((ValueError, TypeError), match="key"), keyed(wrong):
        pass
