"""Every operator of torch's own test database, with torch's test inputs.

`value_and_grad` equals torch.autograd to the bit, and compiled it equals itself; or it is refused in
words of ours that name a remedy. The suite takes every fourth operator with its first two inputs in
float64, `make databases` all of both in float64 and float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch.testing._internal import common_methods_invocations as methods
from torch.utils import _pytree as pytree

import ftrain
from ftrain import random
from ftrain.core.errors import ImpureFunctionError, TraceError
from tests.databases.same import (
    WHOLE,
    AsInTraces,
    Outcomes,
    assert_says,
    difference,
    first_difference,
    told,
    weighted_sum,
)

DTYPES = [torch.float64, torch.float32] if WHOLE else [torch.float64]
KEY = random.key(3)

#: What `compile` refuses, because it cannot be traced, and the words of the message.
UNTRACEABLE = {
    "__getitem__": r"the shape of .* x\[mask\] depends on values.*torch.where\(mask, x, fill\)",
    "combinations": "combinations depends on the values of a mask.* take x.i. inside",
    "corrcoef": "sums of weights.*centered @ centered.mT",
    "cov": "sums of weights.*centered @ centered.mT",
    "index_fill": r"the gradient of index_fill by the value.*torch.where\(mask, value, x\)",
    "index_put": r"the gradient of x\[mask\] = values.*torch.where\(mask, values, x\)",
    # Torch checks that windows of frames cover every sample.
    "istft": r"torch.functional.istft depends on the values of tensors.*outside of the compiled",
    "linalg.lstsq": r"depends on the rank.*torch.linalg.pinv\(a\) @ b",
    "masked_select": r"the shape of masked_select\(\) depends on values.*torch.where\(mask, x, fill\)",
    "nn.functional.ctc_loss": "values of the lengths.*ftrain.value_and_grad alone computes it",
    "repeat_interleave": r"depends on the numbers of repeats.*\(repeats, output_size=n\)",
    "nn.functional.gaussian_nll_loss": r"if a variance is negative.*0.5 \* \(var.log\(\)",
    **dict.fromkeys(
        ("svd", "svd_lowrank", "linalg.svd", "pca_lowrank"),
        "of a complex matrix compares values.*ftrain.value_and_grad alone computes it",
    ),
}
#: What `compile` refuses, because it writes into a tensor that the function captures.
WRITING = dict.fromkeys(
    (
        "_batch_norm_with_update",
        "_native_batch_norm_legit",
        "native_batch_norm",
        "nn.functional.batch_norm",
        "nn.functional.instance_norm",
    ),
    "writes into a tensor that it captures.*return its new value as an output",
)
#: Draw for some inputs only: below 0, or where there is an element.
DRAWING_AT_TIMES = ("nn.functional.rrelu", "bernoulli", "nn.functional.fractional_max_pool3d")
#: Without a derivative: torch's is undefined for all inputs, of an order of 0, of an empty product, or
#: of numbers that a key draws.
UNDEFINED = dict.fromkeys(
    (
        "bernoulli",
        "linalg.householder_product",
        "linalg.norm",
        "linalg.vector_norm",
        "masked.norm",
        "norm",
    ),
    "does not depend on its parameters.*Look for",
)
#: Torch takes another formula in a trace, see `AsInTraces`: relative distance of the norms, measured.
ANOTHER_FORMULA = {
    "masked_fill": 1e-15,  # sums the gradient of the value over all elements, zeros included
    # Products of all others (up to 25, with one rounding each), where eager mode divides if no input is
    # zero.
    **dict.fromkeys(("prod", "masked.prod"), 5e-15),
}


class Case(NamedTuple):
    """Operator with one of torch's inputs, as a function of the tensors that require a gradient."""

    value: Callable[[list[torch.Tensor]], torch.Tensor]
    start: list[torch.Tensor]

    def fresh(self) -> list[torch.Tensor]:
        return [t.clone() for t in self.start]


def case_of(op: Any, sample: Any) -> Case | None:
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    where = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.requires_grad]
    if not where:
        return None
    fixed = [x.detach() if isinstance(x, torch.Tensor) else x for x in leaves]

    def value(x: list[torch.Tensor]) -> torch.Tensor:
        filled = list(fixed)
        for i, tensor in zip(where, x, strict=True):
            filled[i] = tensor
        input, args, kwargs = pytree.tree_unflatten(filled, spec)
        output = sample.output_process_fn_grad(op(input, *args, **kwargs))
        known = [y for y in pytree.tree_leaves(output) if isinstance(y, torch.Tensor)]
        return weighted_sum([y for y in known if y.requires_grad])

    return Case(value, [fixed[i].clone() for i in where])


def by_autograd(case: Case) -> list[torch.Tensor] | None:
    """Return the value and the gradients of plain torch, or `None` if it refuses."""
    inputs = [t.requires_grad_() for t in case.fresh()]
    try:
        value = case.value(inputs)
        grads = torch.autograd.grad(value, inputs, allow_unused=True)
    except (RuntimeError, NotImplementedError):
        return None
    return [
        value.detach(),
        *(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)),
    ]


def run(fn: Callable[..., Any], case: Case) -> list[torch.Tensor]:
    value, grads = fn(case.fresh())
    return [value, *grads]


def outcome_of(name: str, case: Case) -> str:
    """Check a case against torch and return a label of its outcome."""
    generator = torch.get_rng_state()
    expected = by_autograd(case)
    if expected is None:
        return "not differentiable in torch"
    draws = not torch.equal(generator, torch.get_rng_state())
    torch.set_rng_state(generator)

    def value_and_grad(x: list[torch.Tensor]) -> Any:
        if not draws and name not in DRAWING_AT_TIMES:
            return ftrain.value_and_grad(case.value)(x)
        with random.keyed(KEY):
            return ftrain.value_and_grad(case.value)(x)

    try:
        eager = run(value_and_grad, case)
    except ValueError as error:
        assert_says(error, UNDEFINED.get(name), "test_operators.py:")
        return "derivative undefined: refused"
    if draws:
        assert first_difference(run(value_and_grad, case), eager) is None
    else:
        assert first_difference(eager, expected) is None
    assert torch.equal(generator, torch.get_rng_state())
    compiled = ftrain.compile(value_and_grad, backend="eager")
    said = "keyed, equal" if draws else "equal"
    if any(t.layout != torch.strided for t in case.start):
        with pytest.raises(TypeError, match="take strided tensors.*to_dense"):
            compiled(case.fresh())
        return "sparse: equal in eager mode, refused compiled"
    try:
        found = run(compiled, case)
    except TraceError as error:
        assert_says(error, UNTRACEABLE.get(name), "test_operators.py:")
        return "equal in eager mode, refused by a TraceError compiled"
    except ImpureFunctionError as error:
        assert_says(error, WRITING.get(name), "test_operators.py:")
        return "equal in eager mode, refused by an ImpureFunctionError compiled"
    if name in ANOTHER_FORMULA and first_difference(found, eager) is not None:
        with AsInTraces():
            assert first_difference(found, run(value_and_grad, case)) is None
        for a, b in zip(found, eager, strict=True):
            ulps = torch.finfo(b.dtype).eps / torch.finfo(torch.float64).eps
            assert (a - b).norm() <= ANOTHER_FORMULA[name] * ulps * b.norm()
        return f"{said}; compiled by another formula"
    assert first_difference(found, eager) is None
    return said


@pytest.fixture(autouse=True)
def _unseeded() -> Iterator[None]:
    """Disable torch's seeding of random operators, so that they draw from the generator or a key."""
    with mock.patch.object(
        methods, "wrapper_set_seed", lambda op, *args, **kwargs: op(*args, **kwargs)
    ):
        yield


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    yield from told(request, "operators")


def samples_of(op: Any, dtype: torch.dtype, count: int) -> Iterator[Any]:
    samples = op.sample_inputs("cpu", dtype, requires_grad=True)
    return iter(samples) if WHOLE else itertools.islice(samples, count)


def name_of(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}".rstrip(".")


TAKEN = methods.op_db if WHOLE else methods.op_db[::4]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", TAKEN, ids=name_of)
def test_eager_and_compiled_gradients_of_torch_operators_equal_those_of_autograd(
    op: Any, dtype: torch.dtype, outcomes: Outcomes
) -> None:
    if not op.supports_autograd or dtype not in op.supported_backward_dtypes("cpu"):
        outcomes["operators without derivatives"] += 1
        return
    for sample in samples_of(op, dtype, 2):
        case = case_of(op, sample)
        outcomes["no input requires a gradient" if case is None else outcome_of(op.name, case)] += 1


@pytest.mark.parametrize("op", [op for op in TAKEN if op.get_inplace() is not None], ids=name_of)
def test_compiled_in_place_operators_on_arguments_raise(op: Any, outcomes: Outcomes) -> None:
    """Call the in-place form of each operator with the first input that torch accepts."""
    write = op.get_inplace()
    if torch.float64 not in op.supported_dtypes("cpu"):
        return
    for sample in op.sample_inputs("cpu", torch.float64):
        if sample.broadcasts_input or not isinstance(sample.input, torch.Tensor):
            continue
        kept, own = sample.input.clone(), sample.input.clone()
        try:
            write(own, *sample.args, **sample.kwargs)
        except (RuntimeError, ValueError):  # torch refuses it
            continue
        if difference(own, kept) is None:  # dropout at a rate of 0 and the like write nothing
            continue

        def written(x: torch.Tensor) -> torch.Tensor:
            with random.keyed(KEY):
                return write(x, *sample.args, **sample.kwargs)  # noqa: B023

        with pytest.raises(ImpureFunctionError, match="(?s)writes into its argument.*out-of-place"):
            ftrain.compile(written, backend="eager")(sample.input)
        assert difference(sample.input, kept) is None
        outcomes["write into an argument: refused"] += 1
        return
