"""A module without weights, into which a state's tensors are put for the length of one call.

`torch.func.functional_call` corrupts a module whose submodule is reachable by two paths
(pytorch#164759), writes into the buffers it is given, and leaves what a forward stored on the module.
The skeleton is private, lives on the meta device, knows every place that holds a tensor, and comes out
of a call exactly as it went in.

Read next: `functional.py`, which is its public face.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ftrain.core._kept_buffers import KeptBuffers
from ftrain.core._torch_checkpoint import around_regions
from ftrain.core.errors import ImpureFunctionError

Tensors = dict[str, torch.Tensor]


_STANDARD = frozenset(nn.Module().__dict__)  # what every module has: its registries and hooks
_PARAMETER_REMEDY = (
    "A step must leave its inputs as they are: compute with a changed copy instead, or change the "
    "parameters between steps with state.replace(params=...)"
)
_STRAY_REMEDY = (
    "It is no part of the state, so the next step would not be a function of its inputs. "
    "Register it: self.register_buffer(name, tensor)"
)


@contextlib.contextmanager
def unchanged(
    tensors: Mapping[Any, torch.Tensor],
    kind: str,
    remedy: str,
    called: Callable[[Any], str] = str,
) -> Iterator[None]:
    """Raise if one of these tensors was written in place inside the context.

    Free of host syncs: torch counts the writes to each tensor (but not those through `.data`).
    `called` says what a message calls the tensor under a key.

    Raises:
        ImpureFunctionError: with the tensor's name and the remedy.
    """
    counted = [
        (name, t, t._version)
        for name, t in tensors.items()
        if not t.is_inference() and not torch._C._functorch.is_functorch_wrapped_tensor(t)
    ]
    yield
    for name, tensor, version in counted:
        if tensor._version != version:
            raise ImpureFunctionError(
                f"the {kind} `{called(name)}` was changed in place. {remedy}."
            )


class _Slot(NamedTuple):
    """A place in the module tree that holds a parameter or buffer: `holder[key]`."""

    holder: Any
    key: Any
    name: str


class Skeleton:
    """The structure of a module; its tensors are arguments.

    Args:
        module: stripped of its tensors, so it must be the caller's to give away.

    Attributes:
        module: the skeleton itself, every tensor on the meta device.
        trainable: names of the parameters with `requires_grad`, sorted.
        carried: names of all other tensors (buffers, frozen parameters), sorted.
    """

    def __init__(self, module: nn.Module) -> None:
        _refuse_lazy(module)
        self.module = module
        tensors = _named_tensors(module)
        self.trainable = sorted(
            name for name, t in tensors.items() if isinstance(t, nn.Parameter) and t.requires_grad
        )
        self.carried = sorted(tensors.keys() - set(self.trainable))
        _refuse_overlap(tensors)
        self._modules = list(module.modules())
        self._slots = _slots(self._modules, {id(t): name for name, t in tensors.items()})
        self._buffers = {
            name for name in self.carried if not isinstance(tensors[name], nn.Parameter)
        }
        self._held: Tensors | None = None  # the parameters in place, inside `holding`
        self._unset_buffers = [
            (m._buffers, key) for m in self._modules for key, b in m._buffers.items() if b is None
        ]
        hollow = {name: _hollow(t) for name, t in tensors.items()}
        self._shapes = {name: t.shape for name, t in tensors.items()}
        for holder, key, name in self._slots:
            holder[key] = hollow[name]
        self._registries = [
            (prefix, registry)
            for prefix, m in module.named_modules()
            for registry in (m._parameters, m._buffers, m._modules)
        ]
        self._containers = [
            value
            for m in self._modules
            for key, value in m.__dict__.items()
            if key not in _STANDARD and type(value) in (list, dict, set)
        ]
        self._stray = _stray_tensors(module)
        self._trains = {id(m): m.training or not module.training for m in self._modules}
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def holding(self, params: Tensors, buffers: Tensors, training: bool) -> Iterator[None]:
        """The module with these tensors in place; everything is put back at the end.

        Training mode restores the flags that the module came with (submodules that were frozen in
        eval mode stay so), or `train()` where the whole module came in eval mode.
        """
        tensors = self.checked(params, buffers)
        # A recomputation may run in a thread of the backward pass, for a call that holds the lock.
        with contextlib.nullcontext() if self._held is params else self._lock:
            saved = [(m.__dict__, dict(m.__dict__)) for m in self._modules]
            contents = [(container, container.copy()) for container in self._containers]
            keys = [list(registry) for _, registry in self._registries]
            slots = [(holder, key, holder[key]) for holder, key, _ in self._slots]
            held, self._held = self._held, params
            try:
                for holder, key, name in self._slots:
                    holder[key] = tensors[name]
                for m in self._modules:
                    m.training = training and self._trains[id(m)]
                with (
                    unchanged(params, "parameter", _PARAMETER_REMEDY),
                    unchanged(self._stray, "tensor attribute", _STRAY_REMEDY),
                    around_regions(lambda: self._again(params, training)),
                ):
                    yield
                self._refuse_growth(keys)
            finally:
                self._held = held
                for attributes, original in saved:
                    attributes.clear()
                    attributes.update(original)
                for container, original in contents:
                    container.clear()
                    if isinstance(container, list):
                        container.extend(original)
                    else:
                        container.update(original)
                for (_, registry), known in zip(self._registries, keys, strict=True):
                    for key in [key for key in registry if key not in known]:
                        del registry[key]
                for holder, key, value in slots:
                    holder[key] = value
                for holder, key in self._unset_buffers:
                    holder[key] = None

    def _again(
        self, params: Tensors, training: bool
    ) -> Callable[[], contextlib.AbstractContextManager[None]]:
        """Return a function that makes a context like this `holding`, as it is now.

        A backward pass enters it to compute a checkpointed region again. By then the forward pass may
        have written to its buffers, or `holding` may have ended.
        """
        kept = KeptBuffers(self.read(self.carried), self._buffers)

        def holding() -> contextlib.AbstractContextManager[None]:
            if self._held is params and kept.are_current():
                return contextlib.nullcontext()
            return self.holding(params, kept.restored(), training)

        return holding

    def read(self, names: Sequence[str]) -> Tensors:
        """The tensors that stand in the module now under these names."""
        wanted = set(names)
        found: Tensors = {}
        for holder, key, name in self._slots:
            if name in wanted and name not in found:
                found[name] = holder[key]
                if not isinstance(found[name], torch.Tensor):
                    raise ImpureFunctionError(
                        f"the model set its buffer {name!r} to {found[name]!r} during a forward pass; "
                        "a buffer stays a tensor of one shape. Fill it instead: torch.zeros_like(...)."
                    )
        return {name: found[name] for name in names}

    def checked(self, params: Tensors, buffers: Tensors) -> Tensors:
        """Both by name; or an error that says where they are not this module's."""
        for kind, given, names in (
            ("params", params, self.trainable),
            ("buffers", buffers, self.carried),
        ):
            if not isinstance(given, dict) or given.keys() != set(names):
                have = set(given) if isinstance(given, dict) else set()
                missing, extra = sorted(set(names) - have), sorted(have - set(names))
                raise ValueError(
                    f"{kind} do not fit {type(self.module).__name__}: "
                    + (f"missing {missing[:5]} " if missing else "")
                    + (f"unexpected {extra[:5]} " if extra else "")
                    + f"(expected {len(names)} names). Take them from init_state, or from "
                    "bind(model).init()."
                )
        tensors = {**params, **buffers}
        for name, expected in self._shapes.items():
            if tensors[name].shape != expected:
                raise ValueError(
                    f"{name!r} has shape {tuple(tensors[name].shape)}, but {tuple(expected)} in "
                    f"{type(self.module).__name__}: the state belongs to another model"
                )
        return tensors

    def _refuse_growth(self, keys: list[list[str]]) -> None:
        for (prefix, registry), known in zip(self._registries, keys, strict=True):
            if list(registry) != known:
                name = f"{prefix}.{next(iter(set(registry) ^ set(known)), '')}".lstrip(".")
                raise ImpureFunctionError(
                    f"the model registered or removed `{name}` during a forward pass; the"
                    " state cannot grow. Do it in __init__."
                )
        for holder, key in self._unset_buffers:
            if holder[key] is not None:
                raise ImpureFunctionError(
                    f"the model filled its buffer {key!r}, which was None, during a forward pass; "
                    "the state cannot grow. Give the buffer its shape in __init__."
                )


def skeleton_of(module: nn.Module) -> Skeleton:
    """A skeleton of a module, copied structure only, without its weights' memory."""
    _refuse_lazy(module)
    return Skeleton(_copy_structure(module))


def read_tensors(module: nn.Module) -> tuple[Tensors, Tensors]:
    """A module's own tensors as `(params, buffers)`, sorted by name, detached, not copied."""
    tensors = _named_tensors(module)
    trainable = {
        name for name, t in tensors.items() if isinstance(t, nn.Parameter) and t.requires_grad
    }
    detached = {name: tensors[name].detach() for name in sorted(tensors)}
    return (
        {name: t for name, t in detached.items() if name in trainable},
        {name: t for name, t in detached.items() if name not in trainable},
    )


def fill(module: nn.Module, tensors: Tensors) -> None:
    """Give a module copies of these tensors, in their dtypes and on their devices."""
    for name, own in _named_tensors(module).items():
        own.data = tensors[name].detach().clone()


def is_shared(factory: Callable[[], nn.Module], built: nn.Module) -> bool:
    """Whether a model function hands out a module that lives elsewhere, instead of building one."""
    try:
        with torch.device("meta"):  # without memory or draws
            again = factory()
    except Exception:  # it cannot build there: build in earnest
        again = build(factory)
    mine = {id(x) for x in (*built.modules(), *built.parameters(), *built.buffers())}
    return any(id(x) in mine for x in (*again.modules(), *again.parameters(), *again.buffers()))


def build(factory: Callable[[], nn.Module]) -> nn.Module:
    """The module that a model function builds."""
    if not callable(factory):
        raise TypeError(
            f"model must be an nn.Module or a function that builds one, found {type(factory).__name__}"
        )
    module = factory()
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"the model function returned {type(module).__name__}, not an nn.Module. "
            "Write: make_steps(lambda: Net(...), ...)."
        )
    return module


def _copy_structure(module: nn.Module) -> nn.Module:
    """A deep copy whose tensors are hollow: the memo makes deepcopy meet them already copied."""
    memo: dict[int, Any] = {id(t): _hollow(t) for t in _named_tensors(module).values()}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        error.add_note(
            f"while copying the structure of {type(module).__name__}. If it holds something that "
            "cannot be copied, hand over a function that builds it: make_steps(lambda: Net(...), ...)."
        )
        raise


def _hollow(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
    empty.__dict__.update(tensor.__dict__)
    return empty


def _named_tensors(module: nn.Module) -> Tensors:
    """Every distinct parameter and buffer under the first name that reaches it."""
    found: Tensors = dict(module.named_parameters())
    seen = {id(t) for t in found.values()}
    found.update((name, b) for name, b in module.named_buffers() if id(b) not in seen)
    return found


def _slots(modules: list[nn.Module], names: dict[int, str]) -> list[_Slot]:
    """Every place that holds one of these tensors, lists such as an LSTM's flat weights included."""
    slots = []
    for m in modules:
        for holder in (m._parameters, m._buffers):
            slots += [_Slot(holder, k, names[id(t)]) for k, t in holder.items() if t is not None]
        for key, value in m.__dict__.items():
            if isinstance(value, torch.Tensor) and id(value) in names:
                slots.append(_Slot(m.__dict__, key, names[id(value)]))
            elif key not in _STANDARD:
                slots += _contained(value, names, key)
    return slots


def _contained(value: Any, names: dict[int, str], attribute: str) -> list[_Slot]:
    """The places in lists and dicts, nested ones too, that hold one of these tensors."""
    if isinstance(value, (list, dict)):
        slots: list[_Slot] = []
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(item, torch.Tensor) and id(item) in names:
                slots.append(_Slot(value, key, names[id(item)]))
            else:
                slots += _contained(item, names, attribute)
        return slots
    if isinstance(value, (tuple, set, frozenset)):
        for item in value:
            if isinstance(item, torch.Tensor) and id(item) in names:
                raise ValueError(
                    f"the attribute {attribute!r} holds {names[id(item)]!r} in a "
                    f"{type(value).__name__}, where the state's tensor cannot be put in its place. "
                    "Use a list."
                )
            if isinstance(item, (list, dict, tuple)) and _contained(item, names, attribute):
                raise ValueError(f"{attribute!r} nests parameters in a tuple; use lists")
    return []


def _refuse_overlap(tensors: Tensors) -> None:
    """Two names for one piece of memory would drift apart in a state."""
    spans = sorted(
        (t.untyped_storage().data_ptr(), t.storage_offset() * t.element_size(), t.nbytes, name)
        for name, t in tensors.items()
        if not t.is_meta and t.numel() and t.is_contiguous()
    )
    for (storage, start, size, name), (other, begin, _, second) in itertools.pairwise(spans):
        if storage == other and begin < start + size:
            raise ValueError(
                f"{name!r} and {second!r} are views of one piece of memory. Register one of them and "
                "compute the other from it, or tie them as one object."
            )


def _stray_tensors(module: nn.Module) -> Tensors:
    """Plain tensor attributes: constants if only read, hidden state if written."""
    stray: Tensors = {}
    for prefix, m in module.named_modules():
        for key, value in m.__dict__.items():
            if isinstance(value, torch.Tensor) and not value.is_meta:
                stray[f"{prefix}.{key}".lstrip(".")] = value
    return stray


def _refuse_lazy(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"{name!r} of {type(module).__name__} is lazy: its shape is not known yet. Run one "
                "batch through the model before handing it over, or use the layer that is not lazy."
            )
