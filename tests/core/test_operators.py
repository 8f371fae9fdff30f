"""Operators of ftrain: fake tensors have the form of the result, and nothing else happens to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ftrain.core import _printing, random, tree
from ftrain.core._raise_nonfinite import require_finite
from ftrain.core._recomputation import start_recomputation
from ftrain.core.random import _bounded, _families, _jax_families, _jax_vectors

KEY = random.key(0)
#: Positive numbers below 1, in another order of memory than that of the dimensions.
X = torch.linspace(0.1, 0.9, 12, dtype=torch.float64).reshape(3, 4).T
YES, ONE, STEP = torch.ones(2, dtype=torch.bool), torch.tensor(1.0), torch.tensor(3)
OPERATORS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "print": (torch.ops.ftrain.print.default, (-1, [X])),
    "print_and_return": (torch.ops.ftrain.print_and_return.default, (-1, [ONE], X)),
    "require_finite": (require_finite, (YES, ONE, ONE, STEP, "[]")),
    "start_recomputation": (start_recomputation, (X, [ONE])),
    "gamma": (_families._gamma, (KEY, [], X)),
    "dirichlet": (_families._dirichlet, (KEY, [], X)),
    "poisson": (_families._poisson, (KEY, [], X)),
    "binomial": (_families._binomial, (KEY, [], X * 9, X)),
    "von_mises": (_families._von_mises, (KEY, [], X)),
    "gamma_slope": (_families._gamma_slope, (X, X)),
    "dirichlet_slope": (_families._dirichlet_slope, (X, X, X + 1)),
    "truncated_normal": (_jax_families.truncated_normal, (KEY, [], -X, X)),
    "gamma_draw": (_jax_families._gamma_draw, (KEY, [], X)),
    "log_gamma_draw": (_jax_families._log_gamma_draw, (KEY, [], X)),
    "poisson_draw": (_jax_families.poisson, (KEY, [], X, torch.int32)),
    "signs": (_jax_families.signs, (KEY, [], [3], torch.float64)),
    "row_share": (_jax_families.share, (X, X)),
    "uniform_between": (_bounded.uniform, (KEY, [], -X, X)),
    "randint_between": (_bounded.randint, (KEY, [], X.long(), X.long() + 9, torch.int16)),
    "log_weights": (_jax_families.log_weights, (X, 2)),
    "choice": (_jax_families.choice, (KEY, [], [2, 3], X[:, 0].contiguous())),
    "ball": (_jax_vectors.ball, (KEY, [], [2], torch.float32, 3, 2.0)),
    "row_softmax": (_jax_families.softmax, (X,)),
    "product": (_jax_vectors.product, (X[:, :, None].expand(4, 3, 3), X)),
}


@pytest.fixture(autouse=True)
def _line(monkeypatch: pytest.MonkeyPatch) -> None:
    _, treedef = tree.flatten(((X,), {}))
    line = _printing.Line("printed {}", treedef, (None,), (0,))
    monkeypatch.setitem(_printing._lines, -1, line)


@pytest.mark.parametrize("name", OPERATORS)
def test_fake_kernels_return_the_shape_dtype_and_strides_of_real_results_and_print_nothing(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    operator, args = OPERATORS[name]
    real = operator(*args)
    assert capsys.readouterr().out.startswith("printed") == name.startswith("print")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = tree.map(lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x, args)
        fake = operator(*given)
    assert capsys.readouterr().out == ""
    if real is None:
        assert fake is None
        return
    assert (fake.shape, fake.dtype) == (real.shape, real.dtype)
    assert fake.stride() == real.stride()


@pytest.mark.parametrize("mapped", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)])
def test_vmapped_require_finite_returns_true_for_each_finite_row(mapped: tuple[int, ...]) -> None:
    single = YES, ONE, ONE, STEP
    dims = tuple(0 if i in mapped else None for i in range(4))
    rows = [torch.stack([x, x, x]) if i in mapped else x for i, x in enumerate(single)]

    def run(*given: Tensor) -> Tensor:
        return require_finite(*given, "[]")

    assert torch.vmap(run, in_dims=dims)(*rows).tolist() == [True] * 3


def test_start_recomputation_passes_gradients_through_unchanged() -> None:
    for after in ([], [ONE], [ONE, STEP]):
        x = torch.ones(2, requires_grad=True)
        (start_recomputation(x, after) * 3).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [3, 3]
