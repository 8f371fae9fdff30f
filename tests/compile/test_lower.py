"""Compilation ahead of the first call: `lower(...).compile()`."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core import _torch_inductor
from ftrain.core.errors import DonatedStateError, ImpureFunctionError
from ftrain.testing import assert_same_bits


def steps() -> Any:
    init_state, train_step, _ = ftrain.make_steps(
        lambda: nn.Linear(3, 2), lambda model, x: model(x).square().mean(), optim.adam(1e-3)
    )
    return init_state(0), train_step


@pytest.mark.parametrize("donate", [False, True])
def test_program_compiled_ahead_returns_the_bits_of_the_compiled_function(donate: bool) -> None:
    state, train_step = steps()
    x = torch.ones(4, 3)
    expected = ftrain.compile(train_step, backend="eager")(state, x)
    step = ftrain.compile(train_step, donate=donate, backend="eager")
    program = step.lower(state, x).compile()
    assert step.n_compiles == 1
    assert_same_bits(program(state, x), expected)
    assert step.n_compiles == 1


def test_function_uses_the_program_that_was_compiled_ahead() -> None:
    step = ftrain.compile(lambda x: x + 1, backend="eager")
    with warnings.catch_warnings(action="error"):  # nothing is compiled again by surprise
        for n in (2, 3):
            lowered = step.lower(torch.ones(n))
            assert lowered.compile() is lowered.compile()
    assert step.n_compiles == 2
    step(torch.ones(3))
    step.lower(torch.ones(2)).compile()
    assert step.n_compiles == 2


def test_lowered_function_shows_its_graph_and_runs_nothing() -> None:
    lowered = ftrain.compile(torch.sin, backend="eager").lower(torch.ones(3))
    targets = [str(node.target) for node in lowered.graph.graph.nodes if node.op == "call_function"]
    assert "aten.sin.default" in targets


def test_program_called_with_other_arguments_raises_with_the_differences() -> None:
    step = ftrain.compile(lambda batch, k: batch["x"] * k, backend="eager")
    program = step.lower({"x": torch.ones(3)}, 2).compile()
    with pytest.raises(TypeError, match=r"batch\['x'\]: float32\[3\] -> float32\[4\]"):
        program({"x": torch.ones(4)}, 2)
    with pytest.raises(TypeError, match="k: 2 -> 3"):
        program({"x": torch.ones(3)}, 3)
    with pytest.raises(TypeError, match=r"batch\['y'\] is new"):
        program({"x": torch.ones(3), "y": torch.ones(3)}, 2)
    with torch.autocast("cpu"), pytest.raises(TypeError, match="autocast"):
        program({"x": torch.ones(3)}, 2)
    assert step.n_compiles == 1
    assert torch.equal(program({"x": torch.full((3,), 2.0)}, 2), torch.full((3,), 4.0))


def test_program_refuses_a_captured_tensor_of_another_dtype() -> None:
    weight = nn.Parameter(torch.ones(3))
    program = ftrain.compile(lambda x: x * weight, backend="eager").lower(torch.ones(3)).compile()
    weight.data = torch.full((3,), 2.0)
    assert torch.equal(program(torch.ones(3)), torch.full((3,), 2.0))
    weight.data = weight.data.double()
    with pytest.raises(TypeError, match="a captured tensor: .*float32.* -> .*float64"):
        program(torch.ones(3))


def test_program_compiled_for_tensors_accepts_parameters() -> None:
    program = ftrain.compile(lambda x: x + 1, backend="eager").lower(torch.ones(3)).compile()
    assert torch.equal(program(nn.Parameter(torch.ones(3), False)), torch.full((3,), 2.0))


def test_donated_state_is_written_in_place_and_cannot_be_used_again() -> None:
    state, train_step = steps()
    x = torch.ones(4, 3)
    program = ftrain.compile(train_step, donate=True, backend="eager").lower(state, x).compile()
    places = [leaf.data_ptr() for leaf in ftrain.tree.leaves(state)]
    new, _ = program(state, x)
    assert [leaf.data_ptr() for leaf in ftrain.tree.leaves(new)] == places
    with pytest.raises(DonatedStateError):
        program(state, x)
    program(new, x)


def test_lowered_function_releases_its_arguments_once_it_is_compiled() -> None:
    x = torch.ones(3)
    reference = weakref.ref(x)
    lowered = ftrain.compile(lambda x: x + 1, backend="eager").lower(x)
    program = lowered.compile()
    del x
    gc.collect()
    assert reference() is None
    assert torch.equal(program(torch.ones(3)), torch.full((3,), 2.0))


def test_program_called_in_another_trace_becomes_part_of_that_trace() -> None:
    program = ftrain.compile(lambda x: x + 1, backend="eager").lower(torch.ones(3)).compile()
    outer = ftrain.compile(lambda x: program(x) * 2, backend="eager")
    assert torch.equal(outer(torch.ones(3)), torch.full((3,), 4.0))


def test_function_that_cannot_be_compiled_raises_in_lower() -> None:
    with pytest.raises(ImpureFunctionError):
        ftrain.compile(lambda x: x.add_(1), backend="eager").lower(torch.ones(3))


def test_function_without_operators_needs_no_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's compiler takes a second to load, and needs a C++ compiler."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("inductor was called")

    monkeypatch.setattr(_torch_inductor, "inductor_compile", fail)
    assert ftrain.compile(lambda x: {"n": x.ndim})(torch.ones(2, 3)) == {"n": 2}


def test_program_on_the_cpu_does_not_need_tritons_c_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = RuntimeError("Failed to find C compiler.")
    monkeypatch.setattr(_torch_inductor, "triton_error", lambda: missing)
    monkeypatch.setattr(_torch_inductor, "inductor_compile", lambda graph, *_: graph)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.delenv("CC", raising=False)
    assert ftrain.compile(lambda x: x + 1)(torch.ones(2)).tolist() == [2.0, 2.0]
