"""Common mistakes of new users: each error names the argument and a remedy."""

from __future__ import annotations

import collections
import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim
from ftrain.testing import assert_close_norm

BATCH = torch.ones(4, 3)


def net() -> nn.Module:
    return nn.Linear(3, 1)


def loss_fn(model: Any, batch: Any) -> torch.Tensor:
    return model(batch).square().mean()


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda loss: loss.item(), r"got float\. .*left the graph, by \.item\(\)"),
        (lambda loss: None, r"got NoneType\. Is a `return` missing\?"),
        (lambda loss: {"loss": loss}, r"got dict\. .*return loss, metrics"),
        (
            lambda loss: (loss, {}, 1),
            r"got tuple\. Return the loss, or a tuple of the loss and a dict",
        ),
        (lambda loss: [loss, {}], r"got list\. Return the loss, or a tuple of the loss and a dict"),
        (lambda loss: loss.expand(2), r"got float32\[2\]\. Reduce it: loss\.mean\(\)"),
    ],
)
def test_loss_that_is_not_a_scalar_raises_with_a_remedy(wrong, hint):
    steps = ftrain.make_steps(net, lambda m, b: wrong(loss_fn(m, b).detach()), optim.sgd(0.1))
    with pytest.raises(TypeError, match=hint):
        steps.train_step(steps.init_state(0), BATCH)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (
            torch.optim.Adam([torch.zeros(1)]),
            r"got an Adam\. .* in place: .*torch\.optim\.Adam, lr=",
        ),
        (torch.optim.AdamW, r"in place: .*from_torch\(torch\.optim\.AdamW, lr="),
        (optim.adamw, r"adamw was not called: write adamw\(1e-3\)"),
    ],
)
def test_make_steps_refuses_an_argument_that_is_not_an_optimizer(wrong, hint):
    with pytest.raises(TypeError, match=f"(?s){hint}"):
        ftrain.make_steps(net, loss_fn, wrong)


def test_error_suggests_calling_an_optimizer_function_only_if_the_function_is_of_ftrain():
    with pytest.raises(TypeError) as caught:
        ftrain.make_steps(net, loss_fn, lambda parameters: parameters)  # type: ignore[arg-type]
    assert "was not called" not in str(caught.value)


def weighted(model: Any, batch: Any) -> ftrain.Mean:
    """Return a mean loss weighted by the last column of the batch."""
    return ftrain.Mean(
        (model(batch[:, :3]).square().mean(-1) * batch[:, 3]).sum(), batch[:, 3].sum()
    )


def rows(*weights: float) -> torch.Tensor:
    return torch.cat([torch.ones(len(weights), 3), torch.tensor(weights)[:, None]], 1)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("weights", "skips"),
    [
        ((0.0, 0.0), 1),
        ((-1.0, -1.0), 1),
        ((1.0, -1.0), 1),
        ((0.0, 2.0), 0),
        ((float("nan"), 1.0), 1),
    ],
)
def test_batch_of_total_weight_0_skips_the_step(weights, skips, accumulate, compiled):
    """Weights (1, -1) give a total loss that is not zero, with total weight 0."""
    steps = ftrain.make_steps(net, weighted, optim.adamw(0.1), accumulate=accumulate)
    step = ftrain.compile(steps.train_step, backend="eager") if compiled else steps.train_step
    state, batch = steps.init_state(0), rows(*weights)
    if weights == (1.0, -1.0):
        batch[0, :3] = 2.0
    new, metrics = step(state, batch)
    assert (metrics["skipped"], new.step) == (skips, 1 - skips)
    same = ftrain.tree.digest((state.params, state.opt_state)) == ftrain.tree.digest(
        (new.params, new.opt_state)
    )
    assert same == bool(skips)
    if weights == (0.0, 2.0):  # the gradient of the row that counts
        alone, _ = ftrain.make_steps(net, weighted, optim.adamw(0.1)).train_step(state, rows(2.0))
        # Products of two rows may be summed in another order than those of one: a few times 2^-24.
        assert_close_norm(new.opt_state.mu, alone.opt_state.mu, 1e-6)


def test_batch_of_total_weight_0_is_treated_as_the_nonfinite_option_says():
    for nonfinite in ("raise", "ignore"):
        steps = ftrain.make_steps(net, weighted, optim.adamw(0.1), nonfinite=nonfinite)
        state = steps.init_state(0)
        if nonfinite == "raise":
            with pytest.raises(
                ftrain.errors.NonFiniteError, match="at step 0 has total weight 0, so its mean"
            ):
                steps.train_step(state, rows(0.0, 0.0))
        else:
            assert steps.train_step(state, rows(0.0, 0.0))[0].step == 1
        assert steps.train_step(state, rows(0.0, 1.0))[0].step == 1


def test_train_step_of_total_weight_0_is_applied_if_grad_reduce_adds_weight():
    steps = ftrain.make_steps(
        net, weighted, optim.sgd(0.1), grad_reduce=lambda totals, weight: (totals, weight + 3.0)
    )
    new, metrics = steps.train_step(steps.init_state(0), rows(0.0))
    assert (metrics["skipped"], new.step) == (0, 1)


def test_train_step_refuses_a_state_of_another_optimizer():
    ours = ftrain.make_steps(net, loss_fn, optim.sgd(0.1, 0.9))
    other = ftrain.make_steps(net, loss_fn, optim.adam(0.1))
    with pytest.raises(TypeError, match="start from the `init_state` that it returned together"):
        ours.train_step(other.init_state(0), BATCH)


def test_update_and_commit_refuse_arguments_in_the_wrong_order():
    optimizer = optim.sgd(0.1)
    gradients = ftrain.gradients(net, loss_fn)
    state = ftrain.make_steps(net, loss_fn, optimizer).init_state(0)
    result = gradients(state, BATCH)
    new = ftrain.update(optimizer, state, result)
    for wrong in (
        (state, optimizer, result),
        (optimizer, result, state),
        (optimizer, state, result.grads),
    ):
        got = ", ".join(type(x).__name__ for x in wrong)
        with pytest.raises(
            TypeError, match=rf"\(optimizer, state, result\) in this order, got \({got}\)"
        ):
            ftrain.update(*wrong)
    with pytest.raises(TypeError, match=r"\(state, proposed, result\) in this order, got"):
        ftrain.commit(state, result, new)


def test_reading_a_metric_as_an_attribute_raises_with_a_remedy():
    steps = ftrain.make_steps(net, loss_fn, optim.sgd(0.1))
    _, metrics = steps.train_step(steps.init_state(0), BATCH)
    with pytest.raises(AttributeError, match=r"metrics\['loss'\], not metrics\.loss"):
        metrics.loss  # noqa: B018
    with pytest.raises(AttributeError, match="Metrics has no attribute 'perplexity'"):
        metrics.perplexity  # noqa: B018
    for same in (copy.deepcopy(metrics), pickle.loads(pickle.dumps(metrics))):
        assert dict(same) == dict(metrics)


def test_replace_refuses_unknown_fields_with_a_suggestion():
    state = ftrain.make_steps(net, loss_fn, optim.sgd(0.1)).init_state(0)
    with pytest.raises(
        TypeError, match=r"no field 'param'\. Did you mean 'params'\? It has step, params, .*extras"
    ):
        state.replace(param={})


def test_train_state_repr_summarizes_each_field():
    steps = ftrain.make_steps(
        lambda: nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32)),
        loss_fn,
        optim.chain(optim.clip_by_global_norm(1.0), optim.ema(optim.adamw(1e-3))),
        precision="16-mixed",
    )
    state = steps.init_state(0)
    assert repr(state) == (
        "TrainState(step=0, params=4 tensors of 352 float32, buffers=3 tensors of 1 int64 and 64 "
        "float32, opt_state=((), EmaState), scaler=LossScaleState, extras=(), cpu, 5.94 kB)"
    )
    stacked = ftrain.tree.map(lambda x: torch.stack([x, x]), state)
    assert "step=int64[2], params=4 tensors of 704" in repr(stacked)
    assert "step=0, params={'0.bias': 0" in repr(ftrain.tree.map(lambda x: 0, state))
    shown = []
    torch.vmap(lambda s: (shown.append(repr(s)), s.step)[1])(stacked)
    assert "step=int64[], params=4 tensors of 352" in shown[0]
    assert repr(optim.adamw(1e-3)) == "GradientTransformation(init=adamw.init, update=adamw.update)"


def test_gradient_result_repr_summarizes_its_tensors():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = ftrain.make_steps(model, loss_fn, optim.sgd(0.1)).init_state(0)
    result = ftrain.gradients(model, loss_fn)(state, BATCH)
    assert repr(result) == (
        "GradientResult(grads=4 tensors of 24 float32, finite=True, buffers=3 tensors of 1 int64 and "
        f"8 float32, metrics={result.metrics!r})"
    )
    unchecked = ftrain.gradients(model, loss_fn, nonfinite="ignore")(state, BATCH)
    assert "float32, finite=None, buffers=3 tensors" in repr(unchecked)
    assert repr(result._replace(grads={"w": 1})).startswith("GradientResult({'w': 1}, tensor(True)")


def test_calling_a_step_on_the_states_of_an_ensemble_raises_an_error_that_suggests_vmap():
    steps = ftrain.make_steps(net, loss_fn, optim.sgd(0.1))
    states = torch.vmap(steps.init_state)(torch.arange(4))
    with pytest.raises(
        ValueError,
        match=r"state\.step: .*got int64\[4\].*vmap\(step, in_dims=\(0, None\)\)",
    ):
        steps.train_step(states, BATCH)
    _, metrics = torch.vmap(steps.train_step, in_dims=(0, None))(states, BATCH)
    assert metrics["loss"].shape == (4,)


class Phase(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, dtype=torch.complex64))


def test_complex_parameters_raise_an_error_that_suggests_view_as_real():
    with pytest.raises(
        TypeError, match=r"'w': expected a real .*got torch\.complex64.*view_as_real"
    ):
        ftrain.make_steps(Phase, lambda m, b: m.w.abs().sum(), optim.scale(-0.1))
    for make in (optim.adamw(0.1).init, lambda p: optim.clip_by_global_norm(1.0).update(p, ())):
        with pytest.raises(TypeError, match=r"\['w'\] is of dtype torch.complex64.*view_as_real"):
            make({"w": torch.ones(2, dtype=torch.complex64)})


def test_error_messages_use_the_article_a_or_an_that_the_next_word_requires():
    with pytest.raises(ValueError, match="expected a leaf .*got an OrderedDict"):
        ftrain.tree.map(lambda a, b: a, {"a": 1}, {"a": collections.OrderedDict(b=1)})
    state = ftrain.make_steps(net, loss_fn, optim.sgd(0.1)).init_state(0)
    result = ftrain.gradients(net, loss_fn)(state, BATCH)
    with pytest.raises(ValueError, match=r"changed state\.step: expected a tensor, got an int"):
        ftrain.commit(state, dataclasses.replace(state, step=1), result)


def test_recompile_warning_for_a_smaller_last_batch_suggests_options_of_both_data_loaders():
    double = ftrain.compile(lambda x: x * 2, backend="eager")
    double(torch.ones(4))
    with pytest.warns(
        ftrain.errors.RecompileWarning, match="last_batch='pad' or 'drop' of .*drop_last=True"
    ):
        double(torch.ones(3))


@pytest.mark.parametrize(
    ("count", "size"),
    [(1, "1 bytes"), (999, "999 bytes"), (1000, "1 kB"), (10**6, "1 MB"), (10**9, "1 GB")],
)
def test_size_of_a_state_is_written_in_the_largest_unit_that_it_fills(
    count: int, size: str
) -> None:
    params = {"w": torch.empty(count, dtype=torch.uint8, device="meta")}
    assert repr(ftrain.TrainState((), params, {}, (), (), (), {})).endswith(f"meta, {size})")
