"""Activation checkpointing: activations are recomputed in the backward pass instead of stored.

Read next: `_torch_checkpoint.py` (the contexts of a recomputation) and `_recomputation.py` (an operator
that prevents compilers from merging it with the forward pass).
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import checkpoint

from ftrain.core import _torch, tree
from ftrain.core._structure import copied, named_tensors
from ftrain.core._torch_checkpoint import around_regions
from ftrain.core._torch_tensors import version
from ftrain.core._transform_errors import under_transforms
from ftrain.core._words import a_or_an, did_you_mean, kind
from ftrain.core.random.keyed import innermost_stream

__all__ = ["Where", "remat", "selected_modules"]

#: Selection of modules of a model: a pattern of paths, a class, or several of them.
Where = str | type[nn.Module] | Sequence[str | type[nn.Module]]

T = TypeVar("T", bound=Callable[..., Any])


def remat(target: T, where: Where | None = None) -> T:
    """Return a function or model whose activations are not stored for the backward pass.

    The backward pass calls each region again in the contexts of its first call, with the same draws,
    buffers, parameters and autocast. Values, gradients and buffers equal those without `remat`, to the
    bit in eager mode and with `backend="eager"`; a compiler may fuse operators differently. Memory is
    needed for the inputs of all regions and the activations of one region; the time increases by up to
    one forward pass. Python attributes are the exception, as in `torch.utils.checkpoint`: if a model
    changes one after a region has read it (`self.scale = 2.0`), the second call reads the last value.
    Keep such values in buffers.

    Three forms:

    - `remat(fn)`: the function as one region. The tensors that it reads should be its arguments: those
      of a closure are kept in memory.
    - `remat(module)`: a model like `module` that is one region.
    - `remat(model, where)`: a model, or a function that builds one, in which each module that `where`
      selects is a region. Names of parameters, initial values, random streams and checkpoints are those
      of the model without `remat`.

    Under `torch.vmap` and `torch.func` transforms, which do not allow saved-tensor hooks, and inside of
    `torch.autograd.forward_ad.dual_level`, whose tangents a second computation would lack, regions run
    without checkpointing: the values are the same, but no memory is saved. Regions may be nested, and
    differentiated to any order. Models that use `torch.utils.checkpoint` themselves, such as those of
    `transformers` after `gradient_checkpointing_enable()`, need no `remat`.

    Args:
        target: a function, an `nn.Module`, or with `where` a function that builds one. A module is
            copied; the copy shares its tensors.
        where: a pattern of module paths, in which `*` stands for any part of one name
            (`"blocks.*"`, `"encoder.layers.*.mlp"`); a class; or several of these.

    Raises:
        TypeError: the target is not callable, or `where` is neither a class nor a pattern.
        RuntimeError: a region writes to its inputs in place; or, in the backward pass, another function
            has written to them since.
        ValueError: a pattern or class selects no module of the model, or a module without `forward`.

    Example:
        >>> layers = [nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(2)]
        >>> model = nn.Sequential(*layers)
        >>> saving = remat(model, "*")
        >>> torch.equal(saving(torch.ones(1, 3)), model(torch.ones(1, 3)))
        True
        >>> square = remat(lambda x: x.sin().square().sum())
        >>> square(torch.zeros(2, requires_grad=True)).item()
        0.0

    References:
        Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost",
        https://arxiv.org/abs/1604.06174
    """
    if isinstance(target, nn.Module):
        return _in_module(target, where)  # type: ignore[return-value]
    is_class = isinstance(target, type)
    if not callable(target) or (is_class and where is None):
        got = f"the class {target.__name__}" if is_class else a_or_an(type(target).__name__)
        raise TypeError(
            f"remat: expected a function or an nn.Module, got {got}. Write remat(fn), "
            "remat(model, 'blocks.*') or remat(lambda: Net(...), 'blocks.*')."
        )
    if where is None:
        return _region(target)

    def build(*args: Any, **kwargs: Any) -> nn.Module:
        model = target(*args, **kwargs)
        if not isinstance(model, nn.Module):
            raise TypeError(
                "remat: expected a function that builds an nn.Module, since `where` is given, got "
                f"{a_or_an(type(model).__name__)} from it. Write remat(fn) for a function of tensors."
            )
        return _selected(model, where)

    return build  # type: ignore[return-value]


def _in_module(module: nn.Module, where: Where | None) -> nn.Module:
    memo: dict[int, Any] = {id(t): t for t in named_tensors(module).values()}
    copy = copied(module, memo)
    if where is None:
        _make_region(copy, "")
        return copy
    return _selected(copy, where)


def _region(fn: T) -> T:
    @functools.wraps(fn)
    def region(*args: Any, **kwargs: Any) -> Any:
        return _call(fn, *args, **kwargs)

    return region  # type: ignore[return-value]


def _call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function as a checkpointed region, which the backward pass recomputes."""
    if not torch.is_grad_enabled():
        return fn(*args, **kwargs)
    # Tensors are passed by position, because torch saves these, and detects later writes to them. It
    # stores all other arguments without a copy, so that the region would be recomputed from new values.
    # Each tensor is passed once, because `nn.MultiheadAttention` tests if query and key are the same
    # object.
    given = [*args, *kwargs.values()]
    tensors: list[torch.Tensor] = []
    places = []
    for value in given:
        if isinstance(value, torch.Tensor) and not any(value is x for x in tensors):
            tensors.append(value)
        places.append(next((i for i, x in enumerate(tensors) if x is value), None))
    others = [None if isinstance(x, torch.Tensor) else x for x in given]
    names, n = list(kwargs), len(args)

    def by_position(*saved: torch.Tensor) -> Any:
        values = [x if i is None else saved[i] for x, i in zip(others, places, strict=True)]
        return fn(*values[:n], **dict(zip(names, values[n:], strict=True)))

    with _regions():
        return checkpoint.checkpoint(
            _checking(by_position, others),
            *tensors,
            use_reentrant=False,
            # Inside `keyed`, nothing draws from a global generator, whose state of 5 KiB need not be
            # saved.
            preserve_rng_state=innermost_stream() is None,
        )


def _checking(fn: Callable[..., Any], others: list[Any]) -> Callable[..., Any]:
    """Wrap `fn` to raise if a call writes to its inputs, or if they have changed before the next call.

    Args:
        fn: a function of tensors, which torch checks for writes before it calls `fn` again.
        others: its other inputs; tensors in containers among them are checked here.
    """
    if torch.compiler.is_dynamo_compiling():
        return fn
    containers = [x for x in others if isinstance(x, (tuple, list, dict))]
    inside = [x for x in tree.leaves(containers) if isinstance(x, torch.Tensor)]
    before: list[int] = []

    def checking(*saved: torch.Tensor) -> Any:
        if before and _versions(inside) != before[len(saved) :]:
            raise RuntimeError(
                "remat: expected inputs of a region that keep their values until the backward pass, "
                "got a tensor in a list, tuple or dict that was written to in place. Write to a copy, "
                "x.clone()."
            )
        if before or _torch.inside_functorch():
            return fn(*saved)
        tensors = [*saved, *inside]
        before.extend(_versions(tensors))
        try:
            out = fn(*saved)
        except RuntimeError as error:
            refused = under_transforms(error)
            if refused is None:
                raise
            raise refused from error
        for tensor, was, now in zip(tensors, before, _versions(tensors), strict=True):
            if was != now:
                raise RuntimeError(
                    "remat: expected a region that does not write to its inputs, since it is computed "
                    f"again from them, got one that writes to {kind(tensor)} in place. Write "
                    "nn.ReLU(inplace=False) and the like, or select the module that contains this one."
                )
        return out

    return checking


def _versions(tensors: list[torch.Tensor]) -> list[int]:
    return [-1 if x.is_inference() else version(x) for x in tensors]


def _regions() -> contextlib.AbstractContextManager[None]:
    """Return a context that turns off checkpointing of regions under transforms of torch.func."""
    if torch.compiler.is_dynamo_compiling():
        return contextlib.nullcontext()
    return around_regions(lambda: contextlib.nullcontext)


def _selected(model: nn.Module, where: Where) -> nn.Module:
    """Turn the selected modules of a model into checkpointed regions, in place."""
    for path, module in selected_modules(model, where, "remat").items():
        _make_region(module, path)
    return model


def selected_modules(model: nn.Module, where: Where, function: str) -> dict[str, nn.Module]:
    """Return the modules that `where` selects, by path.

    Args:
        model: the model.
        where: as of `remat`.
        function: the name of the function that the user called, for messages.

    Raises:
        ValueError: a pattern or class selects no module.
        TypeError: a selector is neither.
    """
    selectors = list(where) if isinstance(where, (list, tuple, set, frozenset)) else [where]
    modules = dict(model.named_modules())
    if not selectors:
        raise ValueError(
            f"{function}: expected a pattern or class as `where`, got none. Write 'blocks.*'."
        )
    selected: dict[str, nn.Module] = {}
    for selector in selectors:
        found = list(_matching(modules, selector, function))
        if not found:
            raise ValueError(f"{function}: {_nothing(modules, selector)}")
        selected |= {path: modules[path] for path in found}
    return selected


def _matching(modules: dict[str, nn.Module], selector: Any, function: str) -> Iterator[str]:
    if isinstance(selector, type) and issubclass(selector, nn.Module):
        yield from (path for path, module in modules.items() if isinstance(module, selector))
        return
    if not isinstance(selector, str):
        raise TypeError(
            f"{function}: expected a pattern of module paths or a module class as `where`, got "
            f"{selector!r}. Write 'blocks.*', or the class of the blocks."
        )
    wanted = selector.split(".")
    for path in modules:
        names = path.split(".")
        if len(names) == len(wanted) and all(map(fnmatch.fnmatchcase, names, wanted)):
            yield path


def _nothing(modules: dict[str, nn.Module], selector: Any) -> str:
    if isinstance(selector, type):
        kinds = sorted({type(module).__name__ for module in modules.values()})
        return (
            f"expected a class of modules of the model ({', '.join(kinds)}), got "
            f"{selector.__name__}. Write one of these, or a pattern of paths."
        )
    paths = [path for path in modules if path]
    listed = ", ".join(map(repr, paths[:8])) + (", ..." if len(paths) > 8 else "")
    return (
        f"expected a pattern that matches the path of a module ({listed}), got {selector!r}, which "
        f"matches none.{did_you_mean(selector, paths)} A `*` stands for any part of one name."
    )


class _Region:
    """Mixin of modules whose forward is a checkpointed region."""

    def __init_subclass__(cls) -> None:
        """Skip the model class's `__init_subclass__`, which may register classes or need arguments."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class of a region is made at run time, so pickle cannot find it by name.
        return _empty_region, (type(self).__mro__[2],), self.__dict__


def _make_region(module: nn.Module, path: str) -> None:
    if isinstance(module, _Region):
        return
    if type(module).forward is nn.Module.forward:
        raise ValueError(
            f"remat: expected modules with a `forward`, got {path!r}, {a_or_an(type(module).__name__)}, "
            f"which has none. Select the modules in it: {f'{path}.*'.lstrip('.')!r}."
        )
    if "forward" in vars(module):
        raise ValueError(
            f"remat: expected modules whose `forward` is that of their class, got {path!r} with a "
            "`forward` set on the instance, which would not be checkpointed. Use remat(fn) inside that "
            "`forward`."
        )
    kind: Any = type(module)
    module.__class__ = _region_class(kind)


@functools.cache
def _region_class(cls: Any) -> type[nn.Module]:
    """Return a subclass with the same name whose `forward` is recomputed in the backward pass."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _call(cls.forward.__get__(self) if is_method else cls.forward, *args, **kwargs)

    is_method = not isinstance(inspect.getattr_static(cls, "forward"), staticmethod)
    # The model's library may read the signature to choose arguments.
    if is_method:
        forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
    forward.__doc__ = cls.forward.__doc__
    names = {"forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (_Region, cls), names)


def _empty_region(cls: Any) -> nn.Module:
    kind = _region_class(cls)
    return kind.__new__(kind)
