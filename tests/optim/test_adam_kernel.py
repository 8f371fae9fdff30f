"""The C library for Adam has the bits of torch's operators, and is used only where nothing sees them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import ftrain
from ftrain import optim, tree
from ftrain.core import _c_library
from ftrain.optim import _adam_kernel
from ftrain.testing import assert_same_bits

ADAM = sys.modules[optim.adam.__module__]
SIZES = {"large": (96, 128), "vector": (9001,), "small": (3, 5), "empty": (0, 2), "single": ()}
OPTIMIZERS = {
    "adam": optim.adam(0.1),
    "adamw": optim.adamw(optim.warmup_cosine(0.1, 2, 10), weight_decay=0.1),
    "far": optim.adamw(0.1, b1=0.5),
    "all decay": optim.adamw(0.1, weight_decay=0.1, mask=optim.everything),
    "tensors": optim.adamw(torch.tensor(0.1), torch.tensor(0.8), torch.tensor(0.9)),
    "scale_by_adam": optim.scale_by_adam(eps=0.0),
}


class Operators(TorchDispatchMode):
    """Counter of operators, which the library must leave to be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of leaves of each call of the library."""
    found: list[int] = []
    call = _adam_kernel.AdamKernel.__call__

    def counted(self: Any, leaves: Any, scalars: Any) -> Any:
        rows = call(self, leaves, scalars)
        if rows is not None:
            found.append(len(rows))
        return rows

    monkeypatch.setattr(_adam_kernel.AdamKernel, "__call__", counted)
    assert _adam_kernel.adam_kernel(ADAM._rule) is not None, "this machine has a compiler"
    found.clear()
    return found


def trees(layout: str = "contiguous", dtype: torch.dtype = torch.float32) -> tuple[Any, list[Any]]:
    """Return parameters and the gradients of three steps, some of which are zero or tiny."""
    generator = torch.Generator().manual_seed(0)

    def drawn(scale: float = 1.0) -> Any:
        made = {n: torch.randn(s, generator=generator) * scale for n, s in SIZES.items()}
        for name in ("large", "vector", "small"):
            made[name].view(-1)[:7] *= torch.tensor([0.0, 1e-30, 1e-20, 1e-38, 1e10, -0.0, 1e-8])
        if layout == "transposed":
            made = tree.map(lambda x: x.T.contiguous().T if x.ndim == 2 else x, made)
        return {n: x.to(dtype) for n, x in made.items()}

    params, grads = drawn(), [drawn(10.0**-i) for i in range(3)]
    if layout == "other gradients":
        grads = [tree.map(lambda g: g.T.contiguous().T if g.ndim == 2 else g, g) for g in grads]
    return params, grads


def steps(optimizer: Any, params: Any, grads: list[Any]) -> Any:
    state, updates = optimizer.init(params), []
    for grad in grads:
        update, state = optimizer.update(grad, state, params)
        updates.append(update)
    return updates, state


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ("contiguous", torch.float32),
        ("transposed", torch.float32),
        ("other gradients", torch.float32),
        ("contiguous", torch.bfloat16),
        ("contiguous", torch.float64),
    ],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_adam_has_the_bits_of_a_trace(
    name: str, layout: str, dtype: torch.dtype, calls: list[int]
) -> None:
    params, grads = trees(layout, dtype)
    before = tree.map(torch.clone, (params, grads))
    own = steps(OPTIMIZERS[name], params, grads)
    used = dtype is torch.float32 and layout != "other gradients"
    used = used and name != "far"  # b1 < 0.51
    assert calls == ([len(SIZES)] * 3 if used else [])
    assert_same_bits((params, grads), before)
    traced = ftrain.compile(
        lambda params, grads: steps(OPTIMIZERS[name], params, grads), backend="eager"
    )
    assert_same_bits(own, traced(params, grads))
    strides = tree.map(lambda x: x.stride(), own)
    with Operators() as seen:
        operators = steps(OPTIMIZERS[name], params, grads)
    assert seen.count > 100
    assert_same_bits(own, operators)
    assert strides == tree.map(lambda x: x.stride(), operators)


floats = st.floats(width=32, allow_subnormal=True)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(floats, floats, floats, floats), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.3, 0.5, 0.500001, 0.9, 1 - 2.0**-24]),
    st.sampled_from([0.0, 1e-8, 1.0]),
    st.sampled_from([0, 1, 10**6]),
)
def test_adam_of_any_numbers_has_the_bits_of_the_operators(
    rows: list[tuple[float, ...]], b1: float, eps: float, count: int
) -> None:
    g, p, m, v = torch.tensor(rows).T.contiguous()
    optimizer = optim.adamw(0.1, b1, eps=eps, weight_decay=0.1, mask=optim.everything)
    state = optimizer.init(p)._replace(mu=m, nu=v.abs(), count=torch.tensor(count))
    found = optimizer.update(g, state, p)
    with Operators():
        expected = optimizer.update(g, state, p)
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        # The payload and the sign of a NaN may differ.
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        signed = ~a.isnan() if a.is_floating_point() else torch.ones_like(a, dtype=torch.bool)
        assert torch.equal(a.signbit() & signed, b.signbit() & signed)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_number_of_threads_does_not_change_the_bits_of_adam(threads: int) -> None:
    before = torch.get_num_threads()
    x = torch.arange(100_003, dtype=torch.float32).sin()
    try:
        torch.set_num_threads(threads)
        found = steps(optim.adam(0.1), x, [x.flip(0), x.square()])
    finally:
        torch.set_num_threads(before)
    with Operators():
        assert_same_bits(found, steps(optim.adam(0.1), x, [x.flip(0), x.square()]))


CASES: dict[str, Callable[[torch.Tensor], Any]] = {
    "differentiated": lambda x: x.requires_grad_(),
    "negated view": torch._neg_view,  # type: ignore[dict-item]
    "expanded": lambda x: x[:1].expand(6),
    "strided": lambda x: x.repeat_interleave(2)[::2],
    "zero tensor": lambda x: torch._efficientzerotensor(6),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("place", ["gradient", "memory", "parameter"])
def test_adam_uses_operators_for_tensors_that_the_library_cannot_read(
    case: str, place: str, calls: list[int]
) -> None:
    if (case, place) == ("expanded", "memory"):
        pytest.skip("refused: new memory of that layout would overlap")
    optimizer = optim.adamw(0.1, mask=optim.everything)
    g, m, p = (torch.arange(1.0, 7.0) * k for k in (1, 2, 3))
    state = optimizer.init(p)
    special = CASES[case](torch.arange(1.0, 7.0))
    g = special if place == "gradient" else g
    p = special if place == "parameter" else p
    m = special if place == "memory" else m
    found = optimizer.update(g, state._replace(mu=m), p)
    assert not calls
    plain = [x.detach().resolve_neg().clone() + 0 for x in (g, m, p)]
    expected = optimizer.update(plain[0], state._replace(mu=plain[1]), plain[2])
    assert len(calls) == 1
    assert_same_bits(tree.map(lambda x: x.detach().contiguous(), found), expected)


def test_adam_uses_operators_where_a_transform_or_a_profiler_sees_them(calls: list[int]) -> None:
    optimizer, x = optim.adam(0.1), torch.arange(1.0, 7.0)
    state = optimizer.init(x)

    def update(g: torch.Tensor) -> torch.Tensor:
        return optimizer.update(g, state, x)[0]

    torch.vmap(update)(torch.stack([x, x]))
    torch.func.jvp(update, (x,), (x,))
    torch.func.grad(lambda g: update(g).sum())(x)
    torch.autograd.forward_ad.enter_dual_level()
    try:
        update(torch.autograd.forward_ad.make_dual(x, x))
    finally:
        torch.autograd.forward_ad.exit_dual_level()
    with torch.profiler.profile() as profile:
        update(x)
    assert not calls
    assert any(event.key == "aten::lerp" for event in profile.key_averages())


def test_training_step_of_adam_is_one_call_of_the_library(calls: list[int]) -> None:
    steps = ftrain.make_steps(
        torch.nn.Linear(3, 2), lambda m, x: m(x).square().mean(), optim.adamw(0.1)
    )
    state = steps.init_state(0)
    for _ in range(3):
        state, _ = steps.train_step(state, torch.ones(4, 3))
    assert calls == [2, 2, 2]


def test_adam_without_a_compiler_uses_operators(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    params, grads = trees()
    usual = steps(optim.adam(0.1), params, grads)
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("FTRAIN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(ADAM, "adam_kernel", _adam_kernel.adam_kernel.__wrapped__)
    assert ADAM.adam_kernel(ADAM._rule) is None
    assert_same_bits(usual, steps(optim.adam(0.1), params, grads))


def test_library_with_other_bits_than_the_operators_is_not_used() -> None:
    def rule(leaf: Any, **scalars: Any) -> Any:
        update, *moments = ADAM._rule(leaf, **scalars)
        return update.nextafter(update + 1), *moments

    assert _adam_kernel.adam_kernel(rule) is None


@pytest.mark.parametrize("extra", [("-march=native",), ()], ids=["no threads", "plain"])
def test_library_compiled_with_other_flags_has_the_same_bits(
    extra: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    params, grads = trees()
    usual = steps(optim.adam(0.1), params, grads)
    monkeypatch.setenv("FTRAIN_CACHE_DIR", str(tmp_path))
    found = _c_library.library(
        _adam_kernel._SOURCES,
        _adam_kernel.AdamKernel,
        lambda kernel: _adam_kernel._has_bits_of(ADAM._rule, kernel),
        _c_library.compiler(),
        extra,
    )
    monkeypatch.setattr(ADAM, "adam_kernel", lambda rule: found)
    assert_same_bits(usual, steps(optim.adam(0.1), params, grads))
