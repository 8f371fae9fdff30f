"""Test low-rank adapters: formulas, laws, and the frozen base model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import optim, random, tasks, testing, tree
from tests.campaign import COMPILED, examples
from tests.tasks.adapted import (
    KEY,
    ROUNDING,
    Parts,
    Tied,
    batches,
    error,
    loss_fn,
    mlp,
    moved,
    next_token,
    trained,
)

# The formulas, written on activations, as in the papers: y = W x + s B (A x).


def low_rank(
    call: Any,
    x: Tensor,
    weight: Tensor,
    down: Tensor,
    up: Any,
    magnitude: Tensor | None,
    scale: float,
) -> Tensor:
    """Return the output of an adapted layer; `call(x, weight)` is the layer, `up` maps to outputs."""
    out = call(x, weight) + scale * up(call(x, down))
    if magnitude is None:
        return out
    eye = torch.eye(len(down), dtype=weight.dtype).reshape(
        len(down), len(down), *[1] * (down.ndim - 2)
    )
    whole = weight + scale * up(eye).movedim(1, 0).flatten(1).mm(down.flatten(1)).reshape(
        weight.shape
    )
    norm = whole.detach().flatten(1).norm(dim=1)
    share = magnitude / norm
    return out * (share.reshape(-1, *[1] * (weight.ndim - 2)) if weight.ndim > 2 else share)


@settings(max_examples=examples(20, 40), deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 9)] * 4),
    alpha=st.floats(-4, 16).filter(lambda a: abs(a) > 1e-3),
    stable=st.booleans(),
    dora=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_lora_of_a_linear_layer_equals_its_formula_with_gradients(
    sizes: tuple[int, int, int, int], alpha: float, stable: bool, dora: bool, seed: int
) -> None:
    inputs, outputs, rank, rows = sizes
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs).double()
    model = tasks.lora(layer, rank=rank, alpha=alpha, rank_stabilized=stable, dora=dora)
    params, buffers = model.init(KEY)
    params, x = moved(params, seed), torch.randn(rows, inputs, dtype=torch.float64)
    scale = alpha / (math.sqrt(rank) if stable else rank)

    def ours(params: dict[str, Tensor]) -> Tensor:
        out: Tensor = model(params, buffers, KEY, x)[0]
        return out.square().sum()

    def formula(params: dict[str, Tensor]) -> Tensor:
        a, b = params["weight.lora_A"], params["weight.lora_B"]
        out = low_rank(
            lambda x, w: x @ w.T,
            x,
            layer.weight.detach(),
            a,
            lambda h: h @ b.T,
            params.get("weight.magnitude"),
            scale,
        )
        return (out + layer.bias.detach()).square().sum()

    close(ours, formula, params)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kernel", [(3,), (3, 2), (1, 2, 2)])
def test_lora_of_a_convolution_equals_two_convolutions(kernel: tuple[int, ...], dora: bool) -> None:
    torch.manual_seed(0)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel) - 1]
    call = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
    layer = kind(2, 5, kernel, stride=2, padding=1).double()
    model = tasks.lora(layer, kind, rank=3, alpha=2, dora=dora)
    params, buffers = model.init(KEY)
    params = moved(params)
    x = torch.randn(4, 2, *[7] * len(kernel), dtype=torch.float64)

    def ours(params: dict[str, Tensor]) -> Tensor:
        out: Tensor = model(params, buffers, KEY, x)[0]
        return out.square().sum()

    def formula(params: dict[str, Tensor]) -> Tensor:
        a = params["weight.lora_A"].reshape(3, 2, *kernel)
        b = params["weight.lora_B"].reshape(5, 3, *[1] * len(kernel))
        out = low_rank(
            lambda x, w: call(x, w, stride=2, padding=1),
            x,
            layer.weight.detach(),
            a,
            lambda h: call(h, b),
            params.get("weight.magnitude"),
            2 / 3,
        )
        return (out + layer.bias.detach().reshape(-1, *[1] * len(kernel))).square().sum()

    close(ours, formula, params)


@pytest.mark.parametrize("dora", [False, True])
def test_lora_of_an_embedding_equals_a_sum_of_look_ups(dora: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(6, 4).double()
    model = tasks.lora(layer, nn.Embedding, rank=2, alpha=3, dora=dora)
    params, buffers = model.init(KEY)
    params, tokens = moved(params), torch.tensor([[0, 5, 5], [2, 3, 0]])

    def ours(params: dict[str, Tensor]) -> Tensor:
        out: Tensor = model(params, buffers, KEY, tokens)[0]
        return out.square().sum()

    def formula(params: dict[str, Tensor]) -> Tensor:
        a, b = params["weight.lora_A"], params["weight.lora_B"]
        weight = layer.weight.detach()
        out = weight[tokens] + 1.5 * a.T[tokens] @ b.T
        if dora:
            norm = (weight + 1.5 * (b @ a).T).detach().norm(dim=0)
            out = out * params["weight.magnitude"] / norm
        return out.square().sum()

    close(ours, formula, params)


def close(ours: Any, formula: Any, params: dict[str, Tensor]) -> None:
    (value, grads), (wanted, theirs) = (ftrain.value_and_grad(f)(params) for f in (ours, formula))
    assert error(value, wanted) < ROUNDING
    for name, grad in grads.items():
        assert (grad - theirs[name]).norm() <= ROUNDING * (1 + theirs[name].norm()), name


# The state.


def test_only_adapters_are_in_params_gradients_and_optimizer_state() -> None:
    module = mlp()
    steps = ftrain.make_steps(tasks.lora(module, "0", rank=2), loss_fn, optim.adam(1e-2))
    state = steps.init_state(0)
    names = ["0.weight.lora_A", "0.weight.lora_B"]
    assert list(state.params) == list(optim.get(state.opt_state, "mu")) == names
    assert list(
        ftrain.gradients(tasks.lora(module, "0", rank=2), loss_fn)(state, batches()[0]).grads
    )
    testing.assert_same_bits(dict(module.state_dict()), state.buffers)


def test_new_lora_model_computes_the_bits_of_its_base_model() -> None:
    torch.manual_seed(0)
    module = Parts()
    model = tasks.lora(module, [Parts], rank=2, dora=True)
    assert [each.name for each in model.adapters] == [
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "image.weight",
        "mix.weight",
        "words.weight",
    ]
    params, buffers = model.init(KEY)
    inputs = (torch.tensor([[0, 3, 6]]), torch.randn(1, 2, 8, 8))
    got, _ = model(params, buffers, KEY, *inputs, training=False)
    module.eval()
    testing.assert_same_bits([x.detach() for x in module(*inputs)], list(got))


def test_initial_adapter_depends_on_key_and_name_only() -> None:
    module = Parts()
    alone, both = (tasks.lora(module, t, rank=2) for t in ("mix", ["mix", nn.Embedding, "image"]))
    first, others = alone.init(KEY)[0], both.init(KEY)[0]
    testing.assert_same_bits(first, {name: others[name] for name in first})
    assert not torch.equal(
        first["mix.weight.lora_A"], alone.init(random.key(1))[0]["mix.weight.lora_A"]
    )
    assert not first["mix.weight.lora_B"].any()
    assert not others["words.weight.lora_A"].any()
    a = tasks.lora(nn.Linear(400, 3), rank=50).init(KEY)[0]["weight.lora_A"]
    assert 0.049 < float(a.abs().max()) <= 0.05  # one over the root of 400
    assert abs(float(a.mean())) < 0.001


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("mode", ["eager", "compiled", "donated"])
def test_frozen_base_of_lora_keeps_its_bytes_in_every_step(accumulate: int, mode: str) -> None:
    module = mlp()
    module[3].requires_grad_(False)
    model = tasks.lora(module, rank=2, dropout=0.1)
    steps = ftrain.make_steps(model, loss_fn, optim.adam(1e-1), accumulate=accumulate)
    step = steps.train_step
    if mode != "eager":
        step = ftrain.compile(step, backend="eager", donate=mode == "donated")
    state = steps.init_state(0)
    start = {name: p.clone() for name, p in state.params.items()}
    for batch in batches():
        state, _ = step(state, batch)
    testing.assert_same_bits(dict(module.state_dict()), state.buffers)
    assert not any(torch.equal(start[name], p) for name, p in state.params.items())


@pytest.mark.parametrize("model", ["plain", "tied"])
def test_steps_of_a_lora_model_obey_every_law(model: str) -> None:
    if model == "plain":
        adapted = tasks.lora(mlp(), rank=2, dropout=0.1, unfrozen="3.bias")
        testing.check_all(ftrain.make_steps(adapted, loss_fn, optim.adam(1e-2)), batches())
        return
    torch.manual_seed(0)
    adapted = tasks.lora(Tied(), ["words", "mix"], rank=2, dora=True)
    steps = ftrain.make_steps(adapted, next_token, optim.adam(1e-2))
    tokens = [torch.randint(7, (4, 6)) for _ in range(2)]
    # DoRA stops the gradient of the norms on purpose.
    testing.check_all(steps, tokens, fast=True)
    with pytest.raises(testing.LawViolation, match="cut from the graph"):
        testing.check_gradients(steps, tokens[:1])


def test_compiled_lora_equals_eager() -> None:
    torch.manual_seed(0)
    steps = ftrain.make_steps(tasks.lora(nn.Linear(4, 3), rank=2), loss_fn, optim.sgd(0.1))
    step = ftrain.compile(steps.train_step, donate=True, backend=COMPILED)
    eager, compiled = trained(steps), steps.init_state(0)
    for batch in batches():
        compiled, _ = step(compiled, batch)
    testing.assert_same_bits(eager.buffers, compiled.buffers)
    for name, p in eager.params.items():
        assert error(compiled.params[name], p) < 1e-6, name  # fused sums: measured 1e-7


@pytest.mark.parametrize("accumulate", [1, 2])
def test_adapters_train_in_one_vmap_with_one_copy_of_the_base(accumulate: int) -> None:
    steps = ftrain.make_steps(
        tasks.lora(mlp(), rank=2, dropout=0.1), loss_fn, optim.sgd(0.1), accumulate=accumulate
    )
    rows = [steps.init_state(seed) for seed in range(3)]
    alone = tree.map(lambda *x: torch.stack(x), *[row.replace(buffers={}) for row in rows])
    together = alone.replace(buffers=rows[0].buffers)
    axes = tree.map(lambda _: 0, alone).replace(buffers=dict.fromkeys(together.buffers))
    step = torch.vmap(steps.train_step, in_dims=(axes, None), out_dims=(axes, 0))
    batch = batches()[0]
    after, _ = step(together, batch)
    testing.assert_same_bits(rows[0].buffers, after.buffers)  # no axis of rows
    for i, row in enumerate(rows):
        single, _ = steps.train_step(row, batch)
        for name, p in single.params.items():
            # Batched products: measured 1e-7.
            assert error(after.params[name][i], p) < 1e-6 or not p.any(), name
