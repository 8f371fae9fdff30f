"""Transformations of training: functions from pure steps to pure steps.

    sweep(steps, over={...})         many runs in one graph, over seeds and hyper-parameters
    scan(train_step, k)              k steps in one call
    stoppable(steps)                 members that diverge or are pruned stay as they are
    grid  stack                      combinations of values; trees with a leading axis
    member  select  best             one, several, or the best member of a stacked state
    successive_halving  deactivate   prune the members of a sweep
    ensemble(predict)                mean prediction and disagreement of the members
    per_sample_grads                 the gradients of each example
    gradient_noise_scale  tracin     noise of gradients; influence of examples
    private_steps  private_gradients DP-SGD, on batches of poisson_sample
    dp_epsilon  dp_noise_multiplier  the guarantee of DP-SGD
    hessian_vector_product           also gauss_newton_ and fisher_vector_product: curvature
    hutchinson_trace  hutchinson_diagonal  top_eigenvalues  sharpness: curvature from products alone
    unroll(train_step, k)            k steps that can be differentiated: hypergradients, MAML
    differentiable(step)             a step whose results keep their graph
    implicit(condition, solution)    derivatives of a minimum; conjugate_gradients, neumann
    with_ema  with_target            averages and target networks in the state
    branch  interleave  alternate    the better of two steps; several tasks in turn; GANs
    from_gradients(gradients, ...)   a step from the gradients of with_sam, project_conflicts, ...

A training step is a function, so it composes like one: `scan(sweep(stoppable(steps), 8).train_step, 4)`.
Compile last. This package imports `core` and `optim` only. Start reading at `sweep.py`.
"""

from ftrain.transforms.accountant import dp_epsilon, dp_noise_multiplier
from ftrain.transforms.alternate import alternate
from ftrain.transforms.branch import branch
from ftrain.transforms.curvature import (
    fisher_vector_product,
    gauss_newton_vector_product,
    hessian_vector_product,
)
from ftrain.transforms.differentiable import differentiable
from ftrain.transforms.ensemble import EnsemblePrediction, ensemble
from ftrain.transforms.from_gradients import from_gradients
from ftrain.transforms.grid import grid
from ftrain.transforms.implicit import implicit
from ftrain.transforms.influence import tracin
from ftrain.transforms.interleave import interleave
from ftrain.transforms.linear_solvers import conjugate_gradients, neumann
from ftrain.transforms.members import best, member, select, stack
from ftrain.transforms.per_sample import GradientNoise, gradient_noise_scale, per_sample_grads
from ftrain.transforms.poisson_sample import PoissonSample, poisson_sample
from ftrain.transforms.private import private_gradients, private_steps
from ftrain.transforms.project_conflicts import project_conflicts
from ftrain.transforms.scan import scan
from ftrain.transforms.spectrum import (
    Eigenpairs,
    Estimate,
    hutchinson_diagonal,
    hutchinson_trace,
    sharpness,
    top_eigenvalues,
)
from ftrain.transforms.stoppable import deactivate, stoppable
from ftrain.transforms.successive_halving import successive_halving
from ftrain.transforms.sweep import sweep
from ftrain.transforms.unroll import detach_training, unroll
from ftrain.transforms.with_ema import with_ema
from ftrain.transforms.with_gradient_noise import with_gradient_noise
from ftrain.transforms.with_sam import with_sam
from ftrain.transforms.with_target import with_target

__all__ = [
    "Eigenpairs",
    "EnsemblePrediction",
    "Estimate",
    "GradientNoise",
    "PoissonSample",
    "alternate",
    "best",
    "branch",
    "conjugate_gradients",
    "deactivate",
    "detach_training",
    "differentiable",
    "dp_epsilon",
    "dp_noise_multiplier",
    "ensemble",
    "fisher_vector_product",
    "from_gradients",
    "gauss_newton_vector_product",
    "gradient_noise_scale",
    "grid",
    "hessian_vector_product",
    "hutchinson_diagonal",
    "hutchinson_trace",
    "implicit",
    "interleave",
    "member",
    "neumann",
    "per_sample_grads",
    "poisson_sample",
    "private_gradients",
    "private_steps",
    "project_conflicts",
    "scan",
    "select",
    "sharpness",
    "stack",
    "stoppable",
    "successive_halving",
    "sweep",
    "top_eigenvalues",
    "tracin",
    "unroll",
    "with_ema",
    "with_gradient_noise",
    "with_sam",
    "with_target",
]
