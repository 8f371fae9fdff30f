"""Structures of arguments and results in the files of programs, and what they refuse.

Instead of machine code, these programs run their traced graphs, so that nothing is compiled.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from torch._subclasses.fake_tensor import FakeTensorMode

import ftrain
from ftrain.core.compile import Executable, _saved
from ftrain.core.errors import DataError
from ftrain.testing import assert_same_bits, strategies

X = torch.linspace(-1, 1, 12).reshape(4, 3)


def test_objects_that_cannot_be_pickled_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    program = stored(monkeypatch, tmp_path, lambda x: (x, lambda: 1), X)
    with pytest.raises(TypeError, match="Define its class or function at the top level"):
        program.save(tmp_path / "program")
    assert not (tmp_path / "program").exists()


def test_missing_file_and_missing_class_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(FileNotFoundError):
        ftrain.load_executable(tmp_path / "absent")
    stored(monkeypatch, tmp_path, lambda x: (x, Label("a")), X).save(tmp_path / "program")
    monkeypatch.delitem(globals(), "Label")
    with pytest.raises(DataError, match="Label.*Make its module importable"):
        ftrain.load_executable(tmp_path / "program")


def swapped(monkeypatch: pytest.MonkeyPatch, first: type, second: type) -> None:
    """Put a class in the place of another of this module, as a new version of its source does."""
    second.__qualname__, second.__name__ = first.__qualname__, first.__name__
    monkeypatch.setitem(globals(), first.__name__, second)


@pytest.mark.parametrize("returned", [False, True])
def test_class_whose_fields_changed_their_order_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, returned: bool
) -> None:
    if returned:
        program = stored(monkeypatch, tmp_path, lambda x: Old(x, x + 1), X)
    else:
        program = stored(monkeypatch, tmp_path, lambda s: s.a - 2 * s.b, Old(X, X + 1))
    program.save(tmp_path / "program")
    swapped(monkeypatch, Old, New)
    with pytest.raises(
        DataError, match=r"leaves .*a, .*b; with the classes here, they are .*b, .*a"
    ):
        ftrain.load_executable(tmp_path / "program")


class Old(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


class New(NamedTuple):
    b: torch.Tensor
    a: torch.Tensor


@pytest.mark.parametrize(
    "change",
    [
        lambda w: setattr(w, "data", torch.ones(1)),
        lambda w: setattr(w, "data", w.double()),
        lambda w: setattr(w, "data", torch.ones(6)[::2]),
    ],
    ids=["shape", "dtype", "strides"],
)
def test_captured_tensor_that_does_not_fit_any_more_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, change: Callable[[Any], None]
) -> None:
    w = torch.ones(3)
    program = stored(monkeypatch, tmp_path, lambda x: x + w, X)
    change(w)
    with pytest.raises(
        RuntimeError, match="does not fit captured tensors.*\n.*a captured tensor: "
    ):
        program.save(tmp_path / "program")


def test_operator_that_is_not_registered_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    @torch.library.custom_op("ftrain_saved::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)
    stored(monkeypatch, tmp_path, lambda x: twice(x), X).save(tmp_path / "program")
    ftrain.load_executable(tmp_path / "program")
    check = _saved._check_operators
    monkeypatch.setattr(_saved, "_check_operators", lambda path, _: check(path, ["absent::op"]))
    with pytest.raises(DataError, match="calls the operator absent::op, which is not registered"):
        ftrain.load_executable(tmp_path / "program")


def test_constant_that_does_not_equal_its_copy_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    program = stored(monkeypatch, tmp_path, lambda x, by: x, X, Unequal())
    with pytest.raises(TypeError, match="which does not equal its copy"):
        program.save(tmp_path / "program")


class Unequal:
    """Constant that is compared by identity."""


@dataclasses.dataclass(frozen=True)
class Label:
    text: str


def stored(
    monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path, fn: Callable[..., Any], *args: Any
) -> Executable[..., Any]:
    """Return a program that ran, whose traced graph stands for its machine code in files."""
    program = ftrain.compile(fn, backend="eager").lower(*args).compile()
    program(*args)
    library = folder / "code.so"
    library.write_bytes(b"")
    traced = ftrain.compile(fn, backend="eager").graph(*args)
    monkeypatch.setattr(_saved, "library_of", lambda _: library)
    monkeypatch.setattr(_saved, "_load_code", lambda _: lambda inputs: traced(*inputs))
    return program


@given(tree=strategies.trees())
def test_any_structure_is_kept(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("trees")

    def fn(tree: Any, *, flag: bool, rate: float) -> Any:
        return {"tree": ftrain.tree.map(torch.clone, tree), "flag": flag, "rate": rate}

    with pytest.MonkeyPatch.context() as patch:
        step = ftrain.compile(fn, backend="eager")
        program = step.lower(tree, flag=True, rate=-0.0).compile()
        expected = program(tree, flag=True, rate=-0.0)
        library = folder / "code.so"
        library.write_bytes(b"")
        graph = step.graph(tree, flag=True, rate=-0.0)
        patch.setattr(_saved, "library_of", lambda _: library)
        patch.setattr(_saved, "_load_code", lambda _: lambda inputs: graph(*inputs))
        program.save(folder / "program")
        loaded = ftrain.load_executable(folder / "program")
    assert_same_bits(loaded(tree, flag=True, rate=-0.0), expected)
    for other in ({"flag": 1, "rate": -0.0}, {"flag": True, "rate": 0.0}):
        with pytest.raises(TypeError, match="was compiled for other arguments"):
            loaded(tree, **other)


def inside_grad(load: Callable[[], Any]) -> Any:
    found = []

    def loss(x: torch.Tensor) -> torch.Tensor:
        found.append(load())
        return x

    torch.func.grad(loss)(torch.ones(()))
    return found[0]


def inside(context: Callable[[], Any]) -> Callable[[Callable[[], Any]], Any]:
    def loaded(load: Callable[[], Any]) -> Any:
        with context():
            return load()

    return loaded


@pytest.mark.parametrize(
    "loaded",
    [
        inside(torch.inference_mode),
        inside(FakeTensorMode),
        inside(lambda: torch.device("meta")),
        inside_grad,
    ],
    ids=["inference", "fake", "device", "grad"],
)
def test_tensors_of_a_program_do_not_depend_on_where_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, loaded: Callable[[Any], Any]
) -> None:
    w = torch.arange(3.0)
    stored(monkeypatch, tmp_path, lambda x: x + w, X).save(tmp_path / "program")
    program = loaded(lambda: ftrain.load_executable(tmp_path / "program"))
    (captured,) = program._run.args[0].captured.tensors
    assert type(captured) is torch.Tensor
    assert not captured.is_inference()
    assert not torch._C._functorch.is_functorch_wrapped_tensor(captured)
    assert_same_bits(program(X), X + w)
