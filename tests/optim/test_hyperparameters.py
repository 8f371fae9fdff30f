"""Test every hyper-parameter of every algorithm: its range check, and tensors as its value."""

from __future__ import annotations

import functools
import inspect
import math
import pickle
import re

import pytest
import torch

from ftrain import optim
from ftrain.core import tree
from tests.campaign import spread
from tests.optim.cases import algorithms, random_tree

ALGORITHMS = sorted(algorithms())
SHAPES = [(3, 2), (2,)]


def hyper_parameters(name: str) -> list[str]:
    """Return the arguments that are numbers or 0-d tensors, including the learning rate."""
    parameters = inspect.signature(getattr(optim, name)).parameters.values()
    kinds = ("Hyperparameter", "LearningRate", "float")
    return [p.name for p in parameters if any(kind in str(p.annotation) for kind in kinds)]


RULED_TOGETHER = {("lbfgs", "c1"), ("lbfgs", "c2")}  # 0 < c1 < c2 < 1, in a message of its own
EVERY = [
    (name, argument)
    for name in ALGORITHMS
    for argument in hyper_parameters(name)
    if (name, argument) not in RULED_TOGETHER
]


def build(name: str, **hyper):
    """Return the algorithm at a rate, with momentum where other arguments require it."""
    needs = {"dampening": {"momentum": 0.9}} if name == "sgd" else {}
    extra = {k: v for argument in hyper for k, v in needs.get(argument, {}).items()}
    return getattr(optim, name)(**{"learning_rate": 0.1, **extra, **hyper})


@pytest.mark.parametrize(("place", "value"), spread(EVERY, [math.nan, math.inf, -math.inf, -1.0]))
def test_hyperparameters_out_of_range_raise_with_name_and_value(place, value):
    name, argument = place
    if (argument, value) == ("beta2_decay", -1.0):
        pytest.skip("a power below zero")
    with pytest.raises(ValueError, match=rf"{argument}: expected .*{re.escape(repr(value))}"):
        build(name, **{argument: value})


@pytest.mark.parametrize(
    ("name", "argument"),
    [(n, a) for n, a in EVERY if a in ("b1", "b2", "b3", "momentum", "rho") and n != "prodigy"]
    + [("rmsprop", "alpha"), ("rprop", "eta_minus")],
)
def test_decay_rates_of_one_are_refused(name, argument):
    with pytest.raises(ValueError, match=rf"{argument}: expected a number in \[0, 1\), got 1.0"):
        build(name, **{argument: 1.0})


@pytest.mark.parametrize(("name", "argument"), EVERY)
def test_hyperparameters_of_a_wrong_type_raise_type_error(name, argument):
    for value, message in (
        ("0.1", ": expected a number, got str"),
        (torch.ones(2), "0-d floating"),
    ):
        with pytest.raises(TypeError, match=rf"{argument}\b.*{message}"):
            build(name, **{argument: value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.rprop(optim.constant(0.1)), r"got a schedule.*rprop\(1e-2\)"),
        (lambda: optim.rprop(eta_plus=1.0), "eta_plus: expected a finite number > 1, got 1.0"),
        (
            lambda: optim.adafactor(0.1, 0.8),
            r"beta2_decay: expected .* <= 0, such as -0.8, got 0.8",
        ),
        (lambda: optim.lars(0.1, trust_coefficient=0.0), "trust_coefficient: expected .* > 0"),
        (lambda: optim.adafactor(0.1, d=0.0), "d: expected a finite number > 0"),
    ],
)
def test_invalid_values_and_combinations_of_hyperparameters_raise(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


READERS = {
    "adafactor": optim.adafactor(0.1),
    "asgd": optim.asgd(0.1),
    "lamb": optim.lamb(0.1),
    "lars": optim.lars(0.1),
    "lion": optim.lion(0.1),
    "adan with weight_decay": optim.adan(0.1, weight_decay=0.1),
    "amsgrad with weight_decay": optim.amsgrad(0.1, weight_decay=0.1),
    "nadam with weight_decay": optim.nadam(0.1, weight_decay=0.1),
    "radam with weight_decay": optim.radam(0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("name", READERS)
def test_optimizers_that_read_params_raise_without_them(name):
    params = random_tree(0, SHAPES, torch.float32)
    optimizer = READERS[name]
    with pytest.raises(
        ValueError, match=rf"`{name}`: expected the parameters.*update\(grads, state, p"
    ):
        optimizer.update(params, optimizer.init(params))


SGD = optim.sgd(0.1)
OTHERS = [
    (functools.partial(optim.sam, SGD), "rho"),
    (functools.partial(optim.asam, SGD), "rho"),
    (functools.partial(optim.asam, SGD), "eta"),
    (functools.partial(optim.ema, SGD), "decay"),
    (functools.partial(optim.lookahead, SGD), "alpha"),
    (functools.partial(optim.skip_large_updates, SGD), "max_norm"),
    (optim.clip_by_global_norm, "max_norm"),
    (functools.partial(optim.add_noise, key=0), "eta"),
    (functools.partial(optim.add_noise, 0.1, key=0), "gamma"),
    (optim.trace, "decay"),
]
MAKERS: dict[str, list] = {}
for make, argument in [*((functools.partial(build, n), a) for n, a in EVERY), *OTHERS]:
    MAKERS.setdefault(argument, []).append(make)


def accepts(make, argument, value) -> bool:
    try:
        make(**{argument: value})
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("argument", MAKERS)
def test_set_hyperparams_refuses_a_value_only_if_no_optimizer_accepts_it(argument):
    """`set_hyperparams` accepts a value if any optimizer with a number of this name does."""
    start = next(v for v in (0.5, -0.5, 1.5) if accepts(MAKERS[argument][0], argument, v))
    state = optim.with_hyperparams(MAKERS[argument][0], **{argument: start}).init({})
    for value in (-math.inf, -1.0, -1e-9, 0.0, 0.5, 1.0, 1.5, math.inf, math.nan):
        taken = any(accepts(make, argument, value) for make in MAKERS[argument])
        if taken:
            optim.set_hyperparams(state, **{argument: value})
            continue
        with pytest.raises(ValueError, match=rf"{argument}: expected .*{re.escape(repr(value))}"):
            optim.set_hyperparams(state, **{argument: value})


MASKED = [n for n in ALGORITHMS if "mask" in inspect.signature(getattr(optim, n)).parameters]


@pytest.mark.parametrize("name", MASKED)
def test_init_refuses_a_mask_of_another_structure(name):
    params = {"layers": [{"w": torch.ones(2, 2), "b": torch.ones(2)}]}
    optimizer = build(name, weight_decay=0.1, mask={"layers": [{"w": True}]})
    with pytest.raises(ValueError, match=r"at \['layers'\]\[0\]: \['b'\] is missing"):
        optimizer.init(params)


TENSORS = {
    "adadelta": ("rho", "eps"),
    "adafactor": ("beta2_decay", "eps1", "eps2", "d", "weight_decay"),
    "adagrad": ("eps",),
    "adamax": ("b1", "b2", "eps"),
    "adan": ("b1", "b2", "b3", "eps", "eps_root", "weight_decay"),
    "adabelief": ("b1", "b2", "eps", "eps_root"),
    "amsgrad": ("b1", "b2", "eps", "weight_decay"),
    "asgd": ("lambd", "alpha"),
    "lamb": ("b1", "b2", "eps", "weight_decay"),
    "lars": ("momentum", "weight_decay", "trust_coefficient", "eps"),
    "lion": ("b1", "b2", "weight_decay"),
    "nadam": ("b1", "b2", "eps", "momentum_decay", "weight_decay"),
    "radam": ("b1", "b2", "eps", "weight_decay"),
    "rmsprop": ("alpha", "eps", "momentum"),
    "rprop": ("eta_minus", "eta_plus", "min_step_size", "max_step_size"),
    "yogi": ("b1", "b2", "eps"),
}
VALUES = {"beta2_decay": -0.7, "d": 1.5, "eta_plus": 1.3, "max_step_size": 3.0, "b2": 0.95}


@pytest.mark.parametrize("name", TENSORS)
def test_a_vmapped_sweep_over_all_hyperparameters_matches_separate_runs(name):
    """Two vmapped runs match the two runs with Python numbers, within float32 rounding."""
    arguments = ("learning_rate", *TENSORS[name])
    values = [
        torch.tensor([v := VALUES.get(a, 0.3), v * 0.9], dtype=torch.float64) for a in arguments
    ]
    params, *grads = (random_tree(t, SHAPES, torch.float32, 0.5) for t in range(5))

    def run(*hyper):
        optimizer = build(name, **dict(zip(arguments, hyper, strict=True)))
        state, now = optimizer.init(params), params
        for g in grads:
            updates, state = optimizer.update(g, state, now)
            now = optim.apply_updates(now, updates)
        return now

    mapped = torch.vmap(run)(*values)
    for i in range(2):
        alone = run(*(float(v[i]) for v in values))
        for found, expected in zip(tree.leaves(mapped), tree.leaves(alone), strict=True):
            torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_unknown_arguments_raise_with_the_correct_name(name):
    """For torch's names and for misspellings."""
    make = getattr(optim, name)
    with pytest.raises(
        TypeError, match=rf"`{name}` has no argument 'lr'\. Write `learning_rate=`.* takes learning"
    ):
        make(lr=0.1)
    with pytest.raises(TypeError, match=r"Did you mean 'learning_rate'\?"):
        make(learing_rate=0.1)
    with pytest.raises(TypeError, match=r"no argument 'betas'\. Write `b1=` and `b2=`"):
        optim.with_hyperparams(make, learning_rate=0.1, betas=(0.9, 0.999))
    assert pickle.loads(pickle.dumps(make)) is make


@pytest.mark.parametrize(
    ("build", "name", "value"),
    [
        (optim.rprop, "learning_rate", 0.1),
        (optim.schedule_free_sgd, "b1", 0.8),
        (optim.schedule_free_adamw, "b1", 0.8),
        (optim.prodigy, "d0", 1e-2),
        (optim.adagrad, "initial_accumulator_value", 0.1),
        (optim.yogi, "initial_accumulator_value", 0.1),
    ],
)
def test_values_that_init_alone_reads_have_no_effect_when_set_later(build, name, value):
    """`set_hyperparams` lists them; a new state takes them."""
    rate = {} if name == "learning_rate" else {"learning_rate": 0.1}
    start = {"w": torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)}

    def after(made_with, set_to):
        optimizer = optim.with_hyperparams(build, **rate, **{name: made_with})
        params, state = start, optim.set_hyperparams(optimizer.init(start), **{name: set_to})
        for _ in range(3):
            updates, state = optimizer.update(params, state, params)
            params = optim.apply_updates(params, updates)
        return params["w"]

    torch.testing.assert_close(after(value, value / 2), after(value, value), rtol=1e-12, atol=0)
    assert (after(value / 2, value / 2) - after(value, value)).abs().max() > 1e-6
