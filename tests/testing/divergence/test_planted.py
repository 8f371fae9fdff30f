"""Test that planted differences between two processes are located to the step and leaf or operator."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest

from ftrain.testing import Trace, compare_traces
from tests import preloaded
from tests.testing.divergence.variants import VARIANTS


class Planted(NamedTuple):
    """Difference that was planted in a variant, and where it must be found.

    Attributes:
        step: the step.
        kind: the kind of difference.
        where: the leaf, or the operator.
        place: part of the module path or source line of an operator.
        cause: part of the cause.
        base: the variant that it differs from.
    """

    step: int
    kind: str
    where: str
    place: str = ""
    cause: str = ""
    base: str = "base"


PLANTED = {
    "ulp": Planted(7, "state", ".params['last.weight']"),
    "swapped": Planted(5, "batch", "['x']", cause="rows 1, 3 differ: B has the rows of A"),
    "sample": Planted(6, "batch", "['y']", cause="row 2 differs"),
    "site": Planted(1, "operator", "aten.where.self", "in Net.drop, at", "only A runs"),
    "order": Planted(
        1, "operator", "aten.flip.default", "in reversed_sum", "only B runs", "vanishing_sum"
    ),
    "version": Planted(0, "initial state", ".opt_state[1].learning_rate"),
    "eps": Planted(1, "operator", "aten.add.Tensor", "adam.py", "(_, 1e-08) in A, (_, 1e-06) in B"),
    "captured": Planted(
        1, "operator", "aten.nll_loss_forward.default", "in loss_fn", "(numbers 2, counted from 0)"
    ),
    "gradient": Planted(
        1, "operator", "aten.mul.Tensor", "backward: return grad * 1.001", "only B runs"
    ),
    "precision": Planted(
        1, "operator", "aten._to_copy.default", "in Net.first, at", "only B runs this operator"
    ),
    "moments": Planted(6, "operator", "aten.zeros.default", "_rate.py"),
    "compiled_eps": Planted(1, "operator", "aten.add.Tensor", "adam.py", "(_, 1e-06) in B"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return a directory with the traces of all variants, those of the bases from another process.

    The processes have different hash seeds.
    """
    found = tmp_path_factory.mktemp("traces")
    bases = ["base", "plain_sum", "vanishing_sum"]
    others = [name for name in VARIANTS if name not in bases]
    command = ["-m", "tests.testing.divergence.variants", str(found)]
    fresh = subprocess.Popen([sys.executable, *command, *bases])
    preloaded.run(*command, *others)
    assert fresh.wait() == 0
    return found


def trace(folder: pathlib.Path, name: str) -> Trace:
    return Trace.load(folder / f"{name}.trace")


@pytest.mark.parametrize("name", PLANTED)
def test_planted_difference_is_located_across_processes(folder: pathlib.Path, name: str) -> None:
    planted = PLANTED[name]
    found = compare_traces(trace(folder, planted.base), trace(folder, name))
    assert found is not None
    assert (found.step, found.kind, found.where) == (planted.step, planted.kind, planted.where)
    assert planted.place in found.place
    assert planted.cause in found.cause


def test_each_variant_is_used_by_a_test_of_this_file() -> None:
    assert {*PLANTED, "base", "again", "plain_sum", "rounded_sum", "vanishing_sum", "compiled"} == {
        *VARIANTS
    }


def test_equal_runs_of_two_processes_give_files_of_equal_bytes(folder: pathlib.Path) -> None:
    base, again = (folder / f"{name}.trace" for name in ("base", "again"))
    assert base.read_bytes() == again.read_bytes()


def test_eager_and_compiled_step_agree_operator_by_operator(folder: pathlib.Path) -> None:
    eager, compiled = (trace(folder, name) for name in ("base", "compiled"))
    assert (eager.form, compiled.form) == ("eager", "graph")
    assert compare_traces(eager, compiled) is None
    assert compiled.steps[0].is_repeated
    places = [
        {str(operator.place) for operator in each.steps[0].operators or () if operator.place.module}
        for each in (eager, compiled)
    ]
    assert places[0] == places[1]
    assert any("in Net.first, at" in place for place in places[0])


def test_different_library_version_is_noted_in_the_first_difference(folder: pathlib.Path) -> None:
    found = compare_traces(trace(folder, "base"), trace(folder, "version"))
    assert found is not None
    assert any(note.startswith("numpy: ") and "0.9.0 in B" in note for note in found.notes)


def test_tolerance_of_a_comparison_accepts_a_sum_in_another_order(folder: pathlib.Path) -> None:
    one, two = trace(folder, "plain_sum"), trace(folder, "rounded_sum")
    assert compare_traces(one, two, relative=1e-6) is None
    assert compare_traces(trace(folder, "base"), trace(folder, "eps"), relative=1e-6) is not None
