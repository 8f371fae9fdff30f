"""Repetition of a step that ran out of memory, with smaller micro-batches."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from typing import Any

from ftrain.core.errors import NonFiniteError, RecompileWarning
from ftrain.loop import _out_of_memory
from ftrain.loop._emitter import Emitter
from ftrain.loop._first_nonfinite import nonfinite_source
from ftrain.loop._outcome import is_intact

__all__ = ["repeat_step"]


def repeat_step(run: Emitter, error: Exception, batch: Any) -> Generator[Any, Any, tuple[Any, Any]]:
    """Repeat a step that ran out of memory: the same key, and at least twice as many micro-batches.

    Later steps use the same number.

    Args:
        run: the run, in its state before the step.
        error: the exception of the step.
        batch: its batch.

    Returns:
        The result of the step.

    Raises:
        torch.OutOfMemoryError: the batch cannot be cut further, or the step does not take micro-batches;
            the message lists remedies.
        Exception: any other error of the step; a `NonFiniteError` has a note on the source of the
            non-finite values.
    """
    runtime, train, (_, step, position, *_) = run.runtime, run.state.train, run.state.progress
    own = getattr(runtime.plain_step, "accumulate", 1)
    while True:
        # With several ranks, another rank may wait in a collective of this step, and cannot repeat it.
        if not is_intact(train) or not runtime.ranks.is_one:
            raise error
        if isinstance(error, NonFiniteError):
            error.add_note(nonfinite_source(run, batch, step + 1, position + 1))
        before = run.state.micro_batches
        k = _out_of_memory.next_micro_batches(error, train, batch, before, own)
        run.state = run.state.replace(micro_batches=k)
        yield from run.notice(
            f"out of memory at step {step + 1}: this step is repeated with {k} micro-batches, and later "
            f"steps use the same number. To do so from the start, write accumulate={k}."
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RecompileWarning)  # the notice gives the reason
                return runtime.step(run.state.train, _out_of_memory.cut(batch, k))
        except Exception as again:
            is_refusal = not _out_of_memory.is_out_of_memory(again)
            if is_refusal and not isinstance(again, NonFiniteError):
                run.state = run.state.replace(micro_batches=before)
                if not isinstance(again, (TypeError, ValueError)):
                    raise
                raise _out_of_memory.refusal(error, again, train, batch, before) from again
            error = again
