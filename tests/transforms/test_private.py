"""DP-SGD: clipping and noise are exact and keyed; epsilon is the accountant's."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import Mean, optim, random, transforms, tree
from tests.compile.cases import same_bytes

generator = torch.Generator().manual_seed(1)
BATCH = {"x": torch.randn(8, 5, generator=generator), "y": torch.tensor([0, 1, 2, 2, 1, 0, 1, 1])}
CLIP = 1.7  # near the norms of the gradients of these examples
OPTIONS: Any = {"clip_norm": CLIP, "noise_multiplier": 1.3}


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 3))


def loss_fn(module: nn.Module, batch: Any) -> Any:
    logits = module(batch["x"])
    accuracy = (logits.argmax(1) == batch["y"]).float().mean()
    return F.cross_entropy(logits, batch["y"]), {"accuracy": accuracy}


STATE = ftrain.make_steps(model, loss_fn, optim.sgd(0.1)).init_state(0)


def flat(params: Any) -> Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in tree.leaves(params)])


def test_private_gradients_equal_a_loop_that_clips_each_example() -> None:
    _, examples_key, noise_key = random.split(STATE.rng, 3)
    per_sample = transforms.per_sample_grads(model, loss_fn)
    grads = per_sample(STATE.replace(rng=examples_key), BATCH)
    total = {name: torch.zeros_like(p) for name, p in STATE.params.items()}
    clipped = 0
    for i in range(8):
        norm = float(flat(tree.map(lambda g, i=i: g[i].double(), grads)).norm())
        clipped += norm > CLIP
        for name in total:
            total[name] += grads[name][i] * min(1.0, CLIP / norm)
    for place, name in enumerate(sorted(total)):
        noise = random.normal(noise_key, total[name].shape, folds=(place,))
        total[name] = (total[name] + 1.3 * CLIP * noise) / 8
    result = transforms.private_gradients(model, loss_fn, **OPTIONS)(STATE, BATCH)
    torch.testing.assert_close(result.grads, total, rtol=1e-5, atol=1e-7)
    assert 0 < clipped < 8
    assert float(result.metrics["clipped"]) == clipped / 8


def test_private_steps_equal_a_loop_in_plain_pytorch() -> None:
    """Autograd on each example, clipping one by one, noise from the same keys; five steps of SGD."""
    double = lambda: model().double()  # noqa: E731
    batch = {**BATCH, "x": BATCH["x"].double()}
    init_state, step, _ = transforms.private_steps(double, loss_fn, optim.sgd(0.1), **OPTIONS)
    state = init_state(0)
    params, rng, counts = state.params, state.rng, []
    for _ in range(5):
        state, metrics = step(state, batch)
        rng, examples_key, noise_key = random.split(rng, 3)
        total, clipped = {name: torch.zeros_like(p) for name, p in params.items()}, 0
        for i in range(8):
            module = double()
            module.load_state_dict(params)
            key = random.split(random.fold_in(examples_key, i))[
                1
            ]  # one half goes to the next state
            with random.keyed(key):
                loss, _ = loss_fn(module, {name: x[i : i + 1] for name, x in batch.items()})
            loss.backward()
            grads = {name: p.grad for name, p in module.named_parameters()}
            norm = float(flat(grads).norm())
            clipped += norm > CLIP
            for name, grad in grads.items():
                total[name] += min(1.0, CLIP / norm) * grad  # type: ignore[operator]
        for place, name in enumerate(sorted(total)):
            shape = total[name].shape
            noise = random.normal(random.fold_in(noise_key, place), shape, torch.float64)
            params = {**params, name: params[name] - 0.1 * (total[name] + 1.3 * CLIP * noise) / 8}
        assert float(metrics["clipped"]) == clipped / 8
        counts.append(clipped)
        assert float((flat(state.params) - flat(params)).norm() / flat(params).norm()) < 1e-14
    assert same_bytes(state.rng, rng)
    assert 0 < sum(counts) < 40


def test_private_gradient_without_clipping_and_noise_is_the_gradient_of_the_batch() -> None:
    smooth = lambda module, batch: F.cross_entropy(module(batch["x"]), batch["y"])  # noqa: E731
    plain = lambda: nn.Linear(5, 3)  # noqa: E731
    state = ftrain.make_steps(plain, smooth, optim.sgd(0.1)).init_state(0)
    ours = transforms.private_gradients(plain, smooth, clip_norm=1e9, noise_multiplier=0.0)
    result = ours(state, BATCH)
    whole = ftrain.gradients(ftrain.bind(plain), smooth)(state, BATCH)
    torch.testing.assert_close(result.grads, whole.grads, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(result.metrics["loss"], whole.metrics["loss"])
    assert float(result.metrics["clipped"]) == 0


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(0, 7), st.floats(-1e4, 1e4, width=32))
def test_an_example_changes_the_gradient_sum_by_at_most_the_clipping_norm(
    seed: int, place: int, value: float
) -> None:
    """Sensitivity: adding an example adds a vector of norm `clip_norm` or less."""
    grads_of = transforms.private_gradients(
        model, masked, clip_norm=CLIP, noise_multiplier=0.0, batch_size=1
    )
    state = STATE.replace(rng=random.key(seed))
    x = BATCH["x"].clone()
    x[place] = value
    kept = torch.ones(8)
    full = grads_of(state, {**BATCH, "x": x, "mask": kept})
    kept = kept.clone()
    kept[place] = 0.0
    without = grads_of(state, {**BATCH, "x": x, "mask": kept})
    assert float((flat(full.grads) - flat(without.grads)).norm()) <= CLIP * (1 + 1e-5)


def masked(module: nn.Module, batch: Any) -> Mean:
    losses = F.cross_entropy(module(batch["x"]), batch["y"], reduction="none")
    return Mean((losses * batch["mask"]).sum(), batch["mask"].sum())


def test_rows_of_weight_0_and_non_finite_examples_add_nothing_to_the_gradient() -> None:
    grads_of = transforms.private_gradients(model, masked, **OPTIONS, batch_size=4)
    mask = torch.tensor([1.0] * 6 + [0.0] * 2)
    expected = grads_of(STATE, {**BATCH, "mask": mask})
    x = BATCH["x"].clone()
    x[6:] = float("nan")
    broken = grads_of(STATE, {**BATCH, "x": x, "mask": torch.ones(8)})
    for ours, theirs in zip(tree.leaves(broken.grads), tree.leaves(expected.grads), strict=True):
        assert same_bytes(ours, theirs)
    assert int(broken.metrics["nonfinite_examples"]) == 2
    assert int(expected.metrics["nonfinite_examples"]) == 0
    assert float(expected.metrics.entries["loss"].weight) == 6
    assert bool(broken.finite)


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_a_gradient_whose_square_overflows_or_underflows_float32_is_clipped(size: float) -> None:
    linear = lambda module, batch: size * module(batch["x"])[:, 0].mean()  # noqa: E731
    clip_norm = size / 1e3
    grads_of = transforms.private_gradients(
        model, linear, clip_norm=clip_norm, noise_multiplier=0.0, batch_size=1
    )
    result = grads_of(STATE, {"x": BATCH["x"][:1]})
    norm = flat(tree.map(Tensor.double, result.grads)).norm()
    assert abs(float(norm) / clip_norm - 1) < 1e-5
    assert float(result.metrics["clipped"]) == 1
    assert int(result.metrics["nonfinite_examples"]) == 0


def test_private_noise_has_the_deviation_given_by_the_multiplier() -> None:
    """Compare the noise of 20,000 gradients of one parameter, within 5 standard errors."""
    single = lambda: nn.Linear(1, 1, bias=False)  # noqa: E731
    square = lambda module, batch: module(batch).square().mean()  # noqa: E731
    state = ftrain.make_steps(single, square, optim.sgd(0.1)).init_state(0)
    grads_of = transforms.private_gradients(single, square, clip_norm=0.5, noise_multiplier=3.0)
    draw = lambda key: grads_of(state.replace(rng=key), torch.ones(2, 1)).grads["weight"]  # noqa: E731
    drawn = torch.vmap(draw)(random.split(random.key(0), 20_000)) * 2
    assert abs(float(drawn.std()) / 1.5 - 1) < 5 / 40_000**0.5


@pytest.mark.parametrize("chunk_size", [1, 3, 8])
def test_private_gradient_does_not_depend_on_the_chunk_size(chunk_size: int) -> None:
    whole = transforms.private_gradients(model, loss_fn, **OPTIONS)(STATE, BATCH)
    parts = transforms.private_gradients(model, loss_fn, **OPTIONS, chunk_size=chunk_size)
    found = parts(STATE, BATCH)
    torch.testing.assert_close(found.grads, whole.grads, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.metrics["accuracy"], whole.metrics["accuracy"])


def steps_of(**changes: Any) -> ftrain.Steps:
    return transforms.private_steps(model, loss_fn, optim.sgd(0.1), **{**OPTIONS, **changes})


def test_private_steps_are_pure_and_deterministic() -> None:
    steps = steps_of()
    ftrain.testing.check_pure(steps, [BATCH, BATCH])
    ftrain.testing.check_deterministic(steps, [BATCH, BATCH])
    ftrain.testing.check_fixpoint(steps, [BATCH, BATCH])


def test_private_steps_can_be_compiled_and_vmapped_over_states() -> None:
    steps = steps_of()
    state, metrics = steps.train_step(STATE, BATCH)
    compiled, _ = ftrain.compile(steps.train_step, backend="eager")(STATE, BATCH)
    torch.testing.assert_close(compiled.params, state.params, rtol=1e-5, atol=1e-7)
    assert same_bytes(compiled.rng, state.rng)
    others = [STATE, steps.init_state(1)]
    stacked = tree.map(lambda *leaves: torch.stack(leaves), *others)
    mapped, _ = torch.vmap(lambda s: steps.train_step(s, BATCH))(stacked)
    row = tree.map(lambda leaf: leaf[0], mapped)
    torch.testing.assert_close(row.params, state.params, rtol=1e-5, atol=1e-7)
    assert sorted(metrics) == [
        "accuracy", "clipped", "grad_norm", "learning_rate", "loss", "nonfinite_examples", "skipped",
    ]  # fmt: skip


def test_private_steps_can_be_swept_and_scanned() -> None:
    """Each member has noise of its own; row i is the run of member i."""
    steps = steps_of()
    swept = transforms.sweep(steps, 3)
    scanned = transforms.scan(swept.train_step, 2)
    batches = tree.map(lambda t: torch.stack([t, t.flip(0)]), BATCH)
    after, _ = ftrain.compile(scanned, backend="eager")(swept.init_state(0), batches)
    for number in range(3):
        state = transforms.member(swept.init_state(0), number)
        for i in range(2):
            state, _ = steps.train_step(state, tree.map(lambda t, i=i: t[i], batches))
        row = transforms.member(after, number)
        torch.testing.assert_close(row.params, state.params, rtol=1e-5, atol=1e-6)
        assert same_bytes(row.rng, state.rng)


def test_private_training_learns() -> None:
    steps = steps_of(noise_multiplier=0.5)
    step, state = ftrain.compile(steps.train_step, backend="eager"), steps.init_state(0)
    first = float(steps.eval_step(state, BATCH)["loss"])
    for _ in range(60):
        state, _ = step(state, BATCH)
    assert float(steps.eval_step(state, BATCH)["loss"]) < 0.8 * first


def test_private_steps_keep_buffers_that_do_not_depend_on_examples() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(5, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return super().forward(x)

    steps = transforms.private_steps(Counting, loss_fn, optim.sgd(0.1), **OPTIONS)
    state, _ = steps.train_step(steps.init_state(0), BATCH)
    assert float(state.buffers["calls"]) == 1


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "clip": (lambda: steps_of(clip_norm=0.0), "clip_norm: expected a positive number"),
    "noise": (lambda: steps_of(noise_multiplier=-1.0), "noise_multiplier: expected"),
    "size": (lambda: steps_of(batch_size=0), "batch_size: expected"),
    "scaling": (lambda: steps_of(precision="16-mixed"), "without loss scaling"),
    "micro-batches": (
        lambda: steps_of().train_step(STATE, ftrain.MicroBatches(BATCH, 2)),
        "expected one batch, got MicroBatches",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_private_steps_refuse_wrong_arguments(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_metrics_that_cannot_be_merged_over_examples_are_refused() -> None:
    def last(module: nn.Module, batch: Any) -> Any:
        return loss_fn(module, batch)[0], {"last": ftrain.Last(batch["x"].sum())}

    with pytest.raises(TypeError, match=r"metrics\['last'\]: expected a mean, a sum or values"):
        transforms.private_gradients(model, last, **OPTIONS)(STATE, BATCH)


# -- accountant -------------------------------------------------------------------------------------


def test_dp_epsilon_equals_the_epsilon_of_dp_accounting() -> None:
    library = pytest.importorskip("dp_accounting")
    pytest.importorskip("dp_accounting.pld")
    event = library.PoissonSampledDpEvent(0.02, library.GaussianDpEvent(0.9))
    for name, made in (
        ("pld", library.pld.PLDAccountant()),
        ("rdp", library.rdp.RdpAccountant()),
    ):
        expected = made.compose(event, 300).get_epsilon(1e-5)
        assert transforms.dp_epsilon(0.9, 0.02, 300, 1e-5, accountant=name) == expected  # type: ignore[arg-type]


def test_dp_epsilon_with_sample_rate_1_equals_that_of_the_gaussian_mechanism() -> None:
    """Balle and Wang, "Improving the Gaussian mechanism for differential privacy", ICML 2018."""
    library = pytest.importorskip("dp_accounting")
    exact = library.get_epsilon_gaussian(4.0 / 5**0.5, 1e-5)
    assert transforms.dp_epsilon(4.0, 1.0, 5, 1e-5) == pytest.approx(exact, rel=1e-3)


def test_dp_noise_multiplier_is_the_least_one_that_keeps_the_given_epsilon() -> None:
    pytest.importorskip("dp_accounting")
    noise = transforms.dp_noise_multiplier(2.0, 0.01, 500, 1e-5, accountant="rdp")
    assert transforms.dp_epsilon(noise, 0.01, 500, 1e-5, accountant="rdp") <= 2.0
    assert transforms.dp_epsilon(0.99 * noise, 0.01, 500, 1e-5, accountant="rdp") > 2.0


def test_accountants_refuse_wrong_arguments() -> None:
    for call, message in (
        (lambda: transforms.dp_epsilon(0.0, 0.1, 1, 1e-5), "noise_multiplier"),
        (lambda: transforms.dp_epsilon(1.0, 0.0, 1, 1e-5), "sample_rate"),
        (lambda: transforms.dp_epsilon(1.0, 0.1, 0, 1e-5), "steps"),
        (lambda: transforms.dp_epsilon(1.0, 0.1, 1, 1.0), "delta"),
        (lambda: transforms.dp_epsilon(1.0, 0.1, 1, 0.1, accountant="gdp"), "accountant"),  # type: ignore[arg-type]
        (lambda: transforms.dp_epsilon(math.inf, 0.1, 1, 0.1), "noise_multiplier: expected"),
        (lambda: transforms.dp_epsilon(1.0, 0.1, 1.5, 0.1), "steps: expected an integer"),  # type: ignore[arg-type]
        (lambda: transforms.dp_noise_multiplier(0.0, 0.1, 1, 0.1), "epsilon"),
        (lambda: transforms.dp_noise_multiplier(math.inf, 0.1, 1, 0.1), "at most 1000"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


EXTREME: dict[str, tuple[Any, str]] = {
    "epsilon beyond the memory of pld": ((1e-3, 0.5, 100, 1e-5), "at most 1000 .* got about 5.5e"),
    "steps beyond the memory of pld": ((1.1, 0.01, 10**9, 1e-5), "at most 1000 .* got about 7.3"),
    "delta below the precision of pld": ((1.1, 0.01, 3, 1e-300), "got inf .* accountant='rdp'"),
    "noise whose square underflows": ((1e-300, 1.0, 1, 1e-5), "finite epsilon, got inf"),
    "noise whose square overflows": ((1e300, 0.5, 100, 1e-5), "OverflowError .* less extreme"),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("case", EXTREME)
def test_dp_epsilon_raises_an_error_with_a_remedy_for_extreme_arguments(case: str) -> None:
    pytest.importorskip("dp_accounting")
    arguments, message = EXTREME[case]
    with pytest.raises(ValueError, match=message):
        transforms.dp_epsilon(*arguments)


def test_missing_dp_accounting_raises_and_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"ftrain\[privacy\]"):
        transforms.dp_epsilon(1.0, 0.1, 1, 1e-5)
