"""Steps whose results keep their autograd graph.

Read next: `unroll.py`, which differentiates through many steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from ftrain.core._kept_graph import keeping_graph
from ftrain.transforms._order import check_not_compiled

__all__ = ["differentiable"]

F = TypeVar("F", bound=Callable[..., Any])


def differentiable(step: F) -> F:
    """Return a step whose results are differentiable functions of its state and batch.

    Works on `train_step`, `eval_step`, the functions that `ftrain.gradients` returns, and functions of
    your own that call these, `ftrain.update` and `ftrain.commit`. The values are those of the step, to
    the bit. In `torch.no_grad` nothing is kept.

    The results depend on every floating-point leaf of state and batch: parameters (MAML),
    hyper-parameters that `optim.with_hyperparams` keeps in the optimizer's state, extras and batch
    entries that the loss reads (weights of losses and examples, augmentation), and tensors that the loss
    or the optimizer captures. Metrics keep their graph too. Buffers have no derivative, because torch
    computes none for the statistics of BatchNorm. A skipped step is the identity, and its derivative is
    that of the identity; its metrics have the derivative 0. If gradients are taken inside `torch.vmap`,
    those of a skipped row may be NaN instead.

    All optimizers of `ftrain.optim` except `from_torch` are differentiable. Where an algorithm compares
    or rounds, the derivative is that of the branch taken: `lion` and `rprop` step by signs, which have
    the derivative 0; `prodigy` and `lbfgs` select by comparisons. `muon` computes in bfloat16 by
    default, and so its derivatives; `optim.muon(rate, ns_dtype=None)` computes both in the dtype of the
    parameters. A hyper-parameter that only the optimizer's `init` reads, such as the learning rate of
    `rprop`, has the derivative 0 after `init`.

    Args:
        step: a function made of ftrain's pieces, not compiled. Compile the function that calls the
            result.

    Returns:
        A function with the arguments and results of `step`.

    Raises:
        TypeError: `step` is compiled.

    Example:
        >>> import ftrain, torch
        >>> from ftrain import optim
        >>> optimizer = optim.with_hyperparams(optim.sgd, learning_rate=0.1)
        >>> steps = ftrain.make_steps(
        ...     lambda: torch.nn.Linear(3, 1), lambda m, x: m(x).square().mean(), optimizer
        ... )
        >>> def validation_loss(rate, state, batch):
        ...     opt_state = optim.set_hyperparams(state.opt_state, learning_rate=rate)
        ...     state, _ = differentiable(steps.train_step)(state.replace(opt_state=opt_state), batch)
        ...     return differentiable(steps.eval_step)(state, batch)["loss"]
        >>> loss, hypergradient = ftrain.value_and_grad(validation_loss)(
        ...     torch.tensor(0.1), steps.init_state(0), torch.ones(4, 3)
        ... )
        >>> bool(hypergradient < 0)  # a larger rate would be better
        True
    """
    check_not_compiled("differentiable", step)

    @functools.wraps(step)
    def kept(*args: Any, **kwargs: Any) -> Any:
        with keeping_graph():
            return step(*args, **kwargs)

    return kept  # type: ignore[return-value]
