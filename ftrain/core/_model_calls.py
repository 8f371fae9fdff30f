"""Calls of a model at given parameters, gradients of such calls, and losses with their own gradients.

Read next: `_mean_loss.py`, which computes the gradient of a loss with these calls.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ftrain.core import random, tree
from ftrain.core._differentiate import differentiate, entry, outside_leaves_of
from ftrain.core._kept_graph import keeps_graph
from ftrain.core._loss import WatchedLoss, call_loss
from ftrain.core._lost_attributes import LostAttributes
from ftrain.core._words import kind
from ftrain.core._written_buffers import WrittenBuffers
from ftrain.core.compile._trace import unrecorded
from ftrain.core.functional import Bound
from ftrain.core.metrics import Metrics
from ftrain.core.precision import Policy

__all__ = ["ModelCalls", "OwnGradients", "Run", "Seed", "own_gradients"]

#: `(until, x) -> (value, aux)`; `until` must be passed to the calls of the model.
Run = Callable[[contextlib.ExitStack, Any], tuple[torch.Tensor, Any]]
_NOTHING = contextlib.nullcontext()
#: `aux -> cotangent`, the gradient with which the backward pass starts at the value.
Seed = Callable[[Any], torch.Tensor]


class ModelCalls:
    """Calls and gradients of `fn(model, part)` in training mode, at given parameters and buffers.

    Args:
        bound: the model.
        policy: the precision of the forward pass.
        written: a record of the buffers that the model writes to.
    """

    def __init__(self, bound: Bound, policy: Policy, written: WrittenBuffers | None = None) -> None:
        self._bound, self._policy, self._written = bound, policy, written
        # Sites already searched for parameters outside of the state.
        self._searched: set[str] = set()
        self._rerun: _Rerun | None = None

    def keyed(self, key: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        """Return a context in which calls of the model draw random numbers from `key`."""
        return random.keyed(key, self._bound.skeleton.module)

    def __call__(
        self,
        fn: WatchedLoss,
        params: Any,
        buffers: Any,
        key: torch.Tensor,
        part: Any,
        *,
        where: str,
        extras: Any = None,
        until: contextlib.ExitStack | None = None,
    ) -> tuple[Any, Any]:
        """Return `fn(model, part)` and the buffers after it; call this inside the context `keyed`.

        Args:
            fn: a function of the model and a part of a batch.
            params: the parameters in the model.
            buffers: the buffers before the call.
            key: the key of the call.
            part: the second argument of `fn`.
            where: the name of `fn` in messages.
            extras: the extras of the state, for an `fn` with a parameter of this name.
            until: as in `Bound.call`.
        """
        device, written, rerun = key.device.type, self._written, self._rerun
        if rerun is not None and rerun.thread == threading.get_ident():
            part, buffers = rerun.arguments(part, buffers)
        else:
            rerun = None

        def call(module: nn.Module) -> Any:
            with contextlib.nullcontext() if written is None else written.recording(module):
                return call_loss(fn, module, part, extras, self._policy, device, where, until)

        out, after = self._bound.call(call, params, buffers, True, until)
        if rerun is not None:
            rerun.after = after
        return out, after

    def gradients(
        self,
        run: Run,
        x: Any,
        key: torch.Tensor,
        where: str,
        seed: Seed | None = None,
        *,
        site: str | None = None,
    ) -> tuple[Any, Any]:
        """Call `run`; return its second result, and the gradients of the first one with respect to `x`.

        Args:
            run: a function `(until, x) -> (value, aux)` with calls of the model; the exit stack `until`
                is closed after the backward pass.
            x: a tree of floating-point tensors.
            key: the key of the calls.
            where: the name of the function in messages.
            seed: the cotangent of the value; `None`: 1.
            site: a name that is unique among the functions of these calls, while `where` may be the same
                for two functions from one line or factory; `None`: `where`.

        Raises:
            ValueError: the value depends on a tensor that requires a gradient and is not in `x`.
        """
        site = where if site is None else site
        # If graphs are kept, they may lead to other tensors than the parameters.
        is_searched = site in self._searched or keeps_graph()
        outside_leaves: list[torch.Tensor] | None = None if is_searched else []
        lost = None if is_searched else LostAttributes(self._bound.skeleton)
        until = contextlib.ExitStack()
        try:
            # Both contexts also cover the backward pass, in which a recomputed forward pass needs
            # weights and key.
            with lost.recorded() if lost else _NOTHING, self.keyed(key), until:
                _, aux, grads = differentiate(
                    functools.partial(run, until),
                    x,
                    seed=seed,
                    outside_leaves=outside_leaves,
                    name=where,
                )
        finally:
            if outside_leaves:
                until = contextlib.ExitStack()
                with unrecorded(), self.keyed(key), until:
                    again = outside_leaves_of(functools.partial(run, until), x)
                self._refuse_outside_leaves(outside_leaves, again, where)
        if lost:
            self._searched.add(site)
            lost.warn(functools.partial(self._again, run, x, key), where)
        return aux, grads

    def _again(self, run: Run, x: Any, key: torch.Tensor, buffers: Any) -> tuple[Any, Any]:
        """Call `run` again, with other buffers; return its results, and the buffers after it.

        If `buffers` is `None`, use the same buffers, but half the parameters and half the batch.
        """
        until, rerun = contextlib.ExitStack(), _Rerun(threading.get_ident(), buffers)
        self._rerun = rerun
        try:
            with torch.enable_grad(), self.keyed(key), until:  # a gradient may need other operators
                x = _halved(x) if buffers is None else x
                return run(until, tree.map(lambda leaf: entry(leaf, follow=False), x)), rerun.after
        finally:
            self._rerun = None

    def _refuse_outside_leaves(
        self, first: list[torch.Tensor], second: list[torch.Tensor], where: str
    ) -> None:
        """Raise if a loss depends on a tensor outside of the state that requires a gradient.

        `first` and `second` are the autograd leaves of two runs; a tensor that both contain was not made
        by a run.
        """
        made = {id(leaf) for leaf in first}
        for leaf in second:
            if id(leaf) in made:
                raise ValueError(
                    f"{where} reads a tensor that requires a gradient and is not in the state "
                    f"({kind(leaf)}): it would never be trained. "
                    f"{_remedy(self._bound.skeleton.stray_path(leaf), self._bound.own_name(leaf))}"
                )


@dataclasses.dataclass
class _Rerun:
    """Arguments for a loss that is called again to find out if it needs the model's attributes.

    Attributes:
        thread: the thread.
        buffers: the buffers with which the calls start; `None`: their own, and half of each batch.
        after: the buffers after the last call.
    """

    thread: int
    buffers: Any
    after: Any = None

    def arguments(self, part: Any, buffers: Any) -> tuple[Any, Any]:
        if self.buffers is not None:
            return part, self.buffers
        # On CUDA, an index that such a batch puts out of range would end the process's work there.
        is_on_cpu = all(t.device.type == "cpu" for t in tree.leaves(buffers) + _tensors(part))
        return (_halved(part) if is_on_cpu else part), buffers


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree.leaves(values) if isinstance(leaf, torch.Tensor)]


def _halved(values: Any) -> Any:
    """Return a tree with each floating-point tensor multiplied by 0.5."""
    return tree.map(
        lambda t: t * 0.5 if isinstance(t, torch.Tensor) and t.is_floating_point() else t, values
    )


def _remedy(path: str | None, name: str | None) -> str:
    """Return the remedy for a trainable tensor outside of the state, held by the model or captured.

    Args:
        path: its place in the model.
        name: its name, if it is a parameter of the module that was passed to `make_steps`.
    """
    if name is not None:
        where = "A function" if path is None else f"A function in the model (`{path}`)"
        return (
            f"{where} captures the parameter {name!r} of the module itself, and copies of the module "
            "have the same function. Write it as a method that reads it from self, or pass a function "
            "that builds the module: make_steps(lambda: Net(...), ...)."
        )
    if path is None:
        return (
            "Use the `model` argument instead of a captured module; call requires_grad_(False) on a "
            "tensor that stays constant (a teacher's)."
        )
    return (
        f"The model holds it as `{path}`, where it is not registered. Keep parameters in "
        "nn.ParameterList or nn.ParameterDict, and layers in nn.ModuleList or nn.ModuleDict, not in "
        "Python's own lists and dicts; call requires_grad_(False) on what stays constant."
    )


class OwnGradients(abc.ABC):
    """Loss function that computes its gradients itself, without ever building its whole graph.

    Called as a function, `loss_fn(model, batch)`, it has the same values and derivatives in one graph.
    """

    @abc.abstractmethod
    def __call__(self, model: Any, batch: Any) -> Any:
        """Return the loss, or the loss and metrics, like any loss function."""

    @abc.abstractmethod
    def forward_backward(
        self,
        calls: ModelCalls,
        params: Any,
        buffers: Any,
        key: torch.Tensor,
        batch: Any,
        seed: Seed,
    ) -> tuple[Any, Any, Metrics]:
        """Return gradients, the buffers after the forward pass, and metrics, of one batch.

        Args:
            calls: calls of the model.
            params: the parameters.
            buffers: the buffers before the forward pass.
            key: the key of the batch.
            batch: the batch.
            seed: `(buffers, metrics) -> cotangent` of the total loss.
        """


def own_gradients(loss_fn: Callable[..., Any]) -> OwnGradients | None:
    """Return the loss function if it computes its gradients itself (`OwnGradients`), else `None`."""
    if isinstance(loss_fn, WatchedLoss):
        loss_fn = loss_fn.function
    return loss_fn if isinstance(loss_fn, OwnGradients) else None
