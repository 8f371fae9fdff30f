"""Laws 1 to 10 on four models, in every precision, with and without accumulation and compile.

The suite takes a part of each product, in which any two values meet; a campaign takes all.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import optim, testing
from ftrain.core import tree
from tests.campaign import product, spread
from tests.zoo import PRECISIONS, ZOO

MODELS = tuple(ZOO)
MODES = ("eager", "compiled")
# Measured over the zoo, 200 seeds: at most 1.3e-7 in float32; the law allows 4e-7.
ACCUMULATION = 4e-7


@functools.cache
def steps(
    model: str, precision: str, accumulate: int = 1, randomless: bool = False
) -> ftrain.Steps:
    case = ZOO[model]
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0), optim.adamw(optim.warmup_cosine(1e-2, 2, 20))
    )
    return ftrain.make_steps(
        case.randomless if randomless else case.model,
        case.loss_fn,
        optimizer,
        precision=precision,
        accumulate=accumulate,
    )


@functools.cache
def train_step(model: str, precision: str, accumulate: int, mode: str) -> Any:
    step = steps(model, precision, accumulate).train_step
    return step if mode == "eager" else ftrain.compile(step, backend="eager")


def start(model: str, precision: str, accumulate: int, mode: str) -> tuple[Any, Any, list[Any]]:
    """Return a step, an initial state and four batches."""
    state = steps(model, precision, accumulate).init_state(3)
    batches = [ZOO[model].batch(seed, 8) for seed in range(4)]
    return train_step(model, precision, accumulate, mode), state, batches


each = pytest.mark.parametrize(
    ("model", "precision", "accumulate", "mode"),
    product(MODELS, PRECISIONS, (1, 4), MODES),
)


@each
def test_law_1_pure_train_step_changes_neither_inputs_nor_global_state(
    model: str, precision: str, accumulate: int, mode: str
) -> None:
    """Check the first and the second step."""
    step, state, batches = start(model, precision, accumulate, mode)
    for batch in batches[:2]:
        testing.assert_pure(step, state, batch)
        state, _ = step(state, batch)


@each
def test_law_2_train_step_is_deterministic(
    model: str, precision: str, accumulate: int, mode: str
) -> None:
    """Call each step repeatedly in one process; `test_fresh.py` compares processes."""
    step, state, batches = start(model, precision, accumulate, mode)
    for batch in batches[:2]:
        testing.assert_deterministic(step, state, batch)
        state, _ = step(state, batch)


@each
def test_law_3_train_step_keeps_the_structure_of_the_state(
    model: str, precision: str, accumulate: int, mode: str
) -> None:
    """Structure, shapes, dtypes, devices and strides stay the same over three steps."""
    step, state, batches = start(model, precision, accumulate, mode)
    for batch in batches[:3]:
        testing.assert_fixpoint(step, state, batch)
        state, _ = step(state, batch)


@pytest.mark.parametrize(("model", "precision", "accumulate"), product(MODELS, PRECISIONS, (1, 4)))
def test_law_4_traced_and_eager_steps_draw_the_same_random_numbers(
    model: str, precision: str, accumulate: int
) -> None:
    """Law 4: traced and eager runs draw the same masks, so they compute the same bits."""
    state = steps(model, precision, accumulate).init_state(7)
    batch = ZOO[model].batch(7, 8)
    eager = train_step(model, precision, accumulate, "eager")(state, batch)
    traced = train_step(model, precision, accumulate, "compiled")(state, batch)
    if (
        model == "lstm"
    ):  # one operator when traced, which keeps no workspace: another kernel of oneDNN
        testing.assert_close_norm(traced[0].opt_state[1].mu, eager[0].opt_state[1].mu, 1e-2)
    else:
        testing.assert_same_bits(traced[0], eager[0])
        testing.assert_same_bits(traced[1], eager[1])
    if model in ("mlp", "gpt", "lstm"):  # those with dropout
        _, other = train_step(model, precision, accumulate, "eager")(
            state.replace(rng=ftrain.random.key(99)), batch
        )
        assert testing.describe_difference(other, eager[1]) is not None


@each
def test_law_6_skipped_step_keeps_params_buffers_and_optimizer_state(
    model: str, precision: str, accumulate: int, mode: str
) -> None:
    """Skip the second step, so that the moments are not zero."""
    step, state, batches = start(model, precision, accumulate, mode)
    state, _ = step(state, batches[0])
    spoilt = "mask" if model == "gpt" else "x"
    batch = {**batches[1], spoilt: torch.full_like(batches[1][spoilt], float("nan"))}
    testing.assert_skips(step, state, batch)


@each
def test_law_7_resumed_run_has_the_same_bits(
    model: str, precision: str, accumulate: int, mode: str
) -> None:
    """Resume after every step from serialized bytes; `test_fresh.py` does so in a new process."""
    step, state, batches = start(model, precision, accumulate, mode)
    testing.assert_resumes(step, state, batches)


@each
def test_law_10_evaluation_does_not_change_training(
    model: str, precision: str, accumulate: int, mode: str
) -> None:
    step, state, batches = start(model, precision, accumulate, mode)
    eval_step = steps(model, precision, accumulate).eval_step
    if mode == "compiled":
        eval_step = ftrain.compile(eval_step, backend="eager")
    testing.assert_evaluation_is_pure(step, eval_step, state, batches[0])
    testing.assert_deterministic(eval_step, state, batches[0])


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), parts=st.sampled_from([2, 3, 4, 6, 12]))
@pytest.mark.parametrize("model", ["mlp", "gpt", "lstm"])
def test_law_5_accumulated_gradients_match_full_batch_gradients(
    model: str, seed: int, parts: int
) -> None:
    """Law 5, with unequal and zero-weight micro-batches (BatchNorm's statistics are per part)."""
    case = ZOO[model]
    whole, cut = (
        ftrain.gradients(ftrain.bind(case.randomless), case.loss_fn, accumulate=k)
        for k in (1, parts)
    )
    state = steps(model, "32-true", 1, True).init_state(seed)
    batch = case.batch(seed % 1000, 12)
    expected, result = whole(state, batch), cut(state, batch)
    testing.assert_close_norm(result.grads, expected.grads, ACCUMULATION)
    testing.assert_close_norm(result.metrics["loss"], expected.metrics["loss"], ACCUMULATION)
    ragged = ftrain.MicroBatches(
        tuple(
            tree.map(lambda x, rows=rows: x[rows], batch)
            for rows in (slice(0, 1), slice(1, 6), slice(6, 12))
        )
    )
    if model == "gpt":  # a plain loss counts each part once; only Mean knows their sizes
        result = whole(state, ragged)
        testing.assert_close_norm(result.grads, expected.grads, ACCUMULATION)


@pytest.mark.parametrize(("model", "accumulate"), spread(["mlp", "convnet", "gpt"], [1, 4]))
def test_law_8_each_row_of_a_vmapped_step_matches_a_single_step(
    model: str, accumulate: int
) -> None:
    """Keys, counts and schedules match bit for bit; batched products sum in another order."""
    case = ZOO[model]
    # Not Adam, which turns the rounding noise of a zero gradient (a bias before BatchNorm) into a
    # full-sized update.
    init_state, step, _ = ftrain.make_steps(
        case.model, case.loss_fn, optim.sgd(0.1), accumulate=accumulate
    )
    states = [init_state(seed) for seed in range(3)]
    batch = case.batch(0, 8)
    relative = 1e-6
    testing.assert_vmap_rows(step, states, batch, relative=relative)
    testing.assert_vmap_rows(
        step,
        states,
        batch,
        relative=relative,
        compile=functools.partial(ftrain.compile, backend="eager"),
    )


@pytest.mark.parametrize(("model", "precision", "accumulate"), product(MODELS, PRECISIONS, (1, 4)))
def test_law_9_donated_step_reuses_memory_and_gives_the_same_bits(
    model: str, precision: str, accumulate: int
) -> None:
    """Compare three donated steps with the plain compiled ones."""
    init_state, step, _ = steps(model, precision, accumulate)
    donating = ftrain.compile(step, donate=True, backend="eager")
    plain = train_step(model, precision, accumulate, "compiled")
    kept, donated = init_state(0), init_state(0)
    places = [leaf.data_ptr() for leaf in tree.leaves(donated)]
    for seed in range(3):
        batch = ZOO[model].batch(seed, 8)
        kept, metrics = plain(kept, batch)
        donated, donated_metrics = donating(donated, batch)
        testing.assert_same_bits(donated, kept)
        testing.assert_same_bits(donated_metrics, metrics)
    assert places == [leaf.data_ptr() for leaf in tree.leaves(donated)]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**63 - 1),
    rows=st.integers(1, 9),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e4, 1e30]),
    precision=st.sampled_from(PRECISIONS),
)
def test_train_step_is_pure_and_deterministic_for_any_seed_batch_size_and_input_magnitude(
    seed: int, rows: int, scale: float, precision: str
) -> None:
    """The magnitudes include values that overflow."""
    init_state, step, _ = steps("mlp", precision)
    state = init_state(seed)
    testing.assert_same_bits(init_state(seed), state)
    batch = ZOO["mlp"].batch(seed % 1000, rows)
    batch["x"] = batch["x"] * scale
    testing.assert_pure(step, state, batch)
    testing.assert_deterministic(step, state, batch)
    testing.assert_fixpoint(step, state, batch)


@pytest.mark.parametrize("model", MODELS)
def test_steps_ignore_the_callers_grad_mode_autocast_and_global_generator(model: str) -> None:
    """A step is a function of its arguments alone."""
    init_state, step, eval_step = steps(model, "32-true")
    state, batch = init_state(0), ZOO[model].batch(0, 8)
    expected, evaluated = step(state, batch), eval_step(state, batch)
    torch.manual_seed(12345)
    for mode in (torch.no_grad, torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)):
        with mode():
            testing.assert_same_bits(step(state, batch), expected)
            testing.assert_same_bits(eval_step(state, batch), evaluated)


def test_law_3_step_compiles_once_over_200_steps_with_schedule_and_skips() -> None:
    """Law 3: 200 steps with a schedule and two skipped steps need one trace and one graph."""
    init_state, step, _ = steps("mlp", "16-mixed")
    compiled = ftrain.compile(step, donate=True, backend="eager")
    state = init_state(0)
    skipped = 0
    for i in range(200):
        batch = ZOO["mlp"].batch(i % 5, 8)
        if i in (50, 120):
            batch["x"] = batch["x"] * float("nan")
        state, metrics = compiled(state, batch)
        skipped += int(metrics["skipped"])
    assert compiled.n_compiles == 1
    assert skipped == 2
    assert int(state.step) == 198
