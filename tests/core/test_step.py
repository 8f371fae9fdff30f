"""Train and eval steps: their parts, their options, and their errors on invalid input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import optim, testing
from ftrain.core import tree
from ftrain.core.errors import ImpureFunctionError, NonFiniteError
from tests.zoo import MLP, ZOO, classification_loss

CASE = ZOO["mlp"]
MODES = pytest.mark.parametrize("mode", ["eager", "compiled"])


def make(loss_fn: Any = CASE.loss_fn, model: Any = CASE.model, **options: Any) -> ftrain.Steps:
    optimizer = options.pop("optimizer", optim.adamw(1e-2))
    return ftrain.make_steps(model, loss_fn, optimizer, **options)


def run(loss_fn: Any = CASE.loss_fn, batch: Any = None, mode: str = "eager", **options: Any) -> Any:
    init_state, step, _ = make(loss_fn, **options)
    if mode == "compiled":
        step = ftrain.compile(step, backend="eager")
    return step(init_state(0), CASE.batch(0, 8) if batch is None else batch)


def test_train_step_matches_a_plain_torch_sgd_loop() -> None:
    """Ten steps of SGD with momentum and clipping end at the same weights."""
    torch.manual_seed(0)
    model = MLP(0.0)
    init_state, step, _ = make(
        model=model,
        optimizer=optim.chain(optim.clip_by_global_norm(0.5), optim.sgd(0.1, momentum=0.9)),
    )
    state = init_state(0)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    for seed in range(10):
        batch = CASE.batch(seed, 8)
        state, metrics = step(state, batch)
        sgd.zero_grad()
        loss, _ = classification_loss(model, batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        sgd.step()
        # The two norms sum in another order: the clipped weights differ by some roundings from then on.
        assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
        assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=1e-6)
    testing.assert_close_norm(state.params, dict(model.named_parameters()), 1e-6)


@MODES
def test_user_written_step_with_an_ema_in_extras_is_pure_and_keeps_its_structure(mode: str) -> None:
    """A user-written step, in ten lines, that keeps a moving average of the weights in `extras`."""
    apply = ftrain.bind(CASE.model)
    optimizer = optim.adamw(1e-2)
    gradients = ftrain.gradients(apply, CASE.loss_fn, precision="bf16-mixed", accumulate=2)

    def train_step(
        state: ftrain.TrainState, batch: Any
    ) -> tuple[ftrain.TrainState, ftrain.Metrics]:
        result = gradients(state, batch)
        new = ftrain.update(optimizer, state, result)
        ema = tree.map(lambda e, p: 0.9 * e + 0.1 * p, state.extras["ema"], new.params)
        return ftrain.commit(state, new.replace(extras={"ema": ema}), result)

    state = make().init_state(0)
    state = state.replace(extras={"ema": tree.map(torch.clone, state.params)})
    step = train_step if mode == "eager" else ftrain.compile(train_step, backend="eager")
    batch = CASE.batch(0, 8)
    testing.assert_pure(step, state, batch)
    testing.assert_fixpoint(step, state, batch)
    testing.assert_skips(step, state, {**batch, "x": batch["x"] * float("nan")})
    new, _ = step(state, batch)
    assert testing.describe_difference(new.extras, state.extras) is not None


def test_gradient_through_an_sgd_step_matches_torch_func() -> None:
    """Differentiate the loss after one step with respect to the parameters before it."""
    apply = ftrain.bind(lambda: nn.Linear(2, 1))
    x = torch.randn(4, 2)

    def objective(params: Any) -> torch.Tensor:
        def loss(p: Any) -> torch.Tensor:
            return apply(p, {}, ftrain.random.key(0), x)[0].square().mean()

        _, grads = ftrain.value_and_grad(loss, differentiable=True)(params)
        return loss(tree.map(lambda p, g: p - 0.1 * g, params, grads))

    params, _ = apply.init(ftrain.random.key(0))
    _, found = ftrain.value_and_grad(objective)(params)
    _, expected = torch.func.grad_and_value(objective)(params)
    testing.assert_close_norm(found["weight"], torch.func.grad(objective)(params)["weight"], 1e-6)
    del expected


@given(k=st.integers(1, 6), per=st.integers(1, 4))
def test_accumulate_splits_a_batch_in_order(k: int, per: int) -> None:
    """Buffers pass from one micro-batch to the next, and each micro-batch gets its own rows."""

    class Records(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))
            self.register_buffer("order", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.order = self.order * 10 + x.mean()
            return self.w * x.mean()

    rows = torch.arange(1.0, k + 1).repeat_interleave(per)
    init_state, step, _ = make(
        lambda model, batch: model(batch), model=Records(), accumulate=k, optimizer=optim.sgd(0.0)
    )
    state, _ = step(init_state(0), rows)
    assert float(state.buffers["order"]) == float("".join(str(i) for i in range(1, k + 1)))


def test_train_step_returns_its_own_metrics_and_those_of_the_loss() -> None:
    _, metrics = run(precision="16-mixed")
    assert set(metrics) == {
        "loss",
        "accuracy",
        "grad_norm",
        "skipped",
        "loss_scale",
        "learning_rate",
    }
    assert float(metrics["learning_rate"]) == pytest.approx(1e-2)
    assert float(metrics["loss_scale"]) == 2.0**16
    assert int(metrics["skipped"]) == 0


def test_grad_reduce_of_totals_and_weights_gives_full_batch_gradients() -> None:
    """Two ranks with different token counts give the gradients of the whole batch."""
    case = ZOO["gpt"]
    state = make(case.loss_fn, case.randomless).init_state(0)
    batch = case.batch(0, 8)
    parts = [tree.map(lambda x: x[:3], batch), tree.map(lambda x: x[3:], batch)]
    seen: list[Any] = []

    def gather(totals: Any, weight: torch.Tensor) -> Any:
        seen.append((totals, weight))
        return totals, weight

    for part in parts:
        ftrain.gradients(case.randomless, case.loss_fn, grad_reduce=gather)(state, part)

    def reduce(totals: Any, weight: torch.Tensor) -> Any:
        del totals, weight
        return tree.map(torch.add, seen[0][0], seen[1][0]), seen[0][1] + seen[1][1]

    result = ftrain.gradients(case.randomless, case.loss_fn, grad_reduce=reduce)(state, parts[0])
    whole = ftrain.gradients(case.randomless, case.loss_fn)(state, batch)
    testing.assert_close_norm(result.grads, whole.grads, 4e-7)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_batch_without_unmasked_tokens_skips_the_step(accumulate: int) -> None:
    case = ZOO["gpt"]
    init_state, step, _ = make(case.loss_fn, case.model, accumulate=accumulate)
    state = init_state(0)
    batch = {**case.batch(0, 8), "mask": torch.zeros(8, 5)}
    new, metrics = step(state, batch)
    testing.assert_same_bits(new.replace(rng=state.rng), state)
    assert metrics["loss"].isnan()
    assert metrics["grad_norm"].isnan()  # of no step
    assert metrics["skipped"] == 1


# --- bad input ------------------------------------------------------------------------------------


@MODES
def test_nonfinite_raise_names_the_first_non_finite_parameter(mode: str) -> None:
    batch = CASE.batch(0, 8)
    batch["x"][3, 2] = float("nan")
    with pytest.raises(
        NonFiniteError, match=r"step 0: loss nan, 6 of 6 .*params\['layers.0.bias'\]"
    ):
        run(batch=batch, nonfinite="raise", mode=mode)
    state, _ = run(nonfinite="raise", mode=mode)
    expected, _ = run(mode=mode)
    testing.assert_same_bits(state, expected)


def test_nonfinite_ignore_applies_non_finite_gradients() -> None:
    batch = CASE.batch(0, 8)
    batch["x"][0, 0] = float("inf")
    state, metrics = run(batch=batch, nonfinite="ignore")
    assert any(p.isnan().any() for p in state.params.values())
    assert int(metrics["skipped"]) == 0
    testing.assert_same_bits(run(nonfinite="ignore")[0], run()[0])


def detached(model: Any, batch: Any) -> Any:
    return classification_loss(model, batch)[0].detach()


def writes_batch(model: Any, batch: Any) -> Any:
    batch["x"] += 1
    return classification_loss(model, batch)


def writes_capture() -> Any:
    counter = torch.zeros(())

    def loss_fn(model: Any, batch: Any) -> Any:
        counter.add_(1)
        return classification_loss(model, batch)

    return loss_fn


@MODES
@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda m, b: F.cross_entropy(m(b["x"]), b["y"], reduction="none"), TypeError,
         r"scalar \(0-d\) loss.*float32\[8\].*loss.mean\(\)"),
        (lambda m, b: None, TypeError, "expected a scalar .* got NoneType"),
        (lambda m, b: 0.5, TypeError, "got float"),
        (detached, ValueError, r"does not depend on its parameters.*\.detach\(\)"),
        (lambda m, b: m(b["x"]).argmax(), TypeError, "expected a floating-point dtype, got torch.int64"),
        (lambda m, b: ftrain.Mean(m(b["x"]).sum(), 8), TypeError, "Mean of 0-d tensors, got weight int"),
        (lambda m, b: (m(b["x"]).sum(), {"loss": 1.0}), ValueError, r"metrics named \['loss'\]"),
        (lambda m, b: (m(b["x"]).sum(), {"logits": "high"}), TypeError, "'logits' returned by"),
        (lambda m, b: (m(b["x"]).sum(), 3), TypeError, "metrics a dict of 0-d tensors"),
        (writes_batch, ImpureFunctionError, r"input `batch\['x'\]` was changed in place"),
        (writes_capture(), ImpureFunctionError, "captured tensor `counter` was changed in place"),
    ],
)  # fmt: skip
def test_loss_functions_with_invalid_results_raise(
    loss_fn: Any, error: type, message: str, mode: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        run(loss_fn, mode=mode)
    if caught.type in (TypeError, ValueError):
        assert "test_step.py" in str(caught.value) or "counter" in str(caught.value)


@MODES
def test_errors_in_a_loss_note_the_shapes_of_the_batch(mode: str) -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied|same reduction dim") as caught:
        run(batch={"x": torch.zeros(8, 5), "y": torch.zeros(8, dtype=torch.int64)}, mode=mode)
    notes = "".join(caught.value.__notes__)
    assert "classification_loss" in notes
    assert "batch['x']: float32[8, 5]" in notes


@MODES
def test_batch_on_another_device_raises_with_the_leaf_path(mode: str) -> None:
    batch = {"x": torch.zeros(8, 6, device="meta"), "y": torch.zeros(8, dtype=torch.int64)}
    with pytest.raises(
        ValueError, match=r"batch\['x'\]: expected a tensor on cpu, .* got one on meta"
    ):
        run(batch=batch, mode=mode)


@MODES
def test_batch_with_numpy_arrays_raises_with_the_leaf_path(mode: str) -> None:
    batch = {"x": torch.zeros(8, 6).numpy(), "y": torch.zeros(8, dtype=torch.int64)}
    with pytest.raises(TypeError, match=r"batch\['x'\].* ndarray.*(from_numpy|as_tensor)"):
        run(batch=batch, mode=mode)


@MODES
@pytest.mark.parametrize("state", [None, {"params": {}}, nn.Linear(2, 2)])
def test_steps_refuse_a_state_that_is_not_a_train_state(state: Any, mode: str) -> None:
    _, step, eval_step = make()
    step = step if mode == "eager" else ftrain.compile(step, backend="eager")
    for fn in (step, eval_step):
        with pytest.raises(
            TypeError, match=r"expected an ftrain.TrainState, got .*init_state\(seed\)"
        ):
            fn(state, CASE.batch(0, 8))


@MODES
def test_batch_not_divisible_by_accumulate_raises_with_valid_sizes(mode: str) -> None:
    with pytest.raises(
        ValueError, match=r"has 10 rows. Use a batch of 8 or 12 rows.*\[1, 2, 5, 10\]"
    ):
        run(batch=CASE.batch(0, 10), accumulate=4, mode=mode)
    batch = {"x": torch.zeros(8, 6), "y": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(
        ValueError, match=r"expected 8 rows as in batch\['x'\], got 4 in batch\['y'\]"
    ):
        run(batch=batch, accumulate=4, mode=mode)


def test_explicit_micro_batches_equal_accumulate_byte_for_byte() -> None:
    batch = CASE.batch(0, 8)
    parts = tuple(tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], batch) for i in range(4))
    cut = run(accumulate=4)
    handed = run(batch=ftrain.MicroBatches(parts), accumulate=4)
    testing.assert_same_bits(handed, cut)
    testing.assert_same_bits(run(batch=ftrain.MicroBatches(parts), accumulate=2), cut)
    with pytest.raises(
        ValueError, match="expected 3 batches or a multiple of 3, since accumulate=3, got 4"
    ):
        run(batch=ftrain.MicroBatches(parts), accumulate=3)
    odd = (parts[0], {"x": parts[1]["x"]})
    with pytest.raises(
        ValueError,
        match=r"batch 1 differs in structure from batch 0, at the root: \['y'\] is missing",
    ):
        run(batch=ftrain.MicroBatches(odd))


def test_metrics_that_change_between_micro_batches_raise() -> None:
    calls: list[int] = []

    def loss_fn(model: Any, batch: Any) -> Any:
        calls.append(1)
        return model(batch["x"]).sum(), {f"m{len(calls)}": 1.0}

    batch = CASE.batch(0, 8)
    ragged = ftrain.MicroBatches(
        (tree.map(lambda x: x[:3], batch), tree.map(lambda x: x[3:], batch))
    )
    with pytest.raises(
        ValueError, match=r"\['m1'\] only in the first; \['m2'\] only in the second"
    ):
        run(loss_fn, batch=ragged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "got 'fp16'"),
        ({"accumulate": 0}, "accumulate: expected a whole number of at least 1"),
        ({"accumulate": 2.0}, "accumulate: expected a whole number"),
        ({"nonfinite": "warn"}, "nonfinite: expected 'skip', 'raise' or 'ignore'"),
        (
            {"nonfinite": "raise", "precision": "16-mixed"},
            "expected 'skip' with dynamic loss scaling",
        ),
    ],
)
def test_make_steps_options_out_of_range_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_make_steps_refuses_models_that_are_not_modules() -> None:
    with pytest.raises(
        TypeError, match="the model function: expected to return an nn.Module, got dict"
    ):
        make(model=lambda: {})
    with pytest.raises(
        TypeError, match="model: expected an nn.Module or a function that builds one"
    ):
        make(model=3)
    with pytest.raises(ValueError, match="nothing to train"):
        make(model=nn.ReLU())


def test_adamw_init_refuses_integer_parameters_by_name() -> None:
    optimizer = optim.adamw(1e-3)
    with pytest.raises((TypeError, ValueError), match=r"\['table'\]"):
        optimizer.init({"table": torch.zeros(3, dtype=torch.int64)})


KINDS = {
    "batch": (lambda: nn.BatchNorm1d(2), True),
    "tracked": (lambda: nn.InstanceNorm1d(2, track_running_stats=True), True),
    "instance": (lambda: nn.InstanceNorm1d(2), False),
    "linear": (lambda: nn.Linear(2, 2), False),
}


@given(st.booleans(), st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.booleans())))
def test_batch_statistics_lists_the_modules_that_normalize_over_rows_in_training(
    is_training: bool, layers: list[tuple[str, bool]]
) -> None:
    """A module in evaluation mode stays in it, unless the whole model was given in that mode."""
    layers = [*layers, ("linear", True)]  # something to train
    model = nn.Sequential(*(KINDS[kind][0]() for kind, _ in layers))
    for layer, (_, flag) in zip(model, layers, strict=True):
        layer.train(flag)
    model.training = is_training
    steps = ftrain.make_steps(model, lambda model, batch: model(batch).mean(), optim.sgd(0.1))
    assert steps.train_step.batch_statistics == tuple(
        str(i)
        for i, (kind, flag) in enumerate(layers)
        if KINDS[kind][1] and (flag or not is_training)
    )
