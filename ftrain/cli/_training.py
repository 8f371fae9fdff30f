"""Training and its report, for the commands `train` and `resume`."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ftrain.checkpoint import CheckpointWriteError
from ftrain.cli._rank_notes import rank_notes
from ftrain.cli._runs import outcome
from ftrain.config._directory import holds_a_run
from ftrain.config._ranks import is_restarted, mesh_of
from ftrain.config.errors import ConfigError
from ftrain.config.folders import run_config
from ftrain.config.run import numbered, train
from ftrain.config.schema import Config
from ftrain.core._terminal import OutputClosedError, say
from ftrain.loop import FitResult

__all__ = ["as_given", "report", "train_command"]


def report(config: Config, *, resume: bool = False, overwrite: bool = False) -> int:
    """Train a configured run, print its outcome and the next commands, and return the exit code.

    With several ranks, rank 0 prints. If a launcher has restarted the ranks after a failure, the run is
    resumed.
    """
    with mesh_of(config) as mesh:
        if is_restarted(mesh) and holds_a_run(config.folder) and not config.fast_dev_run:
            resume, overwrite = True, False
        if not resume and not overwrite:
            config = numbered(config, mesh)
        before = outcome(config.folder) if resume else {}
        _check_end(config, before)
        _check_changes(config, before)
        with rank_notes(mesh, None if config.fast_dev_run else config.folder / "train.log"):
            try:
                result = train(config, resume=resume, overwrite=overwrite)
            except CheckpointWriteError as error:  # such as that of the last checkpoint
                _print_metrics(getattr(error, "fit_result", None))
                raise
        is_main = mesh is None or mesh.get_rank() == 0
    if config.fast_dev_run:
        result = dataclasses.replace(result, checkpoint=None)
    if is_main:
        with contextlib.suppress(OutputClosedError):  # the exit code reports the outcome of the run
            say(*_said(result, before, config))
        if result.status == "interrupted" and not config.fast_dev_run:
            say(f"resume with: ftrain resume {config.folder}", error=True)
    return result.exit_code


def train_command(config: Config, *arguments: str) -> str:
    """Return an `ftrain train` command with an output directory that holds no run."""
    folder, more = config.folder, []
    if holds_a_run(folder) and not config.versions:
        names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
        more = [f"output_dir={next(name for name in names if not holds_a_run(name))}"]
    return " ".join(["ftrain train", *arguments, *more])


def _print_metrics(result: FitResult | None) -> None:
    """Print the last metrics of a run whose checkpoint or result could not be written."""
    if result is not None and result.history:
        with contextlib.suppress(OutputClosedError):
            say(*str(result).splitlines()[1:])


def _check_end(config: Config, before: Mapping[str, Any]) -> None:
    """Raise if `epochs` or `max_steps` is less than the resumed run has already completed.

    Otherwise `config.yaml` would no longer describe the run.
    """
    for key, count in (("epochs", "epoch"), ("max_steps", "step")):
        wanted, done = getattr(config, key), before.get(count)
        if wanted is not None and isinstance(done, int) and math.ceil(wanted) < done:
            raise ConfigError.at(
                key,
                config.places.of((key,)),
                f"expected at least {done}, the {count} that {config.folder} has reached, got "
                f"{wanted}. Write {key}={2 * done} to train longer, or begin a shorter run: "
                f"`ftrain train {config.folder}/config.yaml {key}={wanted} "
                f"output_dir={config.folder}-2`.",
            )


def _check_changes(config: Config, before: Mapping[str, Any]) -> None:
    """Raise if a complete run is resumed with changed values, but without additional steps."""
    ends = ((config.epochs, before.get("epoch")), (config.max_steps, before.get("step")))
    longer = any(
        wanted is not None and isinstance(done, int) and wanted > done for wanted, done in ends
    )
    if before.get("status") != "completed" or longer or config.fast_dev_run:
        return
    was, now = run_config(config.folder).model_dump(), config.model_dump()
    if (was["epochs"] or 0) < (now["epochs"] or 0):  # such as from 1.5 to 1.9 epochs
        return
    for key in now:
        if now[key] != was[key]:
            more = f"epochs={2 * config.epochs}" if config.epochs else "max_steps=..."
            raise ConfigError.at(
                key,
                config.places.of((key,)),
                f"expected the value of the complete run {config.folder}, got another, which no further "
                f"step would use. Train longer as well: {more}; or begin another run: `ftrain "
                f"train {config.folder}/config.yaml ... output_dir={config.folder}-2`.",
            )


def _best(result: FitResult, config: Config) -> Iterator[str]:
    """Yield a line with the best epoch of a run by the monitored metric, and with its checkpoint."""
    monitor = config.checkpoint.monitor
    best = result.best(monitor, config.checkpoint.mode)
    if best is not None and not config.fast_dev_run:
        path = config.folder / "checkpoints" / f"step-{best.step:012d}"
        saved = f"  checkpoint {path}" if path.is_dir() else ""
        yield f"  best: epoch {best.epoch}  step {best.step}  {monitor} {best.value(monitor):.4g}{saved}"


def as_given(checkpoint: str | pathlib.Path, folder: pathlib.Path) -> str:
    """Return the path of a checkpoint that begins with the run's directory as it was given."""
    path = folder / "checkpoints" / pathlib.Path(checkpoint).name
    return str(path if path.is_dir() and path.samefile(checkpoint) else checkpoint)


def _said(result: FitResult, before: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Yield the lines to print after a run: its outcome, the next command to use, the written files."""
    folder = config.folder
    shown = None if result.checkpoint is None else as_given(result.checkpoint, folder)
    yield str(dataclasses.replace(result, checkpoint=shown))
    yield from _best(result, config)
    finished = (before.get("status"), before.get("step")) == ("completed", result.step)
    if result.status == "completed" and finished:
        longer = (
            f"epochs={2 * config.epochs}"
            if config.epochs
            else f"max_steps={2 * (result.step or 1)}"
        )
        yield f"the run is complete; to train longer: ftrain resume {folder} {longer}"
    if config.fast_dev_run:
        yield "the trial run completed; no files were kept"
    elif result.status != "interrupted":
        yield f"run: {folder}"
        if (folder / "curves.png").exists():
            yield f"curves: {folder / 'curves.png'}"
