"""Test `environment`: settings, differences from a checkpoint, and operators whose bits vary."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ftrain import checkpoint, compile, make_steps, optim
from ftrain.checkpoint._determinism import RECORDED, fingerprint
from ftrain.checkpoint.errors import CheckpointNotFoundError
from ftrain.testing import environment
from ftrain.testing._global_state import changes, world


def test_environment_lists_the_settings_that_bits_depend_on() -> None:
    settings = environment().settings
    assert settings["torch"] == torch.__version__
    assert settings["threads"] == torch.get_num_threads()
    assert settings["cpu capability"] == torch.backends.cpu.get_cpu_capability()
    assert settings["$OMP_NUM_THREADS"]
    assert "inductor cpp.simdlen" in settings
    assert "blas" in settings
    text = str(environment())
    assert all(name in text for name in settings)


def test_environment_names_settings_that_differ_from_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a"
    checkpoint.save(path, {"w": torch.zeros(1)})
    assert environment(checkpoint=path).changes == ()
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        found = environment(checkpoint=path)
    finally:
        torch.set_num_threads(before)
    assert found.changes == (f"threads: {before} when saved, {before + 1} now",)
    assert "differs from the checkpoint:" in str(found)


def test_environment_names_settings_that_only_the_checkpoint_has(tmp_path: Path) -> None:
    path = tmp_path / "a"
    checkpoint.save(path, {"w": torch.zeros(1)}, fingerprint={"mine": 1, "onednn float32": "bf16"})
    assert environment(checkpoint=path).changes == ("onednn float32: 'bf16' when saved, None now",)


def test_names_of_recorded_settings_equal_those_of_a_checkpoint_fingerprint() -> None:
    source = inspect.getsource(fingerprint)
    names = re.findall(r'^ +"([^"]+)": |found\["([^"]+)"\]', source, re.MULTILINE)
    assert {first or second for first, second in names} == RECORDED


def test_environment_refuses_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        environment(checkpoint=tmp_path / "b")


def mlp(x: torch.Tensor) -> torch.Tensor:
    return (x @ x.T).relu().sum()


def test_environment_does_not_change_settings_of_the_process() -> None:
    start = world()
    environment(mlp, torch.ones(4, 4), threads=(1, 2), repeats=2)
    assert changes(start) == []


def test_environment_finds_no_unstable_operator_in_an_mlp() -> None:
    steps = make_steps(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)),
        lambda model, batch: model(batch).square().mean(),
        optim.adamw(0.1),
    )
    found = environment(steps.train_step, steps.init_state(0), torch.ones(3, 4), repeats=3)
    assert {"aten.addmm", "aten.tanh", "aten.tanh_backward"} <= {op.name for op in found.operators}
    assert found.nondeterministic == ()
    assert found.thread_dependent == ()


def noisy(x: torch.Tensor) -> torch.Tensor:
    """Return a result that depends on a counter outside."""
    _calls.append(1)
    return x + len(_calls)


def threaded(x: torch.Tensor) -> torch.Tensor:
    return x + torch.get_num_threads()


def aligned(x: torch.Tensor) -> torch.Tensor:
    return x + x.storage_offset()


_calls: list[int] = []
_library = torch.library.Library("ftrain_test_environment", "FRAGMENT")
for _fn in (noisy, threaded, aligned):
    _library.define(f"{_fn.__name__}(Tensor x) -> Tensor")
    _library.impl(_fn.__name__, _fn, "CPU")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("noisy", "nondeterministic"),
        ("threaded", "thread_dependent"),
        ("aligned", "alignment_dependent"),
    ],
)
def test_environment_names_operators_whose_bits_vary_and_their_lines(name, kind) -> None:
    operator = getattr(torch.ops.ftrain_test_environment, name)

    def step(x: torch.Tensor) -> torch.Tensor:
        return operator(x.relu()).sum()  # the line

    found = environment(step, torch.ones(3), threads=(1, 2), repeats=3)
    kinds = ("nondeterministic", "thread_dependent", "alignment_dependent")
    named = {each: [op.name for op in getattr(found, each)] for each in kinds}
    assert named == {each: [] for each in kinds} | {kind: [f"ftrain_test_environment.{name}"]}
    (row,) = getattr(found, kind)
    assert "# the line" in row.line
    assert row.calls == 1
    assert row.inputs == "float32[3]"
    assert "# the line" in str(found)


def test_environment_counts_random_operators_with_a_seeded_generator_as_deterministic() -> None:
    found = environment(lambda x: torch.bernoulli(x), torch.full((4,), 0.5), repeats=3)
    assert [op.name for op in found.operators] == ["aten.bernoulli"]
    assert found.nondeterministic == ()


def test_environment_gives_each_repeat_of_an_in_place_operator_the_same_inputs() -> None:
    found = environment(lambda x: x.clone().add_(1).mul_(2), torch.ones(4), repeats=3)
    assert "aten.add_.Tensor" in [op.name for op in found.operators]
    assert found.nondeterministic == ()


def test_environment_examines_operators_that_return_nothing_by_the_tensors_they_write() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        torch._foreach_mul_([y], 2.0)
        return y

    found = environment(step, torch.ones(4), repeats=2)
    assert [op.name for op in found.operators] == ["aten.add.Tensor", "aten._foreach_mul_.Scalar"]
    assert found.nondeterministic == ()


def test_environment_examines_a_compiled_step_through_its_python_function() -> None:
    found = environment(compile(mlp, backend="eager"), torch.ones(2, 2), repeats=2)
    assert "aten.mm" in [op.name for op in found.operators]


def test_environment_reports_no_line_for_backward_operators() -> None:
    table = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    index = torch.randint(0, 50, (4096,), generator=torch.Generator().manual_seed(0))

    def step(weight: torch.Tensor) -> Any:
        weight = weight.detach().requires_grad_()
        return torch.autograd.grad(nn.functional.embedding(index, weight).square().sum(), weight)

    found = environment(step, table, threads=(1, 2), repeats=2)
    rows = {op.name: op for op in found.operators}
    assert rows["aten.embedding_dense_backward"].line == "(backward)"


def test_environment_refuses_a_single_repeat() -> None:
    with pytest.raises(ValueError, match="at least 2 repeats"):
        environment(mlp, torch.ones(2, 2), repeats=1)
