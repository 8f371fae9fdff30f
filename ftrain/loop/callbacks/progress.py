"""Progress of a run, as a bar in a terminal and as periodic lines elsewhere."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from tqdm import tqdm

from ftrain.core._terminal import printable
from ftrain.loop._format_number import format_number
from ftrain.loop.callback import Action
from ftrain.loop.callbacks._format import clock
from ftrain.loop.callbacks._notebook import in_notebook
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.events import (
    BatchEnd,
    CompileBegin,
    CompileEnd,
    EvaluateBegin,
    EvaluateEnd,
    Event,
    Plan,
    TrainBegin,
    TrainEnd,
    WindowEnd,
)

__all__ = ["ProgressBar"]

#: Bar format for terminals with fewer columns, where tqdm's line is cut off before the losses.
_WIDE = 110
_NARROW = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [<{remaining}{postfix}]"


class ProgressBar:
    """Show the epoch, the step, the speed, the remaining time and the latest losses.

    `train loss` is the mean over the last `log_every` steps, `eval loss` that of the last
    evaluation.

    The bar is refreshed by the clock, not by the step, and shows only numbers that the log has read: it
    never waits for the device, and costs one comparison per step. In a notebook it is tqdm's widget.
    If the stream is not a terminal, a plain line is printed every few seconds instead of the bar. Ranks
    other than 0 are silent.

    `Trainer.fit` shows a bar by default in terminals and notebooks. List a `ProgressBar` among the
    callbacks to choose its options, or to print lines into files and pipes.

    Args:
        refresh: seconds between two updates of the bar.
        every: seconds between two plain lines.
        stream: the output stream; default: standard error.

    Example:
        >>> import torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.0))
        >>> trainer = loop.Trainer(steps, [ProgressBar(every=0, stream=sys.stdout)], compile=False)
        >>> result = trainer.fit(steps.init_state(0), [torch.zeros(4, 3)], epochs=1)
        epoch 1/1  step 1/1 (100%)  ... steps/s  0:00 left
        epoch 1/1  step 1/1 (100%)  train loss ... steps/s ... done
    """

    listens = (
        TrainBegin,
        CompileBegin,
        CompileEnd,
        BatchEnd,
        WindowEnd,
        EvaluateBegin,
        EvaluateEnd,
        TrainEnd,
    )
    on_error = "warn"

    def __init__(
        self, *, refresh: float = 0.2, every: float = 10.0, stream: TextIO | None = None
    ) -> None:
        self._refresh, self._every, self._wanted = refresh, every, stream
        self._display: _Bar | _Lines | None = None
        self._due = float("inf")

    @property
    def idle_until(self) -> float:
        """Value of `Event.seconds` at the next refresh; infinite without a display."""
        return self._due

    def init(self) -> None:
        """Return `None` as the state of this callback: the display is not saved in checkpoints."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Update the display for an event; steps update it at most once per refresh interval."""
        if type(event) is BatchEnd:
            if event.seconds < self._due:
                return None, ()
            self._show(event)
        elif isinstance(event, TrainBegin):
            self._begin(event)
        elif self._display is not None:
            self._update(self._display, event)
        return None, ()

    def _begin(self, event: TrainBegin) -> None:
        self._display, self._due = None, float("inf")
        stream = sys.stderr if self._wanted is None else self._wanted
        if not is_main() or stream is None:  # `None`: the process has no standard error
            return
        notebook = self._wanted is None and in_notebook()
        if notebook or stream.isatty():
            self._display = _Bar(event, stream, notebook)
        else:
            self._display = _Lines(event, stream)
        self._due = event.seconds + self._interval()

    def _update(self, display: _Bar | _Lines, event: Event) -> None:
        """Set the values and the activity that the display shows, from an event."""
        if isinstance(event, WindowEnd):
            if "loss" in event.values:
                display.values["train loss"] = event.values["loss"]
        elif isinstance(event, (CompileBegin, EvaluateBegin)):
            display.doing = "compiling" if isinstance(event, CompileBegin) else "evaluating"
            if isinstance(display, _Bar):
                self._show(event)
        elif isinstance(event, CompileEnd):
            display.doing = "evaluating" if event.what.startswith("eval") else ""
            display.leave_out(event.duration)
        elif isinstance(event, EvaluateEnd):
            display.doing = ""
            name = f"{event.name} loss" if event.name else "eval loss"
            display.values[name] = event.result.loss
            if isinstance(display, _Bar):
                self._show(event)
        elif isinstance(event, TrainEnd):
            display.end(event)
            self._display, self._due = None, float("inf")

    def _show(self, event: Event) -> None:
        if self._display is not None:
            self._display.show(event)
            self._due = event.seconds + self._interval()

    def _interval(self) -> float:
        return self._refresh if isinstance(self._display, _Bar) else self._every


class _Bar:
    """Progress bar in a terminal or a notebook."""

    def __init__(self, event: TrainBegin, stream: TextIO, notebook: bool) -> None:
        self.values: dict[str, float] = {}
        self.doing = ""
        self._plan = event.plan
        shape = {} if notebook else _shape(stream, event.plan.total_steps)
        self._bar = (_in_notebook() if notebook else _Tqdm)(
            total=event.plan.total_steps,
            initial=event.progress.step,
            unit=" steps",
            file=stream,
            **shape,
            mininterval=0,
            miniters=1,
        )

    def show(self, event: Event) -> None:
        self._bar.set_description_str(self.doing or _epoch(self._plan, event), refresh=False)
        self._bar.set_postfix_str(_values(self.values, ", ", " "), refresh=False)
        if event.progress.step > self._bar.n:
            self._bar.update(event.progress.step - self._bar.n)  # also refreshes the bar
        else:
            self._bar.refresh()

    def leave_out(self, seconds: float) -> None:
        """Exclude a pause from the time that the speed is computed from."""
        self._bar.start_t += seconds
        self._bar.last_print_t += seconds

    def end(self, event: TrainEnd) -> None:
        self.doing = ""
        if self._bar.bar_format:
            self._bar.bar_format = _NARROW.replace("<{remaining}", "{elapsed}")
        self.show(event)
        self._bar.close()


class _Tqdm(tqdm):  # type: ignore[type-arg]  # generic in its stubs only
    monitor_interval = 0  # no thread: `_Bar` refreshes it


def _in_notebook() -> type[tqdm]:  # type: ignore[type-arg]  # as above
    """Return tqdm's class for notebooks: a widget, or a line of text if ipywidgets is missing."""
    from tqdm.auto import tqdm as auto  # noqa: PLC0415  # chooses when it is imported; warns without ipywidgets

    return type("_NotebookTqdm", (auto,), {"monitor_interval": 0})


class _Lines:
    """Progress of a run, printed as a line every few seconds."""

    def __init__(self, event: TrainBegin, stream: TextIO) -> None:
        self.values: dict[str, float] = {}
        self.doing = ""
        self._plan, self._stream = event.plan, stream
        self._began = self._last = (event.progress.step, event.seconds)

    def show(self, event: Event) -> None:
        step, total = event.progress.step, self._plan.total_steps
        speed = self._speed(event, self._last)
        self._last = (step, event.seconds)
        left = ""
        if total is not None and speed:
            left = f"{clock(max(total - step, 0) / speed)} left"
        self._print(event, f"{format_number(speed)} steps/s", left)

    def leave_out(self, seconds: float) -> None:
        """Exclude a pause from the time that the speed is computed from."""
        (began, since), (last, then) = self._began, self._last
        self._began, self._last = (began, since + seconds), (last, then + seconds)

    def end(self, event: TrainEnd) -> None:
        how = "done" if event.result.status == "completed" else event.result.status
        took = [f"{clock(event.seconds)} {how}"]
        if event.progress.step > self._began[0]:
            took.insert(0, f"{format_number(self._speed(event, self._began))} steps/s")
        self._print(event, *took)

    def _speed(self, event: Event, since: tuple[int, float]) -> float:
        step, seconds = since
        return (event.progress.step - step) / max(event.seconds - seconds, 1e-9)

    def _print(self, event: Event, *more: str) -> None:
        step, total = event.progress.step, self._plan.total_steps
        of = f"/{total} ({step / total:.0%})" if total else ""
        values = _values(self.values, "  ", " ")
        parts = [_epoch(self._plan, event), f"step {step}{of}", values, *more]
        print("  ".join(filter(None, parts)), file=self._stream, flush=True)


def _shape(stream: TextIO, total: int | None) -> dict[str, Any]:
    """Return tqdm's options for the terminal's size; tqdm shows nothing if the size is reported as 0."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return {}
    known = bool(size.columns and size.lines)
    found: dict[str, Any]
    found = {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}
    if total is not None and (size.columns if known else 80) < _WIDE:
        found["bar_format"] = _NARROW
    return found


def _epoch(plan: Plan, event: Event) -> str:
    epoch = max(event.progress.epoch, 1)
    if plan.epochs is None:
        return f"epoch {epoch}"
    return f"epoch {min(epoch, plan.epochs)}/{plan.epochs}"


def _values(values: dict[str, Any], between: str, equals: str) -> str:
    shown = {printable(name, one_line=True): value for name, value in values.items()}
    return between.join(f"{name}{equals}{value:.4g}" for name, value in shown.items())
