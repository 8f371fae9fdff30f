"""Test the learning-rate finder: unchanged state, cost, suggestion and errors."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import optim
from ftrain.core import tree
from ftrain.loop import Trainer, finders
from ftrain.loop.finders._suggest import smooth, stops_at, suggest
from tests.campaign import examples

EAGER = {"backend": "eager"}


def data(n=7, rows=16):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, 3, generator=generator) for _ in range(n)]


def model():
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 1))


def loss_fn(model, batch):
    return (model(batch) - batch.sum(1, keepdim=True)).square().mean()


def of_rate(rate, algorithm=optim.adamw):
    return ftrain.make_steps(model, loss_fn, algorithm(rate))


def settable(algorithm=optim.adamw):
    return ftrain.make_steps(model, loss_fn, optim.with_hyperparams(algorithm, learning_rate=1e-3))


@pytest.mark.parametrize("compile", [False, EAGER])
@pytest.mark.parametrize("steps", [of_rate, settable()])
def test_learning_rate_finder_changes_neither_the_state_nor_later_training(steps, compile):
    made = steps(1e-3) if callable(steps) else steps
    state = made.init_state(0)
    before = tree.digest(state)
    seed = torch.random.get_rng_state()
    finders.learning_rate(steps, state, data(), n_steps=40, compile=compile)
    assert tree.digest(state) == before
    assert torch.equal(seed, torch.random.get_rng_state())
    trainer = Trainer(made, compile=False)
    after = trainer.fit(state, data(), max_steps=5).state
    assert tree.digest(after) == tree.digest(
        trainer.fit(made.init_state(0), data(), max_steps=5).state
    )


def test_learning_rate_finder_gives_equal_results_for_every_accepted_form_of_steps():
    plain, kept = of_rate(1e-3), settable()
    found = [
        finders.learning_rate(of_rate, plain.init_state(0), data(), compile=False),
        finders.learning_rate(of_rate, plain.init_state(0), data(), compile=EAGER),
        finders.learning_rate(kept, kept.init_state(0), data(), compile=False),
        finders.learning_rate(kept.train_step, kept.init_state(0), data(), compile=EAGER),
    ]
    assert all(each == found[0] for each in found)


def test_sweep_losses_equal_those_of_a_hand_written_loop():
    found = finders.learning_rate(
        of_rate, of_rate(1.0).init_state(0), data(), n_steps=12, compile=False
    )
    state = of_rate(1.0).init_state(0)
    for i, loss in enumerate(found.losses):
        rate = torch.tensor(found.rates[i], dtype=torch.float64)
        state, metrics = of_rate(rate).train_step(state, data()[i % 7])
        assert float(metrics["loss"]) == loss
    steps = [math.log10(b / a) for a, b in zip(found.rates, found.rates[1:], strict=False)]
    assert steps == pytest.approx([8 / 11] * len(steps))


@pytest.mark.parametrize("look_every", [1, 7, 100])
def test_the_suggested_rate_does_not_depend_on_how_often_losses_are_read(look_every):
    sgd = lambda rate: of_rate(rate, optim.sgd)  # noqa: E731
    state = sgd(1.0).init_state(0)
    usual = finders.learning_rate(sgd, state, data(), compile=False)
    assert usual.diverged
    assert usual == finders.learning_rate(sgd, state, data(), compile=False, look_every=look_every)


def test_learning_rate_finder_compiles_once_for_all_rates():
    kept = settable()
    step = ftrain.compile(kept.train_step, donate=True, **EAGER)
    finders.learning_rate(step, kept.init_state(0), data())
    assert step.n_compiles == 1


def test_sweep_losses_are_read_from_the_device_once_per_interval(monkeypatch):
    kept = settable()
    state, reads = kept.init_state(0), []
    for name in ("item", "tolist", "__float__", "__bool__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, _original=original, _name=name):
            reads.append(_name)
            return _original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    finders.learning_rate(
        kept, state, data(), n_steps=60, look_every=20, highest=1e-2, compile=False
    )
    few = len(reads)
    reads.clear()
    finders.learning_rate(
        kept, state, data(), n_steps=60, look_every=60, highest=1e-2, compile=False
    )
    assert few - len(reads) == 2, (few, len(reads))  # 3 reads against 1


def test_suggested_rate_trains_better_than_30_times_smaller_or_larger_ones():
    found = finders.learning_rate(of_rate, of_rate(1.0).init_state(0), data(), compile=False)
    assert found.suggestion < found.lowest

    def after(rate):
        steps = of_rate(rate)
        result = Trainer(steps, compile=False).fit(steps.init_state(0), data(), max_steps=60)
        return result.history[-1].loss

    good = after(found.suggestion)
    assert good < after(found.suggestion / 30)
    assert good < after(found.suggestion * 30)


def test_a_non_finite_loss_ends_the_sweep_and_is_null_in_json():
    def steps(rate):
        return lambda state, batch: (
            state,
            {"loss": torch.where(rate > 1e-3, torch.nan, 2 - 500 * rate)},
        )

    found = finders.learning_rate(steps, {"w": torch.zeros(1)}, [0], compile=False)
    assert found.diverged
    assert math.isnan(found.losses[-1])
    assert all(map(math.isfinite, found.losses[:-1]))
    assert found.lowest <= 1e-3
    text = json.dumps(found.to_json(), allow_nan=False)
    again = finders.RateSweep.from_json(json.loads(text))
    assert again.rates == found.rates
    assert again.suggestion == found.suggestion


@pytest.mark.parametrize("loss", [1.0, math.nan])
def test_a_loss_that_does_not_fall_gives_no_suggestion(loss):
    def steps(rate):
        return lambda state, batch: (state, {"loss": torch.tensor(loss) + 0 * rate})

    found = finders.learning_rate(steps, {"w": torch.zeros(1)}, [0], compile=False)
    assert found.suggestion is None
    assert "no suggestion: the loss does not fall" in str(found)


def nan_gradient(model, batch):
    """Return a finite loss whose gradient is NaN on a bad batch."""
    out = model(batch["x"])
    zero = 0 * out.sum()
    root = torch.sqrt(torch.where(batch["bad"][0], zero, zero + 1))  # at 0, its gradient is 0 / 0
    return (out - batch["x"].sum(1, keepdim=True)).square().mean() + 0 * root


def falling(bad):
    """Return batches on which the loss falls independently of training."""
    batches = data(len(bad))
    return [{"x": x / (i + 1), "bad": torch.tensor([bad[i]])} for i, x in enumerate(batches)]


def of_nan(rate):
    return ftrain.make_steps(model, nan_gradient, optim.sgd(rate))


@pytest.mark.parametrize("compile", [False, EAGER])
def test_a_sweep_with_every_step_skipped_gives_no_suggestion(compile):
    state = of_nan(0.1).init_state(0)
    found = finders.learning_rate(of_nan, state, falling([True] * 40), n_steps=40, compile=compile)
    assert all(map(math.isfinite, found.losses))
    assert found.losses[-1] < found.losses[0] / 10  # the loss falls, although no step trains
    assert (found.suggestion, found.lowest, found.skipped) == (None, None, 40)
    assert str(found).startswith(
        "no suggestion: all of the 40 steps from 1e-07 to 10 were skipped because of a non-finite "
        "gradient"
    )
    again = finders.RateSweep.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found


@pytest.mark.parametrize("look_every", [1, 20])
@pytest.mark.parametrize("members", [0, 2])
def test_a_loss_of_nan_from_the_first_step_gives_no_suggestion(look_every, members):
    def nan_loss(model, batch):
        return model(batch).square().mean() * math.nan

    optimizer = optim.with_hyperparams(optim.sgd, learning_rate=0.1)
    steps = ftrain.make_steps(model, nan_loss, optimizer)
    step, state = steps.train_step, steps.init_state(0)
    if members:
        step = torch.vmap(step, in_dims=(0, None), randomness="different")
        state = tree.map(lambda *x: torch.stack(x), state, steps.init_state(1))
    options = {"n_steps": 40, "look_every": look_every, "compile": False}
    found = finders.learning_rate(step, state, data(), **options)
    assert (found.suggestion, found.lowest, found.skipped) == (None, None, 1)
    assert str(found).startswith(
        "no suggestion: the first step, at 1e-07, was skipped because of a non-finite gradient, so no "
    )
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["losses"] == [None]


@pytest.mark.parametrize(("n_bad", "suggests"), [(0, True), (10, True), (20, True), (21, False)])
def test_a_sweep_with_over_half_of_the_steps_skipped_gives_no_suggestion(n_bad, suggests):
    bad = [i % 2 == 1 for i in range(40)]
    bad = [i < n_bad for i in range(40)] if n_bad != 20 else bad
    state = of_nan(0.1).init_state(0)
    found = finders.learning_rate(
        of_nan, state, falling(bad), n_steps=40, compile=False, highest=0.1
    )
    assert found.skipped == n_bad
    assert (found.suggestion is not None) == suggests
    if suggests:
        assert not bad[found.rates.index(found.suggestion)]
        assert (f"{n_bad} of them were skipped" in str(found)) == (n_bad > 0)
    else:
        assert "21 of the 40 steps" in str(found)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda rate: optim.skip_large_updates(optim.sgd(rate), 0.0),
        lambda rate: optim.multi_steps(optim.sgd(rate), 1000),
        lambda rate: optim.sgd(rate * 0),
    ],
)
def test_a_sweep_that_changes_no_parameter_gives_no_suggestion(wrap):
    """Steps omitted by the optimizer itself are not counted as skipped."""
    steps = lambda rate: ftrain.make_steps(model, nan_gradient, wrap(rate))  # noqa: E731
    state = steps(0.1).init_state(0)
    found = finders.learning_rate(steps, state, falling([False] * 20), n_steps=20, compile=False)
    assert (found.suggestion, found.skipped, found.trained) == (None, 0, False)
    assert "none of the 20 steps from 1e-07 to 10 changed a parameter" in str(found)


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=2, max_size=60),
)
def test_rates_of_skipped_steps_are_never_suggested(steps):
    rates = [10.0**-i for i in range(len(steps), 0, -1)]
    losses, skipped = zip(*steps, strict=True)
    best, _ = suggest(rates, losses, skipped)
    assert best is None or not skipped[rates.index(best)]
    assert suggest(rates, losses, [False] * len(rates)) == suggest(rates, losses)


def test_learning_rate_finder_refuses_steps_it_cannot_sweep():
    plain = of_rate(1e-3)
    state = plain.init_state(0)
    with pytest.raises(TypeError, match=r"got a constant learning rate.*with_hyperparams"):
        finders.learning_rate(plain, state, data())
    with pytest.raises(TypeError, match="expected a 'loss'"):
        finders.learning_rate(
            lambda rate: lambda state, batch: (state, {"nll": rate}), state, data(), compile=False
        )
    with pytest.raises(ValueError, match="expected 0 < lowest < highest"):
        finders.learning_rate(of_rate, state, data(), lowest=0.0)
    with pytest.raises(ValueError, match="n_steps"):
        finders.learning_rate(of_rate, state, data(), n_steps=3)
    with pytest.raises(ValueError, match="train_data: expected at least one batch"):
        finders.learning_rate(of_rate, state, [])


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=60), st.floats(0.5, 4), st.integers(2, 5)
)
@settings(max_examples=examples(40, 100), deadline=None)
def test_the_end_of_a_rate_sweep_depends_only_on_earlier_losses(losses, diverged, width):
    end = stops_at(losses, diverged, width)
    for n in range(1, len(losses)):
        seen = stops_at(losses[:n], diverged, width)
        assert seen == (end if end is not None and end < n else None)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=60), st.floats(0.5, 4))
@settings(max_examples=examples(40, 100), deadline=None)
def test_smoothing_losses_stays_in_range_and_commutes_with_reversal(losses, width):
    even = smooth(losses, width)
    assert min(losses) - 1e-9 <= min(even) <= max(even) <= max(losses) + 1e-9
    assert smooth(losses[::-1], width)[::-1] == pytest.approx(even, abs=1e-9)


@given(st.floats(-5.5, -0.5), st.floats(0.15, 0.5))
@settings(max_examples=examples(20, 50), deadline=None)
def test_suggested_rate_is_at_the_steepest_fall_of_a_known_curve(centre, width):
    at = [-7 + 8 * i / 99 for i in range(100)]
    even = [2 - math.tanh((x - centre) / width) for x in at]
    best, _ = suggest([10**x for x in at], even)
    assert math.log10(best) == pytest.approx(centre, abs=0.13)  # 1.5 steps of the sweep


def test_sweep_plot_marks_the_suggested_rate(tmp_path):
    pytest.importorskip("matplotlib")
    found = finders.learning_rate(
        of_rate, of_rate(1.0).init_state(0), data(), n_steps=40, compile=False
    )
    figure = found.plot(tmp_path / "sweep.png", title="a sweep", dark=True)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "a sweep"
    assert [text.get_text() for text in ax.texts] == [f"{found.suggestion:.2g}"]
