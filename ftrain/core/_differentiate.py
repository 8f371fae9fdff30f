"""Gradients of a function, with an autograd graph only if a caller could differentiate them again.

Read next: `_graph_leaves.py` (finds out if a caller could), `_hooks.py` (tensor hooks), `functional.py`
(the public interface).
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from ftrain.core import _torch, tree
from ftrain.core._accumulated import (
    accumulated,
    refuse_accumulated,
    refuse_called_backward,
    with_accumulated,
)
from ftrain.core._graph_leaves import (
    Survey,
    innermost,
    refuse_cuts,
    requires_grad_outside,
    survey,
    unknown_leaves,
)
from ftrain.core._hooks import Gradient
from ftrain.core._sums_in_order import adds_by_index, in_order
from ftrain.core._torch_checkpoint import around_regions
from ftrain.core._torch_levels import all_parts, n_mapped
from ftrain.core._torch_tensors import is_zero_tensor
from ftrain.core._transform_errors import no_second_derivative
from ftrain.core._user_line import user_line
from ftrain.core._write_line import with_line
from ftrain.core._writes import versions
from ftrain.core.compile._trace import is_tracing
from ftrain.core.errors import ImpureFunctionError

__all__ = ["differentiate", "entry", "outside_leaves_of"]

Run = Callable[[Any], tuple[torch.Tensor, Any]]
Checked = Callable[[list[torch.Tensor]], tuple[torch.Tensor, Any]]


def differentiate(
    run: Run,
    x: Any,
    *,
    seed: Callable[[Any], torch.Tensor] | None = None,
    differentiable: bool = False,
    outside_leaves: list[torch.Tensor] | None = None,
    name: str = "the function",
) -> tuple[torch.Tensor, Any, Any]:
    """Return value, auxiliary result and gradients of `run(x) -> (value, aux)`.

    The results keep their graph if a caller could differentiate them with respect to a leaf of `x` or a
    captured tensor that requires a gradient or that a transform of torch.func tracks. In
    `torch.no_grad` no caller can. With `differentiable` the results always keep their graph.

    Outside any transform this is plain `torch.autograd.grad`, whose memory and support (activation
    checkpointing, double backward) are the best there are. Under a transform it is `torch.func.vjp`.

    Args:
        seed: a function of `aux` that returns the cotangent of the value; `None`: 1.
        outside_leaves: a list to which this adds the leaves that the value depends on and `x` does not
            hold.
    """
    leaves, treedef = tree.flatten(x)
    _check_leaves(x, leaves)
    in_dynamo = torch.compiler.is_dynamo_compiling()
    before = [] if in_dynamo else versions(leaves)
    returned: list[None] = []  # an entry for each call that has returned

    def checked(inputs: list[torch.Tensor]) -> tuple[torch.Tensor, Any]:
        try:
            value, aux = run(tree.unflatten(treedef, inputs))
        except RuntimeError as error:
            if "leaf Variable that requires grad" not in str(error):
                raise
            raise _writes(name, user_line(traceback.extract_tb(error.__traceback__))) from error
        if not in_dynamo and (after := versions(leaves)) != before:
            written = next(t for t, a, b in zip(leaves, before, after, strict=True) if a != b)
            raise with_line(_writes(name, tensor=written), lambda: run(x))
        _check_value(value, name)
        if leaves and not value.requires_grad:
            raise _independent(name)
        returned.append(None)
        return value, aux

    if in_dynamo:
        value, aux, grads = _by_dynamo(checked, leaves, seed)
    else:
        by = _by_vjp if _torch.inside_functorch() else _by_autograd
        # Checkpointed regions run plainly under transforms, which allow them no hooks.
        try:
            with around_regions(lambda: contextlib.nullcontext):
                value, aux, surveyed = by(
                    checked, leaves, seed, differentiable, outside_leaves, name
                )
        except RuntimeError as error:
            if returned and "differentiated Tensors does not require grad" in str(error):
                raise _turned_off(name) from error
            if (refusal := no_second_derivative(error)) is None:
                raise
            raise refusal from error
        grads = _filled(leaves, surveyed, name)
    return value, aux, tree.unflatten(treedef, grads)


def entry(leaf: torch.Tensor, follow: bool) -> torch.Tensor:
    """Return a new tensor object that requires a gradient and has the values of `leaf`.

    A function may capture the very tensor that it receives as an argument: the derivative is with
    respect to the argument alone.

    Args:
        follow: keep the path back to `leaf`, if that requires a gradient.
    """
    if leaf.is_inference():
        return leaf.clone().requires_grad_()  # autograd takes no inference tensors
    if follow and leaf.requires_grad:
        return leaf.view_as(leaf)
    if _torch.is_dual(leaf):
        value, tangent = forward_ad.unpack_dual(leaf)  # type: ignore[no-untyped-call]
        with torch.no_grad():  # the new value is a leaf, but the tangent keeps its graph
            leaf = forward_ad.make_dual(value.detach(), tangent)  # type: ignore[no-untyped-call]
        return leaf.requires_grad_()
    return leaf.detach().requires_grad_()


def outside_leaves_of(run: Run, x: Any) -> list[torch.Tensor]:
    """Return the autograd leaves outside of `x` that the value of `run(x)` depends on."""
    leaves, treedef = tree.flatten(x)
    with torch.enable_grad():
        inputs = (
            leaves if _torch.inside_functorch() else [entry(leaf, follow=False) for leaf in leaves]
        )
        value, _ = run(tree.unflatten(treedef, inputs))
    return unknown_leaves([innermost(value)], inputs)


def _entries(leaves: list[torch.Tensor], follow: bool) -> list[torch.Tensor]:
    if not follow and not _torch.is_forward_mode():
        with contextlib.suppress(RuntimeError), _torch.unwatched():  # an inference tensor
            return [leaf.detach().requires_grad_() for leaf in leaves]
    return [entry(leaf, follow) for leaf in leaves]


def _by_autograd(
    checked: Checked,
    leaves: list[torch.Tensor],
    seed: Callable[[Any], torch.Tensor] | None,
    differentiable: bool,
    outside_leaves: list[torch.Tensor] | None,
    name: str,
) -> tuple[torch.Tensor, Any, Sequence[torch.Tensor | None]]:
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return _by_autograd(checked, leaves, seed, differentiable, outside_leaves, name)
    outside = torch.is_grad_enabled()
    with _torch.unwatched():
        require = any(leaf.requires_grad for leaf in leaves)
    given = require and (outside or differentiable)
    with torch.enable_grad(), Gradient() as gradient:
        inputs = _entries(leaves, given)
        gradient.begin(zip(inputs, leaves, strict=True))
        if require:
            gradient.copy_hooks()
        start = _torch.sequence_number()
        tensors = [*leaves, *inputs, *gradient.outer_inputs()] if given else []
        grads_before = accumulated(tensors)
        with _one_thread() if outside else contextlib.nullcontext():
            value, aux = checked(inputs)
        if not given:
            refuse_called_backward(inputs, name)
        if outside_leaves is not None:
            outside_leaves += unknown_leaves([value], inputs, ends=inputs)
        cotangent = None if seed is None else seed(aux)
        keep = differentiable or given
        if outside or keep or _must_survey(outside_leaves):
            results = [value] if cotangent is None else [value, cotangent]
            surveyed = survey(_with_tangents(results), inputs, start)
            auxiliary = survey(_with_tangents(_tensors(aux)) if outside else (), inputs, start)
            keep = keep or (outside and (surveyed.outside or auxiliary.outside))
            refuse_cuts(surveyed, keep, name)
        with gradient.backward(), in_order(adds_by_index([value])):
            grads: Sequence[torch.Tensor | None] = leaves and torch.autograd.grad(
                value, inputs, cotangent, create_graph=keep, allow_unused=True
            )
        if given:
            refuse_accumulated(grads_before, tensors, name)
        elif keep:
            refuse_accumulated([(None, 0)] * len(inputs), inputs, name)
        else:
            grads = with_accumulated(grads, inputs)
    if leaves and all(grad is None for grad in grads):
        raise _independent(name)
    if not keep:
        value = _without_graph(value)
        aux = tree.map(lambda t: _without_graph(t) if isinstance(t, torch.Tensor) else t, aux)
    return value, aux, grads


def _without_graph(tensor: torch.Tensor) -> torch.Tensor:
    """Detach a tensor from the autograd graph, but keep its tangent, which `detach()` would drop."""
    if not _torch.is_dual(tensor):
        return tensor.detach() if tensor.requires_grad else tensor
    value, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return forward_ad.make_dual(value.detach(), tangent.detach())  # type: ignore[no-any-return, no-untyped-call]


def _one_thread() -> contextlib.AbstractContextManager[None]:
    """Run backward passes in the calling thread, because autograd numbers its nodes per thread."""
    return torch.autograd.set_multithreading_enabled(False)


def _by_vjp(
    checked: Checked,
    leaves: list[torch.Tensor],
    seed: Callable[[Any], torch.Tensor] | None,
    differentiable: bool,
    outside_leaves: list[torch.Tensor] | None,
    name: str,
) -> tuple[torch.Tensor, Any, Sequence[torch.Tensor | None]]:
    outside = torch.is_grad_enabled()
    surveyed, is_mapped, adds = Survey(), n_mapped() > 0, False

    def looked_at(inputs: list[torch.Tensor]) -> tuple[torch.Tensor, Any]:
        nonlocal surveyed, adds
        gradient.begin(zip(inputs, aliases, strict=True))
        gradient.copy_hooks()
        value, aux = checked(inputs)
        if outside or is_mapped or _must_survey(outside_leaves):
            surveyed = survey([value], inputs)
        adds = adds_by_index([value])
        return value, aux

    with Gradient() as callers, Gradient() as gradient:
        # Callers differentiate by aliases; the hooks of a model run on these in their backward passes.
        aliases = [
            leaf.view_as(leaf) if outside and requires_grad_outside(leaf) else leaf
            for leaf in leaves
        ]
        pairs = zip(aliases, leaves, strict=True)
        callers.begin((alias, leaf) for alias, leaf in pairs if alias is not leaf)
        callers.copy_hooks()
        # Only autograd's record shows other tensors: the transforms treat them as constants.
        with torch.set_grad_enabled(outside or outside_leaves is not None):
            value, pull, aux = torch.func.vjp(looked_at, aliases, has_aux=True)
        if outside_leaves is not None:
            outside_leaves += unknown_leaves([innermost(value)], ())
        cotangent = torch.ones_like(value) if seed is None else seed(aux)
        keep = outside and (
            differentiable or requires_grad_outside(value) or requires_grad_outside(cotangent)
        )
        refuse_cuts(surveyed, keep, name)
        # Without grad mode torch solves with the factors of the matrix or of its transpose, as the
        # layout says; `torch.vmap` shows another one to the backward pass than the forward pass had
        # (2.13: another gradient for an expanded or sliced stack of matrices).
        by_formula = keep or (is_mapped and bool(surveyed.determinants))
        with torch.set_grad_enabled(by_formula), gradient.backward(), in_order(adds):
            (grads,) = pull(cotangent)
    return value, aux, grads if keep or not by_formula else [grad.detach() for grad in grads]


def _by_dynamo(
    checked: Checked,
    leaves: list[torch.Tensor],
    seed: Callable[[Any], torch.Tensor] | None,
) -> tuple[torch.Tensor, Any, list[torch.Tensor]]:
    """Differentiate with `torch.func.vjp`, which Dynamo can trace.

    Unlike `_by_autograd`, it runs no tensor hooks, and keeps the graph except under `torch.no_grad`.
    """
    value, pull, aux = torch.func.vjp(checked, leaves, has_aux=True)
    (grads,) = pull(torch.ones_like(value) if seed is None else seed(aux))
    return value, aux, grads


def _must_survey(outside_leaves: list[torch.Tensor] | None) -> bool:
    """Return True if this call must search its autograd graph for operators without a derivative.

    That is so in the first call of a step, which passes `outside_leaves`, and in every trace.
    """
    return outside_leaves is not None or is_tracing()


def _tensors(aux: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree.leaves(aux) if isinstance(leaf, torch.Tensor)]


def _with_tangents(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the tensors and, in forward mode, their tangents, whose autograd graphs may differ."""
    if not _torch.is_forward_mode():
        return tensors
    return [part for tensor in tensors for part in all_parts(tensor)]


def _check_leaves(x: Any, leaves: list[Any]) -> None:
    if not torch.compiler.is_dynamo_compiling():
        with _torch.unwatched():
            if all(isinstance(leaf, torch.Tensor) and leaf.is_floating_point() for leaf in leaves):
                return
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor) or not (
            leaf.is_floating_point() or leaf.is_complex()
        ):
            path = tree.paths(x)[index]
            kind = leaf.dtype if isinstance(leaf, torch.Tensor) else type(leaf).__name__
            raise TypeError(
                f"cannot differentiate with respect to {path or 'the argument'}: expected a "
                f"floating-point tensor, got {kind}. Pass integers and masks in another argument."
            )


def _filled(
    leaves: list[torch.Tensor], grads: Sequence[torch.Tensor | None], name: str
) -> list[torch.Tensor]:
    """Replace by zeros each gradient that is `None`, or a tensor without memory as of `torch.sgn`."""
    filled = []
    with _torch.unwatched():
        for leaf, grad in zip(leaves, grads, strict=True):
            if grad is None or is_zero_tensor(grad):
                filled.append(torch.zeros_like(leaf))
            elif grad.layout != leaf.layout:
                raise TypeError(_other_layout(leaf, grad, name))
            else:
                filled.append(grad)
    return filled


def _other_layout(leaf: torch.Tensor, grad: torch.Tensor, name: str) -> str:
    """Describe a gradient that is sparse and whose argument is dense, or the other way round."""
    if leaf.layout is torch.strided:
        return (
            f"a gradient of {name} is sparse: expected {leaf.layout}, got {grad.layout}. Create the "
            "layer with sparse=False (nn.Embedding, nn.EmbeddingBag)."
        )
    return (
        f"a gradient of {name} by a sparse argument: expected {leaf.layout}, as the argument's, got "
        f"{grad.layout}. Pass a dense argument, x.to_dense(), and convert it in the function, "
        f"x.to_sparse(layout={leaf.layout})."
    )


def _writes(name: str, line: str = "", tensor: torch.Tensor | None = None) -> ImpureFunctionError:
    captured = ", or into a captured tensor that requires a gradient" if line else ""
    error = ImpureFunctionError(
        f"{name} writes into its argument{captured}",
        "Write the out-of-place form: x = x + 1, not x += 1 or x.add_(1).",
        tensor,
    )
    return error.at(line) if line else error


def _turned_off(name: str) -> ValueError:
    return ValueError(
        f"{name} turned off requires_grad of a tensor that its gradient is taken by: expected it to "
        "require a gradient until the end. Freeze parameters where the model is built, "
        "requires_grad_(False), or in the optimizer, ftrain.optim.freeze(optimizer, pattern); to cut a "
        "single path of the gradient, detach() the input or turn requires_grad on again after it."
    )


def _independent(name: str) -> ValueError:
    return ValueError(
        f"the value of {name} does not depend on its parameters through differentiable operations. Look "
        "for .detach(), .item(), .data, torch.no_grad() or an integer operation, such as argmax, in its "
        "computation."
    )


def _check_value(value: Any, name: str) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{name} must return a 0-d tensor to differentiate: expected a tensor, got "
            f"{type(value).__name__}. Return only the loss, as a tensor (not loss.item())."
        )
    if value.ndim != 0:
        raise TypeError(
            f"{name} must return a scalar loss: expected a 0-d tensor, got shape {tuple(value.shape)}. "
            "Reduce it: loss.mean(), or ftrain.Mean(loss.sum(), weight)."
        )
    if not value.is_floating_point():
        raise TypeError(
            f"{name} must return a real loss: expected a floating-point dtype, got {value.dtype}. "
            "Convert it: loss.float(), or loss.real if it is complex."
        )
