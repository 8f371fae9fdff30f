"""Benchmark of a step: its variants and large matrix products of the same dtype are timed in turn.

Read next: `_cases.py` (the variants of a step), `turns.py` (the clock), `report.py` (the result).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from ftrain.bench._cases import MISSING, VARIANTS, Case, Subject, Variant
from ftrain.bench.machine import machine, versions
from ftrain.bench.measurement import Measurement
from ftrain.bench.memory import allocated
from ftrain.bench.report import BenchmarkReport
from ftrain.bench.turns import Turns, call_times, event_times, take_turns
from ftrain.core._count_samples import count_samples
from ftrain.core._words import did_you_mean
from ftrain.core.compile._lower import Backend
from ftrain.core.cost import call_cost
from ftrain.core.cost.rates import Product, Rates, fastest_product, measure_rates

__all__ = ["Options", "benchmark", "measure", "sweep"]

Sizes = Callable[[Any], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a measurement; the fields are the keyword arguments of `benchmark`."""

    variants: tuple[Variant, ...] | None = None
    rounds: int = 15
    seconds: float = 0.2
    explain: bool = False
    sizes: Sizes = count_samples
    backend: Backend = "inductor"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds: expected at least 1, got {self.rounds}. Write rounds=15.")
        if not self.seconds >= 0:
            raise ValueError(
                f"seconds: expected a number >= 0, got {self.seconds}. Write seconds=0.2."
            )
        for variant in self.variants or ():
            if variant not in VARIANTS:
                raise ValueError(
                    f"variants: expected some of {', '.join(VARIANTS)}, got {variant!r}."
                    f"{did_you_mean(variant, VARIANTS) or ' Leave it out.'}"
                )


def benchmark(
    step: Callable[..., Any],
    state: Any = MISSING,
    batch: Any = MISSING,
    *,
    variants: Sequence[Variant] | None = None,
    rounds: int = 15,
    seconds: float = 0.2,
    explain: bool = False,
    sizes: Sizes = count_samples,
    backend: Backend = "inductor",
) -> BenchmarkReport:
    """Measure a training step, of ftrain or your own: eager, compiled, and compiled with donation.

    A pure step, `step(state, batch) -> (state, ...)` or `-> state`, can be measured in all three
    variants. Each call takes the state that the last one returned, as in training, and each turn starts
    from `state`. A plain step, `step(batch)`, updates a model in place. It is timed as it is ("eager")
    and under `torch.compile` ("compiled"). A variant that cannot be made is left out, with a note.

    Each variant is called twice, to compile and to warm up. Then the variants take turns of `seconds`
    each, in changing order. On the CPU every call is timed by `perf_counter`, on CUDA between events.
    The machine's rate for large matrix products, in the dtypes of the step's own products, is measured
    in the same turns. Two variants are called different only if a 99 % confidence interval of their
    ratio within turns excludes ratios within 1 % of 1.

    Args:
        step: the step. It is called thousands of times.
        state: the state before the step, any tree of tensors; its values stay unchanged. Leave it out
            for a plain step.
        batch: the batch, the same in each call.
        variants: some of "eager", "compiled" and "donated"; default: all that the step allows.
        rounds: the number of turns of each variant; fewer than 8 cannot show a difference.
        seconds: the length of a turn; a longer step is timed once in each turn.
        explain: add operators and kernels with their times, as `Cost`.
        sizes: `batch -> (samples, tokens)`; default: the rows of the first tensor, and the elements of
            `batch["tokens"]` or `batch["input_ids"]`.
        backend: "eager" runs compiled variants operator by operator and needs no compiler.

    Returns:
        A report, which `print` shows as a table; its methods `save`, `plot` and `compare` write it to a
        file, draw it, and compare it with an earlier report.

    Raises:
        ValueError: an option is out of its range.
        TypeError: the step is not a function.
        Exception: an exception of the step itself, called eagerly.

    Example:
        >>> import ftrain
        >>> def step(w, batch):
        ...     x, y = batch
        ...     return w - 0.1 * x.T @ (x @ w - y) / len(x)
        >>> report = ftrain.benchmark(
        ...     step, torch.zeros(3), (torch.ones(8, 3), torch.ones(8)),
        ...     rounds=2, seconds=0.0, backend="eager",
        ... )
        >>> [(row.variant, row.samples, dict(row.flops)) for row in report.measurements]
        [('eager', 8, {'float32': 96}), ('compiled', 8, {'float32': 96})]
    """
    chosen = tuple(variants) if variants is not None else None
    options = Options(chosen, rounds, seconds, explain, sizes, backend)
    return measure([Subject.of(step, state, batch)], options)


def sweep(
    build: Callable[..., Sequence[Any]],
    values: Mapping[str, Iterable[Any]],
    *,
    variants: Sequence[Variant] | None = None,
    rounds: int = 15,
    seconds: float = 0.2,
    explain: bool = False,
    sizes: Sizes = count_samples,
    backend: Backend = "inductor",
) -> BenchmarkReport:
    """Measure the steps that a function builds, for each combination of values of its arguments.

    All steps exist at the same time, and take turns with each other.

    Args:
        build: returns `(step, state, batch)`, or `(step, batch)` for a step that updates a model in
            place.
        values: values by argument of `build`, such as `{"batch_size": [8, 16], "precision": ["32-true",
            "bf16-mixed"]}`.
        variants: as in `ftrain.benchmark`, like the other arguments.
        rounds: as in `ftrain.benchmark`.
        seconds: as in `ftrain.benchmark`.
        explain: as in `ftrain.benchmark`.
        sizes: as in `ftrain.benchmark`.
        backend: as in `ftrain.benchmark`.

    Returns:
        A report; each measurement has its `settings`.

    Raises:
        ValueError: an option is out of its range.
        TypeError: `build` does not return a step with its arguments.

    Example:
        >>> def build(batch_size):
        ...     return (lambda w, x: w + x.mean(0)), torch.zeros(3), torch.ones(batch_size, 3)
        >>> report = sweep(
        ...     build, {"batch_size": [2, 4]}, variants=["eager"], rounds=2, seconds=0.0
        ... )
        >>> [row.name for row in report.measurements]
        ['eager, batch_size=2', 'eager, batch_size=4']
    """
    chosen = tuple(variants) if variants is not None else None
    options = Options(chosen, rounds, seconds, explain, sizes, backend)
    return measure(subjects(build, values), options)


def subjects(
    build: Callable[..., Sequence[Any]], values: Mapping[str, Iterable[Any]]
) -> list[Subject]:
    """Call `build` for each combination of argument values; return the steps with their arguments."""
    names = list(values)
    combinations = itertools.product(*(list(values[name]) for name in names))
    return [
        Subject.built(build, dict(zip(names, combination, strict=True)))
        for combination in combinations
    ]


def measure(steps: Sequence[Subject], options: Options) -> BenchmarkReport:
    """Time several steps in turn, and return the report."""
    notes: list[str] = []
    cases = [
        case for step in steps for case in step.cases(options.variants, options.backend, notes)
    ]
    device = cases[0].subject.device if cases else torch.device("cpu")
    profiles = {case.name: case.profiled() for case in cases}
    memory = {case.name: allocated(case.call, device).peak for case in cases}
    dtypes = {dtype for found in profiles.values() for dtype in found.flops}
    products = {dtype: fastest_product(dtype, device) for dtype in sorted(dtypes)}
    turns = take_turns(
        {
            **{case.name: case.call for case in cases},
            **{_product(dtype): product.call for dtype, product in products.items()},
        },
        rounds=options.rounds,
        seconds=options.seconds,
        warmup=1,
        timer=event_times if device.type == "cuda" else call_times,
    )
    rates = {
        dtype: product.flops / turns.median(_product(dtype)) for dtype, product in products.items()
    }
    found = []
    for case in cases:
        profile, times = profiles[case.name], sorted(turns.calls[case.name])
        samples, tokens = case.subject.sizes(options.sizes)
        seconds = tuple(turns.seconds[case.name])
        one = Measurement(
            variant=case.variant,
            settings=case.subject.settings,
            seconds=seconds,
            p5=times[round(0.05 * (len(times) - 1))],
            p95=times[round(0.95 * (len(times) - 1))],
            samples=samples,
            tokens=tokens,
            flops=profile.flops,
            rates={dtype: rates[dtype] for dtype in profile.flops},
            kernels=profile.kernels,
            device_seconds=profile.seconds,
            host_seconds=profile.launch,
            first_call=case.first_call,
            second_call=case.second_call,
            peak_bytes=case.subject.steady_bytes + memory[case.name],
            steady_bytes=case.subject.steady_bytes,
        )
        if device.type == "cpu":
            # A share of the time, because the load may have changed since the profile.
            inside = profile.share * one.median
            rest = one.median - inside
            one = dataclasses.replace(one, device_seconds=inside, host_seconds=rest)
        found.append(one)
    if options.explain:
        found = _explained(found, cases, products, turns, device)
    return BenchmarkReport(tuple(found), machine(device), versions(), tuple(notes))


def _explained(
    found: Sequence[Measurement],
    cases: Sequence[Case],
    products: Mapping[str, Product],
    turns: Turns,
    device: torch.device,
) -> list[Measurement]:
    """Time the operators and kernels of each step; return the measurements with these costs."""
    flops = {dtype: one.flops / turns.median(_product(dtype)) for dtype, one in products.items()}
    rates = Rates(flops, measure_rates((), device).bandwidth)
    return [
        dataclasses.replace(
            one, cost=call_cost(case.call.prepared, device, graph=case.subject.graph, rates=rates)
        )
        for one, case in zip(found, cases, strict=True)
    ]


def _product(dtype: str) -> str:
    return f"product of {dtype}"
