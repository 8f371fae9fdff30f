"""Low-rank adapters of weights: selection of the weights by name or module class, and the formulas.

Read next: `lora.py`, which binds a model with its adapters.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ftrain.core import random
from ftrain.core._structure import named_tensors
from ftrain.core._words import did_you_mean, dtype_and_shape

__all__ = ["Adapter", "Settings", "Targets", "adapted", "initial", "matched", "removed", "selected"]

Target: TypeAlias = str | re.Pattern[str] | type[nn.Module]
Targets: TypeAlias = Target | Sequence[Target]
"""A regular expression, searched for in the names of weights; a module class, which selects the weights
of its instances and of all modules inside them; or a list of both.
"""

_LISTED = 8
_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that all adapters of a model share; see `lora`."""

    rank: int
    alpha: float
    rank_stabilized: bool
    dora: bool
    dropout: float

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(
                f"rank: expected a whole number of at least 1, got {self.rank!r}. Write rank=8."
            )
        if not _is_number(self.alpha) or not math.isfinite(self.alpha):
            raise ValueError(
                f"alpha: expected a finite number, got {self.alpha!r}. Write alpha=16."
            )
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(
                f"dropout: expected a rate in [0, 1), got {self.dropout!r}. Write dropout=0.1."
            )

        object.__setattr__(self, "alpha", float(self.alpha))

    @property
    def scale(self) -> float:
        """Factor by which the product of an adapter's two matrices is multiplied."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Owner(NamedTuple):
    """Module that holds a weight.

    Attributes:
        path: the module's path in the model; "" for the model itself.
        attribute: the attribute of the module that is the weight.
        module: the module, on the meta device.
    """

    path: str
    attribute: str
    module: nn.Module


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Low-rank adapter of one weight: the weight's name, its kind of layer and its shape.

    Attributes:
        name: the name of the weight.
        shape: the shape of the weight.
        dtype: the dtype of the adapter's tensors.
        transposed: True if the first axis of the weight is that of the inputs (embeddings, `Conv1D` of
            transformers).
        embedding: True for the weight of an embedding. Its adapter's second matrix starts random, and
            the first one zero.
        owners: the modules that hold the weight; more than one if it is tied.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    transposed: bool
    embedding: bool
    owners: tuple[Owner, ...] = dataclasses.field(repr=False, compare=False)

    @property
    def outputs(self) -> int:
        """Number of outputs of the layer: rows of its weight as a matrix (outputs, inputs)."""
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def inputs(self) -> int:
        """Number of inputs of the layer: columns of its weight as a matrix (outputs, inputs)."""
        return self.shape[0] if self.transposed else math.prod(self.shape[1:])

    def shapes(self, settings: Settings) -> dict[str, tuple[int, ...]]:
        """Return the shape of each of the adapter's tensors, by name."""
        found: dict[str, tuple[int, ...]] = {
            f"{self.name}.lora_A": (settings.rank, self.inputs),
            f"{self.name}.lora_B": (self.outputs, settings.rank),
        }
        if settings.dora:
            found[f"{self.name}.magnitude"] = (self.outputs,)
        return found


def initial(adapter: Adapter, settings: Settings, base: Tensor, key: Tensor) -> dict[str, Tensor]:
    """Return an adapter's initial values, which do not change the outputs of the base model.

    One matrix is zero. The other is drawn like the weights of `nn.Linear`, uniformly between plus and
    minus one over the square root of its number of inputs; for an embedding, it is drawn like those of
    `nn.Embedding`, from the standard normal distribution.
    """
    (name_a, shape_a), (name_b, shape_b), *_ = adapter.shapes(settings).items()
    a = torch.zeros(shape_a, dtype=adapter.dtype, device=base.device)
    b = torch.zeros(shape_b, dtype=adapter.dtype, device=base.device)
    if adapter.embedding:
        b = random.normal(key, shape_b, adapter.dtype).to(base.device)
    else:
        bound = 1 / math.sqrt(adapter.inputs)
        a = random.uniform(key, shape_a, adapter.dtype, -bound, bound).to(base.device)
    found = {name_a: a, name_b: b}
    if settings.dora:
        norm = _norm(base.to(adapter.dtype), adapter)
        found[f"{adapter.name}.magnitude"] = norm.flatten()
    return found


def adapted(
    adapter: Adapter,
    settings: Settings,
    base: Tensor,
    tensors: Mapping[str, Tensor],
    key: Tensor | None = None,
) -> Tensor:
    """Return the weight with its adapter added, rounded once to the weight's dtype.

    Args:
        adapter: the name, owners and shape of the weight.
        settings: the scale, and the options for DoRA and dropout.
        base: the weight of the base model.
        tensors: the tensors of all adapters, by name.
        key: the key of the dropout mask; `None` for no dropout.
    """
    dtype = _wide(adapter, base)
    wide = base.to(dtype)
    mask = None
    if key is not None:
        mask = random.bernoulli(key, 1 - settings.dropout, (adapter.inputs,))
    weight = wide + _change(adapter, settings, tensors, dtype, mask)
    if settings.dora:
        whole = weight if mask is None else wide + _change(adapter, settings, tensors, dtype)
        # The norm is a constant in the gradient, as in section 4.3 of the DoRA paper.
        norm = _norm(whole.detach(), adapter)
        magnitude = tensors[f"{adapter.name}.magnitude"].to(dtype).reshape(norm.shape)
        weight = magnitude / norm.where(norm > 0, torch.ones_like(norm)) * weight
    return weight.to(base.dtype)


def removed(
    adapter: Adapter, settings: Settings, merged: Tensor, tensors: Mapping[str, Tensor]
) -> Tensor:
    """Subtract an adapter's change from a weight that was merged with it (not for DoRA)."""
    dtype = _wide(adapter, merged)
    return (merged.to(dtype) - _change(adapter, settings, tensors, dtype)).to(merged.dtype)


def _wide(adapter: Adapter, base: Tensor) -> torch.dtype:
    return torch.promote_types(adapter.dtype, base.dtype)


def _change(
    adapter: Adapter,
    settings: Settings,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the matrix that an adapter adds to its weight, zero for inputs that a mask drops."""
    a, b = (tensors[f"{adapter.name}.lora_{part}"].to(dtype) for part in "AB")
    if mask is not None:
        a = torch.where(mask, a / (1 - settings.dropout), torch.zeros_like(a))
    product = a.mT @ b.mT if adapter.transposed else (b @ a).reshape(adapter.shape)
    return settings.scale * product


def _norm(weight: Tensor, adapter: Adapter) -> Tensor:
    """Return the norm of each output's weights; keep the input axes, with length one."""
    axes = (0,) if adapter.transposed else tuple(range(1, len(adapter.shape)))
    norm: Tensor = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
    return norm


def selected(root: nn.Module, targets: Targets) -> list[Adapter]:
    """Return the adapters of the selected weights, sorted by name.

    Raises:
        ValueError: a target selects no weight; the message lists similar names.
        TypeError: a target is neither a pattern nor a module class.
    """
    owners = _owners(root)
    known = {
        name: found
        for name, tensor in named_tensors(root).items()
        if (found := _adapter(name, tensor, owners.get(name, ())))
    }
    chosen: set[str] = set()
    several = isinstance(targets, Sequence) and not isinstance(targets, str)
    for target in targets if several else (targets,):  # type: ignore[union-attr]
        if isinstance(target, type) and issubclass(target, nn.Module):
            inside = set(_inside(root, target)) & known.keys()
            if not inside:
                raise ValueError(_no_module(root, target, known))
            chosen |= inside
        elif isinstance(target, (str, re.Pattern)):
            chosen |= set(matched("targets", target, known, _others(root, known)))
        else:
            raise TypeError(
                f"targets: expected a pattern of names or a module class, got {target!r}. Write "
                'targets="attention", or targets=nn.Linear.'
            )
    if not chosen:
        raise ValueError(
            "targets: expected at least one pattern or module class, got none. Write "
            "targets=nn.Linear."
        )
    return [known[name] for name in sorted(chosen)]


def matched(
    argument: str,
    pattern: str | re.Pattern[str],
    known: Iterable[str],
    others: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """Return the names that contain a match of a regular expression.

    Args:
        argument: the argument that holds the pattern, for messages.
        pattern: the regular expression.
        known: the names.
        others: tensors that cannot be selected, named in the message.

    Raises:
        ValueError: the pattern is not a regular expression, or no name matches it.
        TypeError: the pattern is not a string or a compiled pattern.
    """
    if not isinstance(pattern, (str, re.Pattern)):
        raise TypeError(
            f"{argument}: expected a regular expression of names, got {pattern!r}. Write several as "
            'one: "first|second".'
        )
    names = list(known)
    try:
        found = [name for name in names if re.search(pattern, name)]
    except re.error as error:
        raise ValueError(
            f"{argument}: expected a regular expression, got {pattern!r}: {error}. Correct the pattern."
        ) from error
    if found:
        return found
    text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    refused = [name for name in others or () if re.search(pattern, name)]
    if refused and others:
        first = refused[0]
        raise ValueError(
            f"{argument}: expected weights of linear, convolution or embedding modules, or other "
            f"floating-point matrices, got {text!r}, which matches only tensors of other kinds, such as "
            f"{first!r} ({dtype_and_shape(others[first].dtype, others[first].shape)}). {_listed(names)}"
        )
    parts = {part for name in names for part in name.split(".")}
    raise ValueError(
        f"{argument}: expected a pattern that occurs in the name of a weight, got {text!r}."
        f"{did_you_mean(text, {*parts, *names})} {_listed(names)}"
    )


def _owners(root: nn.Module) -> dict[str, tuple[Owner, ...]]:
    """Return `{parameter name: modules that hold it}`; a tied parameter has only its first name."""
    first = {id(tensor): name for name, tensor in named_tensors(root).items()}
    found: dict[str, tuple[Owner, ...]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        for attribute, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            name = first[id(tensor)]
            found[name] = (*found.get(name, ()), Owner(path, attribute, module))
    return found


def _adapter(name: str, tensor: Tensor, owners: tuple[Owner, ...]) -> Adapter | None:
    """Return the adapter for a parameter; `None` if its kind of layer supports no adapter."""
    if not owners or tensor.ndim < 2 or not tensor.is_floating_point():
        return None
    module = owners[0].module
    embedding = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    # With more than two axes, only torch's convolutions define which axes are inputs.
    if tensor.ndim > 2 and not _is_convolution(module):
        return None
    transposed = embedding or _is_transposed(module)
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return Adapter(name, tuple(tensor.shape), dtype, transposed, embedding, owners)


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, _CONVOLUTIONS)


def _is_transposed(module: nn.Module) -> bool:
    """Return True for `transformers.Conv1D`, a linear layer with a weight of shape (inputs, outputs)."""
    layers: Any = sys.modules.get("transformers.pytorch_utils")
    return layers is not None and isinstance(module, layers.Conv1D)


def _inside(root: nn.Module, kind: type[nn.Module]) -> Iterator[str]:
    """Yield the name of each parameter inside modules of a class; the first name if it is tied."""
    first = {id(tensor): name for name, tensor in named_tensors(root).items()}
    for module in root.modules():
        if isinstance(module, kind):
            yield from (first[id(tensor)] for tensor in module.parameters())


def _others(root: nn.Module, known: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in named_tensors(root).items() if name not in known}


def _no_module(root: nn.Module, kind: type[nn.Module], known: Mapping[str, Adapter]) -> str:
    classes = {type(owner.module).__name__ for each in known.values() for owner in each.owners}
    there = any(isinstance(module, kind) for module in root.modules())
    lack = (
        "whose modules have no weight that can be adapted"
        if there
        else "of which the model has no module"
    )
    return (
        f"targets: expected a class of modules in {type(root).__name__}, got {kind.__name__}, {lack}."
        f"{did_you_mean(kind.__name__, classes)} Modules with weights that can be adapted: "
        f"{', '.join(sorted(classes)) or 'none'}. Name one of them, or give a pattern of names."
    )


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _LISTED else ""
    return f"The {len(names)} names are: {', '.join(names[:_LISTED])}{more}. Choose among them."
