"""Test that a run without a C++ compiler raises before it begins, and only if it needs one."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import torch

from ftrain.cli import main
from ftrain.core import _torch_inductor
from ftrain.core.compile import check_compiler
from ftrain.core.compile import compile as compile_step
from ftrain.core.errors import CompilerMissingError, RecompileWarning
from ftrain.loop import Trainer
from tests.loop import runs


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    """Provide an empty directory as PATH, and the compiler names that inductor would try."""
    empty = tmp_path / "path"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(_torch_inductor, "cpp_compilers", lambda: ("g++",))
    return empty


def fit(folder: pathlib.Path, **options):
    ends = {"epochs": options.pop("epochs", 1), "resume": options.pop("resume", None)}
    trainer = Trainer(runs.STEPS, store=folder / "checkpoints", **options)
    return trainer.fit(runs.STEPS.init_state(0), runs.train_data(), runs.eval_data(), **ends)


def test_fit_raises_for_a_missing_compiler_before_writing(no_compiler, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(CompilerMissingError, match=r"no C\+\+ compiler.*do not compile") as caught:
        fit(folder)
    assert "backend='eager'" in str(caught.value)
    assert "Looked for g++" in str(caught.value)
    assert not folder.exists()


def test_runs_without_inductor_need_no_cpp_compiler(no_compiler, tmp_path):
    assert fit(tmp_path / "plain", compile=False).status == "completed"
    with pytest.warns(RecompileWarning, match=r"divides the data, .*last_batch='pad'"):
        assert fit(tmp_path / "eager", compile={"backend": "eager"}).status == "completed"
    assert fit(tmp_path / "none", epochs=0).status == "completed"
    # A completed run compiles nothing.
    assert fit(tmp_path / "plain", resume=True).status == "completed"
    with pytest.raises(CompilerMissingError):
        fit(tmp_path / "plain", resume=True, epochs=2)


def test_steps_that_are_compiled_already_need_no_cpp_compiler(no_compiler):
    step = compile_step(lambda state, batch: (state, {"loss": batch.sum()}))
    step.n_compiles = 1
    step.check_compiler(torch.device("cpu"))


def test_steps_on_cuda_need_no_cpp_compiler(no_compiler, monkeypatch):
    step = compile_step(lambda state, batch: (state, {"loss": batch.sum()}))
    monkeypatch.setenv("CC", "my-compiler")
    step.check_compiler(torch.device("cuda"))
    with pytest.raises(CompilerMissingError):
        step.check_compiler(torch.device("cpu"))


def test_steps_on_cuda_need_a_c_compiler_only_if_triton_reports_that_it_is_missing(
    no_compiler, monkeypatch
):
    monkeypatch.delenv("CC", raising=False)
    step = compile_step(lambda state, batch: (state, {"loss": batch.sum()}))
    missing = RuntimeError("Failed to find C compiler. Please specify via CC environment variable")
    monkeypatch.setattr(_torch_inductor, "triton_error", lambda: missing)
    with pytest.raises(CompilerMissingError, match=r"no C compiler.*install gcc.*variable CC") as e:
        step.check_compiler(torch.device("cuda"))
    assert "Looked for gcc and clang; Triton reports: Failed" in str(e.value)
    monkeypatch.setattr(_torch_inductor, "triton_error", lambda: RuntimeError("no device"))
    step.check_compiler(torch.device("cuda"))
    monkeypatch.setattr(_torch_inductor, "triton_error", lambda: None)
    step.check_compiler(torch.device("cuda"))
    compile_step(lambda x: x, backend="eager").check_compiler(torch.device("cuda"))


@pytest.mark.parametrize("named", ["CXX", "torch"])
def test_check_compiler_finds_a_compiler_set_by_cxx_or_in_inductors_configuration(
    no_compiler, monkeypatch, named
):
    own = no_compiler / "my-compiler"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    with pytest.raises(CompilerMissingError):
        check_compiler()
    if named == "CXX":
        monkeypatch.setenv("CXX", "my-compiler")
    else:  # the compiler is set in inductor's own configuration
        monkeypatch.setattr(_torch_inductor, "cpp_compilers", lambda: ("g++", "my-compiler"))
    check_compiler()


def test_check_compiler_passes_if_inductor_would_download_a_compiler(no_compiler, monkeypatch):
    monkeypatch.setattr(_torch_inductor, "cpp_compilers", lambda: None)
    check_compiler()


def test_cpp_compilers_returns_the_compilers_that_inductor_is_configured_to_try(monkeypatch):
    from torch._inductor import config

    # With torch's own `patch`: a value that monkeypatch restores in this configuration is lost.
    with config.patch({"cpp.cxx": (None, "one++")}):
        assert _torch_inductor.cpp_compilers() == ("one++",)
        monkeypatch.setenv("TORCH_INDUCTOR_INSTALL_GXX", "1")
        assert _torch_inductor.cpp_compilers() is None
        monkeypatch.delenv("TORCH_INDUCTOR_INSTALL_GXX")
    with config.patch({"cpp.cxx": "two++"}):
        assert _torch_inductor.cpp_compilers() == ("two++",)
        with config.patch({"cpu_backend": "triton"}):
            assert _torch_inductor.cpp_compilers() is None
    assert config.cpu_backend == "cpp"


def test_train_command_raises_for_a_missing_compiler_before_writing(
    no_compiler, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    where = f"output_dir={tmp_path / 'run'}"
    assert main(["train", "config.yaml", "epochs=1", "compile=true", where]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ftrain train: ftrain.compile found no C++ compiler.")
    assert "compile=false" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
    assert main(["train", "config.yaml", "epochs=1", "compile=false", where]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert main(["resume", str(tmp_path / "run"), "epochs=2", "compile=true"]) == 1
    assert "found no C++ compiler" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_check_compiler_raises_in_a_process_without_a_compiler(tmp_path):
    environment = {**os.environ, "CXX": "no-such-compiler-anywhere"}
    asked = (
        "from ftrain.core.compile import check_compiler\n"
        "try: check_compiler()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, env=environment, check=False
    )
    assert "CompilerMissingError" in done.stdout, done
    assert (
        "Looked for no-such-compiler-anywhere, as the environment variable CXX says." in done.stdout
    )
