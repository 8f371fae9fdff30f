"""Each public function of `ftrain.transforms` on tensors compiles as one graph, with the eager bits."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, random, transforms
from ftrain.testing import assert_same_bits


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"])


STEPS = ftrain.make_steps(net, loss_fn, optim.with_hyperparams(optim.adam, learning_rate=0.02))
STATE, STATES = STEPS.init_state(0), transforms.sweep(transforms.stoppable(STEPS), 4).init_state(0)
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
BATCH = {"x": X, "y": torch.tensor([0, 1, 0, 1, 1, 0])}
MATRIX = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
LOSSES = torch.tensor([3.0, 1.0, torch.nan, 2.0])
GRAPHS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "best": (transforms.best, (STATES, LOSSES)),
    "conjugate_gradients": (
        lambda b: transforms.conjugate_gradients(lambda x: MATRIX @ x, b, iterations=2),
        (torch.ones(2),),
    ),
    "deactivate": (transforms.deactivate, (STATES, LOSSES > 1)),
    "detach_training": (transforms.detach_training, (STATE,)),
    "gradient_noise_scale": (
        lambda state, batch: transforms.gradient_noise_scale(
            transforms.per_sample_grads(net, loss_fn)(state, batch)
        ),
        (STATE, BATCH),
    ),
    "hutchinson_diagonal": (
        lambda params, key: transforms.hutchinson_diagonal(
            lambda v: transforms.hessian_vector_product(lambda p: p.pow(3).sum(), params, v),
            params, key, 2,
        ),
        (torch.ones(3), random.key(0)),
    ),
    "member": (lambda states: transforms.member(states, 1), (STATES,)),
    "neumann": (
        lambda b: transforms.neumann(lambda x: MATRIX @ x, b, terms=3), (torch.ones(2),)
    ),
    "private_gradients": (
        transforms.private_gradients(net, loss_fn, clip_norm=1.0, noise_multiplier=1.0),
        (STATE, BATCH),
    ),
    "select": (transforms.select, (STATES, torch.tensor([3, 1]))),
    "stack": (lambda batch: transforms.stack([batch, batch]), (BATCH,)),
    "successive_halving": (transforms.successive_halving, (LOSSES,)),
    "tracin": (
        lambda state, batch: transforms.tracin(net, loss_fn)([state] * 2, [0.1, 0.2], batch, batch),
        (STATE, BATCH),
    ),
}  # fmt: skip

#: Functions compiled by tests beside this one.
ELSEWHERE = {
    "test_alternate": {"alternate"},
    "test_curvature": {
        "fisher_vector_product", "gauss_newton_vector_product", "hessian_vector_product",
        "hutchinson_trace", "sharpness", "top_eigenvalues",
    },
    "test_differentiable": {"differentiable"},
    "test_implicit": {"implicit"},
    "test_members": {"ensemble"},
    "test_per_sample": {"per_sample_grads"},
    "test_poisson_sample": {"poisson_sample"},
    "test_private": {"private_steps"},
    "test_scan": {"scan"},
    "test_steps_out_of_steps": {
        "branch", "from_gradients", "interleave", "project_conflicts",
        "with_ema", "with_gradient_noise", "with_sam", "with_target",
    },
    "test_stoppable": {"stoppable"},
    "test_sweep": {"sweep"},
    "test_unroll": {"unroll"},
}  # fmt: skip
PYTHON_NUMBERS_ALONE = {"dp_epsilon", "dp_noise_multiplier", "grid"}


def test_each_public_function_of_tensors_is_compiled_by_a_test() -> None:
    functions = {n for n in transforms.__all__ if not isinstance(getattr(transforms, n), type)}
    assert functions == {*GRAPHS, *PYTHON_NUMBERS_ALONE}.union(*ELSEWHERE.values())
    folder = pathlib.Path(__file__).parent
    for file, names in ELSEWHERE.items():
        text = (folder / f"{file}.py").read_text(encoding="utf-8")
        assert "compile(" in text or "traced(" in text
        assert all(name in text for name in names)


@pytest.mark.parametrize("name", GRAPHS)
def test_compiled_function_has_the_bits_of_the_eager_one(name: str) -> None:
    fn, args = GRAPHS[name]
    compiled: Any = ftrain.compile(fn, backend="eager")
    assert_same_bits(compiled(*args), fn(*args))
    compiled(*args)
    assert compiled.n_compiles == 1
