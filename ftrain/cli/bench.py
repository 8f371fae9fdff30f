"""Benchmark of the training step of a configuration, or of a step built by a user's function.

Read next: `ftrain/bench/benchmark.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ftrain.bench import machine, run_fresh
from ftrain.bench._cases import VARIANTS, first_call
from ftrain.bench.benchmark import Options, measure, subjects
from ftrain.bench.measurement import Measurement
from ftrain.bench.report import BenchmarkFileError, BenchmarkReport, check_machine
from ftrain.cli.dry_run import first_batch
from ftrain.config._environment import environment
from ftrain.config._yaml import parse_yaml
from ftrain.config.build import build
from ftrain.config.errors import ConfigError, did_you_mean
from ftrain.config.load import load
from ftrain.config.registry import find
from ftrain.core import tree
from ftrain.core._count_samples import count_samples
from ftrain.core._terminal import say

__all__ = ["bench"]

_PICTURES = (".png", ".svg", ".pdf")
# Keys of settings of the whole process, which cannot be swept.
_GLOBAL = ("threads", "deterministic", "detect_anomaly", "device")

Build = Callable[..., Sequence[Any]]


def bench(options: argparse.Namespace) -> int:
    """Run `ftrain bench`: measure steps, print and write the report, return the exit code."""
    values = _values(options)
    _check_files(options.out)
    with _target(options, list(values)) as (make, sizes):
        if options.first_call is not None:
            (subject,) = subjects(make, values)
            say(first_call(subject, options.first_call, options.backend))
            return 0
        earlier = _earlier(options, machine())
        settings = Options(
            _variants(options.variants),
            _at_least(options.rounds, 1, "--rounds"),
            _at_least(options.seconds, 0, "--seconds"),
            options.explain,
            sizes,
            options.backend,
        )
        report = measure(subjects(make, values), settings)
    if options.latency:
        found = tuple(_with_latency(one, options) for one in report.measurements)
        report = dataclasses.replace(report, measurements=found)
    say(json.dumps(report.to_json()) if options.json else report, raw=options.json)
    for path in options.out:
        _written(path, report)
    if earlier is None:
        return 0
    try:
        compared = report.compare(earlier, limit=options.limit, any_machine=options.any_machine)
    except BenchmarkFileError as error:
        raise _refused("--against", options.against, str(error)) from None
    say(compared, error=options.json)
    return int(compared.is_worse)


@contextlib.contextmanager
def _target(
    options: argparse.Namespace, swept: Sequence[str]
) -> Iterator[tuple[Build, Callable[[Any], tuple[int, int]]]]:
    """Yield the function that builds the step, and the function that counts a batch's samples."""
    name, overrides, code = options.target, options.overrides, not options.no_code
    if ":" in name:
        if not code:
            says = (
                f"expected a configuration with --no-code, got a function, {name}. Name a "
                "configuration."
            )
            raise ConfigError.at("", name, says)
        yield _of_function(name, overrides, swept), count_samples
        return
    if name.endswith(".py"):
        says = f"expected the name of a function in the file, got none. Write {name}:NAME."
        raise ConfigError.at("", name, says)
    config = load(name, overrides, code=code)
    for key in swept:
        if key in _GLOBAL:
            says = "expected a key of which several values can be used in one process, got "
            raise ConfigError.at(key, "--sweep", f"{says}{key}. Measure each value by itself.")
    counts: dict[int, tuple[int, int]] = {}

    def made(models: int = 1, **values: Any) -> tuple[Any, Any, Any]:
        written = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        parts = build(load(name, [*overrides, "workers=0", *written], code=code))
        batch = first_batch(parts.train)
        samples, tokens = (parts.sizes or count_samples)(batch)
        counts[id(batch)] = (samples * models, tokens * models)
        step: Any = parts.steps.train_step
        if models == 1:
            return step, parts.init_state(), batch
        seeds = range(parts.config.seed, parts.config.seed + models)
        states = [parts.steps.init_state(seed) for seed in seeds]
        state = tree.map(lambda *leaves: torch.stack(leaves).to(parts.device), *states)
        return torch.vmap(step, (0, None)), state, batch

    with environment(config):
        yield made, lambda batch: counts[id(batch)]


def _of_function(name: str, overrides: Sequence[str], swept: Sequence[str]) -> Build:
    """Return a function from a file or module, with `KEY=VALUE` arguments filled in."""
    function = find("task", name, pathlib.Path(), "", f"the command line ({name})")
    given = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            says = f"expected an argument of {name}, got {override!r}. Write KEY=VALUE."
            raise ConfigError.at("", f"the command line ({override})", says)
        given[key] = _value(text, override)
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in (*given, *swept):
        if key not in parameters and not takes_any:
            known = did_you_mean(key, parameters) if parameters else "Leave this argument out."
            says = f"expected a parameter of {name}, got {key!r}. {known}"
            raise ConfigError.at(key, "the command line", says)

    def made(**values: Any) -> Any:
        return function(**{**given, **values})

    made.__name__ = name
    return made


def _values(options: argparse.Namespace) -> dict[str, list[Any]]:
    """Return `{key: values to sweep}`, from `--sweep`, `--precision` and `--accumulate`."""
    sweeps = list(options.sweep)
    sweeps += [f"precision={options.precision}"] if options.precision else []
    sweeps += [f"accumulate={options.accumulate}"] if options.accumulate else []
    found = {}
    for sweep in sweeps:
        key, equals, text = sweep.partition("=")
        if not equals or not key or not text:
            says = f"expected a key with values, got {sweep!r}. Write KEY=LIST, such as batch_size=8,16."
            raise ConfigError.at("", "--sweep", says)
        found[key] = [_value(part, sweep) for part in text.split(",")]
    return found


def _value(text: str, place: str) -> Any:
    return parse_yaml(text, f"the command line ({place})")[0]


def _variants(text: str | None) -> Any:
    if text is None:
        return None
    found = tuple(text.split(","))
    for each in found:
        if each not in VARIANTS:
            says = f"expected some of {','.join(VARIANTS)}, got {each!r}. "
            raise ConfigError.at("", "--variants", says + did_you_mean(each, VARIANTS))
    return found


def _at_least(value: Any, least: int, option: str) -> Any:
    if not value >= least:
        raise ConfigError.at(
            "", option, f"expected at least {least}, got {value}. Write {least} or more."
        )
    return value


def _earlier(options: argparse.Namespace, here: Mapping[str, Any]) -> BenchmarkReport | None:
    """Read and check the report at the path given to `--against`; return `None` without this option."""
    if options.against is None:
        return None
    _at_least(options.limit, 1, "--limit")
    try:
        found = BenchmarkReport.load(options.against)
        if not options.any_machine:
            check_machine(found.machine, here)
    except BenchmarkFileError as error:
        raise _refused("--against", options.against, str(error)) from None
    return found


def _check_files(paths: Sequence[pathlib.Path]) -> None:
    for path in paths:
        if path.suffix.lower() not in (".json", *_PICTURES):
            suffixes = ", ".join([".json", *_PICTURES])
            says = f"expected one of the suffixes {suffixes}, got {path.name}. Rename the file."
            raise _refused("--out", path, says)
        if not path.parent.is_dir():
            says = f"expected a file in an existing directory, got {path}. Create the directory."
            raise _refused("--out", path, says)


def _written(path: pathlib.Path, report: BenchmarkReport) -> None:
    try:
        if path.suffix.lower() == ".json":
            report.save(path)
        else:
            report.plot(path)
    except OSError as error:
        raise _refused(
            "--out", path, f"cannot be written: {error.strerror or error}. Choose another file."
        ) from None
    say(path, error=True)


def _with_latency(one: Measurement, options: argparse.Namespace) -> Measurement:
    """Measure first calls in fresh processes, with a cold and a warm cache; add both durations."""
    if one.variant == "eager":
        return one
    command = [sys.executable, "-m", "ftrain", "bench", options.target, *options.overrides]
    for key, value in one.settings.items():
        command += ["--sweep", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    command += ["--first-call", one.variant, "--backend", options.backend]
    command += ["--no-code"] if options.no_code else []
    with tempfile.TemporaryDirectory(prefix="ftrain-bench-") as folder:
        cold, warm = (
            float(run_fresh(command, pathlib.Path(folder), limit=3600).output) for _ in range(2)
        )
    return dataclasses.replace(one, cold_call=cold, warm_call=warm)


def _refused(option: str, path: pathlib.Path, says: str) -> ConfigError:
    return ConfigError.at("", f"{option} {path}", says)
