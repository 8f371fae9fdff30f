"""Gradients of matrix factorizations do not depend on layouts chosen by vmap or inductor.

A determinant of a matrix in row order factorizes the transpose, and its derivative solves with these
factors as the layout says; the layout that the derivative sees may be another one (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ftrain
from tests.campaign import choice
from tests.compile.cases import same_bytes

N = 4
W = torch.linspace(-1, 1, N * N, dtype=torch.float64).sin().view(N, N) + 2 * torch.eye(N)
RIGHT = torch.linspace(0, 1, N * N, dtype=torch.float64).cos().view(N, N)

#: Matrices made of a matrix, in row order, in column order and in neither.
MATRICES: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda w: w,
    "transposed": lambda w: w.mT,
    "scaled": lambda w: w.mT * 2 + 1,
    "sum": lambda w: w.mT * 2 + w,
    "copy": lambda w: (w.sin() + torch.eye(N)).mT.clone(),
    "product": lambda w: (w @ w.mT).mT * 2 + w,
    "columns": lambda w: torch.cat([w, w], 1)[:, :N].sin() + 2 * torch.eye(N),
    "stack": lambda w: torch.stack([w, w.mT * 3]),
    "expanded": lambda w: (w.mT + 1).expand(2, N, N),
}
FACTORIZED: dict[str, Callable[[Tensor], Tensor]] = {
    "det": torch.det,
    "slogdet": lambda w: torch.linalg.slogdet(w)[1],
    "solve": lambda w: torch.linalg.solve(w, RIGHT),
    "solve on the right": lambda w: torch.linalg.solve(w, RIGHT, left=False),
    "inv": torch.linalg.inv,
    "lu": lambda w: torch.linalg.lu_factor(w)[0],
    "lu_solve": lambda w: torch.linalg.lu_solve(*torch.linalg.lu_factor(w), RIGHT),
    "cholesky": lambda w: torch.linalg.cholesky(w @ w.mT),
    "qr": lambda w: torch.linalg.qr(w)[1],
    "solve_triangular": lambda w: torch.linalg.solve_triangular(w.triu(), RIGHT, upper=True),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda w: w,
    "columns": lambda w: w.mT.contiguous().mT,
    "strided": lambda w: torch.stack([w, w], -1)[..., 0],
}
#: Stacks of a matrix, each with another layout of its rows.
STACKS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda w: torch.stack([w, w]),
    "expanded": lambda w: w.expand(2, N, N),
    "sliced": lambda w: torch.stack([w, 2 * w, w])[::2],
    "second": lambda w: torch.stack([w, w], 1).transpose(0, 1),
    "last": lambda w: torch.stack([w, w], 2).permute(2, 0, 1),
    "of columns": lambda w: torch.stack([w.mT, w.mT]).mT,
    "expanded columns": lambda w: w.mT.contiguous().mT.expand(2, N, N),
}


def pulled(operation: str, matrix: str) -> Callable[[Tensor], Tensor]:
    """Return the gradient function of an operation on a matrix."""

    def value(w: Tensor) -> Tensor:
        return FACTORIZED[operation](MATRICES[matrix](w)).sin().sum()

    gradient = ftrain.value_and_grad(value)
    return lambda w: gradient(w)[1]


@pytest.mark.parametrize("operation", FACTORIZED)
@given(matrix=st.sampled_from([*MATRICES]), stack=st.sampled_from([*STACKS]))
def test_vmapped_matrix_gradients_match_single_gradients(
    operation: str, matrix: str, stack: str
) -> None:
    gradient = pulled(operation, matrix)
    expected = torch.autograd.functional.jacobian(
        lambda w: FACTORIZED[operation](MATRICES[matrix](w)).sin().sum(), W
    )
    torch.testing.assert_close(gradient(W), expected)
    for w in torch.vmap(gradient)(STACKS[stack](W)):
        torch.testing.assert_close(w, expected)


@pytest.mark.parametrize("operation", FACTORIZED)
def test_traced_matrix_gradients_equal_eager(operation: str) -> None:
    for matrix in MATRICES:
        gradient = pulled(operation, matrix)
        for transformed in (gradient, torch.vmap(gradient)):
            x = W if transformed is gradient else W.expand(2, N, N)
            assert same_bytes(ftrain.compile(transformed, backend="eager")(x), transformed(x)), (
                matrix
            )


@pytest.mark.inductor
def test_inductor_compiled_matrix_gradients_match_eager_for_any_layout() -> None:
    def gradients(x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            f"{operation} of {matrix} of {layout}": pulled(operation, matrix)(w)
            for layout, w in x.items()
            for operation in choice(["det", "solve"], ["det", "slogdet", "solve"])
            for matrix in ("sum", "copy")
        }

    x = {layout: LAYOUTS[layout](W) for layout in choice(["columns", "strided"], LAYOUTS)}
    torch.testing.assert_close(ftrain.compile(gradients)(x), gradients(x))
