"""Test `from_torch`: a torch.optim class as a pure optimizer that takes torch's own steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import optim
from ftrain.core import tree
from tests.optim.cases import SHAPES, random_tree, spec, ulps

CLASSES = {
    "SGD": (torch.optim.SGD, {"lr": 0.1}),
    "SGD momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "SGD nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "Adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "Adam amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "AdamW": (torch.optim.AdamW, {"betas": (0.5, 0.9)}),
    "NAdam": (torch.optim.NAdam, {}),
    "RAdam": (torch.optim.RAdam, {}),
    "Adamax": (torch.optim.Adamax, {}),
    "Adagrad": (torch.optim.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    "Adadelta": (torch.optim.Adadelta, {}),
    "RMSprop": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    "Rprop": (torch.optim.Rprop, {"lr": 0.1}),
    "ASGD": (torch.optim.ASGD, {}),
    "Adafactor": (torch.optim.Adafactor, {}),
    "Muon": (torch.optim.Muon, {}),
}
ASKS_FOR_NUMBERS = ("Adafactor",)  # torch's own takes `.item()` of a norm
#: Compiled, torch takes another formula for these (`capturable`), and NAdam and ASGD keep coefficients
#: in float32.
ANOTHER_FORMULA = ("Adam", "Adam amsgrad", "AdamW", "NAdam", "RAdam", "Adamax", "ASGD")
every_class = pytest.mark.parametrize("name", CLASSES)


def shapes_of(name):
    if name == "Muon":  # for matrices
        return [(4, 3), (5, 5)]
    # Adafactor of torch divides by the number of elements.
    return [shape for shape in SHAPES if shape != (0,) or name != "Adafactor"]


@every_class
@given(st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=3)
def test_from_torch_steps_match_the_torch_optimizer(name, seed, dtype):
    """Within 1 ulp of the sum, the rounding of `p + (p_new - p)`; the state bit for bit."""
    make, options = CLASSES[name]
    optimizer = optim.from_torch(make, **options)
    params = random_tree(seed, shapes_of(name), dtype, 1.0)
    state, layout = optimizer.init(params), spec(optimizer.init(params))
    theirs = {key: torch.nn.Parameter(p.clone()) for key, p in params.items()}
    foreach = {} if name == "Muon" else {"foreach": False}
    reference = make(theirs.values(), **options, **foreach)
    for step in range(5):
        grads = random_tree(seed + step + 1, shapes_of(name), dtype)
        for key, q in theirs.items():
            q.data.copy_(params[key])
            q.grad = grads[key].clone()
        reference.step()
        before = tree.digest((grads, state, params))
        updates, new_state = optimizer.update(grads, state, params)
        assert tree.digest((grads, state, params)) == before
        state = new_state
        assert spec(state) == layout
        new = optim.apply_updates(params, updates)
        for key, q in theirs.items():
            assert ulps(new[key], q.detach(), params[key], updates[key]) <= 1, (step, key)
            for entry, expected in reference.state[q].items():
                if expected is not None:
                    assert tree.digest(state.entries[entry][key]) == tree.digest(expected), entry
        params = new


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ASKS_FOR_NUMBERS])
def test_compiled_from_torch_update_matches_the_eager_one(name):
    """Within 4 ulp of the larger of parameter and step, where torch takes another formula."""
    make, options = CLASSES[name]
    options = {**options, "lr": optim.linear_warmup(0.1, 3, start=0.01)}
    if name == "Rprop":  # whose step sizes begin at a number
        options["lr"] = 0.1
    optimizer = optim.from_torch(make, **options)
    update = ftrain.compile(optimizer.update, backend="eager")
    params = random_tree(0, shapes_of(name), torch.float32, 1.0)
    state = optimizer.init(params)
    for step in range(4):
        grads = random_tree(step + 1, shapes_of(name), torch.float32)
        found, found_state = update(grads, state, params)
        expected, state = optimizer.update(grads, state, params)
        assert spec(found_state) == spec(state)
        for key, wanted in expected.items():
            # ASGD keeps its step size in float32, rounded here and there.
            assert ulps(found[key], wanted, params[key]) <= (64 if name == "ASGD" else 4)
        params = optim.apply_updates(params, expected)
    assert update.n_compiles == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "name", [name for name in CLASSES if name not in (*ASKS_FOR_NUMBERS, *ANOTHER_FORMULA)]
)
def test_compiled_from_torch_runs_have_the_bits_of_eager_ones(name, dtype):
    """For vectors longer than a register, for 0-d parameters, and with a scheduled learning rate."""
    make, options = CLASSES[name]
    options = {"lr": optim.linear_warmup(0.1, 3, start=0.01), **options}
    if name == "Rprop":  # whose step sizes begin at a number
        options["lr"] = 0.1
    optimizer = optim.from_torch(make, **options)
    update = ftrain.compile(optimizer.update, backend="eager")
    shapes = [(37, 29)] if name == "Muon" else [(37, 29), (3,), ()]
    params = random_tree(0, shapes, dtype, 1.0)
    state = optimizer.init(params)
    found, found_state = params, state
    for step in range(6):
        grads = random_tree(step + 1, shapes, dtype)
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        updates, found_state = update(grads, found_state, found)
        found = optim.apply_updates(found, updates)
        assert tree.digest((found, found_state)) == tree.digest((params, state)), step


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"centered": True}, {"maximize": True}])
def test_compiled_from_torch_rmsprop_has_the_bits_of_the_eager_one(options):
    """A traced step scales by the rate as a tensor, in the order of torch's kernels."""
    optimizer = optim.from_torch(torch.optim.RMSprop, weight_decay=0.1, **options)
    update = ftrain.compile(optimizer.update, backend="eager")
    params = random_tree(0, [(37, 29), ()], torch.float32, 1.0)
    state = optimizer.init(params)
    for step in range(3):
        grads = random_tree(step + 1, [(37, 29), ()], torch.float32)
        found = update(grads, state, params)
        updates, state = optimizer.update(grads, state, params)
        assert tree.digest(found) == tree.digest((updates, state)), step
        params = optim.apply_updates(params, updates)


def test_compiling_a_torch_step_that_reads_tensor_values_raises_with_a_remedy():
    optimizer = optim.from_torch(torch.optim.Adafactor)
    params = {"w": torch.ones(3, 2)}
    update = ftrain.compile(optimizer.update, backend="eager")
    said = "its step asks for the value of a tensor.*Write `optim.adafactor`, the same algorithm"
    with pytest.raises(ftrain.errors.TraceError, match=said):
        update(params, optimizer.init(params), params)
    with pytest.raises(ftrain.errors.TraceError, match=said):
        ftrain.compile(optimizer.init, backend="eager")(params)
    rows = {"w": torch.ones(2, 3, 2)}
    with pytest.raises(ftrain.errors.TraceError, match=said):
        torch.vmap(optimizer.init)(rows)
    assert optimizer.update(params, optimizer.init(params), params)[1].count == 1


# Those whose in-place operators torch can map (`maximum(out=)` of Adamax it cannot), more or less fast.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["SGD momentum", "AdamW", "Adagrad", "RMSprop", "RAdam"])
def test_each_row_of_a_vmapped_from_torch_update_matches_a_single_run(name):
    make, options = CLASSES[name]
    optimizer = optim.from_torch(make, **options)
    rows = [random_tree(seed, SHAPES, torch.float32, 1.0) for seed in range(3)]
    params = tree.map(lambda *xs: torch.stack(xs), *rows)
    state = torch.vmap(optimizer.init)(params)
    singles = [(row, optimizer.init(row)) for row in rows]
    for _ in range(3):
        updates, state = torch.vmap(optimizer.update)(params, state, params)
        new = torch.vmap(optim.apply_updates)(params, updates)
        for i, (p, s) in enumerate(singles):
            u, s = optimizer.update(p, s, p)  # noqa: PLW2901
            singles[i] = (optim.apply_updates(p, u), s)
        params = new
    for i, (expected, _) in enumerate(singles):
        for key, wanted in expected.items():
            torch.testing.assert_close(params[key][i], wanted, rtol=1e-5, atol=1e-6)


def test_from_torch_state_of_bfloat16_parameters_is_float32():
    params = {"w": torch.ones(3, 2, dtype=torch.bfloat16)}
    optimizer = optim.from_torch(torch.optim.Adam)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert updates["w"].dtype is torch.float32
    assert state.entries["exp_avg"]["w"].dtype is torch.float32


def test_from_torch_accepts_a_schedule_and_reports_its_rate():
    schedule = optim.linear_warmup(1.0, 4, start=0.25)
    optimizer = optim.from_torch(torch.optim.SGD, lr=schedule)
    params = {"w": torch.ones(2)}
    state = optimizer.init(params)
    for count in range(4):
        updates, state = optimizer.update({"w": torch.ones(2)}, state, params)
        assert optim.get(state, "learning_rate") == schedule(torch.tensor(count)).float()
        torch.testing.assert_close(
            updates["w"], -torch.full((2,), schedule(torch.tensor(count)).float())
        )


class Odd(torch.optim.Optimizer):
    """A user's optimizer: Python numbers as state, late entries, and no `_init_group`."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                entry = self.state[p]
                if not entry:
                    entry.update(step=0, anchor=p.clone(), size=1.0)
                entry["step"] += 1
                entry["size"] *= 0.5
                p.add_(p.grad, alpha=-group["lr"] * entry["size"] / entry["step"])
                p.lerp_(entry["anchor"], 0.1)


class Asks(Odd):
    """A user's optimizer that reads tensor values and has no counterpart in ftrain."""

    def step(self, closure=None):
        (p,) = self.param_groups[0]["params"]
        self.state[p]["norm"] = p.norm().item()


def test_compile_error_names_the_user_optimizer_class_that_reads_tensor_values():
    optimizer = optim.from_torch(Asks)
    with pytest.raises(ftrain.errors.TraceError, match=r"from_torch\(Asks\)` cannot be") as error:
        ftrain.compile(optimizer.init, backend="eager")({"w": torch.ones(3, 2)})
    assert "the same algorithm" not in str(error.value)
    assert "Outside of ftrain.compile and torch.vmap the update works" in str(error.value)


class Hoarder(Odd):
    def step(self, closure=None):
        self.param_groups[0]["k"] = self.param_groups[0].get("k", 0) + 1
        self.param_groups[0]["lr"] = self.param_groups[0]["lr"] * 0.5


def test_from_torch_matches_a_user_defined_optimizer_class():
    optimizer = optim.from_torch(Odd, lr=0.5)
    params = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)}
    theirs = [torch.nn.Parameter(p.clone()) for p in params.values()]
    reference, state = Odd(theirs, lr=0.5), optimizer.init(params)
    assert {k: v["b"].item() for k, v in state.entries.items()} == {
        "step": 0, "anchor": 3.0, "size": 1.0,
    }  # fmt: skip
    for step in range(4):
        for q in theirs:
            q.grad = q.detach() + step
        reference.step()
        grads = tree.map(lambda p: p + step, params)  # noqa: B023
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        for found, expected in zip(params.values(), theirs, strict=True):
            torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=0)
    assert state.entries["step"]["w"] == 4


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: optim.from_torch(torch.optim.LBFGS),
            TypeError,
            "got LBFGS, whose step needs a closure",
        ),
        (lambda: optim.from_torch(torch.nn.Linear), TypeError, "expected a class such as"),
        (
            lambda: optim.from_torch(torch.optim.SGD([torch.ones(1)])),
            TypeError,
            r"from_torch\(torch.optim.Adagrad, lr=0.1\)",
        ),
        (
            lambda: optim.from_torch(torch.optim.Adam, lr=-1.0),
            ValueError,
            "learning_rate: expected",
        ),
        (lambda: optim.from_torch(torch.optim.Adam, betas=(2, 0)), ValueError, "Invalid beta"),
        (lambda: optim.from_torch(torch.optim.Adam, rho=1), TypeError, "unexpected keyword"),
        (
            lambda: optim.from_torch(torch.optim.SGD, momentum=0.9, dampening=0.5),
            ValueError,
            "dampening: expected 0",
        ),
        (lambda: optim.from_torch(Hoarder), ValueError, "changes its parameter groups .lr"),
        (
            lambda: optim.from_torch(torch.optim.SparseAdam),
            TypeError,
            "works with dense gradients .* Write `optim.adam`, which does",
        ),
        (
            lambda: optim.from_torch(torch.optim.Adam, capturable=True),
            ValueError,
            "capturable: expected False, got True",
        ),
    ],
)
def test_from_torch_refuses_arguments_it_cannot_convert(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_from_torch_update_without_params_raises():
    optimizer = optim.from_torch(torch.optim.Adam)
    params = {"w": torch.ones(2)}
    with pytest.raises(ValueError, match=r"`from_torch\(Adam\)`: expected the parameters"):
        optimizer.update(params, optimizer.init(params))


def test_from_torch_accepts_an_empty_parameter_tree():
    optimizer = optim.from_torch(torch.optim.Adam)
    updates, state = optimizer.update({}, optimizer.init({}), {})
    assert updates == {}
    assert state.count == 1


@every_class
def test_from_torch_refuses_the_state_of_another_class(name):
    """Unless the two states have the same names and shapes, as those of Adam and AdamW."""
    make, options = CLASSES[name]
    optimizer, params = optim.from_torch(make, **options), {"w": torch.ones(3, 2)}
    own = spec(optimizer.init(params).entries)
    for other, its in CLASSES.values():
        state = optim.from_torch(other, **its).init(params)
        if spec(state.entries) == own:
            optimizer.update(params, state, params)
            continue
        with pytest.raises(ValueError, match=rf"`from_torch\({make.__name__}\)`: .* at \['w'\]"):
            optimizer.update(params, state, params)


def test_from_torch_refuses_the_state_of_other_parameters():
    optimizer, params = optim.from_torch(torch.optim.Adam), {"w": torch.ones(3), "b": torch.ones(2)}
    for other, message in [
        ({"w": torch.ones(3)}, r"`state.entries\['step'\]` and `params` differ .* \['b'\] is missing"),
        ({"w": torch.ones(2), "b": torch.ones(2)}, r"at \['w'\], got exp_avg \(2,\)"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            optimizer.update(params, optimizer.init(other), params)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.AdamW])
def test_from_torch_takes_the_steps_of_torchs_fused_kernels(make):
    optimizer = optim.from_torch(make, lr=0.1, fused=True)
    params = {"w": torch.tensor([1.0, -2.0, 3.0])}
    theirs = torch.nn.Parameter(params["w"].clone())
    reference, state = make([theirs], lr=0.1, fused=True), optimizer.init(params)
    for step in range(3):
        theirs.grad = torch.tensor([0.5, step - 1.0, -2.0])
        reference.step()
        updates, state = optimizer.update({"w": theirs.grad}, state, params)
        params = optim.apply_updates(params, updates)
        assert ulps(params["w"], theirs.detach()) <= 1
