"""Arguments of one call: flattening, conversion to plain tensors, comparison with other calls."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import _torch, tree
from ftrain.core._containers import tensor_attribute
from ftrain.core._torch_precision import COMPILED, compiled_fp32_precision
from ftrain.core._words import a_or_an
from ftrain.core.compile._errors import describe_key
from ftrain.core.compile._reader import static_key

__all__ = ["AUTOCAST", "Call", "Settings", "Signature", "global_settings", "parameter_names"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
Settings = tuple[Any, ...]
AUTOCAST = 2
_SETTING_NAMES = (
    "default dtype",
    "default device",
    "autocast",
    "deterministic algorithms",
    "number of threads",
    f"float32 precision of {', '.join(map('.'.join, COMPILED))}",
)


@dataclasses.dataclass(frozen=True)
class Signature:
    """Structure, leaf specifications and global settings for which a program was compiled.

    Attributes:
        treedef: structure of `(args, kwargs)`.
        names: the name of each leaf in messages.
        specs: shape, dtype, device and strides of each tensor; the key of each other leaf.
        settings: the global settings on which a program depends.
    """

    treedef: tree.TreeDef
    names: list[str]
    specs: list[Any]
    settings: Settings


class Call:
    """Flattened arguments of one call of a compiled function, and the key of the program for them."""

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.leaves, self.treedef = tree.flatten((args, kwargs))
        self.settings = global_settings()

    def tensors(self) -> list[torch.Tensor]:
        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]

    @functools.cached_property
    def names(self) -> list[str]:
        """Return the name of each leaf in messages: `batch['x']`."""
        positional = parameter_names(self.fn)
        names = []
        for i, argument in enumerate(self.args):
            name = positional[i] if i < len(positional) else f"args[{i}]"
            names += [name + path for path in tree.paths(argument)]
        for key in sorted(self.kwargs):
            names += [key + path for path in tree.paths(self.kwargs[key])]
        return names

    @functools.cached_property
    def specs(self) -> list[Any]:
        return [
            (leaf.shape, leaf.dtype, leaf.device, leaf.stride())
            if isinstance(leaf, torch.Tensor)
            else static_key(leaf)
            for leaf in self.leaves
        ]

    @functools.cached_property
    def key(self) -> Any:
        return (self.treedef, tuple(self.specs), self.settings)

    @property
    def signature(self) -> Signature:
        return Signature(self.treedef, self.names, self.specs, self.settings)

    def normalise(self, function: str) -> None:
        """Convert each tensor to a plain, detached one; raise for a leaf that no program accepts."""
        for i, leaf in enumerate(self.leaves):
            if not isinstance(leaf, torch.Tensor):
                held = tensor_attribute(leaf)
                if held is not None:
                    raise TypeError(
                        f"`{self.names[i]}` of `{function}` is {a_or_an(type(leaf).__name__)}, whose "
                        f"attribute {held!r} holds a tensor: a compiled program would keep using that "
                        "tensor after it is replaced. Pass a dict, or make its class a dataclass, which "
                        "is a tree."
                    )
                try:
                    hash(leaf)
                except TypeError:
                    raise TypeError(
                        f"`{self.names[i]}` of `{function}`: expected a tensor or a hashable value, got "
                        f"{a_or_an(type(leaf).__name__)}. Pass torch.as_tensor(...) of it, or register "
                        "its class as a tree node."
                    ) from None
                continue
            if leaf.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(
                    f"`{self.names[i]}` of `{function}` requires a gradient, and a compiled program is "
                    "opaque to autograd. Differentiate inside the function that is compiled "
                    "(ftrain.value_and_grad, torch.func), or pass x.detach()."
                )
            if _torch.is_dual(leaf):
                raise RuntimeError(
                    f"`{self.names[i]}` of `{function}` has a tangent of torch.autograd.forward_ad, "
                    "which a compiled program would drop. Differentiate inside the function that is "
                    "compiled: compile(jvp(f)), not jvp(compile(f))."
                )
            if leaf.requires_grad and leaf._backward_hooks:
                raise RuntimeError(
                    f"`{self.names[i]}` of `{function}` has a hook (register_hook), which a compiled "
                    "program would not run. Pass x.detach(), and change gradients inside the function."
                )
            if type(leaf) not in (torch.Tensor, torch.nn.Parameter):
                raise TypeError(
                    f"`{self.names[i]}` of `{function}`: expected a torch.Tensor, not a subclass, got "
                    f"{a_or_an(type(leaf).__name__)}. Pass the tensors that it wraps (of a DTensor: "
                    "x.to_local())."
                )
            if leaf.is_nested:
                raise TypeError(
                    f"`{self.names[i]}` of `{function}` is a nested tensor; compiled functions take "
                    "plain tensors. Pass x.to_padded_tensor(0.0) and the lengths."
                )
            if leaf.layout is not torch.strided:
                raise TypeError(
                    f"`{self.names[i]}` of `{function}` has layout {leaf.layout}; compiled functions "
                    "take strided tensors. Pass x.to_dense()."
                )
            plain = (
                leaf.detach() if type(leaf) is torch.nn.Parameter or leaf.requires_grad else leaf
            )
            self.leaves[i] = plain.resolve_conj().resolve_neg()

    def changes(self, other: Signature) -> list[str]:
        """Return the differences from the arguments of another call, a line for each leaf."""
        if self.treedef != other.treedef:
            mine, theirs = set(self.names), set(other.names)
            lines = [f"{name} is new" for name in self.names if name not in theirs]
            lines += [f"{name} is gone" for name in other.names if name not in mine]
            return lines or [f"their structure: {other.treedef} -> {self.treedef}"]
        lines = [
            f"{name}: {describe_key(old)} -> {describe_key(new)}"
            for name, old, new in zip(self.names, other.specs, self.specs, strict=True)
            if old != new
        ]
        lines += [
            f"{name}: {old} -> {new}"
            for name, old, new in zip(_SETTING_NAMES, other.settings, self.settings, strict=True)
            if old != new
        ]
        return lines

    def remedy(self, other: Signature) -> str:
        """Return the remedy for arguments that differ from those of another call."""
        if self.treedef != other.treedef:
            return "Give every call the same containers with the same keys."
        found = zip(self.names, self.leaves, self.specs, other.specs, strict=True)
        changed = [(name, leaf, old) for name, leaf, new, old in found if new != old]
        tensors = [(leaf, old) for _, leaf, old in changed if isinstance(leaf, torch.Tensor)]
        said = []
        if any(_other_length(leaf, old) for leaf, old in tensors):
            said.append(
                "One program serves one shape. Pad sequences to a multiple, so that few lengths occur: "
                "use pad_to_multiple_of=64 of a collator of transformers, or a function of your own, "
                "ftrain.data.Loader(..., collate=...); or read rows of similar length together "
                "(ftrain.data.ByLength)."
            )
        elif tensors:
            said.append(
                "One program serves one shape. If compiling takes too long, choose a batch size that "
                "divides the data, or pad or drop the last ragged batch (last_batch='pad' or 'drop' of "
                "ftrain.data.Loader, drop_last=True of a DataLoader). Keep the shapes, dtypes and "
                "strides of a state the same from call to call."
            )
        texts = [name for name, leaf, _ in changed if isinstance(leaf, (str, bytes))]
        if texts:
            column = re.sub(r"(\[\d+\])+$", "", texts[0])
            said.append(
                f"A text is a constant of the program. Leave {column} out of the batches with "
                "ftrain.data.Loader(ftrain.data.select(dataset, columns), ...), or turn it into numbers "
                "before."
            )
        if any(isinstance(leaf, (int, float, complex)) for _, leaf, _ in changed):
            said.append(
                "A Python number is a constant of the program: pass torch.tensor(...) for one that "
                "changes."
            )
        return " ".join(said) or "Keep arguments that are not tensors the same from call to call."


def parameter_names(fn: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters that `fn` takes by position; none if they are unknown."""
    try:
        parameters = [*inspect.signature(fn).parameters.values()]
    except (TypeError, ValueError):
        return []
    return [each.name for each in parameters if each.kind in _POSITIONAL]


def _other_length(leaf: torch.Tensor, old: Any) -> bool:
    """Return True if a tensor differs from the earlier one in a dimension other than the first."""
    if len(old) != 4 or len(old[0]) != leaf.ndim:  # not a tensor, or a tensor of another rank
        return False
    return bool(leaf.shape[1:] != old[0][1:])


def global_settings() -> Settings:
    """Return the global settings that a program depends on (takes 1 µs)."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device() if _torch.function_mode_depth() else None,
        _torch.autocast_state() if _torch.any_autocast() else (),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        compiled_fp32_precision(),
    )
