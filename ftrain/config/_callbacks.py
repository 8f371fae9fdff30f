"""Callbacks of a configured run: progress, logs, best checkpoints and early stopping.

Read next: `ftrain/loop/callbacks/`.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

from ftrain.config._code import check_callbacks
from ftrain.config.build import Parts
from ftrain.config.errors import ConfigError
from ftrain.config.schema import Checkpoint, EarlyStopping
from ftrain.loop import FitResult, callbacks
from ftrain.loop.callbacks._monitor import Monitor, UnknownMetricError

__all__ = ["check_monitored", "unknown_metric", "watchers"]

#: Metrics that a resumed run's history does not have: clocks are not part of a checkpoint.
_CLOCKS = ("duration", "samples_per_second", "tokens_per_second")


def watchers(parts: Parts, folder: pathlib.Path) -> list[Any]:
    """Build the callbacks of a run: those under `callbacks`, then those that other keys configure.

    Raises:
        ConfigError: a monitored metric cannot exist; or the configuration may use built-in names only,
            and has a callback that would write outside of the run's directory.
    """
    config = parts.config
    check_callbacks(config)
    found: list[Any] = [*parts.callbacks, callbacks.Throughput()]
    if config.early_stopping is not None:
        found.append(_early_stopping(parts, config.early_stopping))
    if _keeps_best(parts) or config.checkpoint.every_minutes is not None:
        found.append(_checkpointing(parts, config.checkpoint))
    found += [
        callbacks.JSONLLogger(folder / "metrics.jsonl", log_digests=config.log_digests),
        callbacks.CSVLogger(folder / "metrics.csv"),
        callbacks.FileLogger(folder / "train.log"),
        callbacks.ConsoleLogger(),
    ]
    if config.ema is not None and parts.held_out is not None:
        found.append(callbacks.EMAEvaluation())
    if importlib.util.find_spec("matplotlib") is not None:
        found.append(callbacks.Curves(folder / "curves.png"))
    return [*found, callbacks.ProgressBar()] if config.progress else found


def check_monitored(parts: Parts, result: FitResult) -> None:
    """Raise if a metric that the configuration monitors is missing in the run's last results.

    Raises:
        ConfigError: a monitored metric is missing; the message lists the metrics of the results.
    """
    for section, monitor in _watched(parts):
        split, _, metric = monitor.partition("/")
        last = result.eval if split == "eval" else result.train
        if last is None or "/" in metric or metric in {*last.values(), *_CLOCKS}:
            continue
        error = Monitor(monitor, "min").unknown([f"{split}/{name}" for name in last.values()])
        raise _at(parts, section, str(error))


def unknown_metric(parts: Parts, error: UnknownMetricError) -> ConfigError | None:
    """Return a `ConfigError` for the key that names an unknown metric; `None` if no key names it."""
    sections = [section for section, monitor in _watched(parts) if monitor == error.monitor]
    return _at(parts, sections[0], str(error)) if sections else None


def _watched(parts: Parts) -> list[tuple[str, str]]:
    """Return `(section, metric)` for each section that monitors one: `checkpoint`, `early_stopping`."""
    config = parts.config
    found = [("checkpoint", config.checkpoint.monitor)] if _keeps_best(parts) else []
    if config.early_stopping is not None:
        found.append(("early_stopping", config.early_stopping.monitor))
    return found


def _at(parts: Parts, section: str, message: str) -> ConfigError:
    path = (section, "monitor")
    return ConfigError.at(
        ".".join(path), parts.config.places.of(path), message.removeprefix("monitor: ")
    )


def _early_stopping(parts: Parts, options: EarlyStopping) -> Any:
    return _monitoring(
        parts,
        "early_stopping",
        options.monitor,
        lambda: callbacks.EarlyStopping(
            options.patience,
            monitor=options.monitor,
            mode=options.mode,
            min_delta=options.min_delta,
        ),
    )


def _checkpointing(parts: Parts, options: Checkpoint) -> Any:
    return _monitoring(
        parts,
        "checkpoint",
        options.monitor if _keeps_best(parts) else "train/loss",
        lambda: callbacks.Checkpointing(
            minutes=options.every_minutes,
            best=options.keep_best if _keeps_best(parts) else 0,
            monitor=options.monitor,
            mode=options.mode,
        ),
    )


def _keeps_best(parts: Parts) -> bool:
    """Return True if the run keeps its best checkpoints, by default if there are held-out data."""
    options = parts.config.checkpoint
    by_default = options.monitor == Checkpoint().monitor and parts.held_out is None
    return bool(options.keep_best) and not by_default


def _monitoring(parts: Parts, section: str, monitor: str, make: Callable[[], Any]) -> Any:
    config, path = parts.config, (section, "monitor")
    if monitor.startswith("eval/") and parts.held_out is None:
        raise ConfigError.at(
            ".".join(path),
            config.places.of(path),
            f"expected held-out data for {monitor}, got none from {config.data.name}. Write "
            "data.held_out=0.2, or monitor train/loss.",
        )
    try:
        return make()
    except ValueError as error:
        raise _at(parts, section, str(error)) from None
