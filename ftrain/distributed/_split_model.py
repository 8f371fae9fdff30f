"""Model whose linear and embedding layers are cut over ranks, by rules on their paths.

At rest, a rank has rows of each weight of a cut layer, whichever way it is cut: optimizer, checkpoints
and clipping are those of other sharded states. A layer that needs columns exchanges rows for them.

Read next: `_split_layers.py`, the layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from ftrain.core._hooks import parameter_hooks
from ftrain.core._skeleton import Skeleton
from ftrain.core._structure import Tensors, copy_structure, named_tensors
from ftrain.core._torch_collectives import Group
from ftrain.core.functional import Bound
from ftrain.core.remat import selected_modules
from ftrain.distributed._sharded_tensor import rows_of
from ftrain.distributed._split_layers import FORWARDS, LayerParameter

__all__ = ["Rules", "SplitBound"]

#: How layers are cut, by patterns of their paths.
Rules = Mapping[str, Literal["column", "row"]]


class SplitBound(Bound):
    """Module as a pure function, whose cut layers take this rank's rows of their parameters.

    Args:
        bound: the model as a function of whole parameters.
        rules: how layers are cut, by patterns of their paths.
        group: the ranks.

    Attributes:
        rows: the whole number of rows of each parameter; `None` for a replicated one.
    """

    def __init__(self, bound: Bound, rules: Rules, group: Group) -> None:
        self.__dict__.update(bound.__dict__)
        template = bound.skeleton.module
        if bound.hooks and group.size > 1:
            raise ValueError(
                "tensor_parallel: expected a model without hooks on parameters, got a hook on "
                f"{next(iter(bound.hooks))!r}, which would see only this rank's rows of the gradient. "
                "Change the gradients in the optimizer instead."
            )
        module = copy_structure(template)
        names = {id(t): name for name, t in named_tensors(module).items()}
        cut: set[str] = set()
        for path, how in _selected(module, rules).items():
            layer = module.get_submodule(path)
            forward = FORWARDS[_kind(layer, path), how]
            own = [layer.weight]
            if how == "column" and isinstance(layer, nn.Linear) and layer.bias is not None:
                own.append(layer.bias)
            cut |= {names[id(t)] for t in own}
            if group.size > 1:
                layer.__class__ = _layer_class(type(layer), forward)
        tensors = named_tensors(template)
        self.rows = {
            name: tensors[name].shape[0] if name in cut and group.size > 1 else None
            for name in bound.skeleton.trainable
        }
        self._shapes = {
            name: tuple(tensors[name].shape)
            if n is None
            else (rows_of(n, group)[0], *tensors[name].shape[1:])
            for name, n in self.rows.items()
        }
        self._group = group
        self.skeleton = Skeleton(module, template, parameter_hooks(module))

    def call(
        self,
        fn: Callable[[nn.Module], Any],
        params: Tensors,
        buffers: Tensors,
        training: bool,
        until: contextlib.ExitStack | None = None,
    ) -> tuple[Any, Tensors]:
        """Call `fn` on the module, given this rank's rows of the parameters."""
        ready = {}
        for name, tensor in params.items():
            expected = self._shapes.get(name)
            if expected is not None and tuple(tensor.shape) != expected:
                raise ValueError(
                    f"state.params[{name!r}]: expected shape {expected}, that of this rank's part of "
                    f"the parameter, got {tuple(tensor.shape)}. Call distributed.shard(state, steps) "
                    "first, or init_state of the parallel steps."
                )
            rows = self.rows.get(name)
            ready[name] = tensor if rows is None else LayerParameter.of(tensor, rows, self._group)
        return super().call(fn, ready, buffers, training, until)


def _selected(module: nn.Module, rules: Rules) -> dict[str, str]:
    """Return `{path: 'column' or 'row'}` for the layers that the rules select.

    Raises:
        ValueError: a pattern selects no module, two rules differ about one, or a rule is unknown.
    """
    if not isinstance(rules, Mapping) or not rules:
        raise ValueError(
            "rules: expected a dict from patterns of layer paths to 'column' or 'row', got "
            f"{rules!r}. Write {{'blocks.*.inner': 'column', 'blocks.*.outer': 'row'}}."
        )
    found: dict[str, str] = {}
    for pattern, how in rules.items():
        if how not in ("column", "row"):
            raise ValueError(
                f"rules[{pattern!r}]: expected 'column' (some output features on each rank) or 'row' "
                f"(some input features), got {how!r}. Write one of these."
            )
        for path in selected_modules(module, pattern, "tensor_parallel"):
            if found.setdefault(path, how) != how:
                raise ValueError(
                    f"rules: expected one rule for each layer, got 'column' and 'row' for {path!r}. "
                    "Write patterns that do not overlap."
                )
    return found


def _kind(layer: Any, path: str) -> type[nn.Module]:
    """Return `nn.Linear` or `nn.Embedding`, the class whose `forward` the layer has.

    Raises:
        ValueError: the layer cannot be cut.
    """
    for kind in (nn.Linear, nn.Embedding):
        if type(layer).forward is kind.forward and "forward" not in vars(layer):
            break
    else:
        raise ValueError(
            "rules: expected layers with the `forward` of nn.Linear or nn.Embedding, got "
            f"{path!r}, {type(layer).__name__}. Select the layers inside of it, or leave it out."
        )
    options = ("max_norm", "scale_grad_by_freq", "sparse") if kind is nn.Embedding else ()
    if "weight" not in layer._parameters:
        raise ValueError(
            f"rules: expected a layer whose weight is a parameter, got {path!r}, whose weight is "
            "computed from others (torch.nn.utils.parametrize). Leave the layer out."
        )
    for name in options:
        if getattr(layer, name):
            raise ValueError(
                f"rules: expected an embedding without {name}, got {path!r} with {name}="
                f"{getattr(layer, name)}. Leave the layer out, or build it without."
            )
    return kind


def _layer_class(cls: Any, forward: Callable[..., Any]) -> type[nn.Module]:
    """Return a subclass of `cls` with the same name, which computes with a part of the weight."""

    def split(self: Any, input: Any) -> Any:  # the name that torch gives it
        weight = self.weight
        if not isinstance(weight, LayerParameter):  # frozen, and therefore whole
            return cls.forward(self, input)
        return forward(self, weight, input)

    split.__doc__ = cls.forward.__doc__
    names = {"forward": split, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), names)
