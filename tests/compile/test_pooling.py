"""Max pooling written as pointwise operators, and the convolution of one channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import optim, testing, transforms, tree
from ftrain.core.compile._one_channel import convolve_channels_last, filters_of_one_channel
from ftrain.core.compile._pooling import BACKWARD, POOL, split_pools
from ftrain.tasks import models

INF, NAN = float("inf"), float("nan")


def pooled(x: torch.Tensor, weight: torch.Tensor, *options: Any) -> Any:
    """Return the pooled values, and the gradient of their weighted sum by the input."""

    def total(x: torch.Tensor) -> Any:
        y = F.max_pool2d(x * 1, *options)
        return (y * weight).sum(), y

    (_, y), slope = ftrain.value_and_grad(total, has_aux=True)(x)
    return y, slope


def rewritten(fn: Callable[..., Any], *inputs: torch.Tensor) -> tuple[Any, bool]:
    """Run the traced graph of a function after the rewriting; return the outputs, and if it changed."""
    graph = ftrain.compile(fn).graph(*inputs)
    changed = split_pools(graph.graph)
    graph.graph.lint()
    graph.recompile()
    left = [n for n in graph.graph.nodes if n.target in (POOL, BACKWARD)]
    assert not (changed and left)
    with torch.no_grad():
        return graph(*inputs), changed


@given(
    window=st.sampled_from([(2, 2), (3, 2), (1, 4), (4, 4)]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    few=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=6)
def test_rewritten_pooling_has_the_bytes_of_max_pool2d(
    window: tuple[int, int], dtype: torch.dtype, few: bool, seed: int
) -> None:
    """`few` draws of few values: windows have equal elements, infinities and NaNs."""
    g = torch.Generator().manual_seed(seed)
    shape = (3, 2, 4, 2 * window[0], 3 * window[1])
    x = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    if few:
        values = torch.tensor([-INF, -1.0, 0.0, 0.0, 2.0, 2.0, INF, NAN], dtype=dtype)
        x = values[torch.randint(len(values), shape, generator=g)]
    weight = torch.randn(3, 2, 4, 2, 3, generator=g, dtype=torch.float64).to(dtype)
    mapped = torch.vmap(lambda x, w: pooled(x, w, window))
    found, changed = rewritten(mapped, x, weight)
    assert changed
    testing.assert_same_bits(
        *(tree.map(without_payload, y) for y in (tuple(found), mapped(x, weight)))
    )


def test_rewritten_pooling_of_reshaped_images_has_the_bytes_of_max_pool2d() -> None:
    x, weight = torch.randn(3, 2, 4, 6, 6), torch.randn(3, 1, 8, 3, 3)

    def reshaped(x: torch.Tensor, weight: torch.Tensor) -> Any:
        def total(x: torch.Tensor) -> Any:
            y = F.max_pool2d((x * 1).reshape(1, 8, 6, 6), 2)
            return (y * weight).sum(), y

        (_, y), slope = ftrain.value_and_grad(total, has_aux=True)(x)
        return y, slope

    mapped = torch.vmap(reshaped)
    found, changed = rewritten(mapped, x, weight)
    assert changed
    testing.assert_same_bits(tuple(found), mapped(x, weight))


def without_payload(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose NaNs are one number, since their other bits have no meaning."""
    return x.nan_to_num(77.0, INF, -INF)


CASES: dict[str, tuple[Any, ...]] = {
    "overlapping windows": (3, 2),
    "gaps between windows": (2, 3),
    "padding": (2, 2, 1),
    "dilation": (2, 2, 0, 2),
    "rows left over": ((4, 2),),
    "columns left over": ((2, 4),),
    "padding of columns": (2, 2, (0, 1)),
    "too many elements": ((1, 17),),
}


@pytest.mark.parametrize("name", CASES)
def test_max_pooling_with_overlap_gaps_padding_or_dilation_is_not_rewritten(name: str) -> None:
    x = torch.randn(2, 3, 1, 6, 34)
    weight = torch.randn(F.max_pool2d(x[0], *CASES[name]).shape)
    mapped = torch.vmap(lambda x, w: pooled(x, w, *CASES[name]), in_dims=(0, None))
    found, changed = rewritten(mapped, x, weight)
    assert not changed
    testing.assert_same_bits(tuple(found), mapped(x, weight))


def test_max_pooling_without_gradient_or_vmap_or_with_used_indices_is_not_rewritten() -> None:
    x, weight = torch.randn(2, 3, 1, 6, 6), torch.randn(3, 1, 3, 3)

    def with_indices(x: torch.Tensor) -> Any:
        def total(x: torch.Tensor) -> Any:
            y, indices = F.max_pool2d(x * 1, 2, return_indices=True)
            return (y * y).sum(), indices

        (_, indices), slope = ftrain.value_and_grad(total, has_aux=True)(x)
        return slope, indices

    assert not rewritten(torch.vmap(lambda x: F.max_pool2d(x, 2)), x)[1]
    assert not rewritten(lambda x, w: pooled(x, w, 2), x[0], weight)[1]
    assert not rewritten(lambda x, w: pooled(x, w, 2), x[0, 0], weight[0])[1]
    graph = ftrain.compile(torch.vmap(with_indices)).graph(x)
    assert not split_pools(graph.graph)
    testing.assert_same_bits(tuple(graph(x)), torch.vmap(with_indices)(x))


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2}])
def test_convolution_of_one_channel_equals_conv2d_with_channels_last(
    layout: str, options: dict[str, Any]
) -> None:
    x, w = torch.randn(2, 1, 9, 8), torch.randn(16, 1, 3, 3)
    x = x if layout == "contiguous" else x.transpose(2, 3)
    graph = ftrain.compile(lambda x, w: F.conv2d(x, w, **options)).graph(x, w)
    convolve_channels_last(graph.graph)
    graph.recompile()
    assert "convolution_of_one_channel" in graph.code
    (found,) = graph(x, w)
    testing.assert_close_norm(found, F.conv2d(x, w, **options), 4e-7)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2}])
def test_gradient_of_filters_of_one_channel_equals_that_of_conv2d(
    layout: str, options: dict[str, Any]
) -> None:
    x, w = torch.randn(2, 1, 9, 8), torch.randn(16, 1, 3, 3)
    x = x if layout == "contiguous" else x.transpose(2, 3)

    def total(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, w, **options).sin().sum()

    graph = ftrain.compile(ftrain.value_and_grad(total)).graph(w, x)
    expected = graph(w, x)
    convolve_channels_last(graph.graph)
    graph.recompile()
    assert "filters_of_one_channel" in graph.code
    assert "convolution_backward" not in graph.code
    testing.assert_close_norm(tuple(graph(w, x)), tuple(expected), 4e-7)
    grad = torch.randn_like(F.conv2d(x, w, **options)).contiguous(memory_format=torch.channels_last)
    pair = [options.get(name, default) for name, default in _DEFAULTS.items()]
    stride, padding, dilation = ([n, n] for n in pair)
    found = filters_of_one_channel(grad, x, [*w.shape], stride, padding, dilation)
    (alone,) = torch.func.vjp(lambda w: F.conv2d(x.contiguous(), w, **options), w)[1](grad)
    # To the bit with oneDNN's kernels for AVX-512; those for AVX2 sum dilated ones in another order.
    testing.assert_close_norm(found, alone, 4e-7)


def test_gradient_of_images_of_one_channel_is_not_rewritten() -> None:
    x, w = torch.randn(2, 1, 9, 8), torch.randn(16, 1, 3, 3)
    both = ftrain.value_and_grad(lambda pair: F.conv2d(*pair).sin().sum())
    graph = ftrain.compile(both).graph((x, w))
    convolve_channels_last(graph.graph)
    assert graph.graph.find_nodes(
        op="call_function", target=torch.ops.aten.convolution_backward.default
    )


_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1}


@pytest.mark.inductor
def test_inductor_compiled_sweep_of_convolutional_networks_matches_single_runs() -> None:
    optimizer = optim.with_hyperparams(optim.sgd, learning_rate=0.1)
    base = ftrain.make_steps(
        models.LeNet5, lambda model, b: F.cross_entropy(model(b["x"]), b["y"]), optimizer
    )
    g = torch.Generator().manual_seed(0)
    batch = {"x": torch.randn(4, 1, 32, 32, generator=g), "y": torch.arange(4)}
    swept = transforms.sweep(base, 3)
    states, singles = swept.init_state(0), [base.init_state(i) for i in range(3)]
    step = ftrain.compile(swept.train_step, donate=True)
    for _ in range(5):
        states, _ = step(states, batch)
        singles = [base.train_step(state, batch)[0] for state in singles]
    for i, state in enumerate(singles):
        testing.assert_close_norm(transforms.member(states, i).params, state.params, 4e-6)
