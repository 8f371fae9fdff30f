"""Every optimizer of torch's own test database, with all of torch's test inputs.

Through `from_torch`, eager and compiled, and as ftrain's algorithm of the same name: equal to
`torch.optim` (foreach=False), or refused in words of ours. `make databases` takes all inputs in two
dtypes; the suite two inputs of each optimizer in float32.
"""

from __future__ import annotations

import inspect
import os
import warnings
from typing import Any, NamedTuple

import pytest
import torch
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import ftrain
from ftrain import optim
from ftrain.core import tree
from ftrain.optim._torch_step import own_algorithm
from tests.databases import CHANGED
from tests.optim.cases import random_tree, spec, ulps

WHOLE = bool(os.environ.get("FTRAIN_CAMPAIGN"))
STEPS = 5
EVERY = optim.everything


class Input(NamedTuple):
    """Optimizer class with its arguments.

    Attributes:
        make: the class.
        options: of the database.
        form: of torch's implementations of it: "", "foreach", "fused", "differentiable".
    """

    make: type[torch.optim.Optimizer]
    options: dict[str, Any]
    form: str = ""

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def arguments(self) -> dict[str, Any]:
        return {**self.options, **({self.form: True} if self.form else {})}


def inputs(form: bool = True, sample: tuple[int, ...] = (0, -1)) -> list[Any]:
    """Return all inputs in a campaign, else those of each optimizer at the positions in `sample`."""
    found = []
    for info in optim_db:
        drawn = info.optim_inputs_func(device="cpu")
        taken = drawn if WHOLE else [drawn[i] for i in sample]
        forms = [""]
        if form and WHOLE:
            forms += [
                each for each in ("foreach", "differentiable") if each in info.supported_impls
            ]
            forms += ["fused"] if "cpu" in info.supports_fused_on else []
        for each in taken:
            for how in forms:
                what = Input(info.optim_cls, dict(each.kwargs), how)
                found.append(pytest.param(what, id=f"{what.name}-{each.desc}-{how}".rstrip("-")))
    return found


DTYPES = [torch.float32, torch.float64] if WHOLE else [torch.float32]

#: What `from_torch` refuses, and the words of the message.
REFUSED = {
    "LBFGS": (TypeError, "needs a closure .* `optim.lbfgs`"),
    "SparseAdam": (TypeError, "works with dense gradients .* Write `optim.adam`, which does"),
    "SGD with dampening": (ValueError, r"Write `optim.sgd\(rate, momentum, dampening=...\)`"),
}


def refused(what: Input) -> tuple[type[Exception], str] | None:
    dampened = " with dampening" if what.options.get("dampening") else ""
    return REFUSED.get(f"{what.name}{dampened}")


def shapes_of(what: Input) -> list[tuple[int, ...]]:
    return [(4, 3), (5, 5)] if what.name == "Muon" else [(4, 3), (3,), (), (2, 3, 2)]


def against_torch(what: Input, update: Any, state: Any, dtype: torch.dtype) -> float:
    """Return the largest difference of a step, in ulps of the largest number in its sum.

    Before each step torch is given our parameters, so that what is measured is the step; its memory is
    its own throughout.
    """
    params = random_tree(0, shapes_of(what), dtype, 0.5)
    theirs = {name: p.clone() for name, p in params.items()}
    foreach = "foreach" in inspect.signature(what.make).parameters and not what.form
    options = {**what.arguments, **({"foreach": False} if foreach else {})}
    reference = what.make(list(theirs.values()), **options)
    layout, worst = spec(state), 0.0
    for step in range(STEPS):
        grads = random_tree(step + 1, shapes_of(what), dtype, 0.5)
        for name, q in theirs.items():
            q.copy_(params[name])
            q.grad = grads[name].clone()
        with torch.no_grad():
            reference.step()
        updates, state = update(grads, state, params)
        assert spec(state) == layout
        new = optim.apply_updates(params, updates)
        for name, q in theirs.items():
            worst = max(worst, ulps(new[name], q, params[name], updates[name]))
            assert worst == worst, (step, name)
        params = new
    return worst


def of_float32(ulps: float, dtype: torch.dtype) -> float:
    """Convert ulps of float32 to ulps of another dtype.

    A 0-d tensor of torch's memory is float32 whatever the parameters are, and torch computes with it so
    where it does not take it as a Python number; a traced update computes with it in float64.
    """
    return ulps * torch.finfo(torch.float32).eps / torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("what", inputs())
def test_from_torch_update_matches_torch_or_is_refused(what: Input, dtype: torch.dtype) -> None:
    """Match within 1 ulp, the rounding of `p + (p_new - p)`, or raise with a remedy."""
    no = refused(what)
    if no is not None:
        with pytest.raises(no[0], match=no[1]):
            optim.from_torch(what.make, **what.arguments)
        return
    optimizer = optim.from_torch(what.make, **what.arguments)
    params = random_tree(0, shapes_of(what), dtype, 0.5)
    bound = 1.0
    if what.name == "Muon" and isinstance(what.options.get("lr"), torch.Tensor):
        bound = of_float32(4, dtype)  # torch multiplies that tensor by a ratio in float32
    assert against_torch(what, optimizer.update, optimizer.init(params), dtype) <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("what", inputs(sample=(-1,)))
def test_compiled_from_torch_update_matches_torch_or_is_refused(
    what: Input, dtype: torch.dtype
) -> None:
    """Match within 8 ulp, since torch divides in another order, or raise naming ftrain's optimizer.

    Where torch is `differentiable` it takes `1 - b2 ** step` in float32, off by 6e-5 of itself at first,
    which is half of that of a step: 11 ulp of a float32 were measured.
    """
    if refused(what) is not None:
        return
    optimizer = optim.from_torch(what.make, **what.arguments)
    params = random_tree(0, shapes_of(what), dtype, 0.5)
    update = ftrain.compile(optimizer.update, backend="eager")
    if what.name == "Adafactor":
        with pytest.raises(
            ftrain.errors.TraceError, match="its step asks for .* `optim.adafactor`"
        ):
            update(params, optimizer.init(params), params)
        return
    bound = 8.0
    if what.form == "differentiable":
        bound = of_float32(64, dtype)
    elif what.form == "foreach" or what.name in ("NAdam", "Muon"):
        bound = of_float32(8, dtype)
    assert against_torch(what, update, optimizer.init(params), dtype) <= bound
    assert update.n_compiles == 1


@pytest.mark.parametrize("what", inputs(form=False, sample=(0,)))
def test_vmapped_from_torch_matches_single_updates_or_raises_and_proposes_an_ftrain_optimizer(
    what: Input,
) -> None:
    if refused(what) is not None:
        return
    optimizer = optim.from_torch(what.make, **what.arguments)
    rows = [random_tree(seed, shapes_of(what), torch.float32, 0.5) for seed in range(2)]
    params = tree.map(lambda *xs: torch.stack(xs), *rows)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # batching rules that are missing, and so are slow
            state = torch.vmap(optimizer.init)(params)
            updates, _ = torch.vmap(optimizer.update)(params, state, params)
    except ftrain.errors.TraceError as error:
        assert f"Write `optim.{own_algorithm(what.name)}`, the same algorithm" in str(error)  # noqa: PT017
        return
    # Muon's products are in bfloat16: 15 of them, each to 2^-9 of the largest entry. Measured: 0.02.
    bound = 0.06 if what.name == "Muon" else 1e-5
    for i, row in enumerate(rows):
        alone, _ = optimizer.update(row, optimizer.init(row), row)
        for name, expected in alone.items():
            rounding = torch.finfo(torch.float32).eps * row[name].norm()  # of `p_new - p`
            assert (updates[name][i] - expected).norm() <= bound * expected.norm() + rounding, name


def l2(decay: float, optimizer: Any) -> Any:
    return optim.chain(optim.add_decayed_weights(decay, mask=EVERY), optimizer)


def native(what: Input) -> Any:
    """Return ftrain's optimizer with the same arguments, or `None` if it is compared elsewhere."""
    signature = inspect.signature(what.make).parameters
    defaults = {name: p.default for name, p in signature.items() if name != "params"}
    of = {**defaults, **what.options}
    rate, decay, eps = of["lr"], of.get("weight_decay", 0.0), of.get("eps")
    b = of.get("betas", ())
    plain = {
        "Adadelta": lambda: optim.adadelta(rate, of["rho"], eps),
        "Adagrad": lambda: optim.adagrad(
            (lambda count: rate / (1 + count.double() * of["lr_decay"]))
            if of["lr_decay"]
            else rate,
            eps,
            initial_accumulator_value=of["initial_accumulator_value"],
        ),
        "Adam": lambda: (optim.amsgrad if of["amsgrad"] else optim.adam)(rate, *b, eps),
        "Adamax": lambda: optim.adamax(rate, *b, eps),
        "ASGD": lambda: optim.asgd(rate, of["lambd"], of["alpha"], t0=of["t0"]),
        "NAdam": lambda: optim.nadam(rate, *b, eps, momentum_decay=of["momentum_decay"]),
        "RAdam": lambda: optim.radam(rate, *b, eps),
        "RMSprop": lambda: optim.rmsprop(
            rate, of["alpha"], eps, momentum=of["momentum"], centered=of["centered"]
        ),
        "Rprop": lambda: optim.rprop(
            rate,
            *of["etas"],
            min_step_size=of["step_sizes"][0],
            max_step_size=of["step_sizes"][1],
        ),
    }
    decoupled = {
        "AdamW": lambda: (optim.amsgrad if of["amsgrad"] else optim.adamw)(
            rate, *b, eps, weight_decay=decay, mask=EVERY
        ),
        "Adafactor": lambda: optim.adafactor(
            rate,
            of["beta2_decay"],
            eps1=eps[0],
            eps2=eps[1],
            d=of["d"],
            weight_decay=decay,
            mask=EVERY,
        ),
        "Muon": lambda: optim.muon(
            rate,
            of["momentum"],
            nesterov=of["nesterov"],
            weight_decay=decay,
            ns_steps=of["ns_steps"],
            ns_coefficients=of["ns_coefficients"],
            eps=eps,
            adjust_lr_fn=of["adjust_lr_fn"] or "original",
        ),
        "NAdam": lambda: optim.nadam(
            rate, *b, eps, momentum_decay=of["momentum_decay"], weight_decay=decay, mask=EVERY
        ),
        "RAdam": lambda: optim.radam(rate, *b, eps, weight_decay=decay, mask=EVERY),
        "SGD": lambda: optim.sgd(
            rate,
            of["momentum"],
            nesterov=of["nesterov"],
            dampening=of["dampening"],
            weight_decay=decay,
            mask=EVERY,
        ),
    }
    if what.name in plain and not of.get("decoupled_weight_decay"):
        made = plain[what.name]()
        return l2(decay, made) if decay else made
    return decoupled[what.name]() if what.name in decoupled else None


#: Of torch's classes, those that ftrain's algorithm is compared with elsewhere.
ELSEWHERE = {
    "LBFGS": "tests/optim/test_lbfgs.py: an algorithm of the loss, not of gradients",
    "SparseAdam": "updates the rows of a sparse gradient only; ftrain has no sparse gradients",
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("what", inputs(form=False))
def test_ftrain_optimizer_of_the_same_name_matches_torch(what: Input, dtype: torch.dtype) -> None:
    """Match within 1 ulp of the largest term of a step; `maximize` is tested by negated gradients."""
    optimizer = native(what)
    if optimizer is None:
        assert what.name in ELSEWHERE
        return
    sign = -1 if what.options.get("maximize") else 1

    def update(grads: Any, state: Any, params: Any) -> Any:
        return optimizer.update(tree.map(lambda g: sign * g, grads), state, params)

    params = random_tree(0, shapes_of(what), dtype, 0.5)
    kept = what.name in ("ASGD", "Muon", "NAdam")  # coefficients that torch keeps in float32
    worst = against_torch(what, update, optimizer.init(params), dtype)
    assert worst <= (of_float32(1, dtype) if kept else 1)


def errors() -> list[Any]:
    found = []
    for info in optim_db:
        for each in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
            of = each.optimizer_error_input
            built = each.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
            if of.kwargs and built and each.error_type is not UserWarning:
                what = Input(info.optim_cls, dict(of.kwargs))
                found.append(pytest.param(what, id=f"{what.name}-{of.desc}"))
    return found


@pytest.mark.parametrize("what", errors())
def test_invalid_optimizer_options_in_torchs_optimizer_test_database_raise(what: Input) -> None:
    params = random_tree(0, shapes_of(what), torch.float32, 0.5)
    lr, betas = what.options.get("lr"), what.options.get("betas", ())
    if isinstance(lr, torch.Tensor) and what.options.get("foreach"):
        # Refused by torch alone: `from_torch` hands the rate over as a number.
        assert optim.from_torch(what.make, **what.options).init(params).count == 0
        return
    with pytest.raises((ValueError, TypeError)) as error:
        optim.from_torch(what.make, **what.options).init(params)
    assert str(error.value)
    of_tensors = any(isinstance(b, torch.Tensor) for b in betas)  # as ftrain's numbers may be
    if of_tensors or "lr_decay" in what.options or what.name in ELSEWHERE:
        return
    with pytest.raises((ValueError, TypeError), match=r"must be|takes|got"):
        native(what).init(params)


@pytest.mark.parametrize("make", [info.optim_cls for info in optim_db], ids=lambda c: c.__name__)
def test_optimizers_refuse_complex_parameters_with_an_error_of_ftrain(make: Any) -> None:
    if make.__name__ in ("LBFGS", "SparseAdam"):
        return
    params = {"w": torch.ones(3, 2, dtype=torch.complex64)}
    for optimizer in (optim.from_torch(make), native(Input(make, {}))):
        with pytest.raises(TypeError, match=r"parameter at \['w'\] is of dtype torch.complex64"):
            optimizer.init(params)


def test_from_torch_refuses_capturable_with_the_reason() -> None:
    for info in optim_db:
        if info.has_capturable_arg and info.optim_cls.__name__ != "LBFGS":
            with pytest.raises(ValueError, match="capturable: expected False, got True"):
                optim.from_torch(info.optim_cls, capturable=True)


def test_importing_torchs_test_databases_keeps_global_settings_and_generators() -> None:
    assert CHANGED == {}
    assert not torch.backends.flags_frozen()


def test_torchs_optimizer_test_database_and_ftrain_have_every_torch_optimizer() -> None:
    classes = {
        name
        for name, each in vars(torch.optim).items()
        if isinstance(each, type) and issubclass(each, torch.optim.Optimizer)
    } - {"Optimizer"}
    assert classes == {info.optim_cls.__name__ for info in optim_db}
    assert all(own_algorithm(name) in optim.__all__ for name in classes)
