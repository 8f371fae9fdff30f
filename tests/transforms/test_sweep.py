"""Each row of a sweep is a single run: states, random bits, scalers, metrics."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import optim, testing, transforms, tree
from ftrain.core.errors import NonFiniteError
from ftrain.loop import Trainer
from tests.campaign import choice, examples, long
from tests.transforms.cases import (
    Line,
    batches,
    counts,
    floats,
    line_batch,
    line_steps,
    squares,
    steps,
    traced,
)
from tests.zoo import ZOO

# Relative norms of a whole state. float32: the law; measured at most 1.7e-7 after 100 steps. The others
# round each activation to 8 or 11 bits, and batched products round at other places.
RELATIVE = {"32-true": 4e-6, "bf16-mixed": 3e-2, "16-mixed": 4e-3}


@functools.cache
def swept_step(model: str, precision: str, accumulate: int, mode: str, chunk: int | None) -> Any:
    """Return a step for any number of members, since `over` concerns initial states alone."""
    found = transforms.sweep(steps(model, precision, accumulate), 1, chunk_size=chunk)
    return traced(found.train_step, mode)


@functools.cache
def single_step(model: str, precision: str, accumulate: int, mode: str) -> Any:
    return traced(steps(model, precision, accumulate).train_step, mode)


def assert_rows_are_single_runs(
    model: str,
    precision: str,
    accumulate: int,
    mode: str,
    members: list[dict[str, Any]],
    n_steps: int,
    chunk: int | None = None,
) -> None:
    states = transforms.sweep(steps(model, precision, accumulate), over=members).init_state(0)
    singles = []
    for i, row in enumerate(members):
        values = {name: value for name, value in row.items() if name != "seed"}
        alone = steps(model, precision, accumulate, **values)
        singles.append(alone.init_state(row["seed"]))
        testing.assert_same_bits(transforms.member(states, i), singles[-1])
    step = swept_step(model, precision, accumulate, mode, chunk)
    one = single_step(model, precision, accumulate, mode)
    data = batches(model, 5)
    for k in range(n_steps):
        states, metrics = step(states, data[k % 5])
        outputs = [one(state, data[k % 5]) for state in singles]
        singles = [state for state, _ in outputs]
    for i, (state, single_metrics) in enumerate(outputs):
        mine = transforms.member(states, i)
        testing.assert_same_bits(counts(mine), counts(state))
        testing.assert_same_bits(mine.scaler, state.scaler)
        testing.assert_close_norm(floats(mine), floats(state), RELATIVE[precision])
        own = transforms.member(metrics, i)
        testing.assert_close_norm(own["loss"], single_metrics["loss"], RELATIVE[precision])
        assert own.keys() == single_metrics.keys()


# Few batch norms and rates: a large rate makes training chaotic, and amplifies rounding.
rates = st.sampled_from([0.0, 1e-3, 1e-2, 0.1])
member_lists = st.lists(
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**40),
            "learning_rate": rates,
            "momentum": st.sampled_from([0.0, 0.5, 0.9]),
        }
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=examples(12, 100))
@given(
    model=st.sampled_from(["mlp", "convnet", "gpt"]),
    precision=st.sampled_from(list(RELATIVE)),
    accumulate=st.sampled_from([1, 4]),
    members=member_lists,
    chunk=st.sampled_from([None, 1, 2, 3]),
)
def test_each_row_of_a_sweep_is_the_single_run_of_its_seed_and_hyperparameters(
    model: str, precision: str, accumulate: int, members: Any, chunk: int | None
) -> None:
    """The MLP has dropout, the ConvNet BatchNorm, the GPT LayerNorm, dropout and a ragged mean."""
    assert_rows_are_single_runs(model, precision, accumulate, "eager", members, 3, chunk)


MEMBERS = transforms.grid(learning_rate=[1e-3, 1e-2], momentum=[0.9], seed=[3, 1, 2])[:5]


@pytest.mark.parametrize(
    ("model", "precision", "accumulate"),
    choice(
        [("mlp", "16-mixed", 4), ("convnet", "32-true", 4), ("gpt", "bf16-mixed", 1)],
        [
            ("mlp", "32-true", 1),
            ("mlp", "16-mixed", 4),
            ("convnet", "32-true", 4),
            ("convnet", "bf16-mixed", 1),
            ("convnet", "16-mixed", 1),
            ("gpt", "bf16-mixed", 1),
            ("gpt", "16-mixed", 1),
        ],
    ),
)
def test_each_row_of_a_compiled_sweep_is_a_single_run(
    model: str, precision: str, accumulate: int
) -> None:
    assert_rows_are_single_runs(model, precision, accumulate, "compiled", MEMBERS, 3)


@pytest.mark.parametrize(
    ("model", "chunk"),
    [
        ("mlp", 2),
        pytest.param("convnet", None, marks=long),
        pytest.param("gpt", None, marks=long),
    ],
)
def test_rows_of_a_compiled_sweep_match_single_runs_after_100_steps(
    model: str, chunk: int | None
) -> None:
    assert_rows_are_single_runs(model, "32-true", 1, "compiled", MEMBERS, 100, chunk)


def test_sweep_rows_under_adamw_differ_from_single_runs_only_in_a_bias_before_batch_norm() -> None:
    """BatchNorm subtracts the bias, so its gradient is 0; Adam divides rounding noise by its own size.

    Measured: gradients of the bias near 2e-8, of the other leaves near 0.2; after 20 steps, the bias
    differs by 0.33 (relative), the running mean, which follows it, by 0.28, the other leaves by at most
    2.2e-7.
    """
    case = ZOO["convnet"]
    base = ftrain.make_steps(
        case.model, case.loss_fn, optim.with_hyperparams(optim.adamw, learning_rate=1e-2)
    )
    grads = ftrain.gradients(case.model, case.loss_fn)(base.init_state(0), case.batch(0, 8)).grads
    sizes = {name: float(grad.norm()) for name, grad in grads.items()}
    assert sizes.pop("layers.0.bias") < 1e-6
    assert min(sizes.values()) > 1e-2

    swept, singles = transforms.sweep(base, 2), [base.init_state(0), base.init_state(1)]
    states = swept.init_state(0)
    for k in range(20):
        data = case.batch(k % 5, 8)
        states, metrics = swept.train_step(states, data)
        outputs = [base.train_step(state, data) for state in singles]
        singles = [state for state, _ in outputs]
    for i, (state, own) in enumerate(outputs):
        row = transforms.member(states, i)
        ours, expected = ({**s.params, **s.buffers} for s in (row, state))
        for name in ("layers.0.bias", "layers.1.running_mean"):
            assert (ours.pop(name) - expected.pop(name)).abs().max() > 1e-3
        for name in floats_of(expected):
            testing.assert_close_norm(ours[name], expected[name], 4e-6)
        testing.assert_close_norm(transforms.member(metrics, i)["loss"], own["loss"], 4e-6)


def floats_of(named: dict[str, Any]) -> list[str]:
    return [name for name, x in named.items() if x.is_floating_point()]


@settings(max_examples=examples(8, 50))
@given(seed=st.integers(0, 2**62), n=st.integers(1, 6))
def test_sweep_rows_of_models_without_matrix_products_have_the_bytes_of_single_runs(
    seed: int, n: int
) -> None:
    assert_rows_have_the_bytes_of_single_runs(seed, n, "eager")


def test_rows_of_a_compiled_sweep_have_the_bytes_of_single_runs() -> None:
    assert_rows_have_the_bytes_of_single_runs(0, 3, "compiled")


def assert_rows_have_the_bytes_of_single_runs(seed: int, n: int, mode: str) -> None:
    """Adam on a model of scalar operators, without matrix products."""
    base = line_steps()
    swept = transforms.sweep(base, n, over={"learning_rate": [1e-2, 0.3]})
    states, step = swept.init_state(seed), traced(swept.train_step, mode)
    for k in range(5):
        states, metrics = step(states, line_batch(k))
    for i, row in enumerate(transforms.grid(learning_rate=[1e-2, 0.3], seed=range(n))):
        alone = line_steps(optim.with_hyperparams(optim.adamw, learning_rate=row["learning_rate"]))
        state, one = alone.init_state(seed + row["seed"]), traced(alone.train_step, mode)
        for k in range(5):
            state, single_metrics = one(state, line_batch(k))
        testing.assert_same_bits(transforms.member(states, i), state)
        testing.assert_same_bits(transforms.member(metrics, i), single_metrics)


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_each_member_has_a_loss_scaler_of_its_own(mode: str) -> None:
    """One member starts at a scale at which its gradients overflow; only it skips and halves it."""
    swept = transforms.sweep(steps("mlp", "16-mixed"), 3)
    states, step = swept.init_state(0), traced(swept.train_step, mode)
    start = float(states.scaler.scale[0])
    scale = states.scaler.scale * torch.tensor([1.0, 2.0**24, 1.0])
    states = states.replace(scaler=states.scaler._replace(scale=scale))
    new, metrics = step(states, batches("mlp", 1)[0])
    assert metrics["skipped"].tolist() == [0, 1, 0]
    assert (new.scaler.scale / start).tolist() == [1.0, 2.0**23, 1.0]
    assert new.step.tolist() == [1, 0, 1]
    testing.assert_same_bits(transforms.member(new, 1).params, transforms.member(states, 1).params)


def test_initial_state_of_each_member_depends_on_its_own_hyperparameters() -> None:
    """Adagrad's sum starts at one of its arguments, and states record the first learning rate."""
    build = functools.partial(optim.with_hyperparams, optim.adagrad)
    values = {"learning_rate": [0.1, 0.2], "initial_accumulator_value": [0.0, 0.5]}
    swept = transforms.sweep(
        line_steps(build(learning_rate=1.0, initial_accumulator_value=1.0)), over=values
    )
    for i, row in enumerate(transforms.grid(**values)):
        alone = line_steps(build(**row)).init_state(0)
        testing.assert_same_bits(transforms.member(swept.init_state(0), i), alone)


def test_an_entry_of_extras_can_be_swept_as_a_hyperparameter_of_the_loss() -> None:
    def loss_fn(model: Any, batch: Any, extras: Any) -> Any:
        return squares(model, batch) + extras["penalty"] * model.weight.square().sum()

    base = line_steps(loss_fn=loss_fn)

    def init_state(seed: int, penalty: float = 0.0) -> ftrain.TrainState:
        return base.init_state(seed).replace(extras={"penalty": torch.tensor(penalty)})

    swept = transforms.sweep(
        base._replace(init_state=init_state), over={"penalty": [0.0, 0.5], "learning_rate": [0.1]}
    )
    states, metrics = swept.train_step(swept.init_state(0), line_batch(0))
    single = line_steps(optim.with_hyperparams(optim.adamw, learning_rate=0.1), loss_fn)
    for i, penalty in enumerate([0.0, 0.5]):
        start = single.init_state(0).replace(extras={"penalty": torch.tensor(penalty)})
        state, alone = single.train_step(start, line_batch(0))
        testing.assert_close_norm(transforms.member(states, i), state, 1e-6)
        testing.assert_close_norm(transforms.member(metrics, i)["loss"], alone["loss"], 1e-6)


@pytest.mark.parametrize("chunk", [None, 2])
def test_members_may_have_batches_of_their_own(chunk: int | None) -> None:
    swept = transforms.sweep(line_steps(), 5, batches="own", chunk_size=chunk)
    own = [line_batch(i) for i in range(5)]
    start = swept.init_state(0)
    states, _ = swept.train_step(start, transforms.stack(own))
    losses = swept.eval_step(states, transforms.stack(own))["loss"]
    for i, batch in enumerate(own):
        state, _ = line_steps().train_step(transforms.member(start, i), batch)
        testing.assert_same_bits(transforms.member(states, i), state)
        testing.assert_same_bits(losses[i].clone(), line_steps().eval_step(state, batch)["loss"])
    with pytest.raises(ValueError, match="expected a leading axis of 5 members, got 4"):
        swept.train_step(start, transforms.stack(own[:4]))


def test_a_sweep_with_schedules_skipped_steps_and_donation_compiles_once() -> None:
    swept = transforms.sweep(steps("convnet"), 3)
    step = ftrain.compile(swept.train_step, backend="eager", donate=True)
    plain, states, kept = swept.train_step, swept.init_state(0), swept.init_state(0)
    data = batches("convnet", 4)
    data[1] = {**data[1], "x": torch.full_like(data[1]["x"], float("nan"))}
    for batch in data:
        states, _ = step(states, batch)
        kept, _ = plain(kept, batch)
    assert step.n_compiles == 1
    assert states.step.tolist() == [3, 3, 3]
    testing.assert_same_bits(states, kept)


def test_a_sweep_of_a_sweep_has_two_axes_of_members() -> None:
    inner = transforms.sweep(line_steps(), over={"seed": [5, 6, 7]})
    outer = transforms.sweep(inner, over={"learning_rate": [0.1, 0.2]})
    states, metrics = outer.train_step(outer.init_state(0), line_batch(0))
    assert metrics["loss"].shape == (2, 3)
    flat = transforms.sweep(line_steps(), over={"learning_rate": [0.1, 0.2], "seed": [5, 6, 7]})
    expected, _ = flat.train_step(flat.init_state(0), line_batch(0))
    testing.assert_same_bits(tree.map(lambda x: x.flatten(0, 1), states), expected)


def test_an_init_state_that_needs_a_python_integer_is_called_for_each_member() -> None:
    base = line_steps()

    def init_state(seed: int) -> ftrain.TrainState:
        assert isinstance(seed, int)
        return base.init_state(seed)

    swept = transforms.sweep(base._replace(init_state=init_state), over={"seed": [3, 9]})
    testing.assert_same_bits(
        swept.init_state(1), transforms.stack([base.init_state(4), base.init_state(10)])
    )


def test_trainer_runs_a_sweep_and_reports_each_member() -> None:
    swept = transforms.sweep(line_steps(), over={"learning_rate": [1e-3, 1e-2, 0.1]})
    data = [line_batch(i) for i in range(6)]
    found = Trainer(swept, compile={"backend": "eager"}, log_every=6).fit(
        swept.init_state(0), data, data[:2], epochs=4
    )
    assert found.status == "completed"
    assert found.step == 24
    assert found.eval is not None
    losses = torch.tensor(found.eval.members["loss"])
    state = transforms.best(found.state, losses)
    assert float(line_steps().eval_step(state, data[0])["loss"]) < 1.0
    rate = optim.get(state.opt_state, "hyperparams")["learning_rate"]
    assert float(rate) == [1e-3, 1e-2, 0.1][int(losses.argmin())]


def test_an_eager_trainer_locates_the_nonfinite_value_of_a_sweep() -> None:
    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        return squares(model, batch) / batch["scale"]

    swept = transforms.sweep(line_steps(loss_fn=loss_fn), 2)
    data = [{**line_batch(0), "scale": torch.tensor(float(i == 0))} for i in range(5)]
    trainer = Trainer(swept, compile=False, max_skipped=2, log_every=2)
    with pytest.raises(NonFiniteError, match="aten.div.Tensor gives .* infinit") as error:
        trainer.fit(swept.init_state(0), data, max_steps=5)
    assert "skipped by every member" in str(error.value)


def test_sweep_of_a_module_instance_starts_all_members_with_the_same_weights() -> None:
    swept = transforms.sweep(ftrain.make_steps(Line(), squares, optim.sgd(0.1)), 2)
    states = swept.init_state(0)
    testing.assert_same_bits(
        transforms.member(states, 0).params, transforms.member(states, 1).params
    )
    assert not torch.equal(states.rng[0], states.rng[1])
