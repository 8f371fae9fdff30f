"""Steps to measure, and their variants: eager, compiled, and compiled with donation.

Read next: `_runners.py`, the functions that are timed.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import fx

from ftrain.bench._runners import MISSING, Plain, Pure, Returns, returned
from ftrain.bench.memory import live_bytes, storage_bytes
from ftrain.core import tree
from ftrain.core._words import a_or_an
from ftrain.core.compile import compile
from ftrain.core.compile._donate import is_donatable
from ftrain.core.compile._lower import Backend
from ftrain.core.cost._flops import NONE, graph_work
from ftrain.core.cost._kernels import Kernel, kernels_of
from ftrain.core.cost.rates import synchronize
from ftrain.core.step import Steps

__all__ = ["MISSING", "VARIANTS", "Case", "Profile", "Subject", "Variant", "first_call"]

Variant = Literal["eager", "compiled", "donated"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

_PROFILED, _PROFILED_SECONDS = 3, 0.3  # smallest number of profiled calls, and their least seconds


class Profile(NamedTuple):
    """FLOPs, number of kernels and times of one call of a step.

    Attributes:
        flops: floating-point operations by dtype.
        kernels: the number of kernels.
        seconds: the time in kernels.
        share: the time in kernels over the time of a call, at most 1.
        launch: seconds until a call returns; the device may still be working then.
    """

    flops: Mapping[str, int]
    kernels: int
    seconds: float
    share: float
    launch: float


@dataclasses.dataclass
class Subject:
    """Step to measure, with its arguments.

    Attributes:
        step: the function.
        args: its arguments; those of a pure step begin with the state.
        is_pure: True if the step returns a new state; otherwise it updates a model in place.
        settings: the arguments that the step was built with.
        graph: the traced graph of the step, once a variant has been compiled; `None`: not traced.
        steady_bytes: bytes held between steps, known once `cases` has been called.
    """

    step: Callable[..., Any]
    args: tuple[Any, ...]
    is_pure: bool
    settings: Mapping[str, Any]
    graph: fx.GraphModule | None = None
    steady_bytes: int = 0

    @classmethod
    def of(
        cls, step: Any, state: Any, batch: Any, settings: Mapping[str, Any] | None = None
    ) -> Subject:
        """Return a step with its arguments; `MISSING` means that the step does not take the argument."""
        if not callable(step):
            raise TypeError(
                f"step: expected a function, got {a_or_an(type(step).__name__)}. Pass the step itself: "
                "benchmark(train_step, state, batch)."
            )
        args = tuple(each for each in (state, batch) if each is not MISSING)
        _check_arguments(step, args)
        return cls(step, args, state is not MISSING, settings or {})

    @classmethod
    def built(cls, build: Callable[..., Any], settings: Mapping[str, Any]) -> Subject:
        """Call `build`, which returns `(step, state, batch)`; return the step with its arguments."""
        found = build(**settings)
        if isinstance(found, Steps):
            found = (found,)  # three functions
        if not isinstance(found, (tuple, list)) or len(found) not in (2, 3):
            name = getattr(build, "__name__", type(build).__name__)
            got = (
                f"{len(found)} values" if isinstance(found, (tuple, list)) else type(found).__name__
            )
            raise TypeError(
                f"{name}: expected (step, state, batch), or (step, batch) for a step that updates a "
                f"model in place, got {got}. Return one of these."
            )
        step, *state, batch = found
        return cls.of(step, state[0] if state else MISSING, batch, settings)

    @property
    def device(self) -> torch.device:
        """Device that the step runs on: CUDA if an argument is on it, or if the process uses CUDA.

        A step in place may keep its model on the device and copy each batch to it.
        """
        tensors = [x for x in tree.leaves(self.args) if isinstance(x, torch.Tensor)]
        found = next((x.device for x in tensors if x.device.type == "cuda"), None)
        if found is None and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
            found = torch.device("cuda")
        return found or torch.device("cpu")

    def sizes(self, count: Callable[[Any], tuple[int, int]]) -> tuple[int, int]:
        """Return the number of samples and the number of tokens in the batch."""
        return count(self.args[-1]) if len(self.args) > self.is_pure else (0, 0)

    def cases(
        self, wanted: Sequence[Variant] | None, backend: Backend, notes: list[str]
    ) -> list[Case]:
        """Return the step's variants, each called twice; append to `notes` why a variant is missing.

        An exception in the first eager call of the step is raised.
        """
        self.steady_bytes = 0 if self.is_pure else live_bytes()
        returns: Returns = "other"
        first = 0.0
        if self.is_pure:
            synchronize(self.device)
            start = time.perf_counter()
            result = self.step(*self.args)
            synchronize(self.device)
            first = time.perf_counter() - start
            returns = returned(result, self.args[0])
            del result
            self.steady_bytes = storage_bytes(tree.leaves(self.args))
        found = []
        for variant in wanted or VARIANTS:
            case = Case(self, variant, None)
            try:
                case = self._case(variant, returns, backend)
                case.warm()
                if self.is_pure and variant == "eager":
                    case.first_call = first
            except _LeftOutError as error:
                if wanted:
                    notes.append(f"{case.name} was not measured: {error}")
                continue
            except Exception as error:
                if variant == "eager":
                    raise
                reason = next(iter(str(error).splitlines()), "")
                notes.append(f"{case.name} was not measured: {type(error).__name__}: {reason}")
                continue
            found.append(case)
        if not self.is_pure and found:
            self.steady_bytes = live_bytes()  # with gradients and the state of an optimizer
        return found

    def _case(self, variant: Variant, returns: Returns, backend: Backend) -> Case:
        if not self.is_pure:
            if variant == "donated":
                raise _LeftOutError("a step that updates its model in place has no state to donate")
            fn = self.step
            if variant == "compiled":
                fn = torch.compile(self.step, backend=backend)
            return Case(self, variant, Plain(fn, self.args))
        if variant == "eager":
            return Case(self, variant, Pure(self.step, self.args, returns))
        donate = variant == "donated"
        state = self.args[0]
        if donate and not is_donatable(state):
            raise _LeftOutError(
                f"donation needs a state that is a frozen dataclass, got {a_or_an(type(state).__name__)}"
            )
        if donate and returns == "other":
            raise _LeftOutError("the step does not return a state like the state that it receives")
        fn = compile(self.step, donate=donate, backend=backend)
        if self.graph is None:
            self.graph = compile(self.step).graph(*self.args)
        return Case(self, variant, Pure(fn, self.args, returns, donate))


def _check_arguments(step: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Raise if a step cannot be called with the given arguments."""
    try:
        signature = inspect.signature(step)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    try:
        signature.bind(*args)
    except TypeError as error:
        raise TypeError(
            f"step: expected its arguments ({', '.join(signature.parameters)}), got "
            f"{len(args)}: {error}. Write benchmark(step, state, batch), or benchmark(step, "
            "batch=batch) for a step that updates a model in place."
        ) from None


class _LeftOutError(Exception):
    """Error for a variant that a step cannot have, such as donation without a state."""


@dataclasses.dataclass
class Case:
    """Variant of a step, which can be called, timed and profiled.

    Attributes:
        subject: the step with its arguments.
        variant: the variant: "eager", "compiled" or "donated".
        call: a function that runs one step.
        first_call: seconds of the first call.
        second_call: seconds of the second.
    """

    subject: Subject
    variant: Variant
    call: Any
    first_call: float = 0.0
    second_call: float = 0.0

    @property
    def name(self) -> str:
        """The name of the variant with its settings, such as `compiled, batch_size=32`."""
        settings = self.subject.settings
        return ", ".join([self.variant, *(f"{k}={v}" for k, v in settings.items())])

    def warm(self) -> None:
        """Call the step twice, to compile it and to warm up, and store both times."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.first_call = self._timed()
            self.second_call = self._timed()

    def profiled(self) -> Profile:
        """Return FLOPs, kernels and median times from several calls of the step."""
        device = self.subject.device
        launches = [self._launch() for _ in range(_PROFILED)]
        call = self.call.prepared()
        call()
        runs: list[list[Kernel]] = []
        times: list[float] = []
        # A short step, whose times vary more, is called more often.
        end = time.perf_counter() + _PROFILED_SECONDS
        while len(runs) < _PROFILED or time.perf_counter() < end:
            times.append(self._timed())  # alternating, because the load of the machine changes
            runs.append(kernels_of(call, device))
        inside = [sum(kernel.seconds for kernel in run) for run in runs]
        share = statistics.median(a / b for a, b in zip(inside, times, strict=True))
        graph = self.subject.graph
        works = (
            [kernel.work for kernel in runs[-1]] if graph is None else [*graph_work(graph).values()]
        )
        total = functools.reduce(lambda a, b: a.plus(b), works, NONE)
        return Profile(
            total.flops,
            len(runs[-1]),
            statistics.median(inside),
            min(share, 1.0),
            statistics.median(launches),
        )

    def _timed(self) -> float:
        synchronize(self.subject.device)
        start = time.perf_counter()
        self.call()
        synchronize(self.subject.device)
        return time.perf_counter() - start

    def _launch(self) -> float:
        synchronize(self.subject.device)
        start = time.perf_counter()
        self.call()
        return time.perf_counter() - start


def first_call(subject: Subject, variant: Variant, backend: Backend) -> float:
    """Compile a variant of a step and return the seconds of its first call."""
    fn: Callable[..., Any]
    if subject.is_pure:
        fn = compile(subject.step, donate=variant == "donated", backend=backend)
    else:
        fn = torch.compile(subject.step, backend=backend)
    device = subject.device  # found first, because a donated state cannot be read
    start = time.perf_counter()
    result = fn(*subject.args)
    synchronize(device)
    seconds = time.perf_counter() - start
    del result
    return seconds
