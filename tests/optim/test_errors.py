"""Test errors of optimizers: each names the mistake, where it is, and the remedy."""

from __future__ import annotations

import contextlib
import functools
import math
import re

import pytest
import torch

from ftrain import optim
from ftrain.core import tree
from tests.optim.cases import CASES, OPTIMIZERS, handed_in

W, B = torch.ones(2, 2), torch.ones(2)
PARAMS = {"layers": [{"w": W, "b": B}]}


@pytest.mark.parametrize("value", [-1e-3, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (optim.sgd, "learning_rate"),
        (optim.adam, "learning_rate"),
        (optim.adamw, "learning_rate"),
        (optim.scale_by_learning_rate, "learning_rate"),
        (optim.constant, "value"),
        (optim.add_decayed_weights, "weight_decay"),
        (optim.clip_by_global_norm, "max_norm"),
        (lambda v: optim.adam(0.1, eps=v), "eps"),
        (lambda v: optim.adam(0.1, b1=v), "b1"),
        (lambda v: optim.adam(0.1, b2=v), "b2"),
        (lambda v: optim.scale_by_adam(b2=v), "b2"),
        (lambda v: optim.adamw(0.1, weight_decay=v), "weight_decay"),
        (lambda v: optim.sgd(0.1, v), "momentum"),
        (lambda v: optim.sgd(0.1, 0.9, dampening=v), "dampening"),
        (lambda v: optim.sgd(0.1, weight_decay=v), "weight_decay"),
        (optim.trace, "decay"),
        (lambda v: optim.linear_warmup(v, 10), "peak"),
        (lambda v: optim.linear_warmup(1.0, 10, start=v), "start"),
        (lambda v: optim.cosine(1.0, 10, end=v), "end"),
        (lambda v: optim.warmup_cosine(v, 1, 10), "peak"),
        (lambda v: optim.warmup_cosine(1.0, 1, 10, end=v), "end"),
    ],
)
def test_optimizer_argument_out_of_range_raises_with_its_name_and_value(build, name, value):
    with pytest.raises(ValueError, match=rf"{name}: expected .*{re.escape(repr(value))}"):
        build(value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optim.adam(0.1, b1=1.0), r"b1: expected a number in \[0, 1\), got 1.0"),
        (lambda: optim.trace(1.0), r"decay: expected a number in \[0, 1\)"),
        (lambda: optim.scale(math.nan), "factor: expected a finite number"),
        (lambda: optim.sgd(0.1, nesterov=True), "nesterov=True: expected momentum > 0"),
        (lambda: optim.sgd(0.1, 0.9, nesterov=True, dampening=0.1), "and dampening 0, got"),
        (lambda: optim.sgd(0.1, dampening=0.1), "momentum: expected a number > 0 with dampening"),
        (lambda: optim.sgd(0.1, 0.9, dampening=1.5), r"dampening: expected a number in \[0, 1\]"),
        (lambda: optim.cosine(0.1, 0), "steps: expected an integer of at least 1"),
        (
            lambda: optim.warmup_cosine(0.1, -1, 10),
            "warmup_steps: expected an integer of at least 0",
        ),
        (lambda: optim.warmup_cosine(0.1, 10, 10), r"total_steps counts the warmup too: 10"),
    ],
)
def test_invalid_argument_values_raise_value_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optim.adam("1e-3"), "learning_rate: expected a number, got str '1e-3'"),
        (lambda: optim.adam(None), "learning_rate: expected a number, got NoneType"),
        (lambda: optim.sgd(torch.ones(3)), r"learning_rate: expected .* got shape \(3,\)"),
        (lambda: optim.sgd(torch.tensor(1)), ": expected a number .* dtype torch.int64"),
        (lambda: optim.cosine(0.1, 10.5), r"steps: expected an integer, got 10.5"),
        (lambda: optim.chain([optim.sgd(0.1)]), "as link 0, got a list"),
        (lambda: optim.chain(optim.sgd), "as link 0, got a function"),
        (
            lambda: optim.chain(
                optim.GradientTransformation(lambda p: (), lambda grads, state, params: grads)
            ),
            r"`update` of link 0 to accept `\*\*extra`",
        ),
    ],
)
def test_arguments_of_a_wrong_type_raise_type_error(build, message):
    with pytest.raises(TypeError, match=message):
        build()


stateful = pytest.mark.parametrize("name", CASES)


@stateful
def test_init_refuses_integer_parameters_with_their_path(name):
    params = {"layers": [{"w": W, "table": torch.zeros(3, dtype=torch.int64)}]}
    with pytest.raises(
        TypeError,
        match=r"parameter at \['layers'\]\[0\]\['table'\] is of dtype torch.int64.*buffers",
    ):
        CASES[name].build(0.1).init(params)


@pytest.mark.parametrize(
    ("leaf", "what"), [(1.0, "a float, not a tensor"), (W.to_sparse(), "layout torch.sparse_coo")]
)
def test_init_refuses_leaves_that_are_not_dense_tensors(leaf, what):
    with pytest.raises(TypeError, match=rf"parameter at \['w'\] is .*{what}"):
        optim.adamw(0.1).init({"w": leaf})


@stateful
@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ({"layers": [{"w": W}]}, ValueError, r"at \['layers'\]\[0\]: \['b'\] is missing"),
        ({"layers": [{"w": W, "b": None}]}, ValueError, r"at \['layers'\]\[0\]\['b'\]"),
        (
            {"layers": [{"w": W, "b": torch.ones(3)}]},
            ValueError,
            r"\['layers'\]\[0\]\['b'\]: shape \(3,\), but .* has \(2,\)",
        ),
        (
            {"layers": [{"w": W, "b": torch.ones(())}]},
            ValueError,
            r"\['layers'\]\[0\]\['b'\]: shape \(\), but .*not broadcast",
        ),
        (
            {"layers": [{"w": W, "b": B.double()}]},
            TypeError,
            r"\['layers'\]\[0\]\['b'\]: dtype torch.float64, but .* torch.float32",
        ),
        (
            {"layers": [{"w": W, "b": B.bfloat16()}]},
            TypeError,
            r"\['layers'\]\[0\]\['b'\]: dtype torch.bfloat16, but",
        ),
        ({"layers": [{"w": W, "b": 1.0}]}, TypeError, "a float"),
        (
            {"layers": [{"w": W.to_sparse(), "b": B}]},
            TypeError,
            r"\['w'\].*layout torch.sparse_coo",
        ),
    ],
)
def test_update_refuses_gradients_that_do_not_match_the_parameters(name, grads, error, message):
    optimizer = CASES[name].build(0.1)
    state = optimizer.init(PARAMS)
    with pytest.raises(error, match=message):
        optimizer.update(grads, state, PARAMS, **handed_in(PARAMS))


READS_NO_PARAMETERS = (
    "sgd", "momentum", "momentum from parts", "adam", "nadam", "adamax", "amsgrad", "adagrad",
    "adadelta", "rmsprop", "rmsprop, centered", "adan", "yogi", "adabelief", "rprop",
)  # fmt: skip


@stateful
def test_update_without_params_raises_if_the_optimizer_reads_params(name):
    optimizer, extra = CASES[name].build(0.1), handed_in(PARAMS)
    state = optimizer.init(PARAMS)
    grads = tree.map(lambda p: 2 * p, PARAMS)
    expected = optimizer.update(grads, state, PARAMS, **extra)
    refused = contextlib.nullcontext()
    if name not in READS_NO_PARAMETERS:
        refused = pytest.raises(
            ValueError, match=r"expected the parameters, got None. Call `update\(gr"
        )
    with refused:
        assert tree.digest(optimizer.update(grads, state, **extra)) == tree.digest(expected)


@pytest.mark.parametrize("name", ["momentum", "adam", "momentum from parts"])
def test_update_refuses_gradients_that_do_not_match_the_state(name):
    """Without parameters, the gradients are compared with the moments in the state."""
    optimizer = OPTIMIZERS[name](0.1)
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=r"`grads` at .*\['b'\]: shape \(3,\), but `state"):
        optimizer.update({"layers": [{"w": W, "b": torch.ones(3)}]}, state)
    with pytest.raises(ValueError, match=r"\['b'\] is missing"):
        optimizer.update({"layers": [{"w": W}]}, state)


def test_apply_updates_refuses_updates_unlike_the_parameters_in_structure_shape_or_dtype():
    with pytest.raises(
        ValueError, match=r"`updates` at \['w'\]: expected shape .*, as in `params`, got \(2,\)"
    ):
        optim.apply_updates({"w": W}, {"w": B})
    with pytest.raises(
        TypeError, match=r"`updates` at the root: expected a floating-point tensor, got torch.int64"
    ):
        optim.apply_updates(B, B.long())


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (optim.adamw(0.1), "adamw"),
        (optim.add_decayed_weights(0.1), "add_decayed_weights"),
        (optim.sgd(0.1, weight_decay=0.1), "sgd with weight_decay"),
        (optim.chain(optim.identity(), optim.adamw(0.1)), "adamw"),
    ],
)
def test_update_without_params_raises_where_weight_decay_reads_them(optimizer, name):
    with pytest.raises(
        ValueError, match=rf"`{name}`: expected the parameters.*update\(grads, state, p"
    ):
        optimizer.update(PARAMS, optimizer.init(PARAMS))


def test_update_without_params_equals_update_with_unused_params():
    for optimizer in (optim.adam(0.1), optim.sgd(0.1, 0.9), optim.clip_by_global_norm(1.0)):
        state = optimizer.init(PARAMS)
        assert tree.digest(optimizer.update(PARAMS, state)) == tree.digest(
            optimizer.update(PARAMS, state, PARAMS)
        )


@pytest.mark.parametrize(
    "build",
    [
        lambda mask: optim.adamw(0.1, mask=mask),
        lambda mask: optim.sgd(0.1, weight_decay=0.1, mask=mask),
        lambda mask: optim.add_decayed_weights(0.1, mask=mask),
    ],
)
def test_weight_decay_masks_that_do_not_match_the_parameters_are_refused(build):
    good = {"layers": [{"w": True, "b": False}]}
    build(good).init(PARAMS)
    build(lambda params: good).init(PARAMS)
    with pytest.raises(ValueError, match=r"at \['layers'\]\[0\]: \['b'\] is missing.*matrices"):
        build({"layers": [{"w": True}]}).init(PARAMS)
    with pytest.raises(ValueError, match=r"at the root: expected a dict.*leaf \(bool\)"):
        build(lambda params: True).init(PARAMS)
    with pytest.raises(
        TypeError, match=r"mask at \['layers'\]\[0\]\['b'\]: expected True or False, got int 0"
    ):
        build({"layers": [{"w": True, "b": 0}]}).init(PARAMS)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "soap", "schedule_free_adamw"])
def test_weight_decay_with_mask_none_decays_every_parameter(name):
    build = functools.partial(getattr(optim, name), 0.1, weight_decay=0.1)
    updates = [
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
        for optimizer in (build(mask=None), build(mask=optim.everything))
    ]
    assert tree.digest(updates[0]) == tree.digest(updates[1])


def test_chain_refuses_the_state_of_another_optimizer():
    chain = optim.chain(optim.identity(), optim.sgd(0.1))
    with pytest.raises(ValueError, match=r"a tuple of the 2 states .* got a SGDState of 3"):
        chain.update(PARAMS, optim.sgd(0.1).init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (
            lambda count: torch.ones(2),
            ValueError,
            r"expected a function that returns a 0-d tensor, got shape \(2,\)",
        ),
        (lambda count: "fast", TypeError, "got one that returns str 'fast'"),
    ],
)
def test_schedules_that_do_not_return_a_number_are_refused(schedule, error, message):
    with pytest.raises(error, match=message):
        optim.sgd(schedule).init(PARAMS)


def foreign(name: str) -> object:
    """Return the state of another optimizer."""
    other = "adam" if name != "adam" else "sgd"
    return OPTIMIZERS[other](0.1).init(PARAMS)


ONES_OWN_STATE = [
    n
    for n, build in OPTIMIZERS.items()
    if hasattr(build(0.1).init(PARAMS), "_fields") and n != "adamw"
]


@pytest.mark.parametrize("name", ONES_OWN_STATE)
def test_update_refuses_the_state_of_another_optimizer(name):
    optimizer = OPTIMIZERS[name](0.1)
    kind = type(optimizer.init(PARAMS)).__name__
    with pytest.raises(TypeError, match=rf"expected its own {kind}, got an? (Adam|SGD)State"):
        optimizer.update(PARAMS, foreign(name), PARAMS)


HYPER = optim.with_hyperparams
OTHER_OPTIONS = [
    (optim.sgd(0.1, 0.9), optim.sgd(0.1), "`state.momentum` is empty"),
    (
        optim.sgd(0.1),
        optim.sgd(0.1, 0.9),
        "got one with a `momentum`, which these options do not use",
    ),
    (optim.rmsprop(0.1, centered=True), optim.rmsprop(0.1), "`state.mu` is empty"),
    (optim.rmsprop(0.1), optim.rmsprop(0.1, centered=True), "got one with a `mu`"),
    (optim.rmsprop(0.1, momentum=0.5), optim.rmsprop(0.1), "`state.momentum` is empty"),
    (optim.schedule_free_sgd(), optim.schedule_free_adamw(), "got one with a `nu`"),
    (optim.schedule_free_adamw(), optim.schedule_free_sgd(), "`state.nu` is empty"),
    (optim.soap(), optim.soap(max_precondition_dim=1), "0 bases instead of 2"),
    (optim.soap(max_precondition_dim=1), optim.soap(), "2 bases instead of 0"),
    (
        optim.lbfgs(memory_size=3, line_search_fn=None),
        optim.lbfgs(memory_size=5, line_search_fn=None),
        "5 pairs instead of 3",
    ),
    (
        HYPER(optim.adamw, learning_rate=0.1, weight_decay=0.1),
        HYPER(optim.adamw, learning_rate=0.1),
        "got one with learning_rate instead of learning_rate, weight_decay",
    ),
    (
        HYPER(optim.adamw, learning_rate=0.1),
        HYPER(optim.adamw, learning_rate=0.1, weight_decay=0.1),
        "got one with learning_rate, weight_decay instead of learning_rate",
    ),
    (
        optim.from_torch(torch.optim.Adam),
        optim.from_torch(torch.optim.SGD, lr=0.1),
        "['b'], got nothing",
    ),
    (
        optim.chain(optim.identity(), optim.identity(), optim.sgd(0.1)),
        optim.sgd(0.1),
        "a tuple of the 3 states of the links of the chain, got a SGDState of 3",
    ),
]


@pytest.mark.parametrize(("optimizer", "other", "message"), OTHER_OPTIONS)
def test_update_refuses_a_state_made_with_other_options(optimizer, other, message):
    """The error names the difference even if class and number of entries are the same."""
    _, state = other.update(PARAMS, other.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.update(PARAMS, state, PARAMS)


def test_update_refuses_the_pair_that_it_returned_as_optimizer_state():
    optimizer = optim.adamw(0.1)
    pair = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    with pytest.raises(
        TypeError, match=r"`adamw`: .* a tuple: .* `updates, state = optimizer.update"
    ):
        optimizer.update(PARAMS, pair, PARAMS)


@pytest.mark.parametrize(
    "link",
    [
        optim.trace(0.9), optim.scale_by_adam(), optim.scale_by_rms(), optim.scale_by_lion(),
        optim.scale_by_lbfgs(), optim.scale_by_learning_rate(0.1), optim.add_noise(0.1, key=0),
        optim.scale_by_schedule(optim.constant(1.0)), optim.zero_nans(), optim.reduce_on_plateau(),
        optim.skip_nonfinite(optim.sgd(0.1)), optim.skip_large_updates(optim.sgd(0.1), 1.0),
        optim.lookahead(optim.sgd(0.1)), optim.ema(optim.sgd(0.1)), optim.swa(optim.sgd(0.1), 1),
        optim.multi_steps(optim.sgd(0.1), 2), optim.sophia(0.1), optim.lbfgs(),
        optim.with_hyperparams(optim.sgd, learning_rate=0.1),
        optim.from_torch(torch.optim.SGD, lr=0.1),
    ],
)  # fmt: skip
def test_update_of_each_transformation_named_scale_by_refuses_the_state_of_adam(link):
    with pytest.raises(TypeError, match=r"expected its own \w+State, got an AdamState"):
        link.update(PARAMS, optim.adam(0.1).init(PARAMS), PARAMS)
