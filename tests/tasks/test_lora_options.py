"""Test low-rank adapters: merging, options, targets and errors."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import optim, random, tasks, testing
from tests.campaign import examples
from tests.tasks.adapted import (
    KEY,
    Parts,
    Tied,
    batches,
    error,
    loss_fn,
    mlp,
    moved,
    trained,
)

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


@settings(max_examples=examples(20, 30), deadline=None)
@given(
    seed=st.integers(0, 2**31),
    alpha=st.floats(-1e3, 1e3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_unmerged_adapter_weights_equal_the_base_up_to_rounding(
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


def test_adapter_of_a_tied_weight_applies_in_every_layer_that_shares_the_weight() -> None:
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


def test_adapter_dropout_masks_inputs_by_the_key() -> None:
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


def test_unfrozen_parameters_of_a_lora_model_are_trained() -> None:
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


def test_frozen_parameter_of_a_lora_model_may_be_written_unless_it_has_an_adapter() -> None:
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
        (
            {"targets": nn.Conv3d},
            r"got Conv3d, of which the model has no module\. Did you mean 'Conv2d'",
        ),
        ({"targets": nn.LayerNorm}, r"got LayerNorm, whose modules have no weight that can be"),
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


def test_lora_refuses_an_embedding_with_sparse_gradients() -> None:
    with pytest.raises(
        ValueError, match=r"dense gradients, got '0\.weight' of an embedding with sparse"
    ):
        tasks.lora(nn.Sequential(nn.Embedding(4, 3, sparse=True)), nn.Embedding)


def test_lora_refuses_a_model_that_has_adapters() -> None:
    with pytest.raises(TypeError, match="expected a model without adapters"):
        tasks.lora(tasks.lora(mlp()))


def test_lora_model_refuses_the_state_of_other_adapters() -> None:
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
    with pytest.raises(ValueError, match="unmerge: expected adapters with dora=False"):
        made.unmerge(adapters, *made.merge(adapters, base))
