"""Training run of a configuration: its directory, its trainer, and `fit`.

    result = train(load("digits.yaml"))

A run directory holds `config.yaml` (every value written out: the same run again), `data.json`
(fitted preprocessing), `metrics.jsonl`, `metrics.csv`, `train.log`, `checkpoints/`, `curves.png`,
and after its end `result.json`.

Read next: `ftrain/loop/trainer.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ftrain.checkpoint import (
    CheckpointError,
    CheckpointLockedError,
    CheckpointWriteError,
    Lock,
    Store,
)
from ftrain.checkpoint.locks import NO_LOCKS
from ftrain.checkpoint.save import refusals, remedy
from ftrain.config import _callbacks, _data_json
from ftrain.config._changed_length import schedule_note
from ftrain.config._checkpoints import store
from ftrain.config._code import ORIGIN, origin
from ftrain.config._directory import (
    FILES,
    LOCK,
    check_logs,
    check_replaceable,
    holds_a_run,
    in_use,
    refusal,
    unused,
)
from ftrain.config._environment import environment
from ftrain.config._ranks import mesh_of
from ftrain.config._resumed_data import check_seeds, other_data
from ftrain.config._step_advice import size_advice
from ftrain.config.build import Parts, build
from ftrain.config.dump import dump, relocated
from ftrain.config.errors import ConfigError
from ftrain.config.schema import Config
from ftrain.core import _file_output
from ftrain.core.compile import check_compiler
from ftrain.core.errors import ArgumentError
from ftrain.data.fitted import FILE
from ftrain.loop import FitResult, LoopWarning, Trainer
from ftrain.loop._log_notes import collected
from ftrain.loop._one_rank import ALONE, OneRank
from ftrain.loop._ranks import ranks_of
from ftrain.loop.callbacks import FileLogger
from ftrain.loop.callbacks._monitor import UnknownMetricError
from ftrain.loop.events import TrainEnd

__all__ = ["Run", "numbered", "prepare", "train"]

#: Steps of a `fast_dev_run`.
DEV_STEPS = 4

#: Remedy for a resumed run whose training data have changed; `{0}` is its directory.
_ANEW = (
    "Restore the earlier file, or begin a new run: `ftrain train {0}/config.yaml output_dir={0}-2`."
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready to start or to resume.

    Attributes:
        parts: the components of the run.
        folder: the run's directory.
        trainer: a trainer with the configuration's callbacks, loggers and store.
        written: the text of `config.yaml`, `.origin` and `data.json`, by file name.
        notes: the warnings that were shown while the run was prepared.
        ranks: the ranks that train together; rank 0 writes the files.
    """

    parts: Parts
    folder: pathlib.Path
    trainer: Trainer
    written: Mapping[str, str]
    notes: Sequence[str] = ()
    ranks: OneRank = ALONE

    def fit(self, *, resume: bool = False) -> FitResult:
        """Train to the end, starting from the newest checkpoint if `resume` is true."""
        config = self.parts.config
        outcome = self.folder / "result.json"
        result = None
        try:
            with environment(config):
                events = self.trainer.events(  # loads the checkpoint, or refuses it
                    self.parts.init_state(),
                    self.parts.train,
                    self.parts.held_out,
                    epochs=config.epochs,
                    max_steps=DEV_STEPS if config.fast_dev_run else config.max_steps,
                    resume="auto" if resume else None,
                    kinds=(TrainEnd,),
                )
                # Written immediately: a signal that arrives before its handler is installed then leaves
                # either the old configuration or the new one.
                with self.ranks.together("begin the run"), refusals("begin the run"):
                    if self.ranks.is_main:
                        outcome.unlink(missing_ok=True)
                        _write(self.folder, self.written)
                        for note in self.notes:
                            FileLogger(self.folder / "train.log").write_note(note)
                for event in events:
                    assert isinstance(event, TrainEnd)
                    result = event.result
            assert result is not None
            with refusals(f"write the result of the run, {result.status} at step {result.step}"):
                self._write_result(outcome, result)
        except Exception as error:
            self._complete(error, outcome, result)
            if isinstance(error, UnknownMetricError):
                refusal = _callbacks.unknown_metric(self.parts, error)
                if refusal is not None:
                    raise refusal from None
            if isinstance(error, ArgumentError) and error.argument == "train_data":
                raise other_data(self.parts, self.folder, error) from None
            if (advice := size_advice(self.parts, error)) is not None:
                error.add_note(advice)
            raise
        _callbacks.check_monitored(self.parts, result)
        return result

    def _complete(self, error: Exception, outcome: pathlib.Path, result: FitResult | None) -> None:
        """Write the result of a failed run; add the command that resumes it to the error."""
        failed = getattr(error, "fit_result", None)
        try:
            if failed is not None:
                self._write_result(outcome, failed)
            elif result is not None:  # the run ended, but its result could not be written
                error.fit_result = result  # type: ignore[attr-defined]
        except OSError as another:
            error.add_note(f"{outcome} was not written either: {another.strerror or another}.")
        if isinstance(error, CheckpointWriteError) and not self.parts.config.fast_dev_run:
            error.add_note(f"Then resume: ftrain resume {self.folder}")

    def _write_result(self, path: pathlib.Path, result: FitResult) -> None:
        if self.ranks.is_main:
            _file_output.replace(path, json.dumps(result.to_json(), indent=1) + "\n")


def train(config: Config, *, resume: bool = False, overwrite: bool = False) -> FitResult:
    """Train as a configuration describes, in its run directory; return the result.

    With a strategy under `distributed`, all processes that torchrun or SLURM started call `train`.

    Args:
        config: from `load`.
        resume: resume from the newest checkpoint in its directory, or start if it has none.
        overwrite: delete the run that the directory holds.

    Returns:
        The state at the end, the history, and how it ended.

    Raises:
        ConfigError: the configuration cannot be used; the directory holds a run already.
        CompilerMissingError: the configuration has `compile: true`, and the C++ compiler is missing.
        RankError: another rank failed, or did not start.
    """
    with mesh_of(config) as mesh:
        if not resume and not overwrite:
            config = numbered(config, mesh)
        with prepare(config, resume=resume, overwrite=overwrite, mesh=mesh) as run:
            return run.fit(resume=resume)


def numbered(config: Config, mesh: Any = None) -> Config:
    """If `versions` is true, create a new, numbered run directory; return the config that names it.

    Raises:
        ConfigError: a directory cannot be created.
    """
    ranks = ranks_of(mesh)
    if not config.versions or config.fast_dev_run:
        return config
    with ranks.together("create the run's directory"), _usable(config, config.folder):
        found = unused(config) if ranks.is_main else config
        output = ranks.agree(found.output_dir, "the run's directory")
    return found.model_copy(update={"output_dir": output, "versions": False})


@contextlib.contextmanager
def prepare(
    config: Config, *, resume: bool = False, overwrite: bool = False, mesh: Any = None
) -> Iterator[Run]:
    """Build a run and create its directory, which is temporary for a `fast_dev_run`.

    Raises:
        ConfigError: as `train`.
    """
    ranks = ranks_of(mesh)
    notes: list[str] = []
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as until_begun:
        until_begun.enter_context(collected(notes.append))
        with ranks.together("prepare the run's directory"):
            folder = config.folder
            if config.fast_dev_run:
                made = stack.enter_context(tempfile.TemporaryDirectory(prefix="ftrain-"))
                folder = pathlib.Path(ranks.agree(made, "the temporary directory"))
            else:
                with _usable(config, folder):
                    _check_free(config, folder, resume or overwrite)
                    check_replaceable(config, folder)
        with ranks.together("build the run"), environment(config):
            stored_fitted = _stored_fitted(config, folder) if resume else None
            parts = build(config, folder, fitted=stored_fitted, mesh=mesh)
            _data_json.check_unchanged(parts, stored_fitted or {}, _ANEW.format(config.folder))
            if (says := _data_json.missing_warning(parts, folder, stored_fitted)) is not None:
                warnings.warn(says, LoopWarning, stacklevel=2)
            if not resume and _will_compile(parts):  # a resumed run may have no steps left
                remedy = "compile=false, in the configuration or on the command line"
                check_compiler(remedy, parts.device.type)
            trainer = _trainer(parts, folder, _callbacks.watchers(parts, folder))
        text = dump(relocated(parts.resolved, folder.absolute()))
        written = {"config.yaml": text, ORIGIN: origin(text)}
        if (content := _data_json.content(parts)) is not None:
            written[FILE] = content
        kept = trainer.store
        assert isinstance(kept, Store)
        with ranks.together("begin the run's directory"), _usable(config, folder):
            if ranks.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_alone(config, folder))
                # Checked again under the lock: another process may have completed a run meanwhile.
                may_hold_a_run = resume or overwrite or config.fast_dev_run
                _check_free(config, folder, may_hold_a_run, locked=True)
                check_replaceable(config, folder)
        with ranks.together("lock the run's checkpoints"), _usable(config, folder):
            stack.enter_context(_locked(kept, ranks))
        with ranks.together("begin the run's directory"), _usable(config, folder):
            if ranks.is_main:
                check_logs(config, folder, trainer.callbacks)
                _file_output.remove_drafts(folder)
                if not resume:
                    _clear(folder)
                    _write(folder, written)
        if resume and (says := schedule_note(parts, folder, kept)) is not None:
            warnings.warn(says, LoopWarning, stacklevel=2)
        until_begun.close()
        yield Run(parts, folder, trainer, written, notes, ranks)


@contextlib.contextmanager
def _locked(store: Store, ranks: OneRank) -> Iterator[None]:
    """Lock a checkpoint store on the ranks that write to it; close it when the `with` block ends."""
    if not (ranks.is_main or store.collective):
        yield
        return
    with _closed(store):
        store.lock()
        yield


@contextlib.contextmanager
def _closed(store: Store) -> Iterator[None]:
    """Close a checkpoint store after a `with` block; if the block raises, ignore errors of closing."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            store.close()
        raise
    store.close()


def _trainer(parts: Parts, folder: pathlib.Path, callbacks: list[Any]) -> Trainer:
    config = parts.config
    return parts.trainer(
        callbacks,
        log_every=config.log_every,
        eval_every=config.eval_every,
        save_every=config.checkpoint.every,
        store=store(config, folder, ranks_of(parts.mesh, parts.steps.train_step)),
        compile=config.compile and not config.detect_anomaly,
    )


def _will_compile(parts: Parts) -> bool:
    config = parts.config
    compiles = config.compile and not config.detect_anomaly
    return compiles and parts.total_steps != 0


def _check_free(
    config: Config, folder: pathlib.Path, may_hold_a_run: bool, locked: bool = False
) -> None:
    """Raise if the run directory contains a run that took steps, unless `may_hold_a_run`."""
    if not may_hold_a_run and holds_a_run(folder):
        if not locked and config.checkpoint.lock and in_use(folder):
            raise refusal(
                config,
                f"another process is training in {folder}. Wait for that process, or end it; or write "
                f"elsewhere: output_dir={folder}-2, or versions=true to number runs.",
            )
        raise refusal(
            config,
            f"expected an unused directory, got {folder}, which holds a run. Resume it: `ftrain resume "
            f"{folder}`; or write elsewhere: output_dir={folder}-2, or versions=true to number runs; or "
            "delete the run: --overwrite.",
        )


@contextlib.contextmanager
def _usable(config: Config, folder: pathlib.Path) -> Iterator[None]:
    """Raise a `ConfigError` in place of an error of a `with` block that writes a run directory."""
    try:
        yield
    except ConfigError:
        raise
    except CheckpointLockedError as error:
        raise refusal(config, str(error)) from None
    except (OSError, ValueError, CheckpointError) as error:  # ValueError: a name with a null byte
        what = "written to" if os.path.isdir(folder) else "created"
        says = getattr(error, "strerror", None) or str(error).rstrip(".")
        advice = remedy(error) if isinstance(error, OSError) else ""
        raise refusal(
            config,
            f"{str(folder)!r:.200} cannot be {what}: {says}. {advice or 'Choose another directory.'}",
        ) from None


@contextlib.contextmanager
def _alone(config: Config, folder: pathlib.Path) -> Iterator[None]:
    """Lock the directory against other processes during a `with` block; a crash releases the lock."""
    if not config.checkpoint.lock:
        yield
        return
    try:
        found = Lock.file(folder / LOCK)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        says = f"the file system of {folder} supports no locks ({error.strerror}). If no other "
        raise refusal(config, f"{says}process trains there, write checkpoint.lock=false.") from None
    with found as lock:
        if not lock.held:
            raise refusal(
                config,
                f"another process is training in {folder}. Wait for that process, or end it.",
            )
        yield


def _stored_fitted(config: Config, folder: pathlib.Path) -> Mapping[str, Any] | None:
    """Return the stored fitted preprocessing of a run; `None` if the run has no checkpoint yet.

    Raises:
        ConfigError: the run has a checkpoint, and other seeds than `config`.
    """
    if not any((folder / "checkpoints").glob("step-*")):
        return None
    check_seeds(config, folder)
    return _data_json.stored(config, folder).fitted


def _write(folder: pathlib.Path, files: Mapping[str, str]) -> None:
    """Write texts to files by name, each atomically: readers see the old file or the new one."""
    for name, text in files.items():
        _file_output.replace(folder / name, text)


def _clear(folder: pathlib.Path) -> None:
    """Delete the files and checkpoints that a run has written; keep all other files.

    The checkpoints are deleted first, so that the logs of the run are kept if the deletion fails. The
    directory of checkpoints is kept, because it is locked.
    """
    for entry in os.scandir(folder / "checkpoints"):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        elif entry.name != ".lock":
            os.unlink(entry.path)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
