"""Peers that a hand-written loop calls: Fabric, Accelerate, TorchOpt and posteriors."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.contenders import (
    BETAS,
    EPS,
    Batch,
    compiled,
    initial_model,
    loss_under,
    split,
    torch_adamw,
)
from benchmarks.peers.loops import Loop, stepwise
from benchmarks.peers.trainers import LossModule, quiet
from benchmarks.peers.workloads import Workload
from ftrain import optim

__all__ = ["accelerate", "fabric", "posteriors", "torchopt"]


def fabric(work: Workload, backend: str | None) -> Loop:
    """Return a loop with the precision, backward pass and clipping of Lightning Fabric."""
    from lightning.fabric import Fabric  # noqa: PLC0415  # optional

    with quiet():
        peer = Fabric(accelerator="cpu", devices=1, precision=work.precision)
        model = LossModule(work, backend)
        wrapped, optimizer = peer.setup(model, torch_adamw(work.task(), model.model))

    def clip() -> None:
        peer.clip_gradients(wrapped, optimizer, max_norm=work.max_norm, error_if_nonfinite=False)

    return _by_hand(work, model, wrapped, optimizer, peer.backward, clip)


def accelerate(work: Workload, backend: str | None) -> Loop:
    """Return a loop with the precision, backward pass and clipping of Accelerate."""
    from accelerate import Accelerator  # noqa: PLC0415  # optional
    from accelerate.state import AcceleratorState  # noqa: PLC0415  # optional

    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision at a time
    mixed = "bf16" if work.precision == "bf16-mixed" else "no"
    peer = Accelerator(cpu=True, mixed_precision=mixed)
    model = LossModule(work, backend)
    parameters = list(model.parameters())
    wrapped, optimizer = peer.prepare(model, torch_adamw(work.task(), model.model))

    def clip() -> None:
        peer.clip_grad_norm_(parameters, work.max_norm)

    return _by_hand(work, model, wrapped, optimizer, peer.backward, clip)


def _by_hand(
    work: Workload,
    model: LossModule,
    wrapped: Any,
    optimizer: Any,
    backward: Callable[[torch.Tensor], object],
    clip: Callable[[], None],
) -> Loop:
    batches = itertools.cycle([split(batch, work.accumulate) for batch in work.task().batches])
    k = work.accumulate

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        model.seen.clear()
        for batch in next(batches):
            loss = wrapped(**batch)["loss"]
            backward(loss / k if k > 1 else loss)
        if work.clip:
            clip()
        optimizer.step()
        return model.seen[0] if k == 1 else torch.stack(model.seen).mean()

    return stepwise(step)


def torchopt(work: Workload, backend: str | None) -> Loop:
    """Return a loop with a functional optimizer of TorchOpt, which updates parameters in place."""
    import torchopt as peer  # noqa: PLC0415  # optional

    task, k = work.task(), work.accumulate
    model = initial_model(task)
    params = dict(model.named_parameters())
    loss_of = compiled(loss_under(task, model, work.precision), backend)
    optimizer = _torchopt_adamw(work)
    state = optimizer.init(params)
    batches = itertools.cycle([split(batch, k) for batch in task.batches])

    def step() -> torch.Tensor:
        nonlocal state
        total: Any = None
        grads: list[torch.Tensor] = []
        for batch in next(batches):
            loss = loss_of(batch) / k if k > 1 else loss_of(batch)
            found = torch.autograd.grad(loss, list(params.values()))
            if grads:
                torch._foreach_add_(grads, found)
                total += loss.detach()
            else:
                grads, total = list(found), loss.detach()
        updates, state = optimizer.update(
            dict(zip(params, grads, strict=True)), state, params=params, inplace=True
        )
        peer.apply_updates(params, updates, inplace=True)
        return total  # type: ignore[no-any-return]

    return stepwise(step)


def posteriors(work: Workload, backend: str | None) -> Loop:
    """Return a loop of `posteriors.torchopt`, which takes gradients by `torch.func`.

    `torch.compile` does not apply inside `torch.func`, and the transform has no micro-batches: the loss
    of the whole batch is one graph.
    """
    with quiet():
        import posteriors as peer  # noqa: PLC0415  # optional

    task = work.task()
    model = initial_model(task)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def log_posterior(params: Any, batch: list[Batch]) -> Any:
        new = {name: buffer.clone() for name, buffer in buffers.items()}

        def bound(x: torch.Tensor) -> Any:
            return torch.func.functional_call(model, {**new, **params}, (x,))

        loss_of = loss_under(task, bound, work.precision)
        losses = [loss_of(part) for part in batch]
        return (losses[0] if len(losses) == 1 else torch.stack(losses).mean()), new

    transform = peer.torchopt.build(log_posterior, _torchopt_adamw(work))
    state = transform.init(params)
    batches = itertools.cycle([split(batch, work.accumulate) for batch in task.batches])

    def step() -> Any:
        nonlocal state
        state, new = transform.update(state, next(batches))
        buffers.update(new)
        return state.loss

    return stepwise(step)


def _torchopt_adamw(work: Workload) -> Any:
    import torchopt as peer  # noqa: PLC0415  # optional

    adamw = peer.adamw(work.rate, BETAS, EPS, work.decay)
    if work.mask is optim.matrices:
        # `adamw(mask=...)` of TorchOpt 0.7.3 fails: 'MaskedNode' object has no attribute 'add'.
        decay = peer.base.GradientTransformation(
            lambda params: (), functools.partial(_decay_matrices, work.rate * work.decay)
        )
        adamw = peer.chain(peer.adam(work.rate, BETAS, EPS), decay)
    return peer.chain(peer.clip.clip_grad_norm(work.max_norm), adamw) if work.clip else adamw


def _decay_matrices(
    factor: float, updates: Any, state: Any, *, params: Any, inplace: bool = True
) -> Any:
    with torch.no_grad():
        new = {
            name: update.add(params[name], alpha=-factor) if update.ndim >= 2 else update
            for name, update in updates.items()
        }
    return new, state
