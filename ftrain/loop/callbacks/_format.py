"""Rows and times in words, for people."""

from __future__ import annotations

from collections.abc import Mapping

from ftrain.loop.events import CompileBegin, CompileEnd, Progress

__all__ = ["clock", "compiling", "number", "row"]

_SPLITS = {"train": "train (last steps)", "train_epoch": "train (epoch mean)"}
_HIDDEN = ("grad_norm_min", "grad_norm_max", "duration")
_RATES = {
    "steps_per_second": "steps/s",
    "samples_per_second": "samples/s",
    "tokens_per_second": "tokens/s",
}


def row(split: str, progress: Progress, values: Mapping[str, float]) -> str:
    """One line: the values that a person follows; those by layer (`a/b`) are left to files.

    >>> row("train", Progress(1, 50), {"loss": 0.25, "skipped": 0.0, "samples_per_second": 51234.5})
    'epoch 1    step 50      train (last steps)  loss 0.25    51.2k samples/s'
    """
    name = _SPLITS.get(split, split)
    parts = [f"epoch {progress.epoch:<3}", f"step {progress.step:<6}", f"{name:<18}"]
    for name, value in values.items():
        if name in _RATES:
            parts.append(f"{number(value)} {_RATES[name]}")
        elif (
            name not in _HIDDEN
            and "grad_norm/" not in name
            and not (name == "skipped" and not value)
        ):
            parts.append(f"{name} {value:<6.4g}")
    if "duration" in values:
        parts.append(f"{values['duration']:.1f} s")
    return "  ".join(parts).rstrip()


def compiling(event: CompileBegin | CompileEnd) -> str:
    """That a step is compiled, and how long it took.

    >>> compiling(CompileEnd(Progress(), 30.0, None, "training step", 28.44))
    'compiled the training step in 28.4 s'
    """
    if isinstance(event, CompileEnd):
        return f"compiled the {event.what} in {event.duration:.1f} s"
    return f"compiling the {event.what} ..."


def number(value: float) -> str:
    """Three digits or so.

    >>> number(0.0123), number(123.4), number(51234.5), number(2.5e6)
    ('0.0123', '123', '51.2k', '2.5M')
    """
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (size if unit == 'M' else 1e3):.3g}{unit}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any.

    >>> clock(75), clock(3 * 3600 + 61)
    ('1:15', '3:01:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
