"""Test importing and exporting torch.optim state dicts in the middle of a run."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import optim
from ftrain.core import tree
from ftrain.testing import assert_close_norm
from tests.optim.cases import random_tree

RATE = 0.01
ALL = optim.everything

# ftrain's optimizer, its twin with the same hyper-parameters.
TWINS = {
    "sgd": (lambda: optim.sgd(RATE, 0.9), lambda ps: torch.optim.SGD(ps, RATE, 0.9)),
    "sgd dampened": (
        lambda: optim.sgd(RATE, 0.9, dampening=0.5),
        lambda ps: torch.optim.SGD(ps, RATE, 0.9, dampening=0.5),
    ),
    "sgd plain": (lambda: optim.sgd(RATE), lambda ps: torch.optim.SGD(ps, RATE)),
    "adam": (lambda: optim.adam(RATE, 0.8, 0.9), lambda ps: torch.optim.Adam(ps, RATE, (0.8, 0.9))),
    "adamw": (
        lambda: optim.adamw(RATE, weight_decay=0.1, mask=ALL),
        lambda ps: torch.optim.AdamW(ps, RATE, weight_decay=0.1),
    ),
    "amsgrad": (lambda: optim.amsgrad(RATE), lambda ps: torch.optim.Adam(ps, RATE, amsgrad=True)),
    "nadam": (lambda: optim.nadam(RATE), lambda ps: torch.optim.NAdam(ps, RATE)),
    "radam": (lambda: optim.radam(RATE), lambda ps: torch.optim.RAdam(ps, RATE)),
    "adamax": (lambda: optim.adamax(RATE), lambda ps: torch.optim.Adamax(ps, RATE)),
    "adagrad": (
        lambda: optim.adagrad(RATE, eps=1e-10), lambda ps: torch.optim.Adagrad(ps, RATE, eps=1e-10)
    ),
    "adadelta": (lambda: optim.adadelta(1.0), lambda ps: torch.optim.Adadelta(ps, 1.0)),
    "rmsprop": (
        lambda: optim.rmsprop(RATE, 0.9, momentum=0.5, centered=True),
        lambda ps: torch.optim.RMSprop(ps, RATE, 0.9, momentum=0.5, centered=True),
    ),
    "rmsprop plain": (lambda: optim.rmsprop(RATE), lambda ps: torch.optim.RMSprop(ps, RATE)),
    "asgd": (lambda: optim.asgd(RATE, t0=3), lambda ps: torch.optim.ASGD(ps, RATE, t0=3)),
    "rprop": (lambda: optim.rprop(RATE), lambda ps: torch.optim.Rprop(ps, RATE)),
    "adafactor": (lambda: optim.adafactor(RATE), lambda ps: torch.optim.Adafactor(ps, RATE)),
    "from_torch": (
        lambda: optim.from_torch(torch.optim.AdamW, lr=RATE), lambda ps: torch.optim.AdamW(ps, RATE)
    ),
    "from_torch sgd": (
        lambda: optim.from_torch(torch.optim.SGD, lr=RATE, momentum=0.9),
        lambda ps: torch.optim.SGD(ps, RATE, 0.9),
    ),
}  # fmt: skip
NO_STEP = ("sgd", "sgd dampened", "sgd plain", "from_torch sgd")
SHAPES = [(), (7,), (5, 3), (4, 3, 2)]
# The orders differ: model.parameters() has its own, ftrain's trees sort their keys.
ORDER = ["p3", "p1", "p0", "p2"]


def torch_steps(reference, theirs, seeds):
    for seed in seeds:
        grads = random_tree(seed, SHAPES, next(iter(theirs.values())).dtype, 1.0)
        for name, p in theirs.items():
            p.grad = grads[name].clone()
        reference.step()


def our_steps(optimizer, state, params, seeds):
    for seed in seeds:
        grads = random_tree(seed, SHAPES, params["p0"].dtype, 1.0)
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, updates)
    return params, state


def start(name, dtype, seed):
    build, make = TWINS[name]
    params = random_tree(seed, SHAPES, dtype, 1.0)
    theirs = {key: torch.nn.Parameter(params[key].clone()) for key in ORDER}
    return build(), params, make(theirs.values()), theirs


def tolerance(name, dtype):
    """That of parity; NAdam and ASGD of torch keep a float32 in float64 runs."""
    if dtype is torch.float32:
        return 4e-6
    return 1e-6 if name in ("nadam", "asgd") else 1e-12


every_twin = pytest.mark.parametrize("name", TWINS)


@every_twin
@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=3)
def test_an_imported_torch_state_dict_continues_the_run(name, seed, dtype):
    optimizer, params, reference, theirs = start(name, dtype, seed)
    torch_steps(reference, theirs, range(seed, seed + 6))
    count = 6 if name in NO_STEP else None
    state = optim.import_state_dict(
        reference.state_dict(), optimizer.init(params), ORDER, count=count
    )
    assert optim.get(state, "count") == 6
    halfway = {key: p.detach().clone() for key, p in theirs.items()}
    torch_steps(reference, theirs, range(seed + 6, seed + 12))
    found, _ = our_steps(optimizer, state, halfway, range(seed + 6, seed + 12))
    expected = {key: p.detach() for key, p in theirs.items()}
    assert_close_norm(found, expected, tolerance(name, dtype))


@every_twin
@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=3)
def test_an_exported_state_dict_continues_the_run_in_torch(name, seed, dtype):
    """The file is written by `torch.save`; the reference is the run that stays in ftrain."""
    optimizer, params, reference, theirs = start(name, dtype, seed)
    halfway, state = our_steps(optimizer, optimizer.init(params), params, range(seed, seed + 6))
    file = io.BytesIO()
    torch.save(optim.export_state_dict(state, reference, ORDER), file)
    file.seek(0)
    for key, p in theirs.items():
        p.data.copy_(halfway[key])
    reference.load_state_dict(torch.load(file))
    torch_steps(reference, theirs, range(seed + 6, seed + 12))
    expected, _ = our_steps(optimizer, state, halfway, range(seed + 6, seed + 12))
    found = {key: p.detach() for key, p in theirs.items()}
    assert_close_norm(found, expected, tolerance(name, dtype))


@every_twin
def test_exporting_and_importing_a_state_dict_returns_the_same_state(name):
    """Bit for bit, except for NAdam's product, which torch stores in float32."""
    optimizer, params, reference, _ = start(name, torch.float32, 0)
    _, state = our_steps(optimizer, optimizer.init(params), params, range(3))
    there = optim.export_state_dict(state, reference, ORDER)
    count = 3 if name in NO_STEP else None
    back = optim.import_state_dict(there, optimizer.init(params), ORDER, count=count)
    for path, a, b in zip(tree.paths(state), tree.leaves(back), tree.leaves(state), strict=True):
        if "mu_product" in path:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=0)
        else:
            assert tree.digest(a) == tree.digest(b), path


def test_exported_state_dict_before_the_first_step_is_empty_and_can_be_imported():
    optimizer, params, reference, _ = start("adamw", torch.float32, 0)
    state = optimizer.init(params)
    assert optim.export_state_dict(state, reference, ORDER)["state"] == {}
    back = optim.import_state_dict(reference.state_dict(), state, ORDER)
    assert tree.digest(back) == tree.digest(state)


# --- modules, groups, nesting ---


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.second = torch.nn.Linear(3, 2)
        self.first = torch.nn.Linear(2, 3)
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.tied = self.second.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


def trained(make):
    torch.manual_seed(0)
    model = Model()
    reference = make(model)
    for _ in range(3):
        reference.zero_grad()
        model(torch.ones(4, 2)).square().sum().backward()
        reference.step()
    params = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    return model, reference, params


def test_import_state_dict_reads_parameter_names_from_the_module():
    """In the order of `model.parameters()`, with frozen ones included and tied ones once."""
    model, reference, params = trained(lambda m: torch.optim.Adam(m.parameters(), 0.1))
    state = optim.import_state_dict(reference.state_dict(), optim.adam(0.1).init(params), model)
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert torch.equal(state.mu[name], reference.state[p]["exp_avg"])


@pytest.mark.parametrize("named", [True, False])
def test_import_state_dict_maps_torch_groups_to_a_partition(named):
    """Two torch groups with different rates inside a weight average; names come from the dict."""

    def make(m):
        pairs = list(m.named_parameters())
        first = [(n, p) for n, p in pairs if n.startswith("first")]
        rest = [(n, p) for n, p in pairs if not n.startswith("first")]
        groups = [{"params": rest}, {"params": first, "lr": 0.5}]
        if not named:
            groups = [{**g, "params": [p for _, p in g["params"]]} for g in groups]
        return torch.optim.AdamW(groups, 0.1)

    model, reference, params = trained(make)
    optimizer = optim.ema(
        optim.partition({"first": ("^first", optim.adamw(0.5)), "rest": (ALL, optim.adamw(0.1))})
    )
    order = [n for n, _ in model.named_parameters() if not n.startswith("first")]
    order += [n for n, _ in model.named_parameters() if n.startswith("first")]
    names = model if named else order
    state = optim.import_state_dict(reference.state_dict(), optimizer.init(params), names)
    assert optim.get(state, "first", "learning_rate") == 0.5
    assert optim.get(state, "rest", "count") == 3
    weight = model.first.weight
    assert torch.equal(
        optim.get(state, "first", "mu")["first.weight"], reference.state[weight]["exp_avg"]
    )
    back = optim.export_state_dict(state, reference, model)
    before = reference.state_dict()["state"]
    assert back["state"].keys() == before.keys()
    for index, entry in before.items():
        assert tree.digest(back["state"][index]) == tree.digest(entry)


# --- what does not fit ---


def test_import_state_dict_refuses_several_groups_without_names():
    """Otherwise two layers of one shape would swap their moments."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    groups = [{"params": list(layer.parameters())} for layer in reversed(model)]
    reference = torch.optim.Adam(groups, 0.1)
    for layer, size in zip(model, (1.0, 7.0), strict=True):
        for p in layer.parameters():
            p.grad = torch.full_like(p, size)
    reference.step()
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = optim.adam(0.1).init(params)
    with pytest.raises(ValueError, match="a list of names for 2 parameter groups without names"):
        optim.import_state_dict(reference.state_dict(), state, model)
    names = ["1.weight", "1.bias", "0.weight", "0.bias"]
    found = optim.import_state_dict(reference.state_dict(), state, names)
    torch.testing.assert_close(found.mu["1.weight"], torch.full((3, 3), 0.7))


def adam_dict(**changes):
    _, _, reference, theirs = start("adam", torch.float32, 0)
    torch_steps(reference, theirs, range(2))
    return {**reference.state_dict(), **changes}


def template(name="adam"):
    optimizer, params, _, _ = start(name, torch.float32, 0)
    return optimizer.init(params)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: optim.import_state_dict({"model": 1}, template(), ORDER),
            "state_dict: expected 'state' and 'param_groups', got model",
        ),
        (
            lambda: optim.import_state_dict(adam_dict(), template(), ORDER[:3]),
            "names: expected 4, .* got 3",
        ),
        (
            lambda: optim.import_state_dict(adam_dict(), template(), ["a", "b", "c", "d"]),
            "parameters that this optimizer updates, got a, b, c, d",
        ),
        (
            lambda: optim.import_state_dict(adam_dict(), template(), ["p0", "p1", "p2", "p3"]),
            "Give the names in the order",
        ),
        (
            lambda: optim.import_state_dict(adam_dict(), template("adagrad"), ORDER),
            "expected 'sum' .* which AdagradState needs, got step, exp_avg",
        ),
        (
            lambda: optim.import_state_dict(adam_dict(), template("amsgrad"), ORDER),
            "expected 'max_exp_avg_sq'",
        ),
        (
            lambda: optim.import_state_dict(
                amsgrad_dict(), template("adam"), ORDER
            ),
            "only entries of AdamState, got max_exp_avg_sq",
        ),
        (
            lambda: optim.import_state_dict(sgd_dict(), template("sgd"), ORDER),
            r"count: expected the number of updates so far.*count=1000",
        ),
        (
            lambda: optim.import_state_dict(
                torch.optim.SGD([torch.ones(2)], 0.1).state_dict(), template(), ["p0"]
            ),
            "expected torch.optim.Adam or AdamW for AdamState, got torch.optim.SGD",
        ),
        (
            lambda: optim.import_state_dict(unequal(), template(), ORDER),
            "expected the same `step` for all parameters, got 2 for p. and 1 for p.",
        ),
        (
            lambda: optim.import_state_dict(adam_dict(), optim.identity().init({}), ORDER),
            "algorithm that torch.optim has as well, got a state",
        ),
        (
            lambda: optim.export_state_dict(
                template(), torch.optim.SGD([torch.ones(1)] * 1), ["p0"]
            ),
            "AdamState: expected torch.optim.Adam or AdamW, got SGD",
        ),
        (
            lambda: optim.export_state_dict(
                template("amsgrad"), torch.optim.Adam([torch.ones(1)]), ["p0"]
            ),
            "Adam or AdamW with amsgrad=True, got Adam",
        ),
    ],
)  # fmt: skip
def test_state_dicts_that_do_not_match_are_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def amsgrad_dict():
    _, _, reference, theirs = start("amsgrad", torch.float32, 0)
    torch_steps(reference, theirs, range(2))
    return reference.state_dict()


def sgd_dict():
    _, _, reference, theirs = start("sgd", torch.float32, 0)
    torch_steps(reference, theirs, range(2))
    return reference.state_dict()


def unequal():
    found = adam_dict()
    found["state"][3]["step"] -= 1
    return found
