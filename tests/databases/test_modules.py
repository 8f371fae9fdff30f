"""Every module of torch's own test database, with torch's test inputs.

A bound module gives the module's output, gradients and buffers to the bit; compiled it gives what it
gives in eager mode; under vmap each row what a single call gives. Or it is refused in words of ours. The
suite takes one input of each module, in float32 in training mode and in float64 in eval mode;
`make databases` takes all inputs in both dtypes in both modes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.testing._internal.common_modules import module_db
from torch.utils import _pytree as pytree

import ftrain
from ftrain import random
from ftrain.core import tree
from ftrain.core.errors import TraceError
from tests.databases import beside
from tests.databases.same import (
    WHOLE,
    AsInTraces,
    Outcomes,
    assert_says,
    distance,
    first_difference,
    tensors_of,
    told,
    weighted_sum,
)

#: Dtype and training mode.
FORMS = [(torch.float32, True), (torch.float64, False)]
FORMS += [(torch.float32, False), (torch.float64, True)] if WHOLE else []
KEY = random.key(5)

#: What `compile` refuses, because it cannot be traced, and the words of the message.
UNTRACEABLE = {
    "AdaptiveLogSoftmaxWithLoss": r"sorts the targets into clusters.*log_prob\(x\).gather",
    "BatchNorm1d": "momentum=None reads the number of batches.*momentum=0.1",
    "BatchNorm2d": "momentum=None reads the number of batches.*momentum=0.1",
    "BatchNorm3d": "momentum=None reads the number of batches.*momentum=0.1",
    "CTCLoss": "values of the lengths.*ftrain.value_and_grad alone computes it",
    "GaussianNLLLoss": r"if a variance is negative.*0.5 \* \(var.log\(\)",
    "Transformer": "its mask with those of a causal mask.*is_causal=True",
    "TransformerEncoder": "its mask with those of a causal mask.*is_causal=True",
}
#: What torch itself does not map, of what a module runs, and its words.
UNMAPPED = {
    "AdaptiveLogSoftmaxWithLoss": "an in-place write of values that",
    "BatchNorm1d": "momentum=None cannot be mapped .*momentum=0.1",
    "BatchNorm2d": "momentum=None cannot be mapped .*momentum=0.1",
    "BatchNorm3d": "momentum=None cannot be mapped .*momentum=0.1",
}
#: A vmapped product of matrices sums in another order: the largest distance measured, four times.
MAPPED = {torch.float32: 2e-5, torch.float64: 4e-14}


class Case(NamedTuple):
    """Module with one of torch's test inputs.

    Attributes:
        make: builds the module.
        training: its mode.
        fixed: the leaves of its arguments.
        spec: their structure.
        where: the places of those that require a gradient.
    """

    make: Callable[[], nn.Module]
    training: bool
    fixed: list[Any]
    spec: Any
    where: list[int]

    def inputs(self) -> list[torch.Tensor]:
        return [self.fixed[i].clone() for i in self.where]

    def arguments(self, inputs: list[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        filled = [x.clone() if isinstance(x, torch.Tensor) else x for x in self.fixed]
        for i, tensor in zip(self.where, inputs, strict=True):
            filled[i] = tensor
        args, kwargs = pytree.tree_unflatten(filled, self.spec)
        return args, kwargs


def case_of(info: Any, given: Any, dtype: torch.dtype, training: bool) -> Case:
    args, kwargs = given.constructor_input.args, given.constructor_input.kwargs
    leaves, spec = pytree.tree_flatten((given.forward_input.args, given.forward_input.kwargs))
    where = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.requires_grad]
    fixed = [x.detach() if isinstance(x, torch.Tensor) else x for x in leaves]

    def make() -> nn.Module:
        module: nn.Module = info.module_cls(*args, **kwargs).to(dtype).train(training)
        return module

    return Case(make, training, fixed, spec, where)


class Expected(NamedTuple):
    """Result of the module itself."""

    output: list[torch.Tensor]
    grads: list[torch.Tensor] | None
    tensors: dict[str, torch.Tensor]
    draws: bool


def by_torch(module: nn.Module, case: Case) -> Expected | None:
    """Return output, gradients and state after a call, or `None` if torch refuses the input."""
    generator = torch.get_rng_state()
    inputs = [x.requires_grad_() for x in case.inputs()]
    args, kwargs = case.arguments(inputs)
    try:
        output = module(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return None
    draws = not torch.equal(generator, torch.get_rng_state())
    torch.set_rng_state(generator)
    value = weighted_sum(output)
    by = [*(p for _, p in trainable(module)), *inputs]
    grads = None
    if value.requires_grad:
        found = torch.autograd.grad(value, by, allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for x, g in zip(by, found, strict=True)]
    return Expected([t.detach() for t in tensors_of(output)], grads, state_of(module), draws)


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return sorted((n, p) for n, p in module.named_parameters() if p.requires_grad)


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def assert_same(found: Any, expected: Any) -> None:
    said = first_difference(found, expected)
    assert said is None, said


def outcome_of(name: str, case: Case, dtype: torch.dtype) -> str:
    """Check a case against torch and return a label of its outcome."""
    module = case.make()
    expected = by_torch(copy.deepcopy(module), case)
    if expected is None:
        return "refused by torch"
    generator, before = torch.get_rng_state(), state_of(module)
    flags = [m.training for m in module.modules()]
    attributes = [sorted(vars(m)) for m in module.modules()]
    apply = ftrain.bind(module)
    params, buffers = apply.init(random.key(0))

    def call(x: Any, buffers: Any, key: torch.Tensor) -> Any:
        args, kwargs = case.arguments(x["inputs"])
        output, after = apply(x["params"], buffers, key, *args, training=case.training, **kwargs)
        return weighted_sum(output), (tensors_of(output), after)

    def step(x: Any, buffers: Any, key: torch.Tensor) -> Any:
        if expected.grads is None:
            return *call(x, buffers, key)[1], []
        grads_of = ftrain.value_and_grad(call, has_aux=True)
        (_, (output, after)), grads = grads_of(x, buffers, key)
        return output, after, [*grads["params"].values(), *grads["inputs"]]

    x = {"params": params, "inputs": case.inputs()}
    output, after, grads = eager = step(x, buffers, KEY)
    if expected.draws:
        assert_same(tree.leaves(step(x, buffers, KEY)), tree.leaves(eager))
    else:
        assert_same(output, expected.output)
        assert_same(grads, expected.grads or [])
    assert_same(list(after.values()), [expected.tensors[n] for n in after])
    said = "keyed, equal" if expected.draws else "equal"
    compiled = ftrain.compile(step, backend="eager")
    try:
        found = compiled(x, buffers, KEY)
    except TraceError as error:
        assert_says(
            error, UNTRACEABLE.get(name), "test_modules.py:", "which runs this line of torch:"
        )
        said += " in eager mode, refused by a TraceError compiled"
    else:
        if sums_weights_of_targets(module):
            assert distance(tree.leaves(found), tree.leaves(eager)) <= 4 * torch.finfo(dtype).eps
            with AsInTraces():
                eager = step(x, buffers, KEY)
        assert_same(tree.leaves(found), tree.leaves(eager))
    if params or buffers:
        said += mapped(name, call, x, buffers, dtype)
    assert_same(list(state_of(module).values()), list(before.values()))
    assert flags == [m.training for m in module.modules()]
    assert attributes == [sorted(vars(m)) for m in module.modules()]
    from_factory(case, apply, x, buffers)
    assert torch.equal(generator, torch.get_rng_state())
    return said


def sums_weights_of_targets(module: nn.Module) -> bool:
    """Return True for losses that torch (2.13) computes by another formula in a trace.

    The mean of smoothed losses is divided by the sum of the weights of the targets. Eager mode sums the
    targets that are not ignored, a trace all of them with zeros for the others: as many terms as the
    shape says, so that the same terms are added in another order.
    """
    smoothing, weight = getattr(module, "label_smoothing", 0), getattr(module, "weight", None)
    return bool(smoothing) and weight is not None and module.reduction == "mean"


def mapped(name: str, call: Any, x: Any, buffers: Any, dtype: torch.dtype) -> str:
    """Call the module under vmap with two sets of weights and two keys."""

    def single(params: Any, buffers: Any, key: torch.Tensor) -> Any:
        return call({"params": params, "inputs": x["inputs"]}, buffers, key)[1]

    def two(tensors: Any) -> Any:
        return tree.map(
            lambda t: torch.stack([t, t * 1.25 if t.is_floating_point() else t]), tensors
        )

    arguments = (two(x["params"]), two(buffers), random.split(KEY))
    try:
        rows = torch.vmap(single)(*arguments)
    except RuntimeError as error:
        assert_says(error, UNMAPPED.get(name))
        return ", not mapped"
    for i in range(2):
        alone = single(*tree.map(lambda t: t[i], arguments))  # noqa: B023
        row = tree.map(lambda t: t[i], rows)  # noqa: B023
        assert distance(tree.leaves(row), tree.leaves(alone)) <= MAPPED[dtype]
    return ", and mapped"


def from_factory(case: Case, apply: Any, x: Any, buffers: Any) -> None:
    """Check that a factory of the module gives equal values for equal keys and the same outputs."""
    built = ftrain.bind(case.make)
    start = built.init(random.key(1))
    assert_same(tree.leaves(built.init(random.key(1))), tree.leaves(start))
    assert tree.paths(start) == tree.paths((x["params"], buffers))
    args, kwargs = case.arguments(x["inputs"])
    outputs = [
        each(x["params"], buffers, KEY, *args, training=case.training, **kwargs)
        for each in (built, apply)
    ]
    assert_same(*(tensors_of(output) for output in outputs))


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    yield from told(request, "modules")


MODULES = [info for info in module_db if not info.is_lazy]
LAZY_REMEDY = "is lazy: .* Run one batch through the model"
LAZY = [info for info in module_db if info.is_lazy]


def name_of(info: Any) -> str:
    return str(info.name)


@pytest.mark.parametrize(
    ("dtype", "training"), FORMS, ids=[f"{d}-{'train' if t else 'eval'}" for d, t in FORMS]
)
@pytest.mark.parametrize("info", MODULES, ids=name_of)
def test_bound_module_in_torchs_module_test_database_equals_the_module(
    info: Any, dtype: torch.dtype, training: bool, outcomes: Outcomes
) -> None:
    given = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=training
    )
    for each in given if WHOLE else given[:1]:
        if each.forward_input is None:
            continue
        case = case_of(info, each, dtype, training)
        outcomes[outcome_of(info.module_cls.__name__, case, dtype)] += 1


@pytest.mark.parametrize(
    ("dtype", "training"), FORMS, ids=[f"{d}-{'train' if t else 'eval'}" for d, t in FORMS]
)
@pytest.mark.parametrize("name", beside.ALL)
def test_bound_module_missing_from_torchs_module_test_database_equals_the_module(
    name: str, dtype: torch.dtype, training: bool, outcomes: Outcomes
) -> None:
    make, args = beside.ALL[name]

    def made() -> nn.Module:
        return make().to(dtype).train(training)

    fixed = [x.to(dtype) if x.is_floating_point() else x for x in args]
    where = [i for i, x in enumerate(fixed) if x.is_floating_point()]
    spec = pytree.tree_structure((args, {}))
    said = outcome_of(name, Case(made, training, fixed, spec, where), dtype)
    assert ("keyed" in said) == (name in beside.POOLING or (training and name in beside.DRAWING))
    outcomes[said] += 1


def test_every_torch_module_class_has_a_test_case() -> None:
    classes = {
        name
        for name, each in vars(nn).items()
        if isinstance(each, type) and issubclass(each, nn.Module)
    }
    known = {info.module_cls.__name__ for info in module_db} | {*beside.ALL, *beside.LAZY}
    assert classes - known == beside.NONE


@pytest.mark.parametrize("name", beside.LAZY)
def test_bind_refuses_lazy_modules_missing_from_torchs_module_test_database(name: str) -> None:
    make: Any = beside.LAZY[name]
    for model in (make, make()):
        with pytest.raises(ValueError, match=LAZY_REMEDY):
            ftrain.bind(model)


@pytest.mark.parametrize("info", LAZY, ids=name_of)
def test_bind_refuses_lazy_modules_in_torchs_module_test_database(
    info: Any, outcomes: Outcomes
) -> None:
    given = info.module_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=True, training=True
    )
    for each in given:
        case = case_of(info, each, torch.float32, True)
        for model in (case.make, case.make()):
            with pytest.raises(ValueError, match=LAZY_REMEDY):
                ftrain.bind(model)
        outcomes["lazy: refused"] += 1
