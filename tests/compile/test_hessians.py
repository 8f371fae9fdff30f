"""Gradients of losses that contain second derivatives, as in physics-informed networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import ftrain
from ftrain.core.errors import TraceError
from tests.campaign import long
from tests.compile.cases import same_bytes

SECOND: dict[str, Callable[[Any], Any]] = {
    "hessian": hessian,
    "jacrev of jacrev": lambda u: jacrev(jacrev(u)),
    "jacrev of jacfwd": lambda u: jacrev(jacfwd(u)),
    "jacfwd of jacfwd": lambda u: jacfwd(jacfwd(u)),
    "jacrev of grad": lambda u: jacrev(grad(u)),
    "jacfwd of grad": lambda u: jacfwd(grad(u)),
}
XS = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
PARAMS = {
    "inner": torch.linspace(-1, 1, 15, dtype=torch.float64).cos().view(5, 3),
    "bias": torch.linspace(0, 1, 5, dtype=torch.float64),
    "outer": torch.linspace(1, 2, 5, dtype=torch.float64).sin(),
}


def squared_laplacian(second: str) -> Callable[[dict[str, Tensor]], Tensor]:
    def loss(p: dict[str, Tensor]) -> Tensor:
        def u(x: Tensor) -> Tensor:
            return torch.tanh(x @ p["inner"].T + p["bias"]) @ p["outer"]

        return vmap(lambda x: SECOND[second](u)(x).diagonal().sum())(XS).square().mean()

    return loss


def by_hand(p: dict[str, Tensor]) -> Tensor:
    """Return the same loss by the formula tanh'' = -2 tanh (1 - tanh^2)."""
    t = torch.tanh(XS @ p["inner"].T + p["bias"])
    curvature = p["inner"].square().sum(1) * p["outer"]
    return ((-2 * t * (1 - t**2)) @ curvature).square().mean()


#: Nestings that torch cannot trace (2.13).
REFUSED = {"jacfwd of jacfwd"}
REFUSED_IF_MAPPED = {"hessian", "jacfwd of jacfwd"}


def check_compiled(pulled: Callable[[Any], Any], params: Any, is_refused: bool) -> None:
    compiled = ftrain.compile(pulled, backend="eager")
    if is_refused:
        with pytest.raises(TraceError, match=r"for torch\.func\.hessian\(f\) write"):
            compiled(params)
    else:
        assert same_bytes(compiled(params), pulled(params))


@pytest.mark.parametrize("second", SECOND)
def test_compiled_gradient_through_second_derivatives_matches_the_formula(second: str) -> None:
    pulled = ftrain.value_and_grad(squared_laplacian(second))
    torch.testing.assert_close(pulled(PARAMS), ftrain.value_and_grad(by_hand)(PARAMS))
    check_compiled(pulled, PARAMS, second in REFUSED)


@pytest.mark.parametrize("second", SECOND)
def test_compiled_vmapped_gradient_through_second_derivatives_matches_or_raises(
    second: str,
) -> None:
    stacked = {name: torch.stack([p, 2 * p]) for name, p in PARAMS.items()}
    pulled = torch.vmap(ftrain.value_and_grad(squared_laplacian(second)))
    check_compiled(pulled, stacked, second in REFUSED_IF_MAPPED)


@pytest.mark.inductor
@long
def test_inductor_compiled_gradient_of_a_laplacian_matches_eager() -> None:
    pulled = ftrain.value_and_grad(squared_laplacian("hessian"))
    torch.testing.assert_close(ftrain.compile(pulled)(PARAMS), pulled(PARAMS))
