"""Training in float16, CUDA graphs, dropout and compiled steps against references of other programs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, random, testing, tree
from tests.cuda.test_laws import made, on_cuda
from tests.nullcuda.device import is_null
from tests.zoo import ZOO

values = pytest.mark.values

SCALE: dict[str, Any] = {"growth_interval": 5, "growth_factor": 2.0, "backoff_factor": 0.5}
RATE, CLIP = 0.05, 1.0


def batches_of_amp(n: int) -> list[dict[str, torch.Tensor]]:
    """Return batches, of which each seventh overflows float16 in the forward pass."""
    g = torch.Generator().manual_seed(0)
    found = []
    for i in range(n):
        x = torch.randn(64, 16, generator=g)
        y = torch.randint(0, 5, (64,), generator=g)
        found.append({"x": (x * 1e6 if i % 7 == 3 else x).cuda(), "y": y.cuda()})
    return found


def model_of_amp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)
    )


def loss_of_amp(model: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch["x"]).float(), batch["y"])


@values
@pytest.mark.parametrize("mode", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
def test_fp16_run_equals_a_hand_written_loop_with_autocast_and_grad_scaler(mode: str) -> None:
    """The scale and the skipped steps are equal at each step; parameters to 1e-3 of their change.

    Float16 has 11 bits, so that a sum in another order in one product changes a gradient by 1e-3.
    """
    scaling = ftrain.LossScale(init=2.0**16, **SCALE)
    steps = ftrain.make_steps(
        model_of_amp,
        loss_of_amp,
        optim.chain(optim.clip_by_global_norm(CLIP), optim.sgd(RATE)),
        precision=ftrain.Policy(autocast=torch.float16, loss_scale=scaling),
    )
    state = on_cuda(steps.init_state(0))
    start = tree.map(torch.clone, state.params)
    model = model_of_amp().cuda()
    model.load_state_dict(state.params)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**16, **SCALE)
    step = steps.train_step if mode == "eager" else ftrain.compile(steps.train_step, donate=True)
    skipped = 0
    for i, batch in enumerate(batches_of_amp(40)):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.float16):
            loss = loss_of_amp(model, batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
        state, metrics = step(state, batch)
        assert state.scaler.scale.item() == scaler.get_scale(), i
        assert bool(metrics["skipped"]) == (scaler.get_scale() < before), i
    assert skipped >= 5
    assert int(state.step) == 40 - skipped
    expected = tree.map(torch.sub, dict(model.state_dict()), dict(start))
    found = tree.map(torch.sub, dict(state.params), dict(start))
    testing.assert_close_norm(found, expected, 1e-3)


@contextlib.contextmanager
def replays_counted() -> Iterator[list[int]]:
    found: list[int] = []
    replay = torch.cuda.CUDAGraph.replay
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.cuda.CUDAGraph, "replay", lambda graph: (found.append(1), replay(graph))[1]
        )
        yield found


@pytest.mark.inductor
@pytest.mark.parametrize(
    ("model", "precision", "accumulate"),
    [("mlp", "16-mixed", 1), ("gpt", "bf16-mixed", 4), ("gpt", "32-true", 1)],
)
def test_steps_replayed_by_a_cuda_graph_have_the_bits_of_steps_without_one(
    model: str, precision: str, accumulate: int
) -> None:
    steps = made(model, precision, accumulate)
    plain = ftrain.compile(steps.train_step)
    graphed = ftrain.compile(steps.train_step, donate=True, mode="reduce-overhead")
    state, other = (on_cuda(steps.init_state(3)) for _ in range(2))
    with replays_counted() as replays:
        for seed in range(8):
            batch = on_cuda(ZOO[model].batch(seed, 8))
            state, metrics = plain(state, batch)
            other, other_metrics = graphed(other, batch)
            if not is_null():
                testing.assert_same_bits(other, state)
                testing.assert_same_bits(other_metrics, metrics)
    assert len(replays) >= 4


@values
@pytest.mark.parametrize("kind", [nn.Dropout, nn.AlphaDropout, nn.Dropout1d])
def test_dropout_masks_on_cuda_equal_those_on_the_cpu(kind: Any) -> None:
    x, key, drop = torch.ones(64, 7, 33), random.key(5), kind(0.3)
    with random.keyed(key):
        expected = drop(x)
    with random.keyed(key.cuda()):
        found = drop(x.cuda())
    assert expected.unique().numel() > 1
    testing.assert_close_norm(found.cpu(), expected, 1e-6)


@values
@pytest.mark.inductor
def test_compiled_and_vmapped_steps_draw_the_dropout_masks_of_eager_ones() -> None:
    """Dropout of ones shows its mask, which the step returns as a value of each example."""
    drop, x = nn.Dropout(0.5), torch.ones(16, 9, device="cuda")

    def masks(key: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with random.keyed(key):
            masked: torch.Tensor = drop(drop(x))
        return masked

    keys = random.split(random.key(1), 3).cuda()
    expected = torch.stack([masks(key, x) for key in keys])
    testing.assert_same_bits(ftrain.compile(masks)(keys[0], x), expected[0])
    mapped = torch.vmap(masks, in_dims=(0, None))
    testing.assert_same_bits(mapped(keys, x), expected)
    testing.assert_same_bits(ftrain.compile(mapped)(keys, x), expected)


@values
def test_global_cuda_generator_is_not_read_by_a_step() -> None:
    steps = made("gpt", "32-true")
    state, batch = on_cuda(steps.init_state(3)), on_cuda(ZOO["gpt"].batch(0, 8))
    before = torch.cuda.get_rng_state()
    first = steps.train_step(state, batch)
    torch.cuda.manual_seed(1)
    testing.assert_same_bits(steps.train_step(state, batch), first)
    torch.cuda.set_rng_state(before)


@values
@pytest.mark.parametrize("k", ["mlp", "gpt"])
def test_step_on_cuda_agrees_with_the_step_on_the_cpu(k: str) -> None:
    """The gradients of one step, relative to their norm: float32 has 24 bits, sums have 1e3 terms."""
    steps = made(k, "32-true")
    state, batch = steps.init_state(3), ZOO[k].batch(0, 8)
    expected, _ = steps.train_step(state, batch)
    found, _ = steps.train_step(on_cuda(state), on_cuda(batch))
    mu = tree.map(lambda leaf: leaf.cpu(), found.opt_state[1].mu)
    testing.assert_close_norm(mu, expected.opt_state[1].mu, 1e-5)
