"""Law 11: derivatives of random programs match an oracle to third order, or are refused.

Thousands of programs with seeds of their own, and a count of what came of them:
`FTRAIN_CAMPAIGN=1 make compositions`. A failure prints the program as source;
`check(program, points, mode)` runs it again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests.compositions.in_jax import Jax
from tests.compositions.in_torch import Torch
from tests.compositions.outcomes import COUNTS, MODES, check, expected_at
from tests.compositions.programs import (
    Add,
    Apply,
    Compiled,
    Cond,
    Const,
    Descend,
    Function,
    Grad,
    Jvp,
    Matrix,
    Mul,
    NoGrad,
    Program,
    Scan,
    Sin,
    Step,
    Var,
    Vmap,
    While,
    objective,
)
from tests.compositions.strategies import COMBINATORS, SMOOTH, points, programs
from tests.core.differences import assert_derivative

CAMPAIGN = int(os.environ.get("FTRAIN_CAMPAIGN") or 0) * 500
POINTS = [0.875, 0.3125, -0.25, 0.5]

KINDS = {
    "derivatives": ("Grad", "Grad", "Jvp", "Descend", "Detach", "NoGrad"),
    "forward": ("Jvp", "Jvp", "Jvp", "Grad", "Grad", "Descend", "Scan", "Cond", "Apply"),
    "loops": ("Scan", "Scan", "While", "Grad", "Descend", "Jvp"),
    "branches": ("Cond", "Switch", "Scan", "Grad", "Vmap"),
    "wrappers": ("Vmap", "Apply", "Checkpoint", "Compiled", "Step", "Grad", "Cond"),
    "all": COMBINATORS,
}

#: Programs that were once wrong, or ended in an error of torch's.
FOUND = [
    # A scan whose body captures its start.
    Program(Descend("value_and_grad", Mul(Var(1), Mul(Var(0), Const(1))), Var(0), Const(0)), ()),
    Program(Scan(Mul(Var(0), Sin(Var(1))), Var(0), 2), ("value_and_grad", "value_and_grad")),
    # Forward mode through a while loop.
    Program(While(Mul(Var(0), Var(1)), Var(0), 2, False), ("jvp", "vmap", "jvp")),
    Program(Jvp(While(Sin(Mul(Var(0), Var(1))), Const(1), 3, False), Var(0), Const(2)), ("jvp",)),
    # A gradient by the batch of a step.
    Program(Step(Const(1), Const(2), Sin(Var(0)), False), ("value_and_grad",)),
    Program(Step(Const(1), Matrix(Var(0)), Var(0), False), ("jvp", "value_and_grad")),
    # An autograd function with a generated rule for vmap, mapped inside of a gradient.
    Program(
        Vmap(Function(Matrix(Var(1)), Var(0)), (Function(Var(0), Var(0)),)),
        ("value_and_grad", "value_and_grad"),
    ),
    # Zeros without memory as a result.
    Program(Add(Var(0), Compiled(Add(Var(1), Var(1)), Var(0))), ("jvp", "jvp")),
    # Forward derivatives that torch cannot trace.
    Program(Add(Matrix(Var(0)), Jvp(Var(0), Const(1), Var(0))), ("jvp", "jvp")),
    Program(Jvp(Matrix(Var(0)), Var(0), Sin(Const(1))), ("vmap", "vmap")),
    # A while loop whose carry has strides of 0, under a vmap of one row.
    Program(Vmap(While(Function(Var(0), Var(1)), Var(0), 2), (Var(0),)), ()),
    # An autograd function under `keyed` in a branch that some rows take.
    Program(
        Cond(Var(0), Apply(Function(Var(0), Const(0, True)), Var(0), Var(0), Var(0)), Var(0)),
        ("value_and_grad",),
    ),
    # A branch that some rows take, whose first use of a tensor is in an inner derivative.
    Program(
        Cond(
            Sin(Var(0)),
            Add(
                Const(3, True),
                Jvp(
                    Mul(
                        Grad(
                            "value_and_grad", Add(Const(3, True), Var(0)), (Var(0), Var(0)), Var(0)
                        ),
                        Var(0),
                    ),
                    Var(0),
                    Var(0),
                ),
            ),
            Var(0),
            False,
        )
    ),
    # A branch that some rows take, whose first use of a tensor is under no_grad.
    Program(Cond(Var(0), Mul(NoGrad(Var(0)), Var(0)), Var(0), False), ("vmap", "value_and_grad")),
]


def some(n: int) -> Any:
    """Return the settings of a test: `n` examples, or a campaign."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(
        max_examples=CAMPAIGN or n,
        derandomize=not CAMPAIGN,
        database=None,
        suppress_health_check=slow,
    )


@pytest.fixture(scope="module", autouse=True)
def report(request: Any) -> Iterator[None]:
    """Print the outcome counts of a campaign."""
    yield
    if CAMPAIGN:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            for (mode, outcome), n in sorted(COUNTS.items()):
                print(f"\n{n:6} {mode}: {outcome}", end="")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kinds", KINDS)
def test_random_programs_match_dual_number_arithmetic_or_raise(kinds: str, mode: str) -> None:
    @some(3 if "compiled" in mode else 6)
    @given(programs(3, 3, KINDS[kinds]), points())
    def run(program: Program, points: list[float]) -> None:
        check(program, points, mode)

    run()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("program", FOUND, ids=range(len(FOUND)))
def test_formerly_failing_programs_match_dual_number_arithmetic_or_raise(
    program: Program, mode: str
) -> None:
    check(program, POINTS, mode)


@some(5)
@given(programs(2, 1, SMOOTH), points())
def test_first_derivatives_of_random_programs_match_finite_differences(
    program: Program, points: list[float]
) -> None:
    f, x = program.function(Torch()), torch.tensor(points[:2], dtype=torch.float64)
    if expected_at(program, np.array(points).reshape(2, 2)) is None:
        return
    _, _, grad = Torch().gradient("value_and_grad", lambda x: objective(Torch(), f(x), x), x, False)
    assert_derivative(lambda x: objective(Torch(), f(x), x).detach(), x, grad.detach())


@some(3)
@given(programs(2, 1), points())
def test_derivatives_by_dual_number_arithmetic_match_jax(
    program: Program, points: list[float]
) -> None:
    expected = expected_at(program, np.array(points).reshape(2, 2))
    if expected is None:
        return
    with jax.enable_x64(True):
        found = program.function(Jax())(jax.numpy.asarray(points[:2]))
        np.testing.assert_allclose(expected[0], np.asarray(found), rtol=1e-9, atol=1e-9)


@given(programs())
@settings(max_examples=20)
def test_repr_of_a_random_program_evaluates_to_an_equal_program(program: Program) -> None:
    import tests.compositions.programs as names

    assert eval(repr(program), vars(names)) == program


@pytest.mark.parametrize("mode", MODES)
def test_check_of_random_programs_fails_on_a_wrong_value(mode: str, monkeypatch: Any) -> None:
    program = Program(Grad("func", Sin(Var(0)), (Var(0),)), ("func",))
    monkeypatch.setattr(Torch, "sin", staticmethod(torch.cos))
    with pytest.raises(AssertionError, match=re.escape(repr(program))):
        check(program, POINTS, mode)


def test_check_of_random_programs_accepts_an_error_only_if_the_program_contains_its_cause(
    monkeypatch: Any,
) -> None:
    def refuse(x: torch.Tensor) -> torch.Tensor:
        raise ValueError(
            "a step returns tensors without an autograd graph, so no gradient can flow through it"
        )

    monkeypatch.setattr(Torch, "sin", staticmethod(refuse))
    check(Program(Add(Sin(Var(0)), Step(Var(0), Var(0), Var(0)))), POINTS, "eager")
    with pytest.raises(ValueError, match="a step returns tensors without an autograd graph"):
        check(Program(Sin(Var(0))), POINTS, "eager")
