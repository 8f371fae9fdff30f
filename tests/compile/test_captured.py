"""Compiled functions read the current values of captured tensors at each call."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from torch import nn

import ftrain
from ftrain.core.compile import _program, compile
from ftrain.core.errors import DonationError, RecompileWarning
from tests.compile.cases import Pair


@pytest.fixture(params=["torch's guard", "our guard"], autouse=True)
def guard(request, monkeypatch):
    if request.param == "our guard":
        monkeypatch.setattr(_program._torch, "tensor_guard", lambda tensors: None)


def eager(fn, **options):
    return compile(fn, backend="eager", **options)


def test_change_of_values_or_memory_of_a_captured_tensor_does_not_recompile():
    w = nn.Parameter(torch.ones(3))
    compiled = eager(lambda x: x * w)
    x = torch.ones(3)
    assert compiled(x).tolist() == [1.0] * 3
    with torch.no_grad():
        w.mul_(2)
    assert compiled(x).tolist() == [2.0] * 3
    w.data = torch.full((3,), 3.0)
    assert compiled(x).tolist() == [3.0] * 3
    w.data = torch.arange(6.0)[2:5]
    assert compiled(x).tolist() == [2.0, 3.0, 4.0]
    with torch.no_grad():
        assert compiled(x).tolist() == [2.0, 3.0, 4.0]
    with torch.inference_mode():
        assert compiled(x).tolist() == [2.0, 3.0, 4.0]
    assert compiled.n_compiles == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.resize_(2, 2), "a captured tensor: float32[2, 3] -> float32[2, 2]"),
        (lambda w: setattr(w, "data", torch.ones(2, 5)), "-> float32[2, 5]"),
        (lambda w: setattr(w, "data", w.data.double()), "-> float64[2, 3]"),
        (lambda w: w.t_().resize_(2, 3).t_().resize_(2, 7).fill_(3), "-> float32[2, 7]"),
        (lambda w: w.set_(torch.ones(3, 2).t()), "with strides [1, 2]"),
    ],
)
def test_captured_tensor_of_another_shape_dtype_or_layout_recompiles(change, said):
    w = torch.ones(2, 3)
    compiled = eager(lambda x: (x.to(w.dtype) @ w).sum(0))
    x = torch.ones(2, 2)
    compiled(x)
    change(w)
    with pytest.warns(RecompileWarning) as caught:
        found = compiled(x)
    assert said in str(caught[0].message)
    assert found.equal((x.to(w.dtype) @ w).sum(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(x).equal(found)
    assert compiled.n_compiles == 2


def test_captured_module_moved_to_another_dtype_recompiles():
    teacher = nn.Linear(4, 3).requires_grad_(False)
    compiled = eager(lambda x: teacher(x.to(teacher.weight.dtype)))
    x = torch.randn(2, 4)
    assert compiled(x).equal(teacher(x))
    teacher.double()
    with pytest.warns(RecompileWarning, match=r"float32\[3, 4\] -> float64\[3, 4\]"):
        assert compiled(x).equal(teacher(x.double()))


def test_captured_tensor_that_shares_memory_with_a_donated_state_raises():
    w = torch.ones(3)
    compiled = eager(lambda s: Pair(s.a + w, s.b), donate=True)
    state = compiled(compiled(Pair(torch.zeros(3), torch.zeros(1))))
    w.data = state.a
    with pytest.raises(DonationError, match="a captured"):
        compiled(state)


@pytest.mark.parametrize(
    "other",
    [
        lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(3)]),
        lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=torch.jagged),
        lambda: torch.ones(2, 3).to_sparse(),
        lambda: torch.ones(2, 3).to_sparse_csr(),
        lambda: torch.ones(2, 3).to_mkldnn(),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_function_refuses_unsupported_tensor_layouts_in_later_calls_too(other):
    compiled = eager(lambda x: x * 2)
    compiled(torch.ones(2, 3))
    with pytest.raises(TypeError, match="compiled functions take|not a subclass"):
        compiled(other())
    donated = eager(lambda s: Pair({"x": s.a["x"] + 1}, s.b), donate=True)
    state = donated(donated(Pair({"x": torch.ones(2, 3)}, torch.ones(1))))
    state.a["x"] = other()
    with pytest.raises(TypeError, match="compiled functions take|not a subclass"):
        donated(state)


def test_compiled_programs_keep_no_tensors_alive_except_captured_ones():
    w = torch.ones(3)

    def fn(x):
        for _ in range(30):
            x = torch.tanh(x) * w
        return x

    def tensors():
        gc.collect()
        return {id(t): t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)}

    compiled = eager(fn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecompileWarning)
        compiled(torch.ones(1, 3))
        before = tensors()  # kept, because torch drops some of earlier tests during this one
        for n in range(2, 7):
            compiled(torch.ones(n, 3))
        # For each program, the captured tensor as it is handed over.
        assert len(tensors().keys() - before.keys()) == 5


def captures(x):
    """Return a compiled function that captures `x`."""
    return eager(lambda y: x * y)(torch.ones(2))


INSIDE = {
    "itself": captures,
    "its square": lambda x: captures(x * x),
    "in a checkpointed region": ftrain.remat(captures),
    "in a loop": lambda x: ftrain.scan(lambda c, _: (c + captures(x), None), x * 0, length=2)[0],
    "in a branch": lambda x: ftrain.cond(torch.tensor(True), lambda: captures(x), lambda: x),
    "ahead of the call": lambda x: eager(lambda y: x * y).lower(x.detach()).compile()(x.detach()),
}


@pytest.mark.parametrize("within", INSIDE)
def test_captured_tensor_that_the_caller_differentiates_by_is_refused(within):
    def f(x):
        return (INSIDE[within](x) + x).sum()

    for differentiate in (
        ftrain.value_and_grad(f),
        lambda x: f(x.clone().requires_grad_()).backward(),
        lambda x: forward_derivative(f, x),
    ):
        with pytest.raises(
            (RuntimeError, TypeError), match="captures a tensor (that req|with a tan)"
        ):
            differentiate(torch.tensor([3.0, 4.0]))


def forward_derivative(f, x):
    with torch.autograd.forward_ad.dual_level():
        return f(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


def test_tensor_that_requires_a_gradient_after_the_first_call_is_refused():
    w = torch.ones(3)
    compiled = eager(lambda x: x * w)
    program = compiled.lower(torch.ones(3)).compile()
    compiled(torch.ones(3))
    w.requires_grad_()
    for call in (compiled, program):
        with pytest.raises(
            RuntimeError, match=r"captures a tensor that requires a gradient, .*\[3\]"
        ):
            call(torch.ones(3))
        with torch.no_grad():
            assert call(torch.ones(3)).tolist() == [1.0] * 3
    assert compiled.n_compiles == 1


def test_parameter_that_requires_a_gradient_is_taken_where_gradients_are_off():
    compiled = eager(lambda x: x * 2)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert compiled(nn.Parameter(torch.ones(3))).tolist() == [2.0] * 3


def test_freezing_captured_parameters_does_not_recompile():
    w = nn.Parameter(torch.ones(3))
    compiled = eager(lambda x: x * w)
    for trains in (True, False, True):
        w.requires_grad_(trains)
        assert compiled(torch.ones(3)).tolist() == [1.0] * 3
    assert compiled.n_compiles == 1


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
def test_captured_tensor_with_a_conjugate_or_negative_bit_has_its_values(backend):
    x = torch.tensor([1 + 2j, 3 - 1j])
    negative = x.conj().imag
    assert negative.is_neg()
    compiled = compile(lambda y: y + negative, backend=backend)
    assert compiled(torch.zeros(2)).tolist() == [-2.0, 1.0]
    x.mul_(2)
    assert compiled(torch.zeros(2)).tolist() == [-4.0, 2.0]
    for change in (torch.conj, torch._neg_view):
        w = torch.tensor([1 + 2j, 3 - 1j])
        compiled = compile(lambda y, w=w: y + w, backend=backend)
        for _ in range(3):
            assert compiled(torch.zeros(2, dtype=w.dtype)).tolist() == w.tolist()
            w.data = change(w.data)
        assert compiled.n_compiles == 1
