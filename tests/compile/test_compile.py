"""The laws of `compile` on the eager backend: equal bytes, one program per input kind, purity."""

from __future__ import annotations

import sys
import threading
import warnings

import hypothesis.strategies as st
import pytest
import torch
import torch._inductor.config
from hypothesis import given, settings

from ftrain.core import tree
from ftrain.core.compile import compile
from ftrain.core.errors import RecompileWarning
from tests.compile.cases import Pair, apart, same_bytes, tensors, trees


def eager(fn, **options):
    return compile(fn, backend="eager", **options)


@given(trees(tensors()), trees(tensors()))
@settings(max_examples=20)
def test_compiled_identity_returns_equal_bytes_in_new_memory(x, y):
    compiled = eager(lambda x, *, y: {"both": (x, y), "again": x, "number": 3})
    for _ in range(2):
        output = compiled(x, y=y)
        assert same_bytes(output["both"], (x, y))
        assert same_bytes(output["again"], x)
        assert output["number"] == 3
        assert apart(output["both"], output["again"], x, y) or not apart(x, y)
    assert compiled.n_compiles == 1


@given(st.data(), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=15)
def test_compiled_function_equals_the_plain_one_and_keeps_its_inputs(data, n, m):
    x = data.draw(tensors((n, m), torch.float64))
    w = data.draw(tensors((m,), torch.float64))

    def fn(x, w):
        y = x * 2
        y.add_(w)  # in place on its own tensor is fine
        return {"y": y, "view": y[0], "base": x[:, 0], "t": x.t(), "wide": w.sum().expand(3)}

    compiled, before = eager(fn), tree.map(torch.clone, (x, w))
    for _ in range(2):
        output = compiled(x, w)
        assert same_bytes(output, fn(x, w))
        assert same_bytes((x, w), before)
        assert apart(output, x, w)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
@settings(max_examples=8)
def test_each_input_shape_compiles_one_program_and_reuses_it(sizes):
    compiled = eager(lambda x: x.sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecompileWarning)
        for size in sizes + sizes:
            compiled(torch.ones(size))
    assert compiled.n_compiles == len(set(sizes))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (
            {"x": torch.ones(8, 3)},
            {"x": torch.ones(7, 3)},
            "batch['x']: float32[8, 3] -> float32[7, 3]",
        ),
        (
            {"x": torch.ones(2)},
            {"x": torch.ones(2).double()},
            "batch['x']: float32[2] -> float64[2]",
        ),
        ({"x": torch.ones(2, 3)}, {"x": torch.ones(3, 2).t()}, "with strides [1, 2]"),
        ({"lr": 0.1}, {"lr": 0.2}, "batch['lr']: 0.1 -> 0.2"),
        ({"lr": 0.1}, {"lr": 0.2}, "torch.tensor(...)"),
        ({"n": 1}, {"n": True}, "batch['n']: 1 -> True"),
        ({"a": torch.ones(1)}, {"b": torch.ones(1)}, "batch['b'] is new"),
        ({"a": torch.ones(1)}, {"b": torch.ones(1)}, "batch['a'] is gone"),
        ({"a": [torch.ones(1)]}, {"a": (torch.ones(1),)}, "their structure"),
    ],
)
def test_recompilation_warns_and_names_the_argument_that_changed(first, second, said):
    compiled = eager(lambda batch: [x * 1 for x in tree.leaves(batch)])
    compiled(first)
    with pytest.warns(RecompileWarning) as caught:
        compiled(second)
    assert said in str(caught[0].message)
    assert "<lambda>" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert compiled.n_compiles == 2


def test_change_of_autocast_or_default_dtype_recompiles():
    compiled = eager(lambda x: x @ x + torch.zeros(2))
    x = torch.ones(2, 2)
    assert compiled(x).dtype == torch.float32
    with pytest.warns(RecompileWarning, match="autocast: "), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(x), x @ x + torch.zeros(2))
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.warns(RecompileWarning, match="default dtype"):
            assert compiled(x).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert compiled(x).dtype == torch.float32
    assert compiled.n_compiles == 3


def test_change_of_grad_mode_neither_recompiles_nor_changes_results():
    def fn(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad((x**3).sum(), x)[0]

    compiled = eager(fn)
    expected = compiled(torch.arange(3.0))
    assert not expected.requires_grad
    with torch.no_grad():
        assert same_bytes(compiled(torch.arange(3.0)), expected)
    with torch.inference_mode():
        output = compiled(torch.arange(3.0))
    assert same_bytes(output, expected)
    assert not output.is_inference()
    assert compiled.n_compiles == 1


def test_compiled_function_reads_captured_tensors_at_every_call():
    weight = torch.nn.Parameter(torch.ones(3))
    frozen = torch.tensor(2.0)
    compiled = eager(lambda x: x * weight * frozen + torch.tensor(1.0))
    assert compiled(torch.ones(3)).tolist() == [3.0, 3.0, 3.0]
    assert not compiled(torch.ones(3)).requires_grad
    frozen.fill_(5.0)
    assert compiled(torch.ones(3)).tolist() == [6.0, 6.0, 6.0]
    assert compiled.n_compiles == 1


def test_compiled_function_with_torch_func_and_autocast_equals_eager():
    def loss(w, x):
        with torch.autocast("cpu", torch.bfloat16):
            return torch.tanh(x @ w).float().square().sum()

    def fn(w, x):
        grads, value = torch.func.grad_and_value(loss)(w, x)
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, x)
        return value, grads, each

    w, x = torch.randn(3, 2), torch.randn(4, 3)
    assert same_bytes(eager(fn)(w, x), tree.map(torch.Tensor.detach, fn(w, x)))


def test_compiled_vmap_equals_eager_vmap():
    def step(state, x):
        return Pair(state.a + x, state.b * 2), x.sum()

    state = Pair(torch.randn(5), torch.randn(5, 2))
    mapped = torch.func.vmap(step)
    assert same_bytes(eager(mapped)(state, torch.ones(5)), mapped(state, torch.ones(5)))


def test_compiled_function_called_by_another_is_inlined_in_the_graph_of_the_outer_one():
    inner = eager(lambda x: x * 2)
    outer = eager(lambda x: inner(x) + inner(x))
    assert outer(torch.ones(2)).tolist() == [4.0, 4.0]
    assert (inner.n_compiles, outer.n_compiles) == (0, 1)


def test_gelu_stays_one_operator_in_the_traced_graph():
    graph = eager(lambda x: torch.ops.aten.gelu(x) + 1).graph(torch.ones(2))
    names = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    assert names.count("aten.gelu.default") == 1


def test_graph_method_of_a_compiled_function_compiles_no_program():
    compiled = eager(lambda x: x + 1)
    compiled.graph(torch.ones(2))
    assert compiled.n_compiles == 0


def test_compile_as_a_decorator_keeps_name_and_docstring():
    @compile(backend="eager")
    def double(x):
        """Twice."""
        return x * 2

    assert (double.__name__, double.__doc__) == ("double", "Twice.")
    assert double(torch.ones(1)).item() == 2.0


def test_compile_decorates_methods():
    class Scale:
        @compile(backend="eager")
        def run(self, x):
            return x * 3

    assert Scale().run(torch.ones(1)).item() == 3.0


def test_concurrent_threads_share_one_compiled_program():
    compiled = eager(lambda x: (x * 2).sum())
    found = []

    def work():
        for _ in range(20):
            found.append(compiled(torch.ones(4)).item())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [8.0] * 80
    assert compiled.n_compiles == 1


def test_compiled_function_accepts_parameters_under_no_grad():
    weight = torch.nn.Parameter(torch.ones(2))
    compiled = eager(lambda w: w * 2)
    with torch.no_grad():
        assert compiled(weight).tolist() == [2.0, 2.0]
        assert compiled(torch.ones(2)).tolist() == [2.0, 2.0]
    assert compiled.n_compiles == 1


@pytest.mark.inductor
def test_inductor_compilation_keeps_pythons_recursion_limit() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1500)  # inductor raises it to 2,000
    try:
        with torch._inductor.config.patch(force_disable_caches=True):
            compile(lambda x: x * 3)(torch.ones(2))
        assert sys.getrecursionlimit() == 1500
    finally:
        sys.setrecursionlimit(before)
