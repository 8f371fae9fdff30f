"""Model with parameters sharded by rows, gathered one unit (module) at a time while the model runs.

A unit is a module, such as a block of a transformer. Its whole parameters exist while it runs: its
forward pass is a region of `remat`, so the backward pass gathers them again, and computes the unit's
activations again. The parameters outside of units are gathered once for each call of the model.

Read next: `_gather.py`, the collectives and their derivative.
"""

from __future__ import annotations

import collections
import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ftrain.core._hooks import parameter_hooks
from ftrain.core._skeleton import Skeleton
from ftrain.core._structure import Tensors, copy_structure, named_tensors
from ftrain.core._torch_collectives import Group
from ftrain.core._torch_tensors import has_call_hooks, registries
from ftrain.core._writes import unchanged
from ftrain.core.functional import Bound
from ftrain.core.remat import Where, remat, selected_modules
from ftrain.distributed._gather import Share, gather_parameters, sum_gradients
from ftrain.distributed._lazy_tensor import REMEDY, LazyTensor
from ftrain.distributed._ordered import OrderedGroup
from ftrain.distributed._prefetch import Prefetch, Shards
from ftrain.distributed._sharded_optimizer import sharded_rows
from ftrain.distributed._sharded_tensor import ShardedTensor, rows_of

__all__ = ["ShardedBound"]


class Place(NamedTuple):
    """Position of a sharded parameter in its unit (module), and the parameter's name in the state.

    Attributes:
        path: the module's path in the unit.
        key: the parameter's name in the module.
        name: the parameter's name in the state.
    """

    path: str
    key: str
    name: str


class ShardedBound(Bound):
    """Module as a pure function of this rank's rows of its parameters.

    Args:
        bound: the model as a function of whole parameters.
        where: selects the units; `None`: the repeated blocks of the model.
        group: the ranks.
        share: the factor of this rank's gradients.
        prefetch: True if a unit starts to gather the parameters of the next one.

    Attributes:
        units: the paths of the units.
        rows: the number of rows of each whole parameter; `None` for a replicated parameter.
    """

    def __init__(
        self,
        bound: Bound,
        where: Where | None,
        group: Group,
        share: Share,
        prefetch: bool = False,
    ) -> None:
        self.__dict__.update(bound.__dict__)
        template = bound.skeleton.module
        tensors = named_tensors(template)
        module = copy_structure(template)
        hooks = bound.hooks
        if hooks and (group.size > 1 or share.replicas is not None):
            raise ValueError(
                "fully_sharded: expected a model without hooks on parameters, got a hook on "
                f"{next(iter(hooks))!r}, which would see only this rank's rows of the gradient. Use "
                "data_parallel, or change the gradients in the optimizer."
            )
        self.rows = {
            name: sharded_rows(tensors[name].shape, group) for name in bound.skeleton.trainable
        }
        self._shapes = {
            name: tuple(tensors[name].shape)
            if n is None
            else (rows_of(n, group)[0], *tensors[name].shape[1:])
            for name, n in self.rows.items()
        }
        self._names: dict[str, list[str]] = {}  # of the parameters of each unit
        self._group, self._share = group, share
        self._prefetch = Prefetch(group) if prefetch and group.size > 1 else None
        if group.size > 1:
            self._make_units(module, where, bound.skeleton)
        self.units = tuple(self._names)
        self._inside = {name for names in self._names.values() for name in names}
        self.skeleton = Skeleton(module, template, parameter_hooks(module))
        if self._prefetch is not None:
            self._prefetch.set_order([self._names[path] for path in self._in_order()])

    def gathered_bytes(self) -> int:
        """Return how many bytes of whole (gathered) parameters are in memory at one time.

        They are those outside of units, and those of the largest unit, of two with `prefetch`.
        """
        module = self.skeleton.module

        def total(names: Iterable[str]) -> int:
            return sum(module.get_parameter(x).nbytes for x in names if self.rows[x] is not None)

        sizes = [total(self._names[path]) for path in self._in_order()]
        if self._prefetch is not None:
            sizes = [sum(pair) for pair in itertools.pairwise(sizes)] or sizes
        return total(self.rows.keys() - self._inside) + max(sizes, default=0)

    def call(
        self,
        fn: Callable[[nn.Module], Any],
        params: Tensors,
        buffers: Tensors,
        training: bool,
        until: contextlib.ExitStack | None = None,
    ) -> tuple[Any, Tensors]:
        """Call `fn` on the module, whose parameters are gathered from `params` when they are needed."""
        for name, shape in self._shapes.items():
            if name in params and tuple(params[name].shape) != shape:
                raise ValueError(
                    f"state.params[{name!r}]: expected shape {shape}, that of this rank's part of the "
                    f"parameter, got {tuple(params[name].shape)}. Call distributed.shard(state, steps) "
                    "first, or init_state of the sharded steps."
                )
        outside = [name for name in params if name not in self._inside]
        whole = gather_parameters(
            outside,
            [params[name] for name in outside],
            [self.rows[name] for name in outside],
            self._group,
            self._share,
        )
        ready = dict(zip(outside, whole, strict=True))
        for name in self._inside:
            rows = self.rows[name]
            assert rows is not None
            ready[name] = UnitParameter.of(name, params[name], rows, self._group, self._share)
        given = {name: ready[name] for name in params}
        if self._prefetch is None:
            return super().call(fn, given, buffers, training, until)
        self._prefetch.begin(params, self.rows)
        try:
            return super().call(fn, given, buffers, training, until)
        finally:
            self._prefetch.end()

    def _in_order(self) -> list[str]:
        """Return the paths of the units in the order in which the model defines them."""
        return [path for path, _ in self.skeleton.module.named_modules() if path in self._names]

    def _make_units(self, module: nn.Module, where: Where | None, skeleton: Skeleton) -> None:
        modules = (
            _blocks(module) if where is None else selected_modules(module, where, "fully_sharded")
        )
        names = {id(t): name for name, t in named_tensors(module).items()}
        holders = skeleton.counts()
        inside: set[str] = set()
        # Innermost first: a parameter belongs to the innermost unit around it.
        for path in sorted(modules, key=lambda path: path.count("."), reverse=True):
            places = [
                Place(inner, key, names[id(t)])
                for inner, m in modules[path].named_modules()
                for key, t in m.named_parameters(recurse=False, remove_duplicate=False)
                if names[id(t)] not in inside
            ]
            counts = [place.name for place in places]
            # A parameter that another module holds too, such as a tied weight, is gathered for the call.
            own = [
                place
                for place in places
                if self.rows.get(place.name) is not None
                and counts.count(place.name) == holders[place.name]
            ]
            if own:
                _make_unit(modules[path], path, own, self._prefetch)
                self._names[path] = list(dict.fromkeys(place.name for place in own))
                inside |= {*self._names[path]}


def _blocks(module: nn.Module) -> dict[str, nn.Module]:
    """Return the repeated blocks of a model, by path.

    A repeated block is one of two or more children of the same class in an `nn.ModuleList` or
    `nn.Sequential` that is not inside of another block.
    """
    found: dict[str, nn.Module] = {}
    for path, m in module.named_modules():
        is_inside = any(path == p or path.startswith(f"{p}.") for p in found)
        if is_inside or not isinstance(m, nn.ModuleList | nn.Sequential):
            continue
        kinds = collections.Counter(type(child) for child in m.children())
        for name, child in m.named_children():
            has_parameters = next(child.parameters(), None) is not None
            if kinds[type(child)] > 1 and has_parameters and _refusal(child) is None:
                found[f"{path}.{name}".lstrip(".")] = child
    return found


def _refusal(module: nn.Module) -> str | None:
    """Return the reason why a module cannot be gathered as a unit; `None` if it can."""
    if type(module).forward is nn.Module.forward:
        return "has no `forward`"
    if "forward" in vars(module):
        return "has a `forward` of its own on the instance"
    if has_call_hooks(module):
        return "has hooks, which would run without its parameters"
    return None


def _make_unit(
    module: nn.Module, path: str, places: Sequence[Place], prefetch: Prefetch | None
) -> None:
    refusal = _refusal(module)
    if refusal is not None:
        raise ValueError(
            "fully_sharded: expected units (modules) without hooks, whose class defines `forward`, got "
            f"{path!r}, which {refusal}. Select the modules in it, or the module that contains it."
        )
    module.__class__ = _unit_class(type(module), tuple(places), prefetch)


def _unit_class(cls: Any, places: tuple[Place, ...], prefetch: Prefetch | None) -> type[nn.Module]:
    """Return a subclass of `cls` with the same name, whose `forward` gathers the parameters first."""
    names = tuple(dict.fromkeys(place.name for place in places))
    is_method = not isinstance(inspect.getattr_static(cls, "forward"), staticmethod)

    def function(self: Any) -> Callable[..., Any]:
        return cls.forward.__get__(self) if is_method else cls.forward  # type: ignore[no-any-return]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        held = {place: registries(self.get_submodule(place.path))[0] for place in places}
        shards = {place.name: held[place][place.key] for place in places}
        if not all(isinstance(x, UnitParameter) for x in shards.values()):
            # The parameters are whole already, because the unit calls itself.
            return function(self)(*args, **kwargs)
        rows = tuple(shards[name].shape[0] for name in names)
        group, share = shards[names[0]].group, shards[names[0]].share
        before = None
        if prefetch is not None:
            before = prefetch.enter(Shards(names, tuple(shards[n].local for n in names), rows))

        def run(*given: Any, **named: Any) -> Any:
            local, started = given[: len(names)], None
            if prefetch is not None:
                started = prefetch.take(Shards(names, local, rows))
            whole = gather_parameters(names, local, rows, group, share, started)
            if prefetch is not None:
                if share.value is None:  # in the forward pass
                    prefetch.start_following(Shards(names, local, rows))
                else:
                    prefetch.start(before, again=True)
            with _installed(held, dict(zip(names, whole, strict=True))):
                return function(self)(*given[len(names) :], **named)

        return remat(run)(*(shards[name].local for name in names), *args, **kwargs)

    if is_method:
        forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
    forward.__doc__ = cls.forward.__doc__
    return type(
        cls.__name__,
        (cls,),
        {"forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__},
    )


@contextlib.contextmanager
def _installed(held: dict[Place, Any], whole: Tensors) -> Iterator[None]:
    """Install whole parameters in the modules of a unit during a `with` block."""
    before = {place: registry[place.key] for place, registry in held.items()}
    for place, registry in held.items():
        registry[place.key] = whole[place.name]
    try:
        with unchanged(whole, "parameter", REMEDY):
            yield
    finally:
        for place, registry in held.items():
            registry[place.key] = before[place]


class UnitParameter(LazyTensor, ShardedTensor):
    """Parameter of a unit (module) that is not running; a torch function that reads it gathers it.

    Code outside of the unit that reads it, such as a penalty over `model.parameters()`, gets the whole
    parameter, with its gradient.

    Attributes:
        path: the parameter's name in the state.
        share: the factor of this rank's gradients.
    """

    what = "a parameter of a unit"
    path: str
    share: Share

    @staticmethod
    def of(name: str, local: torch.Tensor, rows: int, group: Group, share: Share) -> UnitParameter:
        """Make the parameter with `rows` rows from the tensor `local` of this rank's rows."""
        local = local.contiguous()
        given = (name, local, rows, group, share)
        self: UnitParameter = _Unread.apply(*given)  # type: ignore[no-untyped-call]
        self.path, self.local, self.share = name, local, share  # with the graph of `local`
        return self

    def gathered(self) -> torch.Tensor:
        """Return the whole parameter, whose gradient is summed over ranks."""
        given = ([self.path], [self.local], [self.shape[0]], self.group, self.share)
        (whole,) = gather_parameters(*given)
        return whole


class _Unread(torch.autograd.Function):
    """Autograd function that returns this rank's rows as a `UnitParameter`, without gathering.

    An autograd function that gets the parameter as an argument returns a whole gradient for it.
    """

    @staticmethod
    def forward(
        ctx: Any, name: str, local: torch.Tensor, rows: int, group: Group, share: Share
    ) -> torch.Tensor:
        ctx.name, ctx.rows, ctx.group, ctx.share = name, rows, group, share
        return UnitParameter(local, rows, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        if isinstance(ctx.group, OrderedGroup):
            ctx.share.check_once([ctx.name])
        (local,) = sum_gradients([grad], [ctx.rows], [grad.dtype], ctx.group, ctx.share)
        return None, local, None, None, None
