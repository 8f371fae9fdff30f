"""Formatting of log rows and durations as readable text."""

from __future__ import annotations

from collections.abc import Mapping

from ftrain.loop._ensemble_members import with_extremes
from ftrain.loop._format_number import format_number
from ftrain.loop._reserved_names import CLOCKS
from ftrain.loop.events import CompileBegin, CompileEnd, Progress

__all__ = ["clock", "compiling", "row"]

_SPLITS = {"train": "train (last steps)", "train_epoch": "train (epoch mean)"}
_HIDDEN = ("grad_norm_min", "grad_norm_max", *CLOCKS)
# Parts of the names of values per layer and per ensemble member, which lines of text omit.
_PARTS = ("grad_norm/", "/member_")
#: Values that a narrow terminal leaves out, in this order; the progress bar shows the speed.
_LEAST = (
    "duration",
    "learning_rate",
    "tokens_per_second",
    "steps_per_second",
    "grad_norm",
    "samples_per_second",
    "perplexity",
)
_RATES = {
    "steps_per_second": "steps/s",
    "samples_per_second": "samples/s",
    "tokens_per_second": "tokens/s",
}


def row(
    split: str, progress: Progress, values: Mapping[str, float], width: int | None = None
) -> str:
    """Format a log row as one line; values per layer and per ensemble member are omitted.

    Args:
        split: split of the row.
        progress: progress at the row.
        values: values of the row.
        width: width of the terminal; the values in `_LEAST` are left out until the line fits.

    Example:
        >>> row("train", Progress(1, 50), {"loss": 0.25, "skipped": 0.0, "samples_per_second": 51234.5})
        'epoch 1    step 50      train (last steps)  loss 0.25    51.2k samples/s'
        >>> row("eval", Progress(1, 50), {"loss": 0.2, "loss_min": 0.1, "loss_max": 0.3})
        'epoch 1    step 50      eval                loss 0.2    (0.1 to 0.3)'
        >>> row("eval", Progress(1, 50), {"loss": 0.2, "ema/loss": 0.1, "ema/duration": 0.3})
        'epoch 1    step 50      eval                loss 0.2     ema/loss 0.1'
    """
    name = _SPLITS.get(split, split)
    head = [f"epoch {progress.epoch:<3}", f"step {progress.step:<6}", f"{name:<18}"]
    parts: dict[str, str] = {}
    for name, (value, extremes) in with_extremes(values).items():
        if name in _RATES:
            parts[name] = f"{format_number(value)} {_RATES[name]}"
        elif (
            name.rpartition("/")[2] not in _HIDDEN  # ema/duration: of another evaluation
            and not any(each in name for each in _PARTS)
            and not (name == "skipped" and not value)
        ):
            parts[name] = f"{name} {value:<6.4g}{'' if name == 'grad_norm' else extremes}"
    if "duration" in values:
        parts["duration"] = f"{values['duration']:.1f} s"
    line = "  ".join([*head, *parts.values()]).rstrip()
    for least in _LEAST if width else ():
        if len(line) <= (width or 0):
            break
        parts.pop(least, None)
        line = "  ".join([*head, *parts.values()]).rstrip()
    return line


def compiling(event: CompileBegin | CompileEnd) -> str:
    """Return the message for the start of a compilation, or for the end with its duration.

    Example:
        >>> compiling(CompileEnd(Progress(), 30.0, None, "training step", 28.44))
        'compiled the training step in 28.4 s'
    """
    if isinstance(event, CompileEnd):
        return f"compiled the {event.what} in {event.duration:.1f} s"
    return f"compiling the {event.what} ..."


def clock(seconds: float) -> str:
    """Format a duration as minutes and seconds, with hours if it is an hour or longer.

    Example:
        >>> clock(75), clock(3 * 3600 + 61)
        ('1:15', '3:01:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
