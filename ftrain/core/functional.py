"""Modules and gradients as pure functions: `bind` and `value_and_grad`.

Read next: `accumulate.py`, which uses both for gradients over micro-batches.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ftrain.core import _torch, random, tree
from ftrain.core._aliases import aliases_of, refuse_graphs
from ftrain.core._differentiate import differentiate
from ftrain.core._hooks import Hooks, hooked, inputs_in_progress, note_call, parameter_hooks
from ftrain.core._loop_bodies import own_memory
from ftrain.core._loss_notes import note_arguments
from ftrain.core._not_copied import NotCopied
from ftrain.core._own_modes import in_training_mode
from ftrain.core._row_buffers import copy_of
from ftrain.core._skeleton import Skeleton, skeleton_of
from ftrain.core._structure import (
    Tensors,
    build,
    built_again,
    copied,
    fill,
    is_shared,
    named_tensors,
    read_tensors,
    refuse_inputs,
)
from ftrain.core._torch_levels import below
from ftrain.core._transform_errors import unbound
from ftrain.core._writes import unchanged_at_first
from ftrain.core.compile._trace import is_tracing
from ftrain.core.random._keyed_initializers import construct, observe
from ftrain.core.random._watch import Watch

__all__ = ["Bound", "bind", "value_and_grad"]


class Bound(NotCopied):
    """Module as a pure function of its tensors and a key; see `bind`.

    Attributes:
        constants: the names of buffers that no call changes.
    """

    constants: frozenset[str] = frozenset()

    def __init__(self, model: nn.Module | Callable[[], nn.Module]) -> None:
        self._start: nn.Module | None = model if isinstance(model, nn.Module) else None
        # The structure of a model does not depend on transforms, which refuse some initialisers of
        # parameters and, in a trace, nn.Parameter, which calls requires_grad_().
        is_transformed = _torch.inside_functorch() is not None
        try:
            with below() if is_transformed and is_tracing() else contextlib.nullcontext():
                self._bind(model)
        except (RuntimeError, NotImplementedError) as error:
            # Errors of these classes themselves are torch's; a user's builder is not called again.
            if not is_transformed or type(error) not in (RuntimeError, NotImplementedError):
                raise
            try:
                with below():
                    self._bind(model)
            except Exception as again:
                clearer = unbound(again)
                if clearer is again:
                    raise
                raise clearer from again

    def _bind(self, model: nn.Module | Callable[[], nn.Module]) -> None:
        if not isinstance(model, nn.Module):
            self._build = functools.partial(build, model)
            # `observe` records which parameter each initial draw fills, so that each draw gets its own
            # key.
            built, self._plan = observe(self._build)
            again = construct(lambda: built_again(self._build), random.key(0), self._plan)
            if again is built:  # the function returns the same module at each call
                self._start = built
            # A model may share parts with the caller: an activation at module level, a default argument,
            # a pretrained encoder. Shared parts keep their tensors; all others are initialized from the
            # key.
            self._shares = is_shared(built, again)
            if not self._shares:
                refuse_inputs(built, inputs_in_progress(), attributes=False)
                self._parameter_hooks = parameter_hooks(built)
                views = aliases_of(built)
                self.skeleton = Skeleton(built, again, self._parameter_hooks, views)
                self._watch = Watch(built)
                return
        else:
            built = model
        refuse_inputs(built, inputs_in_progress(), attributes=True)
        self._parameter_hooks = parameter_hooks(built)
        self.skeleton = skeleton_of(built)
        self._watch = Watch(self.skeleton.module)

    def init(self, key: torch.Tensor) -> tuple[Tensors, Tensors]:
        """Return initial values `(params, buffers)`.

        For a function that builds the model, the values are a pure function of `key` and of each
        parameter's path in the module tree: an additional layer does not change the values of other
        layers. For a module, they are copies of its tensors at the time of the call.

        Args:
            key: int32, shape (2,).
        """
        try:
            return self._initial(key)
        except Exception:
            if _torch.inside_functorch() is None:
                raise
            # Some constructors cannot run under vmap, because of `weight.data = ...` or loops that
            # depend on values.
            found = iter(_RowByRow.apply(self, key))  # type: ignore[no-untyped-call]  # torch's
            return (
                {name: next(found) for name in self.skeleton.trainable},
                {name: next(found) for name in self.skeleton.carried},
            )

    def _initial(self, key: torch.Tensor) -> tuple[Tensors, Tensors]:
        module = self._start
        if module is None:  # `or` would be wrong, because a module without children can be falsy
            module = construct(self._build, key, self._plan)
        if self.skeleton.settles:
            is_own = self._start is None and not self._shares
            module = in_training_mode(module if is_own else copied(module))
        found = read_tensors(module)
        for names, given in zip(
            (self.skeleton.trainable, self.skeleton.carried), found, strict=True
        ):
            if list(given) != names:
                raise ValueError(
                    "the model: expected the same trainable parameters, frozen parameters and buffers "
                    "as when it was bound, got others (these names are in only one of the two: "
                    f"{sorted(set(given) ^ set(names))[:5]}). Build the same layers each time, and do "
                    "not change a module after it was bound."
                )
        # Tied tensors have a single name, so these tensors share no memory.
        params, buffers = (tree.map(torch.clone, tensors) for tensors in found)
        return params, buffers

    def __call__(
        self,
        params: Tensors,
        buffers: Tensors,
        key: torch.Tensor,
        *args: Any,
        training: bool = True,
        **kwargs: Any,
    ) -> tuple[Any, Tensors]:
        """Call the module; return `(out, new_buffers)`, which share no memory with the arguments."""

        def run() -> tuple[Any, Tensors]:
            with random.keyed(key):
                try:
                    return self.call(
                        lambda module: module(*args, **kwargs), params, buffers, training
                    )
                except Exception as error:
                    note_arguments(error, args, kwargs)
                    raise

        # `keyed` raises for other keys.
        device = key.device if isinstance(key, torch.Tensor) else None
        return own_memory(self._watch(run, device), (params, buffers, args, kwargs))  # type: ignore[no-any-return]

    def call(
        self,
        fn: Callable[[nn.Module], Any],
        params: Tensors,
        buffers: Tensors,
        training: bool,
        until: contextlib.ExitStack | None = None,
    ) -> tuple[Any, Tensors]:
        """Call `fn` on the module with `params` and `buffers` installed; return `(out, new_buffers)`.

        The caller must be inside `keyed`, from which random operations draw. Buffers are copied first,
        so that a module does not write into the caller's. With `until`, the tensors stay installed until
        that stack is closed, for a backward pass that recomputes parts of the forward pass (activation
        checkpointing).
        """
        params = hooked(params, self._parameter_hooks)
        outlived = until is None and torch.is_grad_enabled()
        if until is None:
            note_call(self.skeleton)
            self.skeleton.has_left_graphs |= outlived
        with _torch.unwatched():
            written = self.skeleton.buffers
            fresh = {n: copy_of(b) if n in written else b.clone() for n, b in buffers.items()}
        with contextlib.ExitStack() as own:
            (until or own).enter_context(
                self.skeleton.holding(params, fresh, training, outlived=outlived)
            )
            out = fn(self.skeleton.module)
            now = self.skeleton.read(self.skeleton.carried)
            with _torch.unwatched():
                after = {name: b.detach() for name, b in now.items()}
            # A recomputed region writes to the buffers again, so the returned ones are copies.
            return out, tree.map(torch.clone, after) if until else after

    @property
    def hooks(self) -> Hooks:
        """The gradient hooks of the parameters, by parameter name."""
        return self._parameter_hooks

    def own_name(self, tensor: torch.Tensor) -> str | None:
        """Return the name of a tensor of the bound module; `None` if the module does not have it."""
        if self._start is None:
            return None
        named = named_tensors(self._start).items()
        return next((name for name, own in named if own is tensor), None)

    def dtypes(self) -> dict[str, torch.dtype]:
        """Return the dtype that each tensor of `params` has in the module, by name."""
        return {
            name: self.skeleton.module.get_parameter(name).dtype for name in self.skeleton.trainable
        }

    def module(self, params: Tensors, buffers: Tensors) -> nn.Module:
        """Return an nn.Module in eval mode with copies of `params` and `buffers`; weights stay tied."""
        tensors = self.skeleton.checked(params, buffers)
        own = self._start
        module = construct(self._build, random.key(0), self._plan) if own is None else own
        views = aliases_of(module) if self.skeleton.has_aliases else []
        if own is not None or self._shares:
            refuse_graphs(views)
            memo: dict[int, Any] = {}
            module = copied(module, memo)
            views = [(memo[id(view)], alias) for view, alias in views]
        if self.skeleton.settles:
            in_training_mode(module)
        fill(module, tensors, views)
        return module.eval()

    def __repr__(self) -> str:
        return f"bind({type(self.skeleton.module).__name__})"


class _RowByRow(torch.autograd.Function):
    """Autograd function whose vmap rule builds one module per key and stacks the initial tensors."""

    @staticmethod
    def forward(bound: Bound, key: torch.Tensor) -> tuple[torch.Tensor, ...]:
        params, buffers = bound._initial(key)
        return (*params.values(), *buffers.values())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[None, int], bound: Bound, key: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], int]:
        rows = [_RowByRow.apply(bound, row) for row in key.unbind(in_dims[1])]  # type: ignore[no-untyped-call]
        return tuple(torch.stack(column) for column in zip(*rows, strict=True)), 0


def bind(model: nn.Module | Callable[[], nn.Module] | Bound) -> Bound:
    """Return a module as a pure function, `apply(params, buffers, key, *args) -> (out, buffers)`.

    The module itself is never modified: calls use a private skeleton on the meta device. `params` are
    the parameters that require a gradient, `buffers` all other tensors of the module (statistics, frozen
    parameters). Tied weights have one name, the first. Every random draw is derived from `key`.
    Hooks that a parameter has at this time (`register_hook`) run on its gradient, once in each backward
    pass. In a step, this is the gradient of each micro-batch, multiplied by the loss scale.

    Python state of the module is restored after each call. Changes by a backward pass (hooks, autograd
    functions) are restored at its end inside `value_and_grad`; after a backward pass in user code they
    are restored at the next call, except for objects that user code can reach too.

    Args:
        model: an `nn.Module` (whose weights are the initial ones), or a function that builds one; a
            bound model is returned unchanged.

    Returns:
        `apply`, with `apply.init(key) -> (params, buffers)` for initial values and the argument
        `training=False` for evaluation.

    Raises:
        ValueError: the model is lazy; a parameter has a hook of `register_post_accumulate_grad_hook`, or
            one that captures a tensor of the module; in a call, the names of the tensors are not those
            of the model.
        ImpureFunctionError: in a call or in the backward pass, the model changed an object that is not
            part of its state and cannot be restored.

    >>> apply = bind(nn.Linear(3, 2))
    >>> params, buffers = apply.init(random.key(0))
    >>> out, buffers = apply(params, buffers, random.key(1), torch.ones(4, 3))
    >>> out.shape
    torch.Size([4, 2])
    """
    return model if isinstance(model, Bound) else Bound(model)


def value_and_grad(
    fn: Callable[..., Any], *, has_aux: bool = False, differentiable: bool = False
) -> Callable[..., tuple[Any, Any]]:
    r"""Return a function that computes the value of `fn` and its gradient, $\nabla_{x} f(x, \ldots)$.

    Gradients can be nested: the results can be differentiated with respect to every tensor that requires
    a gradient, or is tracked by a transform of torch.func, outside of the call: a leaf of `x`, another
    argument or a captured tensor. This also holds inside the bodies of `scan` and `cond` and inside
    `ftrain.compile`. Nothing is detached then. If there is no such tensor, or under `torch.no_grad()`,
    no graph is kept, and peak memory is that of `torch.autograd.grad`. (`torch.func.grad` always keeps
    one, pytorch#134612.) Hooks of the leaves of `x` run once for each gradient, but not inside
    `torch.compile`.

    Args:
        fn: `fn(x, *args) -> value`, or `-> (value, aux)` with `has_aux`; `x` is a tree of floating-point
            tensors, `value` 0-d and real, `aux` a tree of tensors. Gradients are with respect to `x`
            alone, even if `fn` captures the tensor that it is given as `x`.
        has_aux: True if `fn` returns `(value, aux)`.
        differentiable: True to keep the graph under `torch.no_grad()` as well. It has no other effect.

    Returns:
        A function `(x, *args) -> (value, grads)`, or `((value, aux), grads)`; `grads` has the tree,
        shapes and dtypes of `x`, and is zero where `fn` does not use a leaf.

    Raises:
        TypeError: a leaf of `x` is not floating-point; the value is not a 0-d real tensor.
        ValueError: the value does not depend on `x` through differentiable operations.
        ImpureFunctionError: `fn` writes into `x`. A write that torch does not count (through `.data` or
            a NumPy view) raises in the first call of the function's code.

    >>> value, grads = value_and_grad(lambda p: (p["w"] ** 2).sum())({"w": torch.tensor([1.0, 2.0])})
    >>> value, grads["w"]
    (tensor(5.), tensor([2., 4.]))

    A gradient of a gradient, by `torch.func.grad` or by this function again:

    >>> cube = lambda x: x**3
    >>> value_and_grad(lambda x: value_and_grad(cube)(x)[1])(torch.tensor(2.0))
    (tensor(12.), tensor(12.))
    """

    @functools.wraps(fn)
    def wrapped(x: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        def run(x: Any) -> tuple[torch.Tensor, Any]:
            out = fn(x, *args, **kwargs)
            return out if has_aux else (out, ())

        name = describe(fn)
        with unchanged_at_first(fn, x, name):
            value, aux, grads = differentiate(run, x, differentiable=differentiable, name=name)
        return ((value, aux) if has_aux else value), grads

    return wrapped


def describe(fn: Callable[..., Any]) -> str:
    """Return a function's name and source location, for messages."""
    inner = inspect.unwrap(fn)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    name = getattr(fn, "__qualname__", None) or getattr(inner, "__qualname__", type(inner).__name__)
    try:
        code = inner.__code__
    except AttributeError:
        return f"`{name}`"
    return f"`{name}` ({code.co_filename}:{code.co_firstlineno})"
