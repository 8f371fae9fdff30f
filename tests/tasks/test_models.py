"""Test the models of `ftrain.tasks`: laws, sizes and errors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, tasks, testing
from ftrain.config import registry
from ftrain.tasks import models

N = 4


def images(seed: int, channels: int, size: int) -> Tensor:
    return torch.randn(N, channels, size, size, generator=torch.Generator().manual_seed(seed))


def ints(seed: int, high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


# Model, batch by seed, and loss.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any], Any]] = {
    "gpt": (
        functools.partial(models.GPT, 11, context=6, layers=2, heads=2, width=8, dropout=0.1),
        lambda seed: ints(seed, 11, N, 7),
        tasks.next_token,
    ),
    "lenet5": (
        functools.partial(models.LeNet5, dropout=0.2),
        lambda seed: {"x": images(seed, 1, 32), "y": ints(seed, 10, N)},
        tasks.cross_entropy,
    ),
    "mlp": (
        functools.partial(models.mlp, 9, 3, dropout=0.2),
        lambda seed: {"x": images(seed, 1, 3), "y": ints(seed, 3, N)},
        tasks.cross_entropy,
    ),
    "resnet": (
        functools.partial(models.ResNet, widths=(4, 8)),
        lambda seed: {"x": images(seed, 3, 9), "y": ints(seed, 10, N)},
        tasks.cross_entropy,
    ),
    "text_cnn": (
        functools.partial(models.TextCNN, 11, 3, width=4, dropout=0.2),
        lambda seed: {"x": ints(seed, 11, N, 9), "y": ints(seed, 3, N)},
        tasks.cross_entropy,
    ),
    "unet": (
        functools.partial(models.UNet, classes=3, width=4),
        lambda seed: {"x": images(seed, 1, 8), "y": ints(seed, 3, N, 8, 8)},
        tasks.dice,
    ),
}


def steps(name: str) -> ftrain.Steps:
    model, _, loss_fn = MODELS[name]
    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-2))
    return ftrain.make_steps(model, loss_fn, optimizer)


def test_every_registered_model_of_ftrain_is_tested_here() -> None:
    registered = {
        name
        for name, one in registry._REGISTERED["model"].items()
        if str(one.component).startswith("ftrain.tasks")
    }
    assert MODELS.keys() == registered
    assert len(models.__all__) == len(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_steps_of_models_pass_the_fast_law_checks(name: str) -> None:
    batch = MODELS[name][1]
    assert testing.check_all(steps(name), [batch(0), batch(1)], fast=True).passed


@pytest.mark.parametrize("name", MODELS)
def test_steps_of_models_compile_to_one_graph_with_the_bits_of_eager_ones(name: str) -> None:
    made, batch = steps(name), MODELS[name][1]
    compiled, state = ftrain.compile(made.train_step, backend="eager"), made.init_state(0)
    for seed in range(2):
        expected = made.train_step(state, batch(seed))
        testing.assert_same_bits(compiled(state, batch(seed)), expected)
        state = expected[0]
    assert compiled.n_compiles == 1


@pytest.mark.parametrize("name", MODELS)
def test_models_overfit_one_batch(name: str) -> None:
    made, batch = steps(name), MODELS[name][1](0)
    state = made.init_state(0)
    start = float(made.eval_step(state, batch)["loss"])
    for _ in range(30):
        state, metrics = made.train_step(state, batch)
    assert float(metrics["loss"]) < 0.75 * start  # measured 6e-7 (mlp) to 0.53 (gpt)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (models.LeNet5, 61_706),
        # 269,722 of the paper's ResNet-20, and 2,752 of its two projections.
        (functools.partial(models.ResNet, blocks=3), 272_474),
        # Four blocks of 12 squares of the width, 9 norms, and both embeddings.
        (functools.partial(models.GPT, 96), 4 * 12 * 128**2 + (9 + 96 + 64) * 128),
    ],
)
def test_models_have_the_expected_number_of_parameters(
    build: Callable[[], nn.Module], count: int
) -> None:
    assert sum(p.numel() for p in build().parameters()) == count


def test_outputs_of_a_gpt_depend_on_earlier_tokens_only() -> None:
    model, tokens = MODELS["gpt"][0]().eval(), ints(0, 11, N, 6)
    changed = tokens.clone()
    changed[:, 3] = (tokens[:, 3] + 1) % 11
    one, two = model(tokens), model(changed)
    assert torch.equal(one[:, :3], two[:, :3])
    assert not torch.allclose(one[:, 3:], two[:, 3:])


def test_unet_is_equivariant_to_shifts_away_from_the_edges() -> None:
    model, image = models.UNet(width=4).eval(), images(0, 1, 64)
    moved = model(image.roll(8, 3)).roll(-8, 3)
    inner = slice(24, 40)  # far from the edges, whose zeros move as well
    assert torch.allclose(
        moved[..., inner, inner], model(image)[..., inner, inner], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: models.LeNet5()(torch.zeros(1, 1, 28, 28)), r"32, 32\), got \(1, 1, 28, 28\)"),
        (lambda: models.UNet()(torch.zeros(1, 1, 8, 6)), r"multiples of 4 .*got \(1, 1, 8, 6\)"),
        (lambda: models.GPT(9, 4, 1, 2, 8)(torch.zeros(1, 5).long()), "at most 4 .*got 5"),
    ],
)
def test_models_refuse_inputs_of_a_wrong_size(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
