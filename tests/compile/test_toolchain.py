"""Compilers that programs need, and those that are found on computers other than this one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch._inductor import config

from ftrain.core import _torch_inductor
from ftrain.core.compile import check_compiler
from ftrain.core.errors import CompilerMissingError


@pytest.fixture
def computer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that pretends to be on a computer with some compilers, and a list of calls."""
    asked: list[str] = []

    def pretend_to_be(
        system: str, variables: dict[str, str], installed: Sequence[str], answer: Any
    ) -> list[str]:
        def ask(name: str) -> Callable[[], Any]:
            return lambda: asked.append(name) or answer  # type: ignore[func-returns-value]

        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(shutil, "which", lambda name: name if name in installed else None)
        for name in ("CC", "CXX"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(_torch_inductor, "cpp_compilers", ask("inductor"))
        monkeypatch.setattr(_torch_inductor, "triton_error", ask("triton"))
        return asked

    return pretend_to_be


@pytest.mark.parametrize(
    ("system", "variables", "installed"),
    [
        ("linux", {}, ["g++"]),
        ("darwin", {}, ["clang++"]),
        ("win32", {}, []),
        ("linux", {"CXX": "mine"}, ["mine"]),
        ("darwin", {"CXX": "mine"}, ["mine"]),
    ],
)
def test_usual_cpp_compiler_is_found_without_loading_inductor(
    system: str, variables: dict[str, str], installed: list[str], computer: Any
) -> None:
    asked = computer(system, variables, installed, ("none",))
    check_compiler()
    assert not asked


@pytest.mark.parametrize(
    ("system", "variables", "installed", "tried", "message"),
    [
        ("linux", {}, [], ("g++",), r"no C\+\+ compiler\. Looked for g\+\+\. Install"),
        ("linux", {}, ["clang++"], ("a", "b"), r"Looked for a and b\..*dnf install gcc-c\+\+;"),
        ("darwin", {}, ["g++"], ("clang++",), r"Looked for clang\+\+\."),
        ("linux", {"CXX": "a"}, ["g++"], ("a",), "Looked for a, as the environment variable CXX"),
        ("linux", {"CXX": "a"}, [], ("b",), r"Looked for b\."),
        ("linux", {}, ["b"], ("a", "b"), None),
        ("linux", {}, [], None, None),  # inductor would download one
    ],
)
def test_cpp_compiler_is_missing_if_inductor_would_find_none(
    system: str,
    variables: dict[str, str],
    installed: list[str],
    tried: tuple[str, ...] | None,
    message: str | None,
    computer: Any,
) -> None:
    asked = computer(system, variables, installed, tried)
    if message is None:
        check_compiler()
    else:
        with pytest.raises(CompilerMissingError, match=message):
            check_compiler()
    assert asked == ["inductor"]


MISSING = RuntimeError("Failed to find C compiler. Please specify one.")


@pytest.mark.parametrize(
    ("variables", "installed", "error", "asks", "raises"),
    [
        ({"CC": "mine"}, [], MISSING, False, False),
        ({}, ["gcc"], MISSING, False, False),
        ({}, ["clang"], MISSING, False, False),
        ({}, ["g++", "clang++"], MISSING, True, True),
        ({}, [], RuntimeError("no device"), True, False),
        ({}, [], None, True, False),
    ],
)
def test_c_compiler_for_cuda_is_missing_if_triton_reports_it(
    variables: dict[str, str],
    installed: list[str],
    error: Exception | None,
    asks: bool,
    raises: bool,
    computer: Any,
) -> None:
    asked = computer("linux", variables, installed, error)
    if raises:
        with pytest.raises(
            CompilerMissingError, match="(?s)no C compiler.*Triton.*dnf install gcc;"
        ):
            check_compiler(device_type="cuda")
    else:
        check_compiler(device_type="cuda")
    assert asked == (["triton"] if asks else [])


@pytest.mark.parametrize("device_type", ["meta", "mps"])
def test_devices_without_machine_code_of_inductor_need_no_compiler(
    device_type: str, computer: Any
) -> None:
    asked = computer("linux", {}, [], ("g++",))
    check_compiler(device_type=device_type)
    assert not asked


@pytest.mark.parametrize(
    ("named", "installs", "backend", "tried"),
    [
        ((None, "one++"), None, "cpp", ("one++",)),
        ((None, "one++"), "1", "cpp", None),
        (("one++", "two++"), "1", "cpp", ("one++", "two++")),
        (["one++"], None, "cpp", ("one++",)),
        ("one++", None, "cpp", ("one++",)),
        ("one++", None, "triton", None),
        ((None,), None, "cpp", None),
        (None, None, "cpp", None),
    ],
)
def test_cpp_compilers_are_those_of_inductors_configuration(
    named: Any,
    installs: str | None,
    backend: str,
    tried: tuple[str, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCH_INDUCTOR_INSTALL_GXX", raising=False)
    if installs is not None:
        monkeypatch.setenv("TORCH_INDUCTOR_INSTALL_GXX", installs)
    with config.patch({"cpp.cxx": named, "cpu_backend": backend}):
        assert _torch_inductor.cpp_compilers() == tried
