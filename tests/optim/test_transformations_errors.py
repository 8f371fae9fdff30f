"""Test errors of transformations and schedules: each names the mistake and the remedy."""

from __future__ import annotations

import math
import re

import pytest
import torch

from ftrain import optim

W, B = torch.ones(2, 2), torch.ones(2)
PARAMS = {"layers": [{"w": W, "b": B}]}


@pytest.mark.parametrize("value", [-1e-3, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (optim.clip, "max_delta"),
        (optim.clip_by_block_rms, "threshold"),
        (optim.adaptive_clip, "clipping"),
        (lambda v: optim.adaptive_clip(0.1, v), "eps"),
        (optim.normalize_by_update_norm, "scale_factor"),
        (lambda v: optim.normalize_by_update_norm(eps=v), "eps"),
        (optim.scale_by_trust_ratio, "trust_coefficient"),
        (lambda v: optim.scale_by_trust_ratio(min_norm=v), "min_norm"),
        (lambda v: optim.scale_by_trust_ratio(eps=v), "eps"),
        (optim.scale_by_param_block_rms, "min_scale"),
        (optim.scale_by_rms, "decay"),
        (lambda v: optim.scale_by_rms(eps=v), "eps"),
        (optim.scale_by_lion, "b1"),
        (lambda v: optim.scale_by_lion(b2=v), "b2"),
        (lambda v: optim.add_noise(v, key=0), "eta"),
        (lambda v: optim.add_noise(0.1, v, key=0), "gamma"),
        (optim.reduce_on_plateau, "factor"),
        (lambda v: optim.reduce_on_plateau(threshold=v), "threshold"),
        (lambda v: optim.reduce_on_plateau(threshold=v, threshold_mode="abs"), "threshold"),
        (lambda v: optim.reduce_on_plateau(min_scale=v), "min_scale"),
        (lambda v: optim.linear(v, 1.0, 10), "start"),
        (lambda v: optim.linear(1.0, v, 10), "end"),
        (lambda v: optim.polynomial(v, 1.0, 10), "start"),
        (lambda v: optim.polynomial(1.0, v, 10), "end"),
        (lambda v: optim.polynomial(1.0, 0.0, 10, v), "power"),
        (lambda v: optim.exponential(v, 0.5), "start"),
        (lambda v: optim.exponential(1.0, v), "factor"),
        (lambda v: optim.exponential(1.0, 0.5, end=v), "end"),
        (lambda v: optim.step(v, 10), "start"),
        (lambda v: optim.step(1.0, 10, v), "factor"),
        (lambda v: optim.piecewise_constant(v, {}), "start"),
        (lambda v: optim.piecewise_constant(1.0, {5: v}), r"factors\[5\]"),
        (lambda v: optim.cosine_restarts(v, 10), "peak"),
        (lambda v: optim.cosine_restarts(1.0, 10, v), "end"),
        (lambda v: optim.one_cycle(v, 10), "peak"),
        (lambda v: optim.one_cycle(1.0, 10, pct_start=v), "pct_start"),
        (lambda v: optim.one_cycle(1.0, 10, div_factor=v), "div_factor"),
        (lambda v: optim.one_cycle(1.0, 10, final_div_factor=v), "final_div_factor"),
        (lambda v: optim.warmup_stable_decay(v, 1, 1, 1), "peak"),
        (lambda v: optim.warmup_stable_decay(1.0, 1, 1, 1, v), "end"),
        (lambda v: optim.inverse_sqrt(v, 10), "peak"),
        (lambda v: optim.inverse_sqrt(1.0, 10, v), "start"),
    ],
)
def test_transformation_argument_out_of_range_raises_with_its_name_and_value(build, name, value):
    with pytest.raises(ValueError, match=rf"{name}: expected .*{re.escape(repr(value))}"):
        build(value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optim.clip_by_block_rms(0.0), "threshold: expected a finite number > 0, got 0.0"),
        (lambda: optim.reduce_on_plateau(0.0), "factor: expected a finite number > 0"),
        (lambda: optim.reduce_on_plateau(1.0), r"factor: expected a number in \[0, 1\)"),
        (lambda: optim.reduce_on_plateau(mode="best"), "mode: expected 'min' or 'max', got 'best'"),
        (
            lambda: optim.reduce_on_plateau(threshold=1.0),
            r"threshold: expected a number in \[0, 1\)",
        ),
        (lambda: optim.reduce_on_plateau(threshold_mode="relative"), "expected 'rel' or 'abs'"),
        (
            lambda: optim.reduce_on_plateau(min_scale=2.0),
            r"min_scale: expected a number in \[0, 1\], got 2",
        ),
        (
            lambda: optim.reduce_on_plateau(patience=-1),
            "patience: expected an integer of at least 0, got -1",
        ),
        (
            lambda: optim.add_noise(0.1, key=torch.zeros(3)),
            "key: expected an int32 tensor of shape",
        ),
        (
            lambda: optim.add_noise(0.1, key=torch.zeros(4, 2, dtype=torch.int32)),
            r"one key of shape \(2,\), got an array of keys \(4, 2\)",
        ),
        (lambda: optim.linear(0.1, 0.2, 0), "steps: expected an integer of at least 1, got 0"),
        (
            lambda: optim.piecewise_constant(0.1, {0: 0.5}),
            "key of factors: expected an integer of at least 1",
        ),
        (
            lambda: optim.cosine_restarts(0.1, 10, factor=0),
            "factor: expected an integer of at least 1",
        ),
        (lambda: optim.one_cycle(0.1, 1), "steps: expected an integer of at least 2"),
        (lambda: optim.one_cycle(0.1, 9, anneal_strategy="sin"), "expected 'cos' or 'linear'"),
        (
            lambda: optim.warmup_stable_decay(0.1, 1, 1, 0),
            "decay_steps: expected an integer of at least 1",
        ),
        (lambda: optim.warmup_stable_decay(0.1, 1, 1, 1, shape="x"), "expected 'linear' or 'sqrt'"),
        (lambda: optim.inverse_sqrt(0.1, 0), "warmup_steps: expected an integer of at least 1"),
        (lambda: optim.join([], []), "at least one schedule.* got 0 schedules"),
        (
            lambda: optim.join([optim.constant(1.0)] * 2, []),
            r"need 1 boundaries\) and 0 boundaries.*\[warmup_steps\]",
        ),
        (
            lambda: optim.join([optim.constant(1.0)] * 3, [100, 50]),
            r"boundaries\[1\] is 50, but boundaries\[0\] is 100.*not lengths",
        ),
    ],
)
def test_invalid_argument_values_raise_value_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optim.clip("1"), "max_delta: expected a number, got str '1'"),
        (lambda: optim.clip(torch.ones(3)), r"max_delta: expected .* got shape \(3,\)"),
        (lambda: optim.scale_by_schedule(0.5), r"got float 0.5.*write `scale\(factor\)`"),
        (lambda: optim.add_noise(0.1, key="seed"), "seed: expected an integer, got str"),
        (
            lambda: optim.reduce_on_plateau(patience=2.5),
            "patience: expected an integer",
        ),
        (
            lambda: optim.cosine_restarts(0.1, 10, factor=1.5),
            "factor: expected an integer, got 1.5",
        ),
        (lambda: optim.piecewise_constant(0.1, [1, 2]), r"got list \[1, 2\]. Write `piecewise"),
        (
            lambda: optim.piecewise_constant(0.1, {0.5: 1.0}),
            "each key of factors: expected an integer, got 0.5",
        ),
        (
            lambda: optim.join([optim.constant(1.0), 0.1], [5]),
            r"schedules\[1\]: expected a schedule, got float 0.1.*constant",
        ),
        (
            lambda: optim.join([optim.constant(1.0)] * 2, [5.0]),
            r"boundaries\[0\]: expected an integer, got 5.0",
        ),
        (lambda: optim.plot_schedule("cosine", 100), "learning_rate: expected a number, got str"),
    ],
)
def test_arguments_of_a_wrong_type_raise_type_error(build, message):
    with pytest.raises(TypeError, match=message):
        build()


@pytest.mark.parametrize(
    "name", ["adaptive_clip", "scale_by_trust_ratio", "scale_by_param_block_rms"]
)
def test_transformations_that_read_params_raise_without_them(name):
    transformation = getattr(optim, name)(0.1)
    with pytest.raises(
        ValueError, match=rf"`{name}`: expected the parameters.*update\(grads, state, p"
    ):
        transformation.update(PARAMS, transformation.init(PARAMS))


@pytest.mark.parametrize(
    "build",
    [
        lambda: optim.adaptive_clip(0.1),
        optim.scale_by_trust_ratio,
        optim.scale_by_param_block_rms,
        optim.scale_by_rms,
        optim.scale_by_lion,
    ],
)
@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ({"layers": [{"w": W}]}, ValueError, r"at \['layers'\]\[0\]: \['b'\] is missing"),
        ({"layers": [{"w": W, "b": torch.ones(3)}]}, ValueError, r"\['b'\]: shape \(3,\), but"),
        ({"layers": [{"w": W, "b": B.double()}]}, TypeError, r"\['b'\]: dtype torch.float64, but"),
        ({"layers": [{"w": W, "b": B.long()}]}, TypeError, r"\['b'\]"),
    ],
)
def test_transformations_refuse_gradients_that_do_not_match_the_parameters(
    build, grads, error, message
):
    transformation = build()
    with pytest.raises(error, match=message):
        transformation.update(grads, transformation.init(PARAMS), PARAMS)


@pytest.mark.parametrize("build", [optim.zero_nans, optim.centralize, optim.scale_by_sign])
def test_transformations_refuse_gradients_that_are_not_dense_floating_point_tensors(build):
    transformation = build()
    for leaf in (torch.ones(2).long(), 1.0, W.to_sparse()):
        with pytest.raises(TypeError, match=r"the gradient at \['w'\] is"):
            transformation.update({"w": leaf}, transformation.init(PARAMS))


def test_reduce_on_plateau_requires_a_scalar_loss_or_value():
    transformation = optim.chain(optim.sgd(0.1), optim.reduce_on_plateau())
    state = transformation.init(PARAMS)
    with pytest.raises(ValueError, match=r"expected the loss, got None.*loss=loss"):
        transformation.update(PARAMS, state, PARAMS)
    with pytest.raises(TypeError, match=r"`loss`, got a Tensor of shape \(3,\).*loss.mean"):
        transformation.update(PARAMS, state, PARAMS, loss=torch.ones(3))
    with pytest.raises(TypeError, match="`value`, got a str 'low'"):
        transformation.update(PARAMS, state, PARAMS, value="low", loss=torch.ones(()))


def test_reduce_on_plateau_prefers_value_over_loss():
    """A Python number is accepted as `value`."""
    transformation = optim.reduce_on_plateau(patience=0)
    state = transformation.init(PARAMS)
    _, state = transformation.update(PARAMS, state, value=0.25, loss=torch.tensor(1.0))
    assert state.best == 0.25


def test_plot_schedule_refuses_a_schedule_that_branches_on_its_count():
    with pytest.raises(
        ValueError, match=r"reads the value of its argument.*torch.where\(count < n"
    ):
        optim.plot_schedule(lambda count: 0.1 if count < 10 else 0.01, 20)
