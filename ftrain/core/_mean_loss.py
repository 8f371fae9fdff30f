"""Mean loss of a batch and its gradients, accumulated over micro-batches.

Read next: `accumulate.py`, the sum over micro-batches, `_model_calls.py`, the gradients of one of them,
and `gradients.py`, the first part of a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import random, tree
from ftrain.core._compares_rows import AccumulationWarning, is_declared
from ftrain.core._kept_graph import keeps_graph
from ftrain.core._loss import WatchedLoss, split_loss
from ftrain.core._model_calls import ModelCalls, own_gradients
from ftrain.core._torch import unwatched
from ftrain.core._written_buffers import WrittenBuffers
from ftrain.core.accumulate import (
    MicroBatches,
    PartFn,
    Separate,
    Stacked,
    Sums,
    accumulate_micro_batches,
    safe_weight,
    split_batch,
    sum_dtype,
    weighted,
)
from ftrain.core.functional import Bound, describe
from ftrain.core.metrics import BatchMean, Metrics
from ftrain.core.precision import LossScale, Policy
from ftrain.core.ranks import BuildRanks, Ranks
from ftrain.core.state import TrainState

__all__ = ["GradReduce", "MeanLoss"]

GradReduce = Callable[[Any, torch.Tensor], tuple[Any, torch.Tensor]]


class MeanLoss:
    """Mean loss of a batch at a state, and its gradients.

    Args:
        bound: the model.
        loss_fn: the loss of one micro-batch.
        policy: the precision of the forward pass.
        accumulate: the number of micro-batches of a batch.
        grad_reduce: as for `ftrain.gradients`.
        ranks: the ranks that share a batch.

    Attributes:
        policy: the precision of the forward pass.
    """

    def __init__(
        self,
        bound: Bound,
        loss_fn: WatchedLoss,
        policy: Policy,
        accumulate: int,
        grad_reduce: GradReduce | None,
        ranks: Ranks | None = None,
    ) -> None:
        self.policy = policy
        self._bound, self._loss_fn = bound, loss_fn
        self._accumulate, self._grad_reduce, self._ranks = accumulate, grad_reduce, ranks
        self._where = describe(loss_fn)
        self._written = None if ranks is None else WrittenBuffers()
        self._calls = ModelCalls(bound, policy, self._written)
        self._own = own_gradients(loss_fn)
        self._warn = AccumulationWarning(loss_fn.function)
        self._warn(accumulate)

    def over(self, build: BuildRanks, bound: Bound | None = None) -> MeanLoss:
        """Return this loss as the mean over a batch whose rows are divided among ranks.

        Args:
            build: returns the ranks that share a batch.
            bound: the model as a function of this rank's part of the parameters; default: of all.

        Raises:
            ValueError: the gradients are reduced already; the loss compares the rows of a batch.
        """
        if self._grad_reduce is not None or self._ranks is not None:
            raise ValueError(
                "steps: expected steps whose gradients are not reduced over ranks, got steps with "
                f"{'grad_reduce' if self._ranks is None else 'ranks'}. Reduce them in one place only."
            )
        ranks = build(self._bound.skeleton.module, self._accumulate)
        loss_fn = self._loss_fn
        if ranks.total > 1 and (is_declared(loss_fn.function) or self._own is not None):
            raise ValueError(
                f"loss_fn: expected a loss that is a mean over rows, got {self._where}, which compares "
                "the rows of a batch: each row would be compared with those of its rank and "
                "micro-batch only. Train it in one process, with tasks.grad_cache for large batches."
            )
        bound = self._bound if bound is None else bound
        return MeanLoss(bound, loss_fn, self.policy, ranks.parts, None, ranks)

    def value(self, state: TrainState, key: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return the mean loss, differentiable with respect to `state.params`."""

        def of_part(
            buffers: Any, key: torch.Tensor, part: Any, weight: torch.Tensor | None
        ) -> Sums:
            with random.keyed(key, self._bound.skeleton.module):
                total, metrics, buffers = self._forward(state.params, buffers, extras, key, part)
            loss = metrics.entries["loss"]
            loss = weighted(loss._replace(total=total.to(loss.weight.dtype)), weight)
            return Sums(loss.total, loss.weight, buffers, Metrics({}))

        def zero() -> torch.Tensor:
            return torch.zeros((), device=state.step.device)

        extras = self._extras(state)
        # Unrolled, because the caller may differentiate the sum.
        sums = self._summed(of_part, zero, state, key, batch, scans=False)
        mean: torch.Tensor = sums.totals / safe_weight(sums.weight)
        return mean

    def gradients(self, state: TrainState, key: torch.Tensor, batch: Any) -> Sums:
        """Return the mean loss's gradients, without loss scaling, and its weight, buffers and metrics.

        The gradients are the field `totals`, and have the dtypes of the parameters.
        """
        scale, inverse = None, None
        if self.policy.loss_scale is not None:
            scale, inverse = state.scaler.scale, LossScale.inverse(state.scaler)

        def of_part(
            buffers: Any, key: torch.Tensor, part: Any, weight: torch.Tensor | None
        ) -> Sums:
            grads, buffers, metrics = self._forward_backward(
                state.params, scale, buffers, extras, key, part, weight
            )
            entries = {name: weighted(x, weight) for name, x in metrics.entries.items()}
            weight = entries["loss"].weight
            if not is_mean:
                total = weight if self._ranks is None else self._ranks.shared_weight(weight)
                share = safe_weight(total)
                grads = tree.map(lambda g: g.to(sum_dtype(g.dtype)) * share, grads)
            return Sums(grads, weight, buffers, Metrics(entries))

        def finished(total: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
            grad = total if divisor is None else total / divisor
            if inverse is not None:
                grad = grad * inverse
            return grad if grad.dtype == param.dtype else grad.to(param.dtype)

        extras = self._extras(state)
        # Gradients of one micro-batch are those of its mean loss: neither weighted nor divided.
        ranks = self._ranks
        is_alone = ranks is None or (ranks.total == 1 and not ranks.cuts_whole)
        is_mean = self._is_whole(batch) and self._grad_reduce is None and is_alone

        def zeros() -> Any:
            return tree.map(lambda p: torch.zeros_like(p, dtype=sum_dtype(p.dtype)), state.params)

        sums = self._summed(of_part, zeros, state, key, batch, scans=True)
        if is_mean and inverse is None and self._own is None:
            return sums  # autograd has returned them in the dtypes of the parameters
        divisor = None if is_mean else safe_weight(sums.weight)
        return sums._replace(totals=tree.map(finished, sums.totals, state.params))

    def _extras(self, state: TrainState) -> Any:
        """Return `state.extras`, cast like the parameters, or `{}` if the loss does not read them."""
        return self.policy.cast(state.extras) if self._loss_fn.takes_extras else {}

    def _is_whole(self, batch: Any) -> bool:
        return self._accumulate == 1 and not isinstance(batch, MicroBatches)

    def _summed(
        self,
        of_part: PartFn,
        zeros: Callable[[], Any],
        state: TrainState,
        key: torch.Tensor,
        batch: Any,
        *,
        scans: bool,
    ) -> Sums:
        """Call `of_part` on each micro-batch, and sum the results over micro-batches and ranks."""
        ranks, written = self._ranks, self._written
        is_whole = self._is_whole(batch)
        if is_whole and ranks is None:
            sums = of_part(state.buffers, key, batch, None)
        else:
            if is_whole and not (ranks and ranks.cuts_whole):
                parts: Stacked | Separate = Separate((batch,))
            else:
                parts = split_batch(batch, self._accumulate)
            self._warn(parts.k)
            parts = parts if scans else parts.unstack()
            # Constant buffers stay outside of the loop, which copies its carry, once per row under vmap.
            names = self._bound.constants
            constants = {name: b for name, b in state.buffers.items() if name in names}
            carried = {name: b for name, b in state.buffers.items() if name not in names}

            def of_carried(
                buffers: Any, key: torch.Tensor, part: Any, weight: torch.Tensor | None
            ) -> Sums:
                sums = of_part({**constants, **buffers}, key, part, weight)
                return sums._replace(buffers={name: sums.buffers[name] for name in buffers})

            if ranks is None or written is None:
                keys = random.split(key, parts.k)
                sums = accumulate_micro_batches(of_carried, zeros(), carried, keys, parts)
            else:
                sums = ranks.summed(of_carried, zeros, carried, key, parts, written.names)
            after = {**constants, **sums.buffers}
            sums = sums._replace(buffers={name: after[name] for name in state.buffers})
        if self._grad_reduce is not None:
            totals, weight = self._grad_reduce(sums.totals, sums.weight)
            sums = sums._replace(totals=totals, weight=weight)
        return sums

    def _forward_backward(
        self,
        params: Any,
        scale: Any,
        buffers: Any,
        extras: Any,
        key: torch.Tensor,
        part: Any,
        weight: torch.Tensor | None,
    ) -> tuple[Any, Any, Metrics]:
        """Return gradients, buffers and metrics of one micro-batch.

        The gradients are those of the *mean* loss, times the loss scale: a sum would overflow float16.
        If the backward pass sums over ranks, the mean is over the micro-batches of all ranks.
        """

        def seed(aux: Any) -> torch.Tensor:
            loss = aux[1].entries["loss"]
            with unwatched():
                if type(loss) is BatchMean:  # of weight 1
                    cotangent = torch.ones_like(loss.total)
                else:
                    cotangent = safe_weight(loss.weight).reciprocal()
                if self._ranks is not None:
                    self._ranks.begin_backward(weighted(loss, weight).weight)
                if scale is not None:
                    cotangent = cotangent * scale
                return cotangent.to(loss.total.dtype)

        if self._own is not None and not keeps_graph():  # a kept graph needs one single function
            return self._own.forward_backward(self._calls, params, buffers, key, part, seed)

        def run(until: contextlib.ExitStack, params: Any) -> tuple[torch.Tensor, Any]:
            total, metrics, after = self._forward(params, buffers, extras, key, part, until)
            return total, (after, metrics)

        (after, metrics), grads = self._calls.gradients(run, params, key, self._where, seed)
        return grads, after, metrics

    def _forward(
        self,
        params: Any,
        buffers: Any,
        extras: Any,
        key: torch.Tensor,
        part: Any,
        until: contextlib.ExitStack | None = None,
    ) -> tuple[torch.Tensor, Metrics, Any]:
        """Return the total loss of one micro-batch, its metrics, and the buffers after it."""
        out, after = self._calls(
            self._loss_fn,
            params,
            buffers,
            key,
            part,
            extras=extras,
            where=self._where,
            until=until,
        )
        total, metrics = split_loss(out, self._where)
        return total, metrics, after
