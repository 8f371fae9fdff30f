"""Trainer: epochs, evaluation, checkpoints, signals and callbacks around pure steps.

    steps = ftrain.make_steps(model, loss_fn, optimizer)
    trainer = Trainer(steps, callbacks=[...], store=checkpoint.Store("runs/first/checkpoints"))
    result = trainer.fit(steps.init_state(0), train_data, eval_data, epochs=10, resume="auto")

A trainer is a value: it holds options and no mutable state of a run. `fit` takes a training state and
returns a result; checkpoints hold a `LoopState`, from which a run is resumed.

Read next: `run.py`, the loop itself.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import torch

from ftrain.checkpoint import Store
from ftrain.core import tree
from ftrain.core._count_samples import count_samples
from ftrain.core.compile import Compiled
from ftrain.core.compile import compile as compile_step
from ftrain.core.state import TrainState
from ftrain.core.step import Steps
from ftrain.data.cursor import convert_integers
from ftrain.loop._batches import Batches, as_batches, check_padding, steps_per_epoch
from ftrain.loop._best_state import check_keeps_best, with_best_state
from ftrain.loop._callback_identity import Named, named
from ftrain.loop._checkpoint_writer import CheckpointWriter
from ftrain.loop._default_progress import default_progress
from ftrain.loop._dispatcher import Dispatcher
from ftrain.loop._evaluate import evaluate
from ftrain.loop._limits import check_limits, whole_limits
from ftrain.loop._one_rank import OneRank
from ftrain.loop._ranks import check_mesh, ranks_of
from ftrain.loop._resume import Resume, extra_steps, resumed_state, warn_of_accumulate
from ftrain.loop._run_logs import RunLogs
from ftrain.loop._runtime import Runtime
from ftrain.loop._step_functions import Step, eval_step_on_ranks, train_and_eval_step
from ftrain.loop.callback import Action, adapt
from ftrain.loop.events import Event, Plan, TrainEnd
from ftrain.loop.result import EpochResult, FitResult
from ftrain.loop.run import Run
from ftrain.loop.state import LoopState

__all__ = ["Trainer"]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Run training steps over data, with epochs, evaluations, checkpoints, callbacks and signals.

    A run ends in one of four ways, `result.status`: "completed" (all epochs or steps), "stopped" (a
    callback requested it), "interrupted" (Ctrl-C or SIGTERM: the step is finished and saved; a second
    signal stops at once), "failed" (an exception: a checkpoint is written if the state is intact, and
    the exception is raised to the caller with the state at `error.fit_result.state`).

    After running out of memory, the trainer repeats the step with at least twice the micro-batches and
    the same key, and keeps that number for the following steps. A checkpoint that cannot be written is
    a warning, unless it is the last one.

    Training metrics cover the applied steps: a step that was skipped because of a non-finite gradient
    counts in `skipped` only, and cannot make the mean of an epoch NaN. No metric may be called step,
    epoch, split or time, which are columns of the log, nor have another name that the log computes.

    An ensemble is a state with a leading axis, `torch.vmap(init_state)` or several states stacked, under
    `torch.vmap(train_step, in_dims=(0, None))`. Each metric has one value per member: rows of the log,
    results and monitors have the mean under the metric's name, the smallest and largest value as
    `loss_min` and `loss_max`, and each member's value as `loss/member_0`, ...;
    `result.eval.members["loss"]` holds them in order. A member that skips a step is left out of that
    step; the run ends if no member trains. If batches have an axis of members, `count_samples` must
    return the number of samples per member.

    Attributes:
        steps: the result of `ftrain.make_steps`; or a custom step, any
            `(state, batch) -> (state, metrics)`; or a pair of that and `(state, batch) -> metrics`.
        callbacks: callbacks that receive the run's events; see `callback.py`.
        log_every: steps per row of the log; metrics are read only at its end.
        eval_every: steps between evaluations; `None`: at the end of each epoch.
        save_every: steps between checkpoints; `None`: at the end of each epoch.
        store: the checkpoint store, a `checkpoint.Store` or a directory; `None`: no checkpoints.
        compile: True if steps are compiled; or options for `ftrain.compile`, `{"mode": "max-autotune"}`.
        donate: True if the new state is written into the old one's memory. The state that `fit` is
            given is copied first and does not change.
        accumulate: batches of the data per step; `Accumulate` changes it during the run.
        max_skipped: number of steps skipped in a row because of non-finite gradients that ends the run
            as failed; for an ensemble, steps skipped by every member. Checked when metrics are read.
            `None`: never.
        count_samples: `batch -> (samples, tokens)`, for logs and speeds.
        mesh: the mesh of the ranks that train together, with one axis, also if that of the steps has
            two. All ranks call `fit` with the same arguments, apart from their rows of the data; rank 0
            writes logs, and checkpoints of `distributed.data_parallel`. With steps of
            `distributed.fully_sharded` or `tensor_parallel`, callbacks, results and checkpoints have the
            part of the state on their rank: a directory as `store` becomes a `ShardedStore`, and a run
            that fails on some ranks only writes no last checkpoint. Evaluation data without ranks is the
            same on each of them, and each evaluates every n-th batch. `None`: one process.
        progress: True if `fit` shows a progress bar in a terminal or a notebook. If the callbacks have a
            `ProgressBar`, only that bar is shown.

    Raises:
        TypeError: `steps` is not a supported kind of step, or a callback is not a callback.
        ValueError: an option is out of range.

    Example:
        >>> import ftrain
        >>> from ftrain import optim
        >>> steps = ftrain.make_steps(
        ...     lambda: torch.nn.Linear(3, 1), lambda m, b: m(b).square().mean(), optim.sgd(0.1)
        ... )
        >>> trainer = Trainer(steps, compile=False)
        >>> batches = [torch.ones(4, 3), -torch.ones(4, 3)]
        >>> result = trainer.fit(steps.init_state(0), batches, eval_data=batches, epochs=3)
        >>> result.status, result.step, [each.split for each in result.history]
        ('completed', 6, ['train', 'eval', 'train', 'eval', 'train', 'eval'])
        >>> result.eval.loss < result.history[1].loss
        True
    """

    steps: Steps | Step | tuple[Step, Callable[[Any, Any], Any]]
    callbacks: Sequence[Any] = ()
    _: dataclasses.KW_ONLY
    log_every: int = 50
    eval_every: int | None = None
    save_every: int | None = None
    store: Store | str | os.PathLike[str] | None = None
    compile: bool | Mapping[str, Any] = True
    donate: bool = True
    accumulate: int = 1
    max_skipped: int | None = 100
    count_samples: Callable[[Any], tuple[int, int]] = count_samples
    mesh: Any = None
    progress: bool = True
    _step: Step = dataclasses.field(init=False, repr=False, compare=False)
    _eval_step: Callable[[Any, Any], Any] | None = dataclasses.field(
        init=False, repr=False, compare=False
    )
    _eval_in_turns: Any = dataclasses.field(init=False, repr=False, compare=False)
    _named: tuple[Named, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        counts = ("log_every", "eval_every", "save_every", "accumulate", "max_skipped")
        convert_integers(self, *counts)
        for name in counts:
            value = getattr(self, name)
            if value is None and name not in ("log_every", "accumulate"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"{name}: expected an integer of at least 1, got {value!r}. Write {name}=10."
                )
        if not isinstance(self.progress, bool):
            raise TypeError(
                f"progress: expected True or False, got {self.progress!r}. Write progress=False, or "
                "pass callbacks.ProgressBar(...) in callbacks."
            )
        step, eval_step = train_and_eval_step(self.steps)
        # Computed once, so that all fits of one trainer share their compiled programs.
        object.__setattr__(self, "_step", self._compiled(step, self.donate))
        object.__setattr__(self, "_eval_step", eval_step and self._compiled(eval_step, False))
        one_rank = getattr(eval_step, "one_rank", None)
        object.__setattr__(self, "_eval_in_turns", one_rank and self._compiled(one_rank, False))
        object.__setattr__(self, "_named", named(map(adapt, self.callbacks)))

    def fit(
        self,
        state: TrainState | Any,
        train_data: Any,
        eval_data: Any = None,
        *,
        epochs: float | None = None,
        max_steps: int | None = None,
        resume: Resume = None,
        load_best: bool = False,
    ) -> FitResult:
        """Train until `epochs` or `max_steps` are reached, whichever is first.

        Args:
            state: the initial state; with `resume`, a state of the same structure as the saved one.
            train_data: a `data.Loader` or `data.Stream`; a list of batches, a DataLoader, or any
                iterable that restarts on each iteration; or a function `epoch -> iterable`.
            eval_data: the same, evaluated in one pass from its start; `None`: no evaluation.
            epochs: passes over the data, counted from the start of the run; 0 trains no step. A
                fraction, such as 0.5 or 2.5, needs data with a length.
            max_steps: steps, counted from the start of the run.
            resume: `True`: resume from the newest checkpoint in the store; `"auto"`: the same if there
                is a checkpoint, else start; a path: resume from that checkpoint. A resumed run takes
                the same steps as an uninterrupted one.
            load_best: `True`: the result holds state and path of the best checkpoint by the store's
                metric, unless the run was interrupted; its `step` is still the last step of the run.

        Returns:
            The state, the history, and how the run ended.

        Raises:
            ValueError: neither `epochs` nor `max_steps` is given; the data has no batch, or no length
                for fractional epochs; there is no checkpoint to resume from; the store holds a run
                already and `resume` is not given; `load_best` without a store that keeps the best.
            CheckpointLockedError: another process writes to the store; no file was changed.
            LogLockedError: another run writes to a log file of a callback; no file was changed.
            CompilerMissingError: steps are to be compiled, and there is no C++ compiler.
            Exception: any exception that a step, the data or a callback raised.
        """
        # This frame must not hold a reference to the state, which the steps may donate.
        if load_best:
            check_keeps_best(self.store)
        ranks = ranks_of(self.mesh, self._step)
        run = self._run(state, train_data, eval_data, epochs, max_steps, resume, ranks)
        del state
        display = default_progress(self.callbacks) if self.progress else None
        kinds = (TrainEnd,) if display is None else (*display.kinds, TrainEnd)
        result = None
        for event in run.events(lambda kind: kind in kinds):
            if display is not None:
                display.show(event)
            if isinstance(event, TrainEnd):
                result = event.result
            del event  # holds the state, which the next step may donate
        assert result is not None
        return with_best_state(result, self.store, ranks) if load_best else result

    def events(
        self,
        state: TrainState | Any,
        train_data: Any,
        eval_data: Any = None,
        *,
        epochs: float | None = None,
        max_steps: int | None = None,
        resume: Resume = None,
        kinds: tuple[type[Event], ...] = (Event,),
    ) -> Generator[Event, Iterable[Action] | None, None]:
        """Return a generator of the run's events; the last event is `TrainEnd`, which holds the result.

        Callbacks receive each event first. Actions can be sent back, `events.send([Stop("enough")])`.
        Leaving the loop early ends the run without saving a checkpoint.

        Args:
            state: as for `fit`.
            train_data: as for `fit`.
            eval_data: as for `fit`.
            epochs: as for `fit`.
            max_steps: as for `fit`.
            resume: as for `fit`.
            kinds: the kinds of event to yield; fewer kinds cost less per step.

        Example:
            >>> import ftrain
            >>> from ftrain import optim
            >>> model = torch.nn.Linear(3, 1)
            >>> steps = ftrain.make_steps(model, lambda m, b: m(b).mean(), optim.sgd(0.1))
            >>> trainer = Trainer(steps, compile=False)
            >>> for event in trainer.events(steps.init_state(0), [torch.ones(4, 3)], max_steps=1):
            ...     print(type(event).__name__)
            TrainBegin
            EpochBegin
            BatchBegin
            BatchEnd
            EpochEnd
            Logged
            WindowEnd
            Logged
            TrainEnd
        """
        ranks = ranks_of(self.mesh, self._step)
        run = self._run(state, train_data, eval_data, epochs, max_steps, resume, ranks)
        del state
        return run.events(lambda kind: issubclass(kind, kinds))

    def evaluate(self, state: TrainState | Any, data: Any) -> EpochResult:
        """Return the metrics of the evaluation step over all of `data`, in one pass from its start.

        Raises:
            TypeError: the trainer has no evaluation step.
            ValueError: the data has no batch.
        """
        if self._eval_step is None:
            raise TypeError(
                "evaluate: expected a trainer with an evaluation step, got one without. Write "
                "Trainer((step, eval_step))."
            )
        began = time.perf_counter()
        batches = as_batches(data, "data")
        ranks = ranks_of(self.mesh, self._step)
        eval_step, count, turns = eval_step_on_ranks(self, batches, ranks, "data")
        assert eval_step is not None
        found = evaluate(eval_step, state, batches, count, turns=turns)
        assert found is not None
        step = int(state.step.max()) if isinstance(state, TrainState) else 0
        return found.result("eval", 0, step, time.perf_counter() - began)

    def _run(
        self,
        state: Any,
        train_data: Any,
        eval_data: Any,
        epochs: float | None,
        max_steps: int | None,
        resume: Resume,
        ranks: OneRank,
    ) -> Run:
        check_mesh(self.mesh)
        with ranks.together("begin the run"):
            check_limits(epochs, max_steps)
            if eval_data is not None and self._eval_step is None:
                raise TypeError(
                    "eval_data: expected a trainer with an evaluation step, got one without. Write "
                    "Trainer((step, eval_step))."
                )
            train = as_batches(train_data, "train_data")
            check_padding(train, self._step)
            ranks.check_data(train, "train_data")
            held_out = None if eval_data is None else as_batches(eval_data, "eval_data")
            store = self.store
            if store is not None and not isinstance(store, Store):
                store = ranks.store(store)
            if store is not None:
                ranks.check_store(store, state)
            logs = RunLogs([each.callback for each in self._named])
        with ranks.together("begin the run"), logs.reserved(store, ranks):
            return self._prepared(
                state, train, held_out, epochs, max_steps, resume, store, ranks, logs
            )

    def _prepared(
        self,
        state: Any,
        train: Batches,
        held_out: Batches | None,
        epochs: float | None,
        max_steps: int | None,
        resume: Resume,
        store: Store | None,
        ranks: OneRank,
        logs: RunLogs,
    ) -> Run:
        """Return the run in its initial or resumed state; rank 0 has locked the store and the logs."""
        per_epoch = steps_per_epoch(train, self.accumulate)
        epochs, max_steps = whole_limits(epochs, max_steps, per_epoch)
        loop = resumed_state(state, store, resume, ranks, train)
        resumed = loop is not None
        if loop is None:
            if self.donate and isinstance(self._step, Compiled):
                state = tree.map(torch.clone, state)
            loop = LoopState(state, accumulate=self.accumulate)
        warn_of_accumulate(self, loop)
        callbacks = Dispatcher(self._named, stores=store is not None)
        loop = loop.replace(
            callbacks=callbacks.initial_states(loop.callbacks, loop.callback_options),
            callback_options=callbacks.options,
        )
        step = self._step
        eval_step, count_eval_samples, turns = eval_step_on_ranks(
            self, held_out, ranks, "eval_data"
        )
        runtime = Runtime(
            step=step,
            # `torch.vmap(step)` is not unwrapped: its wrapped function takes a single state.
            plain_step=step.__wrapped__ if isinstance(step, Compiled) else step,  # type: ignore[attr-defined]  # functools'
            eval_step=eval_step,
            train_data=train,
            eval_data=held_out,
            plan=Plan(
                epochs,
                max_steps,
                steps_per_epoch(train, loop.accumulate),
                self.log_every,
                self.eval_every,
                held_out is not None,
                self.save_every,
                tuple(sorted({str(x.device) for x in tree.leaves(loop.train)})),
                extra_steps(train, loop),
            ),
            max_skipped=self.max_skipped,
            count_samples=ranks.counting(self.count_samples),
            callbacks=callbacks,
            checkpoints=CheckpointWriter(
                store, loop, resumed, owns=store is not self.store, ranks=ranks
            ),
            resumed=resumed,
            logs=logs,
            count_eval_samples=count_eval_samples,
            ranks=ranks,
            turns=turns,
            clock=ranks.clock(),
            signals=ranks.signals(),
        )
        run = Run(loop, runtime)
        run.check()
        return run

    def _compiled(self, step: Callable[..., Any], donate: bool) -> Callable[..., Any]:
        if isinstance(step, Compiled) or self.compile is False:
            return step
        options = {} if self.compile is True else dict(self.compile)
        return compile_step(step, donate=donate, **options)
