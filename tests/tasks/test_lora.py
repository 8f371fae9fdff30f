"""Low-rank adapters: the formulas, the laws, the frozen base, merging, targets and refusals."""

from __future__ import annotations

import functools
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

KEY = random.key(0)
# Sums of a few dozen products in float64, in another order: measured 5e-16.
ROUNDING = 1e-13


class Tied(nn.Module):
    """Bigram model of integer tokens whose output weights are those of its embedding."""

    def __init__(self, words: int = 7, width: int = 5) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.mix = nn.Linear(width, width)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(torch.tanh(self.mix(self.words(tokens)))))
        return out


class Parts(nn.Module):
    """One module of each kind that can be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.mix = nn.Linear(6, 5)
        self.image = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(5)

    def forward(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        words = self.words(tokens)
        mixed = words + self.attention(words, words, words, need_weights=False)[0]
        return self.norm(self.mix(mixed)), self.image(image)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))


def loss_fn(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    error: Tensor = model(batch[0]) - batch[1]
    return error.square().mean()


def next_token(model: Any, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def batches(count: int = 3, rows: int = 8) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(rows, 4), torch.randn(rows, 3)) for _ in range(count)]


def moved(params: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Return trained adapters: none of their matrices is zero."""
    torch.manual_seed(seed)
    return {name: p + 0.3 * torch.randn_like(p) for name, p in params.items()}


def trained(steps: ftrain.Steps, seed: int = 0) -> ftrain.TrainState:
    state = steps.init_state(seed)
    for batch in batches():
        state, _ = steps.train_step(state, batch)
    return state


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


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


@settings(max_examples=40, deadline=None)
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


def test_lora_starts_with_the_bits_of_its_base() -> None:
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


def test_adapter_start_depends_on_key_and_name_only() -> None:
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
def test_base_keeps_its_bytes_in_every_step(accumulate: int, mode: str) -> None:
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


@pytest.mark.inductor
def test_compiled_lora_equals_eager() -> None:
    torch.manual_seed(0)
    steps = ftrain.make_steps(tasks.lora(nn.Linear(4, 3), rank=2), loss_fn, optim.sgd(0.1))
    step = ftrain.compile(steps.train_step, donate=True)
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


# Merging.


@pytest.mark.parametrize("dora", [False, True])
def test_merged_weights_compute_what_the_adapters_compute(dora: bool) -> None:
    module = mlp()
    model = tasks.lora(module, rank=2, alpha=5, dora=dora, dropout=0.2, unfrozen="bias")
    steps = ftrain.make_steps(model, loss_fn, optim.adam(1e-1))
    plain = ftrain.make_steps(module, loss_fn, optim.adam(1e-1))
    state, batch = trained(steps), batches()[0]
    params, buffers = model.merge(state.params, state.buffers)
    merged = plain.init_state(0).replace(params=params, buffers=buffers)
    wanted = steps.eval_step(state, batch)["loss"]
    testing.assert_same_bits(wanted, plain.eval_step(merged, batch)["loss"])
    assert not torch.equal(wanted, plain.eval_step(plain.init_state(0), batch)["loss"])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    alpha=st.floats(-1e3, 1e3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_unmerged_weights_are_the_base_up_to_rounding(
    seed: int, alpha: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)).to(dtype)
    model = tasks.lora(module, [nn.Embedding, "1"], rank=2, alpha=alpha)
    params, buffers = model.init(KEY)
    params = moved(params, seed)
    merged = model.merge(params, buffers)
    back, _ = model.unmerge(params, *merged)
    for name in ("0.weight", "1.weight"):
        base, change = buffers[name].double(), (merged[0][name].double() - buffers[name].double())
        bound = torch.finfo(dtype).eps * (base.abs() + 2 * change.abs())
        assert ((back[name].double() - base).abs() <= bound + torch.finfo(dtype).tiny).all()
    testing.assert_same_bits(buffers["1.bias"], back["1.bias"])


def test_tied_weight_is_changed_in_every_place() -> None:
    torch.manual_seed(0)
    module = Tied().eval()
    model = tasks.lora(module, "words", rank=2)
    params, buffers = model.init(KEY)
    params, tokens = moved(params), torch.randint(7, (3, 5))
    out, _ = model(params, buffers, KEY, tokens, training=False)
    change = (params["words.weight.lora_B"] @ params["words.weight.lora_A"]).T * 4
    with torch.no_grad():
        module.words.weight += change
    assert error(out, module(tokens).detach()) < 1e-6
    merged = model.module(params, buffers)
    assert merged.head.weight is merged.words.weight
    # The output layer is a linear one, so that its class selects the same weight.
    assert [each.name for each in tasks.lora(module).adapters] == ["mix.weight", "words.weight"]


# Options.


def test_dropout_masks_inputs_of_the_adapter_by_the_key() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(50, 3, bias=False)
    model = tasks.lora(layer, rank=2, dropout=0.4)
    params, buffers = model.init(KEY)
    params = moved(params)

    def change(seed: int, training: bool = True) -> Tensor:
        out, _ = model(params, buffers, random.key(seed), torch.eye(50), training=training)
        return out.T - layer.weight.detach()

    whole = change(0, training=False)
    kept = change(0) / whole
    assert torch.allclose(kept, kept[:1].expand(3, -1), atol=1e-3)  # one mask for all outputs
    assert set(kept[0].mul(3).round().int().tolist()) == {0, 5}  # 1 / 0.6
    testing.assert_same_bits(change(0), change(0))
    assert not torch.equal(change(0), change(1))
    mean = torch.stack([change(seed) for seed in range(300)]).mean(0)
    assert error(mean, whole) < 0.1  # 300 masks: measured 0.05


def test_unfrozen_parameters_are_trained_themselves() -> None:
    module = mlp()
    steps = ftrain.make_steps(tasks.lora(module, "0", unfrozen="^3"), loss_fn, optim.adam(1e-2))
    state = trained(steps)
    assert [name for name in state.params if "lora" not in name] == ["3.bias", "3.weight"]
    assert sorted(state.buffers) == ["0.bias", "0.weight"]
    assert not torch.equal(state.params["3.weight"], module[3].weight)


def test_adapters_of_a_bfloat16_base_are_float32() -> None:
    module = mlp().bfloat16()
    model = tasks.lora(module, rank=2)
    cast = [(x.bfloat16(), y.bfloat16()) for x, y in batches()]
    steps = ftrain.make_steps(model, loss_fn, optim.adam(1e-2))
    state = steps.init_state(0)
    assert {p.dtype for p in state.params.values()} == {torch.float32}
    new, _ = steps.train_step(state, cast[0])
    testing.assert_same_bits(state.buffers, new.buffers)
    assert new.params["0.weight.lora_B"].dtype == torch.float32
    low = ftrain.make_steps(
        tasks.lora(mlp(), rank=2), loss_fn, optim.adam(1e-2), precision="bf16-true"
    )
    state, _ = low.train_step(low.init_state(0), batches()[0])
    assert {p.dtype for p in state.params.values()} == {torch.bfloat16}


class WritesToItsTarget(nn.Module):
    """A network that moves its own frozen average, as BYOL does."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.average = nn.Linear(4, 3), nn.Linear(4, 3)
        self.average.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.average.weight.lerp_(self.online.weight, 0.5)
        out: Tensor = self.online(x) - self.average(x)
        return out


def test_write_to_a_frozen_parameter_is_kept_or_refused() -> None:
    module = WritesToItsTarget()
    steps = ftrain.make_steps(tasks.lora(module, "online"), loss_fn, optim.sgd(0.1))
    state, _ = steps.train_step(steps.init_state(0), batches()[0])
    halfway = (module.average.weight + module.online.weight).detach() / 2
    assert error(state.buffers["average.weight"], halfway) < 1e-6
    refused = ftrain.make_steps(tasks.lora(module, "average"), loss_fn, optim.sgd(0.1))
    with pytest.raises(
        ftrain.errors.ImpureFunctionError, match=r"'average\.weight', which has an ad"
    ):
        refused.train_step(refused.init_state(0), batches()[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": "atention"}, r"got 'atention'\. Did you mean 'attention'\? The 5 names are: "),
        ({"targets": ["mix", "wrods"]}, r"got 'wrods'\. Did you mean 'words'\?"),
        (
            {"targets": "norm"},
            r"only tensors of other kinds, such as 'norm\.weight' \(float32\[5\]\)\. The 5 names",
        ),
        ({"targets": "("}, r"targets: expected a regular expression, got '\('"),
        ({"targets": nn.Conv3d}, r"got Conv3d, of which it has none\. Did you mean 'Conv2d'\?"),
        ({"targets": nn.LayerNorm}, r"got LayerNorm, whose modules hold no weight that can be"),
        ({"targets": []}, "targets: expected at least one"),
        ({"targets": 3}, "targets: expected a pattern of names or a module class, got 3"),
        ({"rank": 0}, "rank: expected a whole number of at least 1, got 0"),
        ({"alpha": math.inf}, "alpha: expected a finite number, got inf"),
        ({"alpha": "8"}, "alpha: expected a finite number, got '8'"),
        ({"dropout": None}, r"dropout: expected a rate in \[0, 1\), got None"),
        (
            {"unfrozen": ["head"]},
            r"unfrozen: expected a regular expression of names, got \['head'\]",
        ),
        ({"dropout": 1.0}, r"dropout: expected a rate in \[0, 1\), got 1\.0"),
        ({"unfrozen": "hed"}, "unfrozen: expected a pattern that occurs in the name of a weight"),
        ({"targets": "mix", "unfrozen": "mix"}, r"got 'mix\.weight', which is a target too"),
    ],
)
def test_error_for_an_invalid_argument_of_lora_names_it(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        tasks.lora(Parts(), **{"targets": nn.Linear, **arguments})


def test_embedding_with_sparse_gradients_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"dense gradients, got '0\.weight' of an embedding with sparse"
    ):
        tasks.lora(nn.Sequential(nn.Embedding(4, 3, sparse=True)), nn.Embedding)


def test_adapters_on_adapters_are_refused() -> None:
    with pytest.raises(TypeError, match="expected a model without adapters"):
        tasks.lora(tasks.lora(mlp()))


def test_state_of_other_adapters_is_refused() -> None:
    model = functools.partial(tasks.lora, mlp())
    steps = ftrain.make_steps(model(rank=2), loss_fn, optim.sgd(0.1))
    state, batch = (
        ftrain.make_steps(model(rank=3), loss_fn, optim.sgd(0.1)).init_state(0),
        batches()[0],
    )
    with pytest.raises(ValueError, match=r"'0\.weight\.lora_A': expected shape \(2, 4\)"):
        steps.train_step(state, batch)
    with pytest.raises(
        ValueError, match=r"params do not fit lora\(.*missing \['3\.weight\.lora_A'"
    ):
        steps.train_step(
            ftrain.make_steps(model("0"), loss_fn, optim.sgd(0.1)).init_state(0), batch
        )
    made = model(dora=True)
    adapters, base = made.init(KEY)
    with pytest.raises(ValueError, match="unmerge: expected adapters without DoRA"):
        made.unmerge(adapters, *made.merge(adapters, base))
