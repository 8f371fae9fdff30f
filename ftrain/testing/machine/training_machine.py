"""Hypothesis state machine that trains, saves, crashes and restores in random order.

Read next: `_uninterrupted.py`, where the expected bytes come from.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from ftrain import checkpoint
from ftrain.core import tree
from ftrain.core.compile import compile
from ftrain.core.errors import RecompileWarning
from ftrain.testing._copies import copied
from ftrain.testing.compare import relative_distance
from ftrain.testing.difference import first_difference
from ftrain.testing.machine._batch_sources import Feed, feed_of
from ftrain.testing.machine._default_parts import poisoned
from ftrain.testing.machine._uninterrupted import Event, History, Uninterrupted, digest
from ftrain.testing.report import LawViolation

__all__ = ["TrainingMachine"]

# Checkpoints are written to memory if possible: of the 16 s in which Hypothesis found and shrank a
# fault, 9 s were waits for the disk.
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class _Save(NamedTuple):
    """Saved checkpoint, with the training steps before it."""

    history: History
    directory: Path


class TrainingMachine(RuleBasedStateMachine):
    """Hypothesis state machine that trains, saves, crashes, restores and checks every byte.

    Subclasses override `make_steps` and `make_batches`; `training_machine` makes such a subclass. To
    test your own checkpoints, override `write` and `read`.

    Attributes:
        seed: the seed of the run's first state.
        donates: True to switch donation on and off during a run, with `backend="eager"`.
        has_nan_batches: True to train on batches that contain NaN, too.
        accumulates: the numbers of micro-batches between which `make_steps` is switched; `()`: only 1.
        workers: the numbers of workers between which the loader is switched.
        tolerance: the largest relative distance between the gradients of one batch with and without
            micro-batches (between the new parameters, if the step has no attribute `gradients`).
        model: digests of the state after each step so far, from the uninterrupted run.
        state: the state of the run; `None` between a crash and the next rule.
    """

    seed: ClassVar[int] = 0
    donates: ClassVar[bool] = True
    has_nan_batches: ClassVar[bool] = True
    accumulates: ClassVar[Sequence[int]] = ()
    workers: ClassVar[Sequence[int]] = (0, 1, 2)
    tolerance: ClassVar[float] = 1e-6

    def __init__(self) -> None:
        super().__init__()
        self._feed: Feed = feed_of(self.make_batches())
        reference = functools.cache(self.make_steps)
        self._reference = Uninterrupted(
            lambda: reference(1)[0](self.seed), reference, self._batch_of
        )
        self._directory = Path(tempfile.mkdtemp(prefix="ftrain-machine-", dir=_MEMORY))
        self._saves: list[_Save] = []
        self._n_saves = 0
        self.state: Any = None
        self.model: list[str] = []
        self._history: History = ()
        self._cursor: Any = None
        self._iterator: Iterator[tuple[Any, Any]] = iter(())
        self._donating, self._accumulate, self._workers = False, 1, 0
        self._start_process()
        self._begin()

    # Methods that users override.

    def make_steps(self, accumulate: int) -> Any:
        """Build the steps as a fresh process would; called at the start and after each crash.

        Args:
            accumulate: the number of micro-batches; 1 unless `accumulates` has others.

        Returns:
            `Steps`, or another tuple of `init_state`, `train_step` and `eval_step` (or `None`).
        """
        raise NotImplementedError(
            "TrainingMachine.make_steps is abstract. Override it, or use "
            "training_machine(steps, batches)."
        )

    def make_batches(self) -> Any:
        """Return a sequence of batches, used over and over, or a `ftrain.data.Loader`."""
        raise NotImplementedError(
            "TrainingMachine.make_batches is abstract. Override it, or use "
            "training_machine(steps, batches)."
        )

    def write(self, directory: Path, state: Any, cursor: Any) -> None:
        """Save a state and a data cursor in a new directory, by default with `checkpoint.save`."""
        checkpoint.save(directory, state, metadata={"cursor": cursor})

    def read(self, directory: Path, like: Any) -> tuple[Any, Any]:
        """Load `(state, cursor)` that `write` saved, given an initial state `like` of another seed."""
        state, metadata = checkpoint.load(directory, like)
        return state, metadata["cursor"]

    def poison(self, batch: Any) -> Any:
        """Return the batch with NaN in place of the first element of each floating leaf."""
        return poisoned(batch)

    # Rules.

    @rule(batches=st.integers(1, 3))
    def step(self, batches: int) -> None:
        """Train on the next few batches."""
        self._resume()
        self._step(batches)

    @precondition(lambda self: self.has_nan_batches)
    @rule()
    def nan_batch(self) -> None:
        """Train on the next batch with NaN in it; a skipped step may change only key and loss scaler."""
        self._resume()
        before = copied(self.state)
        metrics = self._train(Event(True, self._accumulate))
        if "skipped" in metrics and bool(metrics["skipped"]):
            for name in ("step", "params", "buffers", "opt_state"):
                if hasattr(before, name):
                    _compare(
                        "skip",
                        f"a skipped step changed state.{name}",
                        getattr(self.state, name),
                        getattr(before, name),
                        "Return the old value where a gradient is not finite: ftrain.commit does.",
                    )
        self._check("skip")

    @rule()
    def save(self) -> None:
        """Write a checkpoint."""
        self._resume()
        directory = self._directory / str(self._n_saves)
        self._n_saves += 1
        self.write(directory, self.state, self._cursor)
        self._saves.append(_Save(self._history, directory))
        self._check()

    @rule()
    def crash(self) -> None:
        """Discard all that is not on disk (state, steps, iterators), as the end of the process would."""
        self.state = None
        self._start_process()

    @rule()
    def restore(self) -> None:
        """Resume from the newest checkpoint; without a checkpoint, start from the beginning."""
        if self._saves:
            self._load(self._saves[-1])
        else:
            self._begin()

    @rule(save=st.integers(0, 3))
    def rollback(self, save: int) -> None:
        """Drop the newest `save` checkpoints, but keep at least one, and resume from the newest left."""
        if self._saves:
            self._saves = self._saves[: max(1, len(self._saves) - save)]
        self.restore()

    @precondition(lambda self: self._steps()[2] is not None)
    @rule()
    def evaluate(self) -> None:
        """Evaluate on the next batch; the metrics must equal those of the reference run."""
        self._resume()
        batch = self._batch_of(len(self._history), Event(False, 1))
        metrics = self._steps()[2](self.state, batch)
        if digest(metrics) != self._reference.evaluated(self._history):
            raise LawViolation(
                "evaluation",
                f"the metrics of eval_step after {len(self._history)} training steps differ from those "
                "in an uninterrupted run",
                remedy="Make everything that eval_step reads a part of the state.",
            )
        self._check("evaluation")

    @precondition(lambda self: self.donates)
    @rule()
    def donate(self) -> None:
        """Switch between the compiled step with donation and the plain step, and train one step."""
        self._resume()
        self._donating = not self._donating
        self._step()

    @precondition(lambda self: len(self.accumulates) > 0)
    @rule(micro_batches=st.runner().flatmap(lambda self: st.sampled_from(self.accumulates)))
    def accumulate(self, micro_batches: int) -> None:
        """Change the number of micro-batches, and train one step."""
        self._resume()
        self._accumulate = micro_batches
        self._step()

    @precondition(lambda self: self._feed.has_workers)
    @rule(workers=st.runner().flatmap(lambda self: st.sampled_from(self.workers)))
    def change_workers(self, workers: int) -> None:
        """Change the number of worker processes that load batches, and train one step."""
        self._resume()
        self._workers = workers
        self._open(self._cursor)
        self._step()

    def teardown(self) -> None:
        """Close iterators and delete the checkpoints."""
        self._close()
        shutil.rmtree(self._directory, ignore_errors=True)

    # Helpers of the rules.

    def _resume(self) -> None:
        """Restore the run if it has crashed.

        Each rule calls this first, so that every rule may follow a crash: Hypothesis shrinks a sequence
        by dropping its rules one by one, which fails if the choice of a rule depends on earlier rules.
        """
        if self.state is None:
            self.restore()

    def _step(self, batches: int = 1) -> None:
        for _ in range(batches):
            self._train(Event(False, self._accumulate))
            self._check()

    def _check(self, law: str = "resume") -> None:
        """Compare the bytes of the state with those of the uninterrupted run.

        Each rule calls this itself, because Hypothesis would print an `@invariant` after every rule.
        """
        if tree.digest(self.state) != self.model[-1]:
            _compare(
                law,
                f"after {len(self._history)} steps the state differs from that of an uninterrupted run",
                self.state,
                self._reference.after(self._history).state,
                "Make everything that influences a step a part of the state, and save all of it.",
            )

    def _start_process(self) -> None:
        self._steps = functools.cache(lambda k=1: self.make_steps(k))
        self._compiled: dict[int, Callable[..., Any]] = {}
        self._donating, self._accumulate, self._workers = False, 1, 0
        self._close()

    def _begin(self) -> None:
        self.state = self._steps()[0](self.seed)
        self._open(None)
        self._goto(())
        self._check()

    def _load(self, save: _Save) -> None:
        like = self._steps()[0](self.seed + 1)
        self.state, cursor = self.read(save.directory, like)
        self._open(cursor)
        self._goto(save.history)
        self._check()

    def _goto(self, history: History) -> None:
        """Set the training steps that the run has taken, and the state digests expected after each."""
        self._history = history
        self.model = [
            tree.digest(self._reference.after(history[:n]).state) for n in range(len(history) + 1)
        ]

    def _train(self, event: Event) -> Any:
        batch, self._cursor = next(self._iterator)
        position = len(self._history)
        _compare(
            "resume",
            f"batch {position} differs from that of an uninterrupted run",
            batch,
            self._batch_of(position, Event(False, 1)),
            "Compute a batch from the seed and its position only, whichever worker fetches it.",
        )
        history = (*self._history, event)
        expected = self._reference.after(history)
        if event.accumulate != 1 and not event.is_nan:
            self._check_accumulation(event)
        batch = self.poison(batch) if event.is_nan else batch
        self.state, metrics = self._step_of(event.accumulate)(self.state, batch)
        self._history = history
        self.model.append(tree.digest(expected.state))
        if digest(metrics) != digest(expected.metrics):
            self._check()  # report a difference in the state first, if there is one
            raise LawViolation(
                "resume",
                f"the metrics of step {position} differ from those in an uninterrupted run: expected "
                f"{expected.metrics}, got {metrics}",
                remedy="Make everything that train_step reads a part of the state.",
            )
        return metrics

    def _check_accumulation(self, event: Event) -> None:
        """Compare the gradients with and without micro-batches."""
        batch = self._batch_of(len(self._history), event)
        found = []
        for k in (event.accumulate, 1):
            _, train_step, _ = self._reference.steps_of(k)
            state = copied(self._reference.after(self._history).state)
            gradients = getattr(train_step, "gradients", None)
            if gradients is not None:
                found.append(gradients(state, batch).grads)
            else:
                new_state = train_step(state, batch)[0]
                found.append(getattr(new_state, "params", new_state))
        apart = relative_distance(*found)
        if apart > self.tolerance:
            raise LawViolation(
                "accumulation",
                f"accumulate={event.accumulate}: expected the result of accumulate=1 within a relative "
                f"distance of {self.tolerance:g}, got {apart:.3g}",
                remedy="Return Mean(total, weight) from the loss function if micro-batches weigh "
                "differently.",
            )

    def _step_of(self, accumulate: int) -> Callable[..., Any]:
        train_step: Callable[..., Any] = self._steps(accumulate)[1]
        if not self._donating:
            return train_step
        if accumulate not in self._compiled:
            self._compiled[accumulate] = compile(train_step, donate=True, backend="eager")
        compiled = self._compiled[accumulate]

        def quiet(state: Any, batch: Any) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RecompileWarning)
                return compiled(state, batch)

        return quiet

    def _batch_of(self, position: int, event: Event) -> Any:
        batch = self._feed.expected(position)
        return self.poison(batch) if event.is_nan else batch

    def _open(self, cursor: Any) -> None:
        self._close()
        self._cursor = cursor
        self._iterator = self._feed.stream(cursor, self._workers)

    def _close(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()  # ends the worker processes


def _compare(law: str, summary: str, got: Any, expected: Any, remedy: str) -> None:
    """Raise unless two trees have the same bytes."""
    difference = first_difference(got, expected)
    if difference is not None:
        summary = f"{summary}: {difference}"
        raise LawViolation(law, summary, difference=difference, remedy=remedy)
