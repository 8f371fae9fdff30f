"""Results of a run and of an epoch: immutable, printable and convertible to JSON.

Read next: `trainer.py`, which returns them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from ftrain.core.state import TrainState
from ftrain.loop._ensemble_members import expanded, with_extremes
from ftrain.loop._format_number import format_number

__all__ = ["EpochResult", "FitResult", "Status"]

_TOLD = 0.1  # smallest fraction of skipped steps that a printed result mentions

Status = Literal["completed", "stopped", "interrupted", "failed"]


@dataclasses.dataclass(frozen=True)
class EpochResult:
    """Metrics over one pass: an epoch of training, or an evaluation.

    Attributes:
        split: "train" (a whole epoch, or the part that was trained), "eval", or "eval/NAME" for the
            evaluation called NAME.
        epoch: the epoch, counted from 1 (see `Progress`); 0 outside of a run.
        step: training steps taken by the end of the pass.
        metrics: `{name: value}`: each the exact merge over all batches (a weighted mean is one division
            by the total weight). For training: `loss`, `grad_norm` (the mean) with `grad_norm_min` and
            `grad_norm_max`, `learning_rate` (the last), `skipped` (a count), and the metrics of the loss
            function; all of them cover the applied steps, and a skipped step counts in `skipped` only.
            For an ensemble: the mean over its members, `loss_min` and `loss_max`.
        samples: number of rows.
        tokens: number of tokens; 0 if the batches hold none.
        duration: seconds; `None` for an epoch that was resumed from a checkpoint, which stores no
            clocks.
        whole: True if the pass was completed, False if the run ended during it.
        members: `{name: values}` of an ensemble, one value per member; `{}` for a single run.

    Example:
        >>> result = EpochResult("eval", 1, 100, {"loss": 0.5, "accuracy": 0.9}, 360, 0, 2.0)
        >>> print(result)
        epoch 1  step 100  eval  loss 0.5  accuracy 0.9  180 samples/s  2.0 s
        >>> EpochResult.from_json(result.to_json()) == result
        True
    """

    split: str
    epoch: int
    step: int
    metrics: Mapping[str, float]
    samples: int
    tokens: int
    duration: float | None = None
    whole: bool = True
    members: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Loss, `metrics["loss"]`; NaN if it is missing."""
        return self.metrics.get("loss", math.nan)

    @property
    def perplexity(self) -> float | None:
        """Exponential of the token-weighted mean loss; `None` if there are no tokens."""
        if not self.tokens or "loss" not in self.metrics:
            return None
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def samples_per_second(self) -> float | None:
        """Rows of data per second; `None` if the duration is unknown or zero."""
        return self.samples / self.duration if self.duration else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second; `None` if there are no tokens, or the duration is unknown or zero."""
        return self.tokens / self.duration if self.duration and self.tokens else None

    def value(self, monitor: str) -> float:
        """Return the value of a metric, such as `eval/loss`; NaN if this result does not contain it.

        Example:
            >>> EpochResult("eval/ema", 1, 9, {"loss": 0.5}, 8, 0).value("eval/ema/loss")
            0.5
        """
        if not monitor.startswith(f"{self.split}/"):
            return math.nan
        return self.values().get(monitor.removeprefix(f"{self.split}/"), math.nan)

    def values(self) -> dict[str, float]:
        """Return the metrics, and the values computed from them, as one flat dict.

        A metric called `perplexity` keeps its value. An ensemble of at most 64 members has
        `loss/member_0`, ... too.
        """
        extra = {
            "perplexity": self.perplexity,
            "duration": self.duration,
            "samples_per_second": self.samples_per_second,
            "tokens_per_second": self.tokens_per_second,
        }
        found = {
            name: value
            for name, value in extra.items()
            if value is not None and name not in self.metrics
        }
        return {**self.metrics, **found, **expanded(self.members)}

    def to_json(self, *, clock: bool = True) -> dict[str, Any]:
        """Return the metrics and counts as a dict that `json.dumps` accepts.

        Args:
            clock: include durations; a checkpoint leaves them out, so that two runs of the same steps
                write the same bytes.
        """
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        members = {name: list(values) for name, values in content.pop("members").items()}
        return {
            **content,
            "metrics": dict(self.metrics),
            "duration": self.duration if clock else None,
            **({"members": members} if members else {}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EpochResult:
        """Return an `EpochResult` from the output of `to_json`, with the loss first in `metrics`."""
        metrics, members = (
            dict(sorted(content.get(name, {}).items(), key=lambda item: item[0] != "loss"))
            for name in ("metrics", "members")
        )
        members = {name: tuple(values) for name, values in members.items()}
        return cls(**{**content, "metrics": metrics, "members": members})

    def __str__(self) -> str:
        what = self.split
        if what == "train":
            what = "train (epoch mean)" if self.whole else "train (epoch so far)"
        parts = [f"epoch {self.epoch}"] if self.epoch else []  # none outside of a run
        parts += [f"step {self.step}", what]
        for name, (value, extremes) in with_extremes(self.metrics).items():
            if name != "skipped" or value:
                parts.append(f"{name} {value:.4g}{extremes}")
        if self.perplexity is not None and "perplexity" not in self.metrics:
            parts.append(f"perplexity {self.perplexity:.4g}")
        if self.samples_per_second is not None:
            parts.append(f"{format_number(self.samples_per_second)} samples/s")
        if self.tokens_per_second is not None:
            parts.append(f"{format_number(self.tokens_per_second)} tokens/s")
        if self.duration is not None:
            parts.append(f"{self.duration:.1f} s")
        return "  ".join(parts)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """Final state, history and status of a run.

    Attributes:
        state: the training state; `None` only if a failure destroyed it.
        history: a result for each epoch and each evaluation, in order.
        status: "completed" (all epochs or steps), "stopped" (a callback requested it), "interrupted"
            (a signal; continue with `resume`), or "failed".
        reason: why the run ended: "3 epochs", "early stopping: ...", "SIGINT", or the exception.
        step: training steps taken.
        epoch: the epoch in which the run ended, counted from 1.
        checkpoint: path of the last checkpoint written; `None` if there is none.
        signal: number of the signal that interrupted the run; the exit code is 128 more.
        error: the exception, if the status is "failed".
    """

    state: TrainState | Any
    history: tuple[EpochResult, ...]
    status: Status
    reason: str = ""
    step: int = 0
    epoch: int = 0
    checkpoint: str | None = None
    signal: int | None = None
    error: BaseException | None = None

    @property
    def train(self) -> EpochResult | None:
        """Training metrics of the last epoch; `None` if there are none."""
        return self._last("train")

    @property
    def eval(self) -> EpochResult | None:
        """Result of the last evaluation; `None` if there is none."""
        return self._last("eval")

    @property
    def exit_code(self) -> int:
        """Exit code for a command: 0; 1 if the run failed; 130 after Ctrl-C, 143 after SIGTERM."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if self.status == "failed" else 0

    @property
    def skipped(self) -> float:
        """Number of steps skipped because of non-finite gradients; for an ensemble, the mean."""
        return sum(
            each.metrics.get("skipped", 0.0) for each in self.history if each.split == "train"
        )

    def best(
        self, monitor: str = "eval/loss", mode: Literal["min", "max"] = "min"
    ) -> EpochResult | None:
        """Return the epoch or evaluation with the best value of a metric; `None` if none has a value.

        Args:
            monitor: `eval/` or `train/` and the name of the metric; `eval/NAME/...` for an evaluation
                called NAME.
            mode: "min" if smaller values are better, "max" if larger ones are. NaN is never the best.

        Example:
            >>> losses = (0.5, 0.3, 0.4)
            >>> results = [EpochResult("eval", i, i, {"loss": x}, 8, 0) for i, x in enumerate(losses)]
            >>> FitResult(None, tuple(results), "completed").best().loss
            0.3
        """
        sign = 1.0 if mode == "min" else -1.0
        found = [
            (sign * value, index)
            for index, each in enumerate(self.history)
            if each.whole and not math.isnan(value := each.value(monitor))
        ]
        return self.history[min(found)[1]] if found else None

    def to_json(self) -> dict[str, Any]:
        """Return the result of the run, except the state, as a dict that `json.dumps` accepts."""
        return {
            "status": self.status,
            "reason": self.reason,
            "step": self.step,
            "epoch": self.epoch,
            "checkpoint": self.checkpoint,
            "signal": self.signal,
            "error": None if self.error is None else f"{type(self.error).__name__}: {self.error}",
            "history": [result.to_json() for result in self.history],
        }

    def __str__(self) -> str:
        lines = [f"{self.status} at step {self.step}, epoch {self.epoch}: {self.reason}"]
        last = {result.split: result for result in self.history}  # with other splits: "eval/ema"
        first = ("train", "eval")
        splits = [*(each for each in first if each in last), *sorted(last.keys() - {*first})]
        lines += [f"  {last[split]}" for split in splits]
        if self.skipped >= _TOLD * max(self.step, 1):
            lines.append(f"  {self.skipped_message}")
        if self.checkpoint is not None:
            lines.append(f"  checkpoint {self.checkpoint}")
        return "\n".join(lines)

    __repr__ = __str__

    @property
    def skipped_message(self) -> str:
        """Text such as `3 of 9 steps were skipped because of non-finite gradients, and ...`."""
        whole = self.step and self.skipped >= self.step
        effect = "no parameter was trained" if whole else "did not change the parameters"
        return (
            f"{self.skipped:.4g} of {self.step} steps were skipped because of non-finite gradients, and "
            f"{effect}"
        )

    def _last(self, split: str) -> EpochResult | None:
        return next((result for result in reversed(self.history) if result.split == split), None)
