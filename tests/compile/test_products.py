"""Matrix products through oneDNN: correct, deterministic, and used for large products only."""

from __future__ import annotations

import pytest
import torch

from ftrain.core import _torch, _torch_inductor
from ftrain.core.compile import compile
from ftrain.core.compile._products import LoopSmallProducts, OneDNNProducts

ROWS, IN, OUT = 96, 160, 192  # 5.9 MFLOP


@pytest.fixture
def onednn(monkeypatch):
    """Pretend that the processor is one on which oneDNN is faster."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(_torch_inductor, "is_amd_with_avx512", lambda: True)
    assert _torch_inductor.onednn_product() is not None


def linear_and_gradients(x, w, b, g):
    """Return the products of a linear layer and its gradients, and one with the larger factor first."""
    return x @ w.t(), torch.addmm(b, x, w.t()), g @ w, g.t() @ x, (x.t() @ g).t() + 1


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, IN), (OUT, IN), (OUT,), (ROWS, OUT)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def replaced(fn, args):
    with _torch.fake_mode() as mode:
        graph = _torch.trace(fn, [mode.from_tensor(x) for x in args])
        OneDNNProducts()(graph.graph)
    graph.graph.lint()
    return sum("ftrain.product" in str(node.target) for node in graph.graph.nodes), graph


@pytest.mark.usefixtures("onednn")
def test_large_products_replaced_by_onednn_match_within_rounding():
    args = inputs()
    count, graph = replaced(linear_and_gradients, args)
    assert count == 5
    graph.recompile()
    exact = linear_and_gradients(*[x.double() for x in args])
    sizes = linear_and_gradients(*[x.double().abs() for x in args])
    for found, true, size in zip(graph(*args), exact, sizes, strict=True):
        assert found.shape == true.shape
        # Higham (2002), 3.5: n products and n additions err by at most (n + 1) 2^-24 of the sum of
        # sizes, in any order. Factors rounded to bfloat16 would err by 2^-9 of it.
        assert ((found - true).abs() <= (OUT + 1) * 2**-24 * size).all()


@pytest.mark.usefixtures("onednn")
def test_onednn_product_with_a_larger_transposed_first_factor_adds_the_bias():
    generator = torch.Generator().manual_seed(0)
    shapes = [(IN, OUT), (IN, ROWS), (ROWS,)]
    args = [torch.randn(shape, generator=generator) for shape in shapes]

    def fn(x, w, b):
        return torch.addmm(b, x.t(), w)

    count, graph = replaced(fn, args)
    assert count == 1
    graph.recompile()
    # As above, for sums of IN products.
    error = (graph(*args) - fn(*[x.double() for x in args])).abs()
    assert (error <= (IN + 1) * 2**-24 * fn(*[x.double().abs() for x in args])).all()


@pytest.mark.usefixtures("onednn")
def test_small_or_float64_or_scaled_products_are_not_replaced_by_onednn():
    assert replaced(linear_and_gradients, inputs(torch.float64))[0] == 0
    assert replaced(lambda x, y: x @ y, [torch.ones(16, 16), torch.ones(16, 16)])[0] == 0

    def scaled(x, w, b, g):
        return torch.addmm(b, x, w.t(), alpha=2.0)

    assert replaced(scaled, inputs())[0] == 0


def test_onednn_replaces_matrix_products_only_on_amd_processors_with_avx512(monkeypatch):
    monkeypatch.setattr(_torch_inductor, "is_amd_with_avx512", lambda: False)
    assert replaced(linear_and_gradients, inputs())[0] == 0


def small_inputs(dtype):
    return [x[: x.shape[0] // 8, ..., : x.shape[-1] // 8] if x.ndim > 1 else x[:24]
            for x in inputs(dtype)]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_products_are_replaced_by_loops(dtype):
    args = [x.contiguous() for x in small_inputs(dtype)]
    with _torch.fake_mode() as mode:
        graph = _torch.trace(linear_and_gradients, [mode.from_tensor(x) for x in args])
        LoopSmallProducts()(graph.graph)
        graph.graph.lint()
    graph.recompile()
    assert not any("mm" in str(node.target) for node in graph.graph.nodes)
    for found, plain in zip(graph(*args), linear_and_gradients(*args), strict=True):
        torch.testing.assert_close(found, plain)


def test_bfloat16_and_larger_products_are_not_replaced_by_loops():
    for args in ([torch.ones(4, 4).bfloat16()] * 2, [torch.ones(32, 32)] * 2):
        with _torch.fake_mode() as mode:
            graph = _torch.trace(torch.mm, [mode.from_tensor(x) for x in args])
            LoopSmallProducts()(graph.graph)
        assert any("mm" in str(node.target) for node in graph.graph.nodes)


@pytest.mark.inductor
@pytest.mark.usefixtures("onednn")
def test_compiled_products_have_the_same_bits_at_every_call():
    args = inputs()
    step = compile(linear_and_gradients)
    first = step(*args)
    for plain, compiled in zip(linear_and_gradients(*args), first, strict=True):
        torch.testing.assert_close(compiled, plain)
    for _ in range(20):
        moved = [x.clone() for x in args]
        for a, b in zip(first, step(*moved), strict=True):
            assert a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8))
