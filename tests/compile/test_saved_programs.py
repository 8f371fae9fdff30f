"""Programs saved to files: the bits of the function that was compiled, in another process."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import warnings
import zipfile
from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core.compile import Executable
from ftrain.core.errors import DataError, DonatedStateError
from ftrain.testing import assert_same_bits

STEPS = ftrain.make_steps(
    lambda: nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)),
    lambda model, x: model(x).square().mean(),
    optim.adam(1e-2),
)
X = torch.linspace(-1, 1, 12).reshape(4, 3)

FRESH = """
import pathlib, sys, torch, ftrain
from tests.compile import test_saved_programs as here
program = ftrain.load_executable(sys.argv[1])
print(here.after_three_steps(program))
assert not {"torch._inductor", "torch._dynamo"} & {*sys.modules}, "the compiler was imported"
"""


def after_three_steps(step: Callable[..., Any]) -> str:
    state = STEPS.init_state(0)
    for _ in range(3):
        state, metrics = step(state, X)
    return ftrain.tree.digest((state, metrics))


@pytest.fixture(scope="module")
def program() -> Executable[..., Any]:
    step = ftrain.compile(STEPS.train_step, donate=True, cpp_wrapper=True)
    compiled: Executable[..., Any] = step.lower(STEPS.init_state(0), X).compile()
    return compiled


@pytest.fixture(scope="module")
def saved(program: Executable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("programs") / "step.program"
    with pytest.raises(RuntimeError, match="has not run. Call it once"):
        program.save(path)
    program(STEPS.init_state(0), X)
    program.save(path)
    return path


def test_loaded_program_returns_the_bits_of_the_saved_one(
    program: Executable[..., Any], saved: pathlib.Path
) -> None:
    assert after_three_steps(ftrain.load_executable(saved)) == after_three_steps(program)


def test_fresh_process_runs_a_program_without_the_compiler(
    program: Executable[..., Any], saved: pathlib.Path
) -> None:
    found = subprocess.run(
        [sys.executable, "-c", FRESH, str(saved)], capture_output=True, text=True, check=False
    )
    assert found.stdout.strip() == after_three_steps(program), found.stderr


def test_loaded_program_takes_the_memory_of_its_state(saved: pathlib.Path) -> None:
    program = ftrain.load_executable(saved)
    state = STEPS.init_state(0)
    before = state.params["0.weight"].data_ptr()
    new, _ = program(state, X)
    assert new.params["0.weight"].data_ptr() == before
    with pytest.raises(DonatedStateError):
        program(state, X)


def test_loaded_program_refuses_other_arguments_and_settings(saved: pathlib.Path) -> None:
    program = ftrain.load_executable(saved)
    state = STEPS.init_state(0)
    with pytest.raises(TypeError, match=r"batch: float32\[4, 3\] -> float32\[2, 3\]"):
        program(state, X[:2])
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(TypeError, match=f"number of threads: {threads} -> {threads + 1}"):
            program(state, X)
    finally:
        torch.set_num_threads(threads)
    program(state, X)  # the state is still usable


def test_loaded_program_cannot_be_traced_again(saved: pathlib.Path) -> None:
    program = ftrain.load_executable(saved)
    outer = ftrain.compile(lambda state, x: program(state, x)[1], backend="eager")
    with pytest.raises(RuntimeError, match="was loaded from .*without the function"):
        outer(STEPS.init_state(0), X)


def test_loaded_program_cannot_be_saved(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    program = ftrain.load_executable(saved)
    with pytest.raises(RuntimeError, match="Copy that file"):
        program.save(tmp_path / "again")


def test_captured_tensors_keep_their_values_at_the_time_of_saving(tmp_path: pathlib.Path) -> None:
    scale = torch.tensor([2.0, 3.0])
    compiled = ftrain.compile(lambda x: (x * scale, "text", 3), cpp_wrapper=True)
    program = compiled.lower(torch.ones(2)).compile()
    program(torch.ones(2))
    scale.mul_(10)
    program.save(tmp_path / "scaled")
    loaded = ftrain.load_executable(tmp_path / "scaled")
    scale.zero_()
    product, *rest = loaded(torch.ones(2))
    assert product.tolist() == [20.0, 30.0]
    assert rest == ["text", 3]


def test_saving_replaces_a_file_that_a_loaded_program_uses(
    saved: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "program"
    path.write_bytes(saved.read_bytes())
    old = ftrain.load_executable(path)
    expected = after_three_steps(old)
    double = ftrain.compile(lambda x: x * 2, cpp_wrapper=True).lower(X).compile()
    double(X)
    double.save(path)
    assert after_three_steps(old) == expected
    assert_same_bits(ftrain.load_executable(path)(X), X * 2)
    assert [each.name for each in tmp_path.iterdir()] == ["program"]


def test_program_that_python_calls_is_refused_with_the_reason(tmp_path: pathlib.Path) -> None:
    eager = ftrain.compile(torch.sin, backend="eager").lower(X).compile()
    eager(X)
    with pytest.raises(RuntimeError, match=r"Write compile\(..., cpp_wrapper=True\)"):
        eager.save(tmp_path / "eager")

    def printed(x: torch.Tensor) -> torch.Tensor:
        ftrain.debug.print("{x}", x=x.sum())
        return x + 1

    with warnings.catch_warnings(action="ignore"):
        program = ftrain.compile(printed, cpp_wrapper=True).lower(X).compile()
    program(X)
    with pytest.raises(RuntimeError, match="Python calls its kernels, because its operator"):
        program.save(tmp_path / "printed")
    assert not [*tmp_path.iterdir()]


def test_failed_save_leaves_the_old_file(
    program: Executable[..., Any], saved: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: Any
) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="No space left"):
        program.save(path)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["program"]


@given(data=st.data())
def test_damaged_file_is_refused(saved: pathlib.Path, data: st.DataObject) -> None:
    content = bytearray(saved.read_bytes())
    if data.draw(st.booleans(), "truncated"):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = saved.with_name("damaged")
    path.write_bytes(content)
    try:
        program = ftrain.load_executable(path)
    except DataError:
        return
    # Some bytes of the archive's directory, such as times and attributes, have no meaning.
    assert after_three_steps(program) == after_three_steps(ftrain.load_executable(saved))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"torch": "1.0"}, "with torch 1.0, here it is"),
        ({"ftrain": "0.0"}, "with ftrain 0.0"),
        ({"python": "cpython-27"}, "with python cpython-27"),
        ({"machine": "vax"}, "with machine vax"),
        ({"system": "plan9"}, "with system plan9"),
        ({"kernels for": "AVX9"}, "with kernels for AVX9"),
        ({"features": ["mmx9", "sse99"]}, "for a processor with mmx9, sse99, which this one lacks"),
    ],
)
def test_program_of_another_environment_is_refused(
    saved: pathlib.Path, tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    with zipfile.ZipFile(saved) as archive:
        manifest = {**json.loads(archive.read("manifest.json")), **change}
    path = tmp_path / "program"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
    with pytest.raises(DataError, match=f"{message}.*Compile the function here"):
        ftrain.load_executable(path)


class Row(UserDict[str, torch.Tensor]):
    """Container that becomes a node of trees when it is first seen."""


OTHER = """
import sys, torch, ftrain
from tests.compile.test_saved_programs import Row
program = ftrain.load_executable(sys.argv[1])
print(program(Row(x=torch.ones(2)))["y"].tolist())
"""


def test_container_that_a_process_has_not_seen_is_read(tmp_path: pathlib.Path) -> None:
    double = ftrain.compile(lambda row: Row(y=row["x"] * 2), cpp_wrapper=True)
    program = double.lower(Row(x=torch.ones(2))).compile()
    program(Row(x=torch.ones(2)))
    program.save(tmp_path / "program")
    command = [sys.executable, "-c", OTHER, str(tmp_path / "program")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "[2.0, 2.0]", found.stderr


def test_captured_views_are_saved_without_the_rest_of_their_memory(tmp_path: pathlib.Path) -> None:
    rows = torch.arange(3_000_000.0).view(-1, 3)
    z = torch.tensor([1 + 2j, 3 - 1j, 2j])
    captured = (rows[7], rows[:3, 1], z, torch.view_as_real(z), z.conj(), z.conj().imag)
    wide = (torch.ones(1).expand(3), torch.empty(3, 0))

    def f(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x.sum() * each for each in (*captured, *wide))

    program = ftrain.compile(f, cpp_wrapper=True).lower(X).compile()
    expected = program(X)
    program.save(tmp_path / "program")
    assert (tmp_path / "program").stat().st_size < 3_000_000
    assert_same_bits(ftrain.load_executable(tmp_path / "program")(X), expected)


def test_constant_is_saved_if_it_is_made_outside_the_function(tmp_path: pathlib.Path) -> None:
    inside = ftrain.compile(lambda x: x + torch.tensor([1.0, 2.0, 3.0]), cpp_wrapper=True)
    program = inside.lower(X).compile()
    expected = program(X)
    with pytest.raises(RuntimeError, match="Make such tensors outside the function"):
        program.save(tmp_path / "program")
    constant = torch.tensor([1.0, 2.0, 3.0])
    program = ftrain.compile(lambda x: x + constant, cpp_wrapper=True).lower(X).compile()
    program(X)
    program.save(tmp_path / "program")
    assert_same_bits(ftrain.load_executable(tmp_path / "program")(X), expected)


def test_error_of_a_donated_state_names_the_line_of_the_caller(saved: pathlib.Path) -> None:
    program = ftrain.load_executable(saved)
    state = STEPS.init_state(0)
    program(state, X)
    with pytest.raises(DonatedStateError, match="test_saved_programs.py"):
        program(state, X)
