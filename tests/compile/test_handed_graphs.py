"""Graphs as they are handed to inductor, run operator by operator in its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

import ftrain
from ftrain.core import _torch_inductor
from ftrain.core.compile._inductor import ReadBeforeWrite
from ftrain.core.compile._lower import cloned, separate, shared_outputs
from ftrain.core.errors import CompilerMissingError
from ftrain.testing import assert_close_norm, assert_same_bits

aten = torch.ops.aten
X = torch.arange(6.0).reshape(2, 3)


class Handed:
    """Record of what inductor would compile; the graph itself runs in the place of machine code."""

    graph: fx.GraphModule
    config: dict[str, Any]

    def compile(self, graph: fx.GraphModule, tensors: Any, mode: Any, config: Any) -> Any:
        self.graph, self.config = graph, config
        return lambda *inputs: fx.Interpreter(graph).run(*inputs)

    def modules(self) -> list[fx.GraphModule]:
        return [m for m in self.graph.modules() if isinstance(m, fx.GraphModule)]

    def targets(self) -> list[Any]:
        return [node.target for module in self.modules() for node in module.graph.nodes]


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> Handed:
    found = Handed()
    monkeypatch.setattr(_torch_inductor, "inductor_compile", found.compile)
    return found


def looped(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], Any]:
    """Return a function that applies `fn` in the body of a loop, which is a module of its own."""
    return lambda x: ftrain.scan(lambda c, row: (c, fn(row)), x.sum(), torch.stack([x, x + 1]))


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


@pytest.mark.parametrize("wrap", [lambda fn: fn, looped], ids=["whole", "body of a loop"])
@pytest.mark.parametrize(
    ("fn", "n_left"),
    [
        (lambda x: torch.cat([empty(3, 0), x.t()], 1), 0),
        (lambda x: torch.cat([x.t(), empty(3, 0)], 1), 0),
        (lambda x: torch.cat([empty(2, 0, dtype=torch.float64), x], 1), 0),
        (lambda x: torch.cat([x, empty(2, 0), x], 1), 1),
        (lambda x: torch.cat([x, x]), 1),
        (lambda x: torch.cat([empty(2, 0), empty(2, 0)], 1) + x.sum(), 1),
    ],
    ids=["before", "after", "promoted", "two parts", "no empty part", "no part"],
)
def test_concatenation_with_one_part_that_is_not_empty_becomes_a_contiguous_copy(
    wrap: Any, fn: Any, n_left: int, handed: Handed
) -> None:
    expected = wrap(fn)(X)
    assert_same_bits(ftrain.compile(wrap(fn))(X), expected)
    assert handed.targets().count(aten.cat.default) == n_left
    for module in handed.modules():
        for copy in module.graph.find_nodes(op="call_function", target=aten._to_copy.default):
            assert copy.kwargs["memory_format"] is torch.contiguous_format


def test_concatenation_with_a_result_that_is_not_contiguous_is_kept(handed: Handed) -> None:
    images = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    found = ftrain.compile(lambda x: torch.cat([x]))(images)
    assert found.stride() == torch.cat([images]).stride() == images.stride()
    assert handed.targets().count(aten.cat.default) == 1


@pytest.mark.parametrize("pools", [True, False])
def test_convolution_of_one_channel_is_rewritten_if_vmapped_pooling_is(
    pools: bool, handed: Handed
) -> None:
    @torch.vmap
    @ftrain.value_and_grad
    def pooled(x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x.tanh(), 2).sin().sum()

    def fn(x: torch.Tensor, w: torch.Tensor) -> Any:
        return F.conv2d(x[0], w), pooled(x) if pools else x.sin()

    x, w = torch.randn(3, 2, 1, 6, 6), torch.randn(16, 1, 3, 3)
    assert_close_norm(ftrain.compile(fn)(x, w), fn(x, w), 1e-6)
    names = " ".join(map(str, handed.targets()))
    assert "max_pool2d" not in names
    assert ("convolution_of_one_channel" in names) is pools


def written_through_a_view(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(6) + x.sum()
    y.view(2, 3)[0] = 7.0
    return y


@pytest.mark.parametrize("wrap", [lambda fn: fn, looped], ids=["whole", "body of a loop"])
@pytest.mark.parametrize(
    ("fn", "n_views"),
    [
        (lambda x: x.sin().view(-1), 0),
        (lambda x: aten._unsafe_view.default(x.sin(), [6]), 0),
        (written_through_a_view, 1),
        (lambda x: written_through_a_view(x) * x.view(6), 1),
    ],
)
def test_views_are_handed_over_as_reshapes_except_those_that_are_written_to(
    wrap: Any, fn: Any, n_views: int, handed: Handed
) -> None:
    expected = wrap(fn)(X)
    assert_same_bits(ftrain.compile(wrap(fn))(X), expected)
    targets = handed.targets()
    assert sum(targets.count(each.default) for each in (aten.view, aten._unsafe_view)) == n_views


def test_graph_is_handed_over_without_tensors_that_no_operator_reads(handed: Handed) -> None:
    def fn(p: torch.Tensor, x: torch.Tensor) -> Any:
        constants = torch.tensor([1.0, 2.0]) * x
        return constants, ftrain.cond(p, lambda x: x.sum(), lambda x: torch.tensor(3.0), x)

    assert ftrain.compile(fn)(torch.tensor(False), torch.ones(2))[1] == 3
    kept = 0
    for module in handed.modules():
        read = {node.target for node in module.graph.find_nodes(op="get_attr")}
        held = {**vars(module), **module._parameters, **module._buffers}
        tensors = {name for name, value in held.items() if isinstance(value, torch.Tensor)}
        assert tensors <= read
        kept += len(tensors)
    assert kept


def test_constants_without_operators_do_not_need_inductor(handed: Handed) -> None:
    assert ftrain.compile(lambda x: (x.shape, 3))(X) == (X.shape, 3)
    assert not hasattr(handed, "graph")


def test_eager_program_keeps_no_traced_tensors() -> None:
    step = ftrain.compile(looped(torch.sin), backend="eager")
    lowered = step.lower(X)
    lowered.compile()
    modules = [m for m in lowered.graph.modules() if isinstance(m, fx.GraphModule)]
    assert len(modules) == 2
    assert not any(node.meta for module in modules for node in module.graph.nodes)


def test_wrappers_of_inductor_are_tried_once_and_then_skipped(
    handed: Handed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor's code empties the list of its arguments, and increases no version counters."""
    calls: list[str] = []
    faster: list[Any] = [None]

    def first_run(compiled: Any, inputs: Any) -> Any:
        calls.append("first")
        return compiled(*inputs), faster[0]

    monkeypatch.setattr(_torch_inductor, "first_run", first_run)
    plain = ftrain.compile(torch.sin)
    for _ in range(3):
        assert_same_bits(plain(X), X.sin())
    assert calls == ["first"]

    def code(args: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        calls.append("code")
        state, batch = args
        args.clear()
        with torch.no_grad():
            state.data.add_(batch)  # as machine code does: unseen by autograd
        return []

    faster[0] = code
    step = ftrain.compile(
        lambda state, batch: state.replace(params=state.params + batch), donate=True
    )
    state = ftrain.TrainState(*[()] * 7).replace(params=torch.zeros(3))
    batch = torch.ones(3)
    for i in range(3):
        place, version = state.params.data_ptr(), state.params._version
        state = step(state, batch)
        assert state.params.tolist() == [i + 1.0] * 3
        assert state.params.data_ptr() == place
        assert state.params._version > version
    assert batch._version == 0
    assert calls == ["first", "first", "code", "code"]


def test_first_outputs_that_share_memory_are_copied_in_every_call() -> None:
    x, y = torch.ones(3), torch.zeros(3)
    zero = torch._efficientzerotensor(3)
    outputs = [x, y, zero, y.view(3, 1), torch.empty(0), torch.empty(0), y + 1]
    shared = shared_outputs([x], outputs)
    run = separate(lambda inputs: outputs, shared)
    for results in (cloned(outputs, shared), run([x])):
        copied = [a is not b for a, b in zip(results, outputs, strict=True)]
        assert copied == [True, False, True, True, False, False, False]
        assert [t.tolist() for t in results] == [t.clone().tolist() for t in outputs]
        storages = [t.untyped_storage().data_ptr() for t in (x, *results) if t.numel()]
        assert len(set(storages)) == len(storages)
        results[2].add_(1)  # has memory


def test_outputs_in_separate_memory_are_returned_by_the_program_itself() -> None:
    run = lambda inputs: [inputs[0] + 1]  # noqa: E731
    outputs = [X + 1]
    shared = shared_outputs([X], outputs)
    assert separate(run, shared) is run
    assert cloned(outputs, shared)[0] is outputs[0]


def writing(fn: Callable[..., Any], *args: torch.Tensor) -> fx.GraphModule:
    """Return the graph of a function that ends by writing its results into its arguments."""
    module = make_fx(fn, tracing_mode="fake")(*args)
    graph = module.graph
    output = graph.output_node()
    with graph.inserting_before(output):
        for old, new in zip(graph.find_nodes(op="placeholder"), output.args[0], strict=True):  # type: ignore[arg-type]
            graph.call_function(aten.copy_.default, (old, new)).meta["val"] = old.meta["val"]
    output.args = ((),)
    return module


@pytest.mark.parametrize(
    ("fn", "n_clones"),
    [
        (lambda a, b: (a + b, a), 1),
        (lambda a, b: (b, a), 2),
        (lambda a, b: (b.sin(), a.view(6).view(2, 3)), 1),
        (lambda a, b: ((a + b).view(6).view(2, 3), b.exp()), 1),
        (lambda a, b: (a + b, a * b), 0),
    ],
)
def test_old_values_that_become_new_state_are_copied_before_the_first_write(
    fn: Any, n_clones: int
) -> None:
    a, b = X.clone(), X + 1
    expected = tuple(x.clone() for x in fn(a, b))
    graph = writing(fn, a, b)
    ReadBeforeWrite()(graph.graph)
    graph.graph.lint()
    nodes = list(graph.graph.nodes)
    writes = [i for i, node in enumerate(nodes) if node.target is aten.copy_.default]
    clones = [i for i, node in enumerate(nodes) if node.target is aten.clone.default]
    assert len(clones) == n_clones
    assert all(clone < writes[0] for clone in clones)
    assert all(nodes[i].meta["val"].shape == X.shape for i in clones)
    graph.recompile()
    graph(a, b)
    assert_same_bits((a, b), expected)


def test_programs_with_and_without_donation_have_different_keys_in_inductors_cache(
    handed: Handed,
) -> None:
    def step(state: Any, x: torch.Tensor) -> Any:
        return state.replace(params=state.params + x)

    state = ftrain.TrainState(*[()] * 7).replace(params=torch.zeros(3))
    keys = []
    for donate in (False, True):
        ftrain.compile(step, donate=donate)(state, torch.ones(3))
        keys.append(handed.config["post_grad_custom_post_pass"].uuid())
    assert keys[0] != keys[1]


class InvalidCxxCompiler(RuntimeError):
    """Error of the class that inductor raises if it finds no C++ compiler."""


class CppCompileError(RuntimeError):
    """Error of the class that inductor raises if the C++ compiler fails."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "installed", "missing"),
    [
        (InvalidCxxCompiler("none"), ["g++"], True),
        (caused(RuntimeError("backend"), InvalidCxxCompiler("none")), [], True),
        (FileNotFoundError("g++"), [], True),
        (caused(RuntimeError("backend"), FileNotFoundError("g++")), [], True),
        (FileNotFoundError("a.h"), ["g++"], False),
        (FileNotFoundError("a.h"), ["c++"], False),
        (FileNotFoundError("a.h"), ["clang++"], False),
        (caused(CppCompileError("a.cpp"), FileNotFoundError("a.h")), [], False),
        (RuntimeError("other"), [], False),
    ],
)
def test_error_of_inductor_is_about_a_missing_compiler_only_if_none_is_installed(
    error: Exception, installed: list[str], missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(_torch_inductor, "inductor_compile", fail)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in installed else None)
    expected = CompilerMissingError if missing else type(error)
    with pytest.raises(expected) as raised:
        ftrain.compile(torch.sin)(X)
    assert (raised.value if not missing else raised.value.__cause__) is error
