"""Compiled function, which finds the program for its arguments and calls it.

A call that fits an earlier program runs four functions: the reader of the structure (`_reader.py`), the
guard on the tensors, the comparison of global settings, and the program.

Read next: `_call.py` (the arguments), `_program.py` (the compiled program), `_trace.py` (the making of
programs).
"""

from __future__ import annotations

import functools
import pathlib
import sys
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import fx

from ftrain.core import _torch, tree
from ftrain.core._not_copied import NotCopied
from ftrain.core._short_traceback import shortened
from ftrain.core.compile import _donate, _lowered, _ownership, _saved
from ftrain.core.compile._call import Call, global_settings, parameter_names
from ftrain.core.compile._errors import listed, note_index
from ftrain.core.compile._failed_donation import may_have_written
from ftrain.core.compile._lower import Backend
from ftrain.core.compile._lowered import Executable, Lowered
from ftrain.core.compile._observers import observed
from ftrain.core.compile._program import Program
from ftrain.core.compile._toolchain import check_compiler
from ftrain.core.compile._trace import Traced, is_tracing, trace
from ftrain.core.cost import Cost, call_cost
from ftrain.core.errors import RecompileWarning
from ftrain.core.random.keyed import innermost_stream

__all__ = ["Compiled"]

P = ParamSpec("P")
R = TypeVar("R")

_RECENT = 4  # number of programs whose guards are tried before the arguments are looked up by key
_lock = threading.RLock()  # tracing sets global modes, so only one thread may trace at a time


class Compiled(NotCopied, Generic[P, R]):
    """Function that runs as one compiled program for each kind of arguments; made by `compile`.

    Attributes:
        n_compiles: the number of programs compiled so far.
    """

    n_compiles: int

    def __init__(
        self,
        fn: Callable[P, R],
        donate: bool,
        mode: str | None,
        backend: Backend,
        cpp_wrapper: bool = False,
    ) -> None:
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._donate = donate
        self._mode = mode
        self._backend: Backend = backend
        self._cpp_wrapper = cpp_wrapper
        self._name = getattr(fn, "__name__", None) or type(fn).__name__
        self._programs: list[Program] = []  # the most recently used first
        self._by_key: dict[Any, Program] = {}
        self.n_compiles = 0

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        # The guards of a program do not see tangents, which it would drop.
        if not is_tracing() and not _torch.is_forward_mode():
            settings = global_settings()
            for program in self._programs[:_RECENT]:
                tensors = program.read(args, kwargs)
                if tensors is None or program.settings != settings:
                    continue
                n = program.n_donated
                owned = _donate.owned(args[0], tensors, n) if n else None
                if program.fits(tensors, n if owned else 0):
                    return self._run(program, args, tensors, owned)
        try:
            return self._find_and_run(args, kwargs)
        except Exception as error:
            raise shortened(error) from error.__cause__

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<compiled {self._name}: {self.n_compiles} programs>"

    @property
    def fn(self) -> Callable[P, R]:
        """Function that is compiled."""
        return self._fn

    @property
    def backend(self) -> Backend:
        """Backend of the programs."""
        return self._backend

    @property
    def mode(self) -> str | None:
        """Mode in which inductor compiles."""
        return self._mode

    def check_compiler(self, device: torch.device) -> None:
        """Raise if programs on this device need a compiler that is missing.

        Raises:
            CompilerMissingError: the C++ compiler (on CUDA: the C compiler) is missing.
        """
        if self._backend == "inductor" and not self.n_compiles:
            check_compiler(device_type=device.type)

    def graph(self, *args: P.args, **kwargs: P.kwargs) -> fx.GraphModule:
        """Return the operators of a call as a `torch.fx.GraphModule`, without compiling.

        Its inputs are the tensors of the arguments in the order of `tree.leaves((args, kwargs))`, then
        the captured ones.
        """
        return self.traced(*args, **kwargs)[0].graph

    def traced(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Traced, list[torch.Tensor]]:
        """Return the trace of a call, and the inputs of its graph, without compiling."""
        call = Call(self._fn, args, kwargs)
        self._check(call)
        with _lock:
            traced = self._trace(call)
        return traced, [*call.tensors(), *traced.captured]

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> Lowered[P, R]:
        """Trace a call without running it; `lower(...).compile()` compiles ahead of the first call.

        Returns:
            The traced function. Its method `compile` returns the program, which takes arguments of the
            same structure, shapes and dtypes only. Calls of this function use the program too.

        Raises:
            TraceError: the function cannot be traced.
        """
        call = Call(self._fn, args, kwargs)
        self._check(call)
        with _lock:
            traced = self._trace(call)
        return Lowered(self._name, traced.graph, functools.partial(self._ahead, call, traced))

    def cost(self, *args: P.args, **kwargs: P.kwargs) -> Cost:
        """Return the cost of one call: its operators and kernels with time, FLOPs, bytes and least time.

        The program runs several times, on copies of a donated state, and is compiled first if no earlier
        call compiled it. Measuring the rates of the machine takes a second or two more.

        Returns:
            A `Cost`, which `print` shows as tables.
        """
        graph = self.graph(*args, **kwargs)
        device = next(
            (x.device for x in tree.leaves((args, kwargs)) if isinstance(x, torch.Tensor)),
            torch.device("cpu"),
        )

        def prepare() -> Callable[[], Any]:
            given: Any = args
            if self._donate:
                given = (tree.map(_cloned, args[0]), *args[1:])
            return functools.partial(self, *given, **kwargs)

        return call_cost(prepare, device, graph=graph)

    def _ahead(self, call: Call, traced: Traced) -> Executable[P, R]:
        """Compile a traced call, unless a program for such arguments exists."""
        with _lock:
            program = self._by_key.get(call.key)
            if program is None or not program.captured.fit():
                program = self._make(call, instead_of=program, traced=traced)
        key = call.key
        call.leaves.clear()
        return self.executable(program, key)

    def executable(self, program: Program, key: Any) -> Executable[P, R]:
        """Return a program of this function as a function of its own."""
        if program not in self._programs:
            self._programs, self._by_key = (
                [program, *self._programs],
                {**self._by_key, key: program},
            )

        def write(path: pathlib.Path) -> None:
            _saved.write(program, self._name, parameter_names(self._fn), self._donate, path)

        return Executable(self._name, functools.partial(self._run_only, program, key), write)

    def _run_only(
        self, program: Program, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> R:
        """Run a program; raise `TypeError` if it was compiled for other arguments."""
        usual = not is_tracing() and not _torch.is_forward_mode()
        if usual and program.settings == global_settings():
            tensors = program.read(args, kwargs)
            if tensors is not None:
                n = program.n_donated
                owned = _donate.owned(args[0], tensors, n) if n else None
                if program.fits(tensors, n if owned else 0):
                    return self._run(program, args, tensors, owned)
        call = Call(self._fn, args, kwargs)
        if _is_inlined(call):
            return self._fn(*args, **kwargs)
        self._check(call)
        if call.key != key or not program.captured.fit():
            changes = call.changes(program.signature) or program.captured.changes()
            raise TypeError(
                f"the program of `{self._name}` was compiled for other arguments.\n"
                f"{listed(changes)}\nPass arguments like those of lower(), or call the compiled "
                "function, which compiles again for others."
            )
        call.leaves.clear()
        return self._find_and_run(args, kwargs)

    def _find_and_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        if torch.is_inference_mode_enabled() and not is_tracing():
            # Inference tensors cannot be donated or differentiated later: return ordinary ones.
            with torch.inference_mode(False), torch.no_grad():
                return self._find_and_run(args, kwargs)
        call = Call(self._fn, args, kwargs)
        if _is_inlined(call):
            return self._fn(*args, **kwargs)
        self._check(call)
        program = self._by_key.get(call.key)
        if program is None or not program.captured.fit():
            with _lock:
                program = self._by_key.get(call.key)
                if program is None or not program.captured.fit():
                    program = self._make(call, instead_of=program)
        args, tensors = call.args, call.tensors()
        call.leaves.clear()  # these references would be counted as references of the user
        return self._run(program, args, tensors)

    def _check(self, call: Call) -> None:
        """Raise, before the trace, inside a transform or mode, or for unsupported arguments."""
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
                        "which has no effect on a program that is compiled already. Write the `with` "
                        f"inside `{self._name}`, where it acts on each operator that is compiled."
                    )
        call.normalise(self._name)
        if self._donate:
            if not call.args:
                raise TypeError(
                    f"`{self._name}` is compiled with donate=True: expected the state as first "
                    f"positional argument, got no positional argument. Call {self._name}(state, ...)."
                )
            _donate.check_donatable(call.args[0])

    def _trace(self, call: Call) -> Traced:
        return trace(
            self._fn, self._name, call.treedef, call.leaves, call.names, donate=self._donate
        )

    def _make(
        self, call: Call, instead_of: Program | None, traced: Traced | None = None
    ) -> Program:
        reason = self._reason(call, instead_of) if self._programs else ""
        if reason and traced is None:  # no warning for `lower(...).compile()`, an explicit request
            warnings.warn(reason, RecompileWarning, stacklevel=4)
        with observed(self._name, reason):
            traced = traced or self._trace(call)
            program = Program(call, traced)
            if self._donate:  # before the compilation, which can take minutes
                self._check_memory(program, call.tensors())
            program.lower(
                traced.graph, call.tensors(), self._backend, self._mode, self._cpp_wrapper
            )
        self.n_compiles += 1
        self._by_key[call.key] = program
        self._programs = [program, *(old for old in self._programs if old is not instead_of)]
        return program

    def _run(
        self,
        program: Program,
        args: tuple[Any, ...],
        tensors: list[torch.Tensor],
        owned: _ownership.OwnedLeaves | None = None,
    ) -> R:
        programs = self._programs
        if program is not programs[0]:
            self._programs = [program, *(other for other in programs if other is not program)]
        if not self._donate:
            try:
                return program(tensors)  # type: ignore[no-any-return]
            except (IndexError, RuntimeError) as error:
                note_index(error, self._name)
                raise
        state = args[0]
        self._check_memory(program, tensors, owned)
        claim = _donate.claim(state, self._name, _caller())
        _ownership.forget(_donate.first_state(state))
        try:
            owned = self._take(program, tensors, owned)
        except BaseException:
            claim.release(program.state(tensors))
            raise
        try:
            output = program(tensors)
        except BaseException as error:
            if may_have_written(error):
                claim.fail()
            else:
                claim.release(program.state(tensors))
            note_index(error, self._name)
            raise
        new = output if program.whole else output[0]
        _ownership.record(_donate.first_state(new), owned)
        return output  # type: ignore[no-any-return]

    def _take(
        self, program: Program, tensors: list[torch.Tensor], owned: _ownership.OwnedLeaves | None
    ) -> _ownership.OwnedLeaves:
        """Copy the donated leaves to which other objects refer; return the record of all leaves."""
        n = program.n_donated
        if owned is None:
            held = _ownership.held_elsewhere(tensors, n)
        else:
            held = owned.held_elsewhere(tensors)
            if held:  # leaves may share memory after an assignment to `.data`
                self._check_memory(program, tensors)
        for place in held:
            tensors[place] = _ownership.copy_of(tensors[place])
        if owned is None:
            return _ownership.OwnedLeaves(tensors[:n])
        owned.take(tensors, held)
        return owned

    def _check_memory(
        self,
        program: Program,
        tensors: Sequence[torch.Tensor],
        owned: _ownership.OwnedLeaves | None = None,
    ) -> None:
        """Raise if leaves share memory; leaves that the state owns need no check."""
        n, names = program.n_donated, program.tensor_names
        rest = [*tensors[n:], *program.captured.tensors]
        if owned is not None and owned.storages.isdisjoint(map(_ownership.storage_of, rest)):
            return
        _donate.check_memory(tensors[:n], names[:n], zip(names[n:], rest, strict=True))

    def _reason(self, call: Call, instead_of: Program | None) -> str:
        """Return the text of the recompilation warning, with the changed arguments and a remedy."""
        if instead_of is not None:
            changes, remedy = instead_of.captured.changes(), "Pass it in as an argument."
        else:
            nearest = min(
                (program.signature for program in self._programs),
                key=lambda signature: len(call.changes(signature)),
            )
            changes, remedy = call.changes(nearest), call.remedy(nearest)
        return (
            f"`{self._name}` is compiled again (program {self.n_compiles + 1}): no earlier program fits "
            f"this call.\n{listed(changes)}\n{remedy}"
        )


def _is_inlined(call: Call) -> bool:
    """Return True if a call becomes part of the trace or the loss around it."""
    if is_tracing() or any(isinstance(t, _torch.FakeTensor) for t in call.tensors()):
        return True  # the call becomes part of the trace
    # Inside a loss, the call is differentiated with the loss and draws from the key of the loss.
    return bool(_torch.function_mode_depth()) and innermost_stream() is not None


def _cloned(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _caller() -> types.FrameType | None:
    """Return the stack frame that called the compiled function."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in (__file__, _lowered.__file__):
        frame = frame.f_back
    return frame
