"""Wrappers around inductor code are skipped only if they changed nothing in the first run."""

from __future__ import annotations

import pytest
import torch
from torch._inductor.output_code import CompiledFxGraph

from ftrain.core import _torch_inductor


@pytest.fixture
def graph(monkeypatch):
    """Return custom code in the class through which inductor's code is called."""
    monkeypatch.setattr(CompiledFxGraph, "__call__", lambda self, args: self.current_callable(args))
    made = object.__new__(CompiledFxGraph)
    made.compiled_fn_runner = None
    made.current_callable = lambda args: (args[0] + 1,)
    return made


X = torch.ones(2)


def test_inductor_program_runs_without_its_wrappers_if_the_first_run_shows_that_they_change_nothing(
    graph,
):
    outputs, code = _torch_inductor.first_run(lambda *args: list(graph(list(args))), [X])
    assert outputs[0].tolist() == [2, 2]
    assert code is graph.current_callable


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda graph: lambda x: list(graph([x.clone()])),
        lambda graph: lambda x: [y.clone() for y in graph([x])],
        lambda graph: lambda x: [*graph([x]), x],
        lambda graph: lambda x: list(graph([*graph([x])])),
        lambda graph: lambda x: [x + 1],
    ],
    ids=["other input", "other output", "one output more", "two calls", "no call"],
)
def test_inductor_program_keeps_its_wrappers_if_one_changes_inputs_or_outputs_in_the_first_run(
    graph, wrapped
):
    usual = CompiledFxGraph.__call__
    _, code = _torch_inductor.first_run(wrapped(graph), [X])
    assert code is None
    assert CompiledFxGraph.__call__ is usual


def test_inductor_program_on_another_device_than_the_cpu_keeps_its_wrappers(graph):
    x = torch.ones(2, device="meta")
    outputs, code = _torch_inductor.first_run(lambda *args: list(graph(list(args))), [X, x])
    assert outputs[0].tolist() == [2, 2]
    assert code is None
