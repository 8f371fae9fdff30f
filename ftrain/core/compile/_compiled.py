"""The compiled function: which program fits these arguments, and the shortest way to call it.

A call that fits a program seen before runs four things: the structure's reader (`_reader.py`), the
guard on the tensors, a comparison of the global settings, the program itself.

Read next: `_trace.py`, where programs come from.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import fx

from ftrain.core import _torch, tree
from ftrain.core.compile import _donate
from ftrain.core.compile._errors import describe, describe_key
from ftrain.core.compile._lower import Backend, Lowered, lower, separate
from ftrain.core.compile._reader import build_reader, static_key
from ftrain.core.compile._trace import TENSOR, Traced, is_tracing, trace
from ftrain.core.errors import RecompileWarning

__all__ = ["Compiled"]

P = ParamSpec("P")
R = TypeVar("R")

_RECENT = 4  # programs tried by their guard before the arguments are looked up by key
_lock = threading.RLock()  # tracing sets global modes; one thread at a time

Settings = tuple[Any, ...]
_AUTOCAST = 2
_SETTING_NAMES = (
    "default dtype",
    "default device",
    "autocast",
    "deterministic algorithms",
    "number of threads",
    "float32 matmul precision",
)


class Compiled(Generic[P, R]):
    """A function that runs as one program for each kind of arguments; made by `compile`.

    Attributes:
        n_compiles: how many programs were made so far.
    """

    n_compiles: int

    def __init__(
        self, fn: Callable[P, R], donate: bool, mode: str | None, backend: Backend
    ) -> None:
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._donate = donate
        self._mode = mode
        self._backend: Backend = backend
        self._name = getattr(fn, "__name__", None) or type(fn).__name__
        self._programs: list[_Program] = []  # the latest used first
        self._by_key: dict[Any, _Program] = {}
        self._returned: tuple[weakref.ref[Any], frozenset[int]] | None = None
        self.n_compiles = 0

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if not is_tracing():
            settings = _settings()
            for program in self._programs[:_RECENT]:
                tensors = program.read(args, kwargs)
                if tensors is not None and program.fits(*tensors) and program.settings == settings:
                    return self._run(program, args, tensors)
        return self._find_and_run(args, kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<compiled {self._name}: {self.n_compiles} programs>"

    def graph(self, *args: P.args, **kwargs: P.kwargs) -> fx.GraphModule:
        """The operators that these arguments run, as a `torch.fx.GraphModule`; nothing is compiled.

        Its inputs are the tensors of the arguments in the order of `tree.leaves((args, kwargs))`, then
        the captured ones.
        """
        call = _Call(self._fn, args, kwargs)
        self._check(call)
        with _lock:
            return self._trace(call).graph

    def _find_and_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        if torch.is_inference_mode_enabled() and not is_tracing():
            # Inference tensors cannot be donated or differentiated later: return ordinary ones.
            with torch.inference_mode(False):
                return self._find_and_run(args, kwargs)
        call = _Call(self._fn, args, kwargs)
        if is_tracing() or any(isinstance(t, _torch.FakeTensor) for t in call.tensors()):
            return self._fn(*args, **kwargs)  # inside another trace: part of that graph
        self._check(call)
        program = self._by_key.get(call.key)
        if program is None:
            with _lock:
                program = self._by_key.get(call.key) or self._make(call)
        return self._run(program, call.args, call.tensors())

    def _check(self, call: _Call) -> None:
        """What a program cannot take, said before anything is traced."""
        transform = _torch.inside_functorch()
        if transform is not None:
            raise RuntimeError(
                f"the compiled `{self._name}` is called inside torch.func.{transform}: a compiled "
                f"program cannot be transformed further. Transform first, compile last: "
                f"compile({transform}({self._name})), not {transform}(compile({self._name}))."
            )
        if _torch.function_mode_depth():
            for active in _torch.function_modes():
                if type(active).__name__ != "DeviceContext":
                    raise RuntimeError(
                        f"the compiled `{self._name}` is called inside `with {type(active).__name__}`, "
                        "which would change the program once and for all when it is traced, not at "
                        f"each call. Enter it inside `{self._name}`."
                    )
        call.normalise(self._name)
        if self._donate:
            if not call.args:
                raise TypeError(f"pass the state of `{self._name}` by position: it is donated.")
            _donate.check_donatable(call.args[0])

    def _trace(self, call: _Call) -> Traced:
        return trace(
            self._fn, self._name, call.treedef, call.leaves, call.names, donate=self._donate
        )

    def _make(self, call: _Call) -> _Program:
        if self._programs:
            self._warn(call)
        program = _Program(call, self._trace(call))
        if self._donate:  # before minutes of compilation
            self._check_memory(program, call.args[0], call.tensors())
        program.lower(call.tensors(), self._backend, self._mode)
        self.n_compiles += 1
        self._by_key[call.key] = program
        self._programs = [program, *self._programs]
        return program

    def _run(self, program: _Program, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> R:
        if program is not self._programs[0]:
            self._programs = [program, *(other for other in self._programs if other is not program)]
        if not self._donate:
            return program(tensors)  # type: ignore[no-any-return]
        state = args[0]
        memory = self._check_memory(program, state, tensors)
        caller = _caller()
        try:
            output = program(tensors)
        except BaseException:
            _donate.poison(state, self._name, caller, failed=True)
            raise
        _donate.poison(state, self._name, caller)
        new = output if program.traced.whole else output[0]
        self._returned = (weakref.ref(new), memory)
        return output  # type: ignore[no-any-return]

    def _check_memory(
        self, program: _Program, state: Any, tensors: Sequence[torch.Tensor]
    ) -> frozenset[int]:
        """Refuse shared memory. A state that we returned ourselves needs no second look."""
        n, names = program.n_donated, program.tensor_names
        rest = [*tensors[n:], *program.traced.captured]
        if self._returned is not None and self._returned[0]() is state:
            memory = self._returned[1]
            if memory.isdisjoint(_donate.storages(rest)):
                return memory
        return _donate.check_memory(tensors[:n], names[:n], zip(names[n:], rest, strict=True))

    def _warn(self, call: _Call) -> None:
        nearest = min(self._programs, key=lambda program: len(call.changes(program)))
        changes = call.changes(nearest)
        listed = "\n".join(f"  {change}" for change in changes[:8])
        more = f"\n  ... and {len(changes) - 8} more" if len(changes) > 8 else ""
        warnings.warn(
            f"`{self._name}` is compiled again (program {self.n_compiles + 1}): what it was given is of "
            f"a new kind.\n{listed}{more}\n{call.remedy(nearest)}",
            RecompileWarning,
            stacklevel=5,
        )


class _Call:
    """The arguments of one call, flattened: leaves, their names, and the key of their program."""

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.leaves, self.treedef = tree.flatten((args, kwargs))
        self.settings = _settings()

    def tensors(self) -> list[torch.Tensor]:
        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]

    @functools.cached_property
    def names(self) -> list[str]:
        """What a message calls each leaf: `batch['x']`."""
        try:
            parameters = list(inspect.signature(self.fn).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        names = []
        for i, argument in enumerate(self.args):
            name = f"args[{i}]"
            if i < len(parameters) and parameters[i].kind is not inspect.Parameter.VAR_POSITIONAL:
                name = parameters[i].name
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

    def normalise(self, function: str) -> None:
        """Make every tensor plain, or say why that cannot be."""
        for i, leaf in enumerate(self.leaves):
            if not isinstance(leaf, torch.Tensor):
                try:
                    hash(leaf)
                except TypeError:
                    raise TypeError(
                        f"`{self.names[i]}` of `{function}` is {type(leaf).__name__}, which is neither "
                        "a tensor nor hashable, so it can be no part of a compiled program. Pass "
                        "torch.as_tensor(...) of it, or register its class as a tree node."
                    ) from None
                continue
            if leaf.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(
                    f"`{self.names[i]}` of `{function}` requires a gradient, and a compiled program is "
                    "opaque to autograd. Differentiate inside the function that is compiled "
                    "(ftrain.value_and_grad, torch.func), or pass x.detach()."
                )
            if type(leaf) not in (torch.Tensor, torch.nn.Parameter):
                raise TypeError(
                    f"`{self.names[i]}` of `{function}` is a {type(leaf).__name__}; compiled functions "
                    "take plain tensors. Pass its plain tensors instead."
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

    def changes(self, program: _Program) -> list[str]:
        """How these arguments differ from those of a program, a line for each leaf."""
        if self.treedef != program.treedef:
            mine, theirs = set(self.names), set(program.names)
            lines = [f"{name} is new" for name in self.names if name not in theirs]
            lines += [f"{name} is gone" for name in program.names if name not in mine]
            return lines or [f"their structure: {program.treedef} -> {self.treedef}"]
        lines = [
            f"{name}: {describe_key(old)} -> {describe_key(new)}"
            for name, old, new in zip(self.names, program.specs, self.specs, strict=True)
            if old != new
        ]
        lines += [
            f"{name}: {old} -> {new}"
            for name, old, new in zip(_SETTING_NAMES, program.settings, self.settings, strict=True)
            if old != new
        ]
        return lines

    def remedy(self, program: _Program) -> str:
        """What keeps these arguments from differing."""
        if self.treedef != program.treedef:
            return "Give every call the same containers with the same keys."
        pairs = list(zip(self.leaves, self.specs, program.specs, strict=True))
        changed = [leaf for leaf, new, old in pairs if new != old]
        said = []
        if any(isinstance(leaf, torch.Tensor) for leaf in changed):
            said.append(
                "One program serves one shape: pad, or drop the last ragged batch (drop_last=True), if "
                "the time to compile matters; a state keeps its shapes, dtypes and strides."
            )
        if any(isinstance(leaf, (int, float, complex)) for leaf in changed):
            said.append(
                "A Python number is a constant of the program: pass torch.tensor(...) for one that "
                "changes."
            )
        return " ".join(said) or "Keep what is no tensor the same from call to call."


class _Program:
    """One compiled graph, and what arguments must be like for it."""

    def __init__(self, call: _Call, traced: Traced) -> None:
        tensors = call.tensors()
        self.traced = traced
        self.settings = call.settings
        self.treedef = call.treedef
        self.specs = call.specs
        self.names = call.names
        self.tensor_names = [
            name
            for name, leaf in zip(call.names, call.leaves, strict=True)
            if isinstance(leaf, torch.Tensor)
        ] + [f"a captured {describe(tensor)}" for tensor in traced.captured]
        self.read = build_reader(call.args, call.kwargs)
        self.fits = _torch.tensor_guard(tensors) or _slow_guard(tensors)
        self.n_donated = traced.n_donated
        self._captured = traced.captured
        self._unflatten = traced.out_treedef.unflatten
        self._static = [(i, leaf) for i, leaf in enumerate(traced.out_leaves) if leaf is not TENSOR]

    def lower(self, tensors: Sequence[torch.Tensor], backend: Backend, mode: str | None) -> None:
        lowered = lower(self.traced, [*tensors, *self._captured], backend, mode)
        if self.settings[_AUTOCAST]:
            self._lowered: Lowered = _under(_torch.without_autocast, lowered)
        else:
            self._lowered = lowered
        self._call: Lowered = self._first

    def __call__(self, tensors: list[torch.Tensor]) -> Any:
        outputs = self._call([*tensors, *self._captured] if self._captured else tensors)
        n = self.n_donated
        leaves = [*tensors[:n], *outputs] if n else list(outputs)
        for place, value in self._static:  # in ascending order
            leaves.insert(place, value)
        return self._unflatten(leaves)

    def _first(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        self._call, outputs = separate(self._lowered, inputs, self._lowered(inputs))
        return outputs


def _under(context: Callable[[], Any], run: Lowered) -> Lowered:
    def inside(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        with context():
            return run(inputs)

    return inside


def _settings() -> Settings:
    """The global settings that shape a program: 1 µs a call."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device() if _torch.function_mode_depth() else None,
        _torch.autocast_state() if _torch.any_autocast() else (),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
    )


def _slow_guard(examples: Sequence[torch.Tensor]) -> Callable[..., bool]:
    """What `_torch.tensor_guard` checks, in Python."""

    def spec(tensor: Any) -> Any:
        if type(tensor) is not torch.Tensor:
            return None
        return (tensor.shape, tensor.dtype, tensor.device, tensor.stride(), tensor.requires_grad)

    expected = [spec(example) for example in examples]
    return lambda *tensors: [spec(tensor) for tensor in tensors] == expected


def _caller() -> types.FrameType | None:
    """The frame that called the compiled function."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame
