"""Table of runs with their progress, their metrics, and the settings that differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ftrain.core._regular_files import MOST_CONFIG, read_regular
from ftrain.loop.plots._style import ordered
from ftrain.loop.plots.run_log import RunLog, Runs, read_runs

__all__ = ["summary"]

#: Metrics of which smaller values are better, by the beginning of a word.
LOWER = ("loss", "perplexity", "error", "nll", "mae", "mse", "rmse", "wer", "cer")

#: Metrics of which larger values are better.
HIGHER = ("accuracy", "f1", "auc", "bleu", "rouge", "recall", "precision", "iou", "r2", "top")

#: Maximum number of values in a `config.yaml`; PyYAML reads 13,000 values per second.
_MOST_VALUES = 10_000

#: Settings that name or locate a run and do not affect its result.
_PLACES = ("output_dir", "name", "run_name")


def summary(runs: Runs) -> list[dict[str, float | int | str]]:
    """Return one row per run: name, settings, last step, seconds, best and last metrics.

    Args:
        runs: run directories, `metrics.jsonl` files or `RunLog`s.

    Returns:
        Rows with the keys `run`; the keys of `config.yaml` whose values differ between the runs, such as
        `optimizer.learning_rate`; `step`, `seconds`, `eval/loss (best)`, `eval/loss`, `train/loss`, ...

    Raises:
        DataError: a run has no log.
    """
    logs = read_runs(runs)
    settings = _differing([_settings(log) for log in logs])
    return [{"run": log.name, **own, **_row(log)} for log, own in zip(logs, settings, strict=True)]


def better(metric: str) -> int:
    """Return 1 if larger values of a metric are better, -1 if smaller ones are, 0 if unknown.

    Example:
        >>> better("loss"), better("top5_accuracy"), better("learning_rate")
        (-1, 1, 0)
    """
    words = metric.lower().replace("/", "_").split("_")
    if any(word.startswith(HIGHER) for word in words):
        return 1
    return -1 if any(word.startswith(LOWER) for word in words) else 0


def _row(log: RunLog) -> dict[str, float | int | str]:
    row: dict[str, float | int | str] = {"step": log.step}
    times = [c.times[-1] for splits in log.curves.values() for c in splits.values()]
    known = [time for time in times if math.isfinite(time)]
    if known:
        row["seconds"] = max(known)
    for metric in ordered(log.curves):
        sign = better(metric)
        if not sign or "/member_" in metric:
            continue
        splits = log.curves[metric]
        for split in sorted(splits, key=lambda name: (name != "eval", name)):
            curve = splits[split]
            if split not in ("train", "train_epoch"):
                row[f"{split}/{metric} (best)"] = curve.highest if sign > 0 else curve.lowest
            if split != "train_epoch" or "train" not in splits:
                row[f"{split}/{metric}"] = curve.last
    return row


def _settings(log: RunLog) -> dict[str, str]:
    """Return the flattened `config.yaml` beside the log; `{}` if it is missing or invalid."""
    try:
        text = read_regular(log.path.parent / "config.yaml", MOST_CONFIG).decode("utf-8")
        content = yaml.load(text, Loader=_Loader)
        return dict(_flat(content, "")) if isinstance(content, Mapping) else {}
    # ValueError: not UTF-8, a date without a day, a number of thousands of digits
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return {}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with a limit on the number of values, and without aliases."""

    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, or raise for an alias and for too many nodes."""
        self.nodes += 1
        if self.nodes > _MOST_VALUES or self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("not the configuration of a run")
        return super().compose_node(parent, index)


def _flat(content: Any, prefix: str) -> list[tuple[str, str]]:
    if isinstance(content, Mapping) and content:
        return [
            pair
            for key, value in content.items()
            for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(content, float):
        return [(prefix, f"{content:g}")]
    return [(prefix, str(content))]


def _differing(settings: Sequence[Mapping[str, str]]) -> list[dict[str, float | int | str]]:
    keys = list(dict.fromkeys(key for own in settings for key in own))
    kept = [
        key for key in keys if key not in _PLACES and len({own.get(key) for own in settings}) > 1
    ]
    return [{key: own.get(key, "") for key in kept} for own in settings]
