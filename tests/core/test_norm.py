"""The global norm has torch's bits for ordinary values, and overflows only if the result does."""

from __future__ import annotations

import gc
import math
import threading
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from hypothesis import given
from hypothesis import strategies as st

import ftrain
from ftrain import optim
from ftrain.core import norm
from ftrain.core.norm import finite_norm, global_norm
from ftrain.testing import assert_same_bits

INF, NAN = math.inf, math.nan

compiled = ftrain.compile(finite_norm, backend="eager")
over_rows = ftrain.compile(torch.vmap(finite_norm), backend="eager")


@given(
    exponents=st.lists(st.integers(-44, 38), min_size=6, max_size=6),
    digits=st.lists(st.floats(1.0, 3.0, width=32), min_size=6, max_size=6),
    odd=st.sampled_from([None, None, INF, -INF, NAN, 0.0]),
)
def test_global_norm_matches_the_float64_norm_at_any_magnitude(
    exponents: list[int], digits: list[float], odd: float | None
) -> None:
    values = [digit * 10.0**e for digit, e in zip(digits, exponents, strict=True)]
    if odd is not None:
        values[2] = odd
    flat = torch.tensor(values)
    grads = {"w": flat[:4].reshape(2, 2), "b": flat[4:5], "c": flat[5]}
    found = finite_norm(grads)
    exact = flat.double().norm()
    assert bool(found.finite) == bool(torch.isfinite(flat).all())
    if odd is None or odd == 0.0:
        # Three roundings of sums of six, and of subnormal results half of the smallest number.
        assert abs(found.value.double() - exact) <= 1e-6 * exact + 1e-45 or exact > 3.4e38
    else:
        assert not torch.isfinite(found.value)
    if 1e-13 < exact < 1e18:
        assert_same_bits(found.value, torch.nn.utils.get_total_norm([*grads.values()]))
    assert_same_bits(compiled(grads), found)
    stacked = {name: torch.stack([x, torch.ones_like(x)]) for name, x in grads.items()}
    rows = torch.vmap(finite_norm)(stacked)
    assert_same_bits((rows.value[0], rows.finite[0]), tuple(found))
    assert_same_bits(over_rows(stacked), rows)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("other", [1.0, 1e-3])
def test_global_norm_gradient_is_the_unit_vector_at_any_magnitude(
    size: float, other: float
) -> None:
    x = torch.tensor([3.0 * size, 4.0 * size, other * size])
    unit = (x.double() / x.double().norm()).float()
    by_tape = torch.autograd.grad(global_norm([x.requires_grad_()]), x)[0]
    for found in (
        by_tape,
        torch.func.grad(lambda x: global_norm([x]))(x.detach()),
        ftrain.compile(torch.func.grad(lambda x: global_norm([x])), backend="eager")(x.detach()),
        torch.func.grad(lambda x: torch.vmap(lambda y: global_norm([y]))(x[None]).sum())(
            x.detach()
        ),
        torch.func.jacfwd(lambda x: global_norm([x]))(x.detach()),
    ):
        torch.testing.assert_close(found, unit, rtol=1e-6, atol=0.0)


def test_global_norm_of_float64_tensors_may_exceed_the_float32_range() -> None:
    x = torch.tensor([3e300, 4e300], dtype=torch.float64)
    assert global_norm([x]).item() == pytest.approx(5e300, rel=1e-15)
    assert global_norm([x / 1e300 / 1e300]).item() == pytest.approx(5e-300)
    assert global_norm([torch.tensor([3e30, 4e30], dtype=torch.bfloat16)]).dtype == torch.float32


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 120), (torch.float64, 1016)])
def test_global_norm_of_values_times_a_power_of_two_is_that_power_times_the_norm(
    dtype: torch.dtype, most: int
) -> None:
    """To the bit: neither squares nor the factor that avoids their underflow and overflow round."""
    x = torch.tensor([3.0, 4.7, 0.3, -1.1], dtype=dtype)
    powers = 2.0 ** torch.arange(-most, most + 1, 8, dtype=dtype)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            expected = global_norm([x[:1], x[1:]]) * powers
            found = torch.stack([global_norm([x[:1] * p, x[1:] * p]) for p in powers])
            assert_same_bits(found, expected)
            assert_same_bits(
                torch.vmap(lambda p: global_norm([x[:1] * p, x[1:] * p]))(powers), expected
            )


def test_norm_of_values_that_vmap_does_not_map_over_is_that_of_one_row() -> None:
    x = torch.tensor([3.0, 4.0])
    assert torch.vmap(lambda p: global_norm([x]) * p)(torch.arange(3.0)).tolist() == [
        0.0,
        5.0,
        10.0,
    ]
    assert torch.vmap(lambda p: finite_norm([x / p]).finite)(torch.arange(2.0)).tolist() == [
        False,
        True,
    ]


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_row_norms_are_the_norms_and_flags_of_each_row(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = {
        "w": torch.randn(4, 2, 3, generator=generator) * size,
        "b": torch.randn(4, generator=generator) * size,
    }
    rows["b"][1] = INF
    found = norm.row_norms(rows)
    each = [finite_norm({name: x[i] for name, x in rows.items()}) for i in range(4)]
    assert_same_bits(found.finite, torch.stack([one.finite for one in each]))
    torch.testing.assert_close(
        found.value, torch.stack([one.value for one in each]), rtol=4e-7, atol=0
    )


def test_kept_norm_is_not_read_outside_of_a_step_in_a_new_thread_either() -> None:
    found = []

    def run() -> None:
        grads = [torch.tensor([3.0, 4.0])]
        finite_norm(grads, keep=True)
        grads[0].data.mul_(2.0)  # a write that torch does not count
        found.append(global_norm(grads).item())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [10.0]


def test_norm_kept_for_one_optimizer_call_is_not_read_in_the_next() -> None:
    grads = [torch.tensor([3.0, 4.0])]
    for expected in (5.0, 10.0):
        with norm.shared_norm():
            assert finite_norm(grads, keep=True).value.item() == expected
        grads[0].data.mul_(2.0)  # a write that torch does not count


def test_norm_of_dual_tensors_without_grad_mode_has_the_tangent_of_the_norm() -> None:
    x, tangent = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])
    with torch.no_grad(), forward_ad.dual_level():
        value, found = forward_ad.unpack_dual(global_norm([forward_ad.make_dual(x, tangent)]))
    assert (value.item(), found.item()) == pytest.approx((5.0, 11 / 5))


def test_norm_of_a_tree_without_leaves_is_zero_and_finite() -> None:
    value, finite = finite_norm({"a": [], "b": None})
    assert (value.item(), finite.item()) == (0.0, True)
    assert (value.dtype, finite.dtype) == (torch.float32, torch.bool)


def steps(factor: float, optimizer: Any = None, **options: Any) -> Any:
    def loss_fn(model: Any, batch: Any) -> Any:
        return (model.weight * batch).sum() * factor

    optimizer = optimizer or optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(1.0))
    return ftrain.make_steps(
        lambda: torch.nn.Linear(2, 1, bias=False), loss_fn, optimizer, **options
    )


@pytest.mark.parametrize("how", ["eager", "compiled", "vmapped", "raise"])
def test_step_applies_finite_gradients_of_any_magnitude(how: str) -> None:
    made = steps(1e20, **({"nonfinite": "raise"} if how == "raise" else {}))
    state, step = made.init_state(0), made.train_step
    batch = torch.tensor([[3.0, 4.0]])
    if how == "compiled":
        step = ftrain.compile(step, backend="eager")
    if how == "vmapped":
        step = torch.vmap(step, in_dims=(0, None))
        state = ftrain.tree.map(lambda *rows: torch.stack(rows), state, made.init_state(1))
    new, metrics = step(state, batch)
    moved = (state.params["weight"] - new.params["weight"]).reshape(-1, 2)
    torch.testing.assert_close(
        moved, torch.tensor([[0.6, 0.8]]).expand_as(moved), rtol=0, atol=2e-7
    )
    assert metrics["skipped"].sum() == 0
    assert metrics["grad_norm"].reshape(-1)[0].item() == pytest.approx(5e20, rel=1e-6)


def test_infinite_gradients_skip_the_step() -> None:
    made = steps(1.0)
    _, metrics = made.train_step(made.init_state(0), torch.tensor([[INF, 1.0]]))
    assert metrics["skipped"].item() == 1
    inner = optim.skip_nonfinite(optim.sgd(1.0))
    params = {"w": torch.zeros(2)}
    _, state = inner.update({"w": torch.tensor([3e30, 0.0])}, inner.init(params), params)
    assert state.skipped.item() == 0
    _, state = inner.update({"w": torch.tensor([3e30, NAN])}, state, params)
    assert state.skipped.item() == 1


def test_train_step_computes_the_gradient_norm_once() -> None:
    """The reported norm and the clipping norm are one; a second `cond` would double the cost."""
    made = steps(1.0)
    graph = ftrain.compile(made.train_step).graph(made.init_state(0), torch.ones(1, 2))
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert names.count("cond") == 1
    del graph
    gc.collect()
    assert norm._latest._norm is None  # of a trace that is over


def test_eager_train_step_computes_the_gradient_norm_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, compute = [], norm._finite_norm

    def counted(leaves: list[torch.Tensor], rows: bool = False) -> norm.GlobalNorm:
        calls.append(len(leaves))
        return compute(leaves, rows)

    monkeypatch.setattr(norm, "_finite_norm", counted)
    made = steps(1.0)
    made.train_step(made.init_state(0), torch.ones(1, 2))
    assert len(calls) == 1
    assert norm._latest._norm is None  # of a step that is over
    grads = {"w": torch.ones(2)}
    assert global_norm(grads) == global_norm(grads)
    assert len(calls) == 3  # outside of a step, a caller may write to a leaf through .data
    with norm.shared_norm():
        assert finite_norm(grads, keep=True) is finite_norm(grads)
        grads["w"].mul_(2.0)
        assert global_norm(grads).item() == pytest.approx(2 * math.sqrt(2))
    assert len(calls) == 5


@pytest.mark.parametrize("backend", [None, "eager"])
@pytest.mark.parametrize("target", ["the norm", "a gradient"])
def test_clipping_computes_the_norm_again_after_a_write(target: str, backend: Any) -> None:
    """A link of the chain that writes in place must not change what a later link divides by."""

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if target == "the norm":
            global_norm(grads).mul_(2.0)
        else:
            grads["weight"].mul_(2.0)
        return grads, state

    writes = optim.GradientTransformation(lambda params: (), update)
    made = steps(1.0, optim.chain(writes, optim.clip_by_global_norm(0.5), optim.sgd(1.0)))
    state = made.init_state(0)
    step = ftrain.compile(made.train_step, backend=backend) if backend else made.train_step
    new, _ = step(state, torch.ones(1, 2))
    moved = global_norm(ftrain.tree.map(torch.sub, new.params, state.params))
    assert moved.item() == pytest.approx(0.5, rel=1e-5)


def test_compiled_norm_of_captured_gradients_follows_their_values() -> None:
    """The norm that a call of `gradients` stored for an optimizer is not a constant of the program."""
    made = steps(1.0)
    grads = made.train_step.gradients(made.init_state(0), torch.ones(1, 2)).grads
    compiled = ftrain.compile(lambda: global_norm(grads), backend="eager")
    assert compiled().item() == pytest.approx(math.sqrt(2))
    ftrain.tree.leaves(grads)[0].mul_(3.0)
    assert compiled().item() == pytest.approx(3 * math.sqrt(2))


def test_norm_of_one_trace_is_not_used_in_another() -> None:
    grads = [torch.tensor([3.0, 4.0])]

    def branches(x: torch.Tensor) -> torch.Tensor:
        own = [x]
        return ftrain.cond(x.sum() > 0, lambda: global_norm(own), lambda: x.sum()) + global_norm(
            own
        )

    for _ in range(2):  # two programs that capture the same tensor
        compiled = ftrain.compile(lambda x: global_norm(grads) * x, backend="eager")
        for n in (2, 3):
            assert compiled(torch.ones(n)).tolist() == [5.0] * n
    nested = ftrain.compile(branches, backend="eager")
    assert nested(torch.tensor([3.0, 4.0])).item() == 10.0
    with torch.inference_mode():
        inferred = torch.tensor([3.0, 4.0])
    assert finite_norm([inferred], keep=True).value.item() == 5.0


def test_norm_freed_while_it_is_looked_up_is_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaf = torch.tensor([3.0, 4.0])
    is_differentiated = norm._is_differentiated

    def collected(leaves: list[torch.Tensor]) -> bool:
        norm._latest.forget()  # as a garbage collection does
        return is_differentiated(leaves)

    with norm.shared_norm():
        finite_norm([leaf], keep=True)
        monkeypatch.setattr(norm, "_is_differentiated", collected)
        assert global_norm([leaf]).item() == 5.0
