"""The loss scaler against `torch.amp.GradScaler`, and the precision policies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import optim, tree
from ftrain.core.evaluate import evaluation, prediction
from ftrain.core.precision import LossScale, LossScaleState, Policy
from ftrain.testing import assert_same_bits


@given(
    finite=st.lists(st.booleans(), max_size=60),
    init=st.sampled_from([2.0**16, 1000.0, 1.5, 3e38]),
    growth=st.sampled_from([2.0, 1.3, 1.0001]),
    backoff=st.sampled_from([0.5, 0.7, 0.1]),
    interval=st.integers(1, 5),
)
def test_loss_scale_equals_torch_grad_scaler_byte_for_byte(
    finite: list[bool], init: float, growth: float, backoff: float, interval: int
) -> None:
    """Scale, growth tracker and gradients match for any sequence of finite and non-finite steps."""
    ours = LossScale(init, growth, backoff, interval, floor=1e-45, ceiling=3.4e38)
    state = ours.init_state()
    theirs = torch.amp.GradScaler(
        "cpu", init_scale=init, growth_factor=growth, backoff_factor=backoff,
        growth_interval=interval,
    )  # fmt: skip
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    theirs.scale(torch.zeros(()))  # makes its tensors
    for ok in finite:
        if theirs.get_scale() < 1e-30:
            break  # below the floor GradScaler runs into zero, which is what the floor is for
        raw = torch.tensor([0.1, -2.0, 3e-5]) * state.scale
        if not ok:
            raw[1] = float("inf")
        weight.grad = raw.clone()
        theirs.unscale_(optimizer)
        unscaled = raw * LossScale.inverse(state)
        if ok:
            assert unscaled.numpy().tobytes() == weight.grad.numpy().tobytes()
        theirs.step(optimizer)
        theirs.update()
        state = ours.update(state, torch.isfinite(raw).all())
        assert state.scale.numpy().tobytes() == theirs._scale.numpy().tobytes()
        assert int(state.growth_tracker) == int(theirs._growth_tracker)


@given(st.lists(st.booleans(), min_size=200, max_size=300))
def test_loss_scale_stays_between_floor_and_ceiling(finite: list[bool]) -> None:
    scaling = LossScale(init=8.0, growth_interval=1, floor=2.0, ceiling=64.0)
    state = scaling.init_state()
    for ok in finite:
        state = scaling.update(state, torch.tensor(ok))
        assert 2.0 <= float(state.scale) <= 64.0


def test_loss_scale_grows_again_after_500_overflows() -> None:
    """GradScaler backs off to exactly zero after 149 overflows, and stays there."""
    scaling = LossScale(growth_interval=1)
    state = scaling.init_state()
    for _ in range(500):
        state = scaling.update(state, torch.tensor(False))
    assert float(state.scale) == 1.0
    assert float(scaling.update(state, torch.tensor(True)).scale) == 2.0


def test_loss_scale_state_keeps_its_dtypes() -> None:
    state = LossScale().init_state()
    for finite in (True, False):
        new = LossScale().update(state, torch.tensor(finite))
        assert isinstance(new, LossScaleState)
        assert (new.scale.dtype, new.growth_tracker.dtype) == (torch.float32, torch.int32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth_factor": 1.0}, "growth_factor: expected a number above 1"),
        ({"backoff_factor": 1.0}, r"backoff_factor: expected a number inside \(0, 1\)"),
        ({"growth_interval": 0}, "growth_interval: expected at least 1"),
        ({"init": 0.5}, "0 < floor <= init <= ceiling"),
        ({"init": float("nan")}, "0 < floor <= init <= ceiling"),
    ],
)
def test_loss_scale_options_out_of_range_raise(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossScale(**options)  # type: ignore[arg-type]


def test_unknown_precision_raises_with_the_known_names() -> None:
    with pytest.raises(
        ValueError, match="precision: expected one of '32-true', 'bf16-mixed', .* got 'bf16'"
    ):
        Policy.named("bf16")  # type: ignore[arg-type]
    policy = Policy(autocast=torch.bfloat16)
    assert Policy.named(policy) is policy


def test_precision_policy_casts_floating_point_tensors_only() -> None:
    batch = {"x": torch.ones(2), "y": torch.ones(2, dtype=torch.int64), "name": "a"}
    cast = Policy.named("bf16-true").cast(batch)
    assert (cast["x"].dtype, cast["y"].dtype, cast["name"]) == (torch.bfloat16, torch.int64, "a")
    assert Policy.named("32-true").cast(batch) is batch


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "32-true"])
def test_eval_step_casts_float32_ema_params_to_the_precision_of_the_steps(precision: Any) -> None:
    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        return model(batch).square().mean()

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))

    optimizer = optim.ema(optim.sgd(0.1), 0.9)
    steps = ftrain.make_steps(model, loss_fn, optimizer, precision=precision)
    batch = torch.linspace(-1, 1, 32).view(8, 4)
    state, _ = steps.train_step(steps.init_state(0), batch)
    average = optim.get(state.opt_state, "ema")
    assert {p.dtype for p in average.values()} == {torch.float32}
    averaged = state.replace(params=average)
    dtype = state.params["0.weight"].dtype
    cast = state.replace(params=tree.map(lambda p: p.to(dtype), average))
    predict = prediction(model, precision=precision)
    for evaluate in (steps.eval_step, predict):
        found = evaluate(averaged, batch)
        assert_same_bits(found, evaluate(cast, batch))
        assert_same_bits(ftrain.compile(evaluate, backend="eager")(averaged, batch), found)


def test_lstm_trains_in_float16_where_onednn_has_no_kernel_for_it() -> None:
    """oneDNN refuses it on most processors; torch's own kernel runs instead, for this call alone."""
    steps = ftrain.make_steps(
        lambda: nn.LSTM(3, 4),
        lambda model, batch: model(batch)[0].square().mean(),
        optim.sgd(0.1),
        precision="16-mixed",
    )
    state = steps.init_state(0)
    state, metrics = steps.train_step(state, torch.ones(5, 2, 3))
    assert bool(metrics["loss"].isfinite())
    assert torch.backends.mkldnn.enabled


def test_autocast_in_a_loss_casts_a_weight_again_after_its_value_changed() -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    with Policy.named("bf16-mixed").inside_loss("cpu"):
        first = torch.ones(2, 2) @ weight
        with torch.no_grad():
            weight.zero_()
        second = torch.ones(2, 2) @ weight
    assert first.dtype == torch.bfloat16
    assert first.count_nonzero() == 4
    assert second.count_nonzero() == 0


def test_evaluation_detaches_parameters_and_passes_other_values_on() -> None:
    seen = []

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.append((model.weight.requires_grad, torch.is_grad_enabled(), batch["name"]))
        return model(batch["x"]).sum()

    model = nn.Linear(2, 1)
    params, buffers = ftrain.bind(model).init(ftrain.random.key(0))
    params = tree.map(lambda x: x.detach().requires_grad_(), params)
    state = ftrain.TrainState(torch.tensor(0), params, buffers, (), (), ftrain.random.key(0), {})
    with torch.no_grad():
        evaluation(model, loss)(state, {"x": torch.ones(3, 2), "name": "train"})
    assert seen[-1] == (False, True, "train")
