"""Test errors of optimizer wrappers: each names the mistake, where it is, and the remedy."""

from __future__ import annotations

import re

import pytest
import torch

from ftrain import optim

PARAMS = {"layers": [{"w": torch.ones(2, 2), "b": torch.ones(2)}]}
SGD = optim.sgd(0.1)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: optim.multi_steps(SGD, 0),
            ValueError,
            "k: expected an integer of at least 1, got 0",
        ),
        (lambda: optim.multi_steps(SGD, 2.0), TypeError, "k: expected an integer"),
        (lambda: optim.lookahead(SGD, 0), ValueError, "k: expected an integer of at least 1"),
        (
            lambda: optim.lookahead(SGD, 5, 1.5),
            ValueError,
            r"alpha: expected a number in \[0, 1\], got 1.5",
        ),
        (lambda: optim.ema(SGD, 1.0), ValueError, r"decay: expected a number in \[0, 1\), got 1.0"),
        (lambda: optim.ema(SGD, float("nan")), ValueError, "decay: expected a number"),
        (lambda: optim.swa(SGD, 0), ValueError, "start: expected an integer of at least 1"),
        (lambda: optim.swa(SGD, 1, 0), ValueError, "every: expected an integer of at least 1"),
        (lambda: optim.sam(SGD, -0.1), ValueError, "rho: expected a finite number >= 0, got -0.1"),
        (lambda: optim.asam(SGD, eta=-1.0), ValueError, "eta: expected a finite number >= 0"),
        (
            lambda: optim.skip_large_updates(SGD, -1.0),
            ValueError,
            "max_norm: expected a number >= 0",
        ),
        (
            lambda: optim.skip_large_updates(SGD, float("nan")),
            ValueError,
            "max_norm: expected a number >= 0, got nan",
        ),
        (lambda: optim.partition({}), ValueError, "groups: expected at least one group"),
        (
            lambda: optim.partition({"all": SGD}),
            TypeError,
            r"'all'.*expected a pair .* got Gradient",
        ),
        (
            lambda: optim.partition({"all": (SGD, "w")}),
            TypeError,
            "expected a pair of a mask and an",
        ),
        (lambda: optim.partition([("w", SGD)]), TypeError, "groups: expected a dict .* got a list"),
        (lambda: optim.ema(optim.sgd), TypeError, "`ema`: expected an optimizer .* a function"),
        (lambda: optim.freeze("w", SGD), TypeError, "`freeze`: expected an optimizer .* a str"),
        (
            lambda: optim.masked([SGD], "w"),
            TypeError,
            "`masked`: expected an optimizer .* got a list",
        ),
        (lambda: optim.sam(0.1), TypeError, "`sam`: expected an optimizer .* got a float"),
        (lambda: optim.multi_steps(4, SGD), TypeError, "`multi_steps`: expected an optimizer"),
        (lambda: optim.matching("w")(PARAMS), TypeError, "predicate: expected a function"),
    ],
)
def test_wrappers_refuse_invalid_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_freeze_refuses_mask_none():
    with pytest.raises(ValueError, match="freeze: expected a mask .* got None"):
        optim.freeze(SGD, None)


def test_wrappers_refuse_masks_that_do_not_match_the_parameters():
    for wrap in (optim.masked, optim.freeze, lambda o, m: optim.partition({"g": (m, o)})):
        with pytest.raises(ValueError, match=r"at \['layers'\]\[0\]: \['b'\] is missing"):
            wrap(SGD, {"layers": [{"w": True}]}).init(PARAMS)
        with pytest.raises(
            ValueError,
            match=r"occurs in a parameter's name, got 'wieght'. The 2 names are: layers.0.b, layers.0.w",
        ):
            wrap(SGD, "wieght").init(PARAMS)
        with pytest.raises(
            TypeError, match=r"mask at \['layers'\]\[0\]\['b'\]: expected True or False, got int 1"
        ):
            wrap(SGD, {"layers": [{"w": True, "b": 1}]}).init(PARAMS)
    with pytest.raises(ValueError, match=r"expected a regular expression, got '\[': unterminated"):
        optim.masked(SGD, "[").init(PARAMS)


def test_partition_refuses_a_parameter_without_a_group():
    with pytest.raises(ValueError, match=r"got layers.0.b in none of weights.*everything"):
        optim.partition({"weights": ("w$", SGD)}).init(PARAMS)


def test_partition_refuses_a_group_whose_parameters_all_belong_to_earlier_groups():
    """Only a group of everything that remains may be empty."""
    for mask in ("b$", re.compile("b$"), {"layers": [{"w": False, "b": True}]}):
        with pytest.raises(
            ValueError, match=r"groups\['b'\]: expected at least one parameter.*narrower"
        ):
            optim.partition({"all": (optim.everything, SGD), "b": (mask, SGD)}).init(PARAMS)
        optim.partition(
            {"b": (mask, SGD), "w": ("w|b", SGD), "rest": (optim.everything, SGD)}
        ).init(PARAMS)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda o: optim.masked(o, "w"),
        lambda o: optim.freeze(o, "w"),
        lambda o: optim.partition({"all": (optim.everything, o)}),
        lambda o: optim.multi_steps(o, 2),
        lambda o: optim.lookahead(o, 2),
        optim.ema,
        optim.sam,
        optim.skip_nonfinite,
    ],
)
@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ({"layers": [{"w": torch.ones(2, 2)}]}, ValueError, r"\['b'\] is missing"),
        (
            {"layers": [{"w": torch.ones(2, 2), "b": torch.ones(3)}]},
            ValueError,
            r"\['b'\]: shape \(3,\), but",
        ),
        (
            {"layers": [{"w": torch.ones(2, 2), "b": torch.ones(2).double()}]},
            TypeError,
            r"\['b'\]: dtype torch.float64",
        ),
    ],
)
def test_wrappers_refuse_gradients_that_do_not_match_the_parameters(wrap, grads, error, message):
    optimizer = wrap(optim.adamw(0.1))
    state = optimizer.init(PARAMS)
    with pytest.raises(error, match=message):
        optimizer.update(grads, state, PARAMS, grad_fn=lambda p: grads)


@pytest.mark.parametrize("name", ["ema", "swa", "lookahead", "sam", "asam"])
def test_wrappers_that_read_params_raise_without_them(name):
    wrap = getattr(optim, name)
    optimizer = wrap(SGD, 1) if name == "swa" else wrap(SGD)
    with pytest.raises(ValueError, match=rf"`{name}`: expected the parameters, got None"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), grad_fn=lambda p: p)


def test_sam_without_grad_fn_raises():
    with pytest.raises(ValueError, match=r"`sam`: expected `grad_fn`, .* got None"):
        optim.sam(SGD).update(PARAMS, SGD.init(PARAMS), PARAMS)
    inside = optim.multi_steps(optim.asam(SGD), 1)
    with pytest.raises(
        ValueError, match=r"does not call `grad_fn`, which evaluates only the last batch"
    ):
        inside.update(PARAMS, inside.init(PARAMS), PARAMS, grad_fn=lambda p: p)


def test_partition_refuses_the_state_of_another_optimizer():
    optimizer = optim.partition({"all": (optim.everything, SGD)})
    with pytest.raises(ValueError, match="expected a dict of the states of all, got"):
        optimizer.update(PARAMS, SGD.init(PARAMS), PARAMS)


def test_multi_steps_refuses_a_weight_that_is_not_a_scalar():
    optimizer = optim.multi_steps(SGD, 2)
    with pytest.raises(
        ValueError, match=r"weight: expected a number or a 0-d tensor, .* got shape \(2,\)"
    ):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, weight=torch.ones(2))
