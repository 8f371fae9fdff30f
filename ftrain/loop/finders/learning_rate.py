"""Learning-rate finder: one short run in which the rate grows with every step.

    found = finders.learning_rate(steps, state, train_data)
    print(found)                      # the suggestion, with its reason
    found.plot("lr_find.png")

The sweep runs on a copy of the state. The rate is a tensor, so that one program serves all rates;
losses are read every `look_every` steps, in one transfer.

References:
    Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ftrain.core import tree
from ftrain.loop._batches import Batches, as_batches, check_padding
from ftrain.loop.finders._steps import CompileOptions, Step, compiled, copied, is_factory, step_of
from ftrain.loop.finders._suggest import SMOOTH, capped, smooth, stops_at, suggest
from ftrain.optim import set_hyperparams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ftrain.loop.plots.run_log import Path

__all__ = ["RateSweep", "learning_rate"]


@dataclasses.dataclass(frozen=True)
class RateSweep:
    """Losses over learning rates, with the suggested rate.

    Attributes:
        rates: the learning rate of each step, increasing.
        losses: the loss of each step, computed before its update; if the sweep diverged, the last loss
            is too high or not finite.
        smoothed: the losses averaged with their neighbours on both sides.
        suggestion: the rate at which the loss falls fastest; `None` if it never falls, if more than half
            of the steps were skipped, or if no step changed a parameter.
        lowest: the rate at which the smoothed loss is lowest, which is too high for training; `None` if
            there is no suggestion.
        diverged: True if the sweep ended early because the loss rose too far or was not finite.
        skipped: number of steps skipped because of non-finite gradients.
        trained: True if a parameter changed.

    Example:
        >>> sweep = RateSweep((1e-3, 1e-2, 1e-1), (2.0, 1.0, 4.0), (2.0, 1.0, 4.0), 1e-2, 1e-2, True)
        >>> RateSweep.from_json(sweep.to_json()) == sweep
        True
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    lowest: float | None
    diverged: bool
    skipped: int = 0
    trained: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the sweep as a dict that `json.dumps` accepts; non-finite losses become `None`."""
        content = dataclasses.asdict(self)
        for name in ("losses", "smoothed"):
            content[name] = [value if math.isfinite(value) else None for value in content[name]]
        return {**content, "rates": list(self.rates)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> RateSweep:
        """Return the sweep from the output of `to_json`, with NaN for losses that were not finite."""
        series = {
            name: tuple(math.nan if value is None else value for value in content[name])
            for name in ("rates", "losses", "smoothed")
        }
        return cls(**{**content, **series})

    def plot(
        self, out: Path | None = None, *, title: str | None = None, dark: bool = False
    ) -> Figure:
        """Draw the losses over the rates on a logarithmic axis, with the suggestion.

        Args:
            out: the file to write, `.png`, `.svg` or `.pdf`; `None`: no file.
            title: title of the figure.
            dark: draw light on dark.

        Returns:
            The figure.

        Raises:
            ImportError: matplotlib is not installed; the message says how to install it.
        """
        from ftrain.loop.plots._rate_sweep import (  # noqa: PLC0415  # needs an extra
            rate_sweep_figure,
        )

        return rate_sweep_figure(self, out, title, dark)

    def __str__(self) -> str:
        first, last = self.rates[0], self.rates[-1]
        n, skipped = len(self.rates), self.skipped
        swept = f"{n} steps from {first:.3g} to {last:.3g}"
        end = f"; the loss diverged at {last:.3g}" if self.diverged else ""
        if 2 * skipped > n:
            which = "all" if skipped == n else f"{skipped}"
            said = f"{which} of the {swept} were skipped"
            if n == 1:
                said = f"the first step, at {first:.3g}, was skipped"
            tried = (
                "no rate was tested" if skipped == n else "the rates of these steps were not tested"
            )
            return (
                f"no suggestion: {said} because of a non-finite gradient, so {tried}. Check the batches "
                "and the loss for NaN, log(0) or a division by zero; ftrain.loop.Trainer(..., "
                "max_skipped=1) names the first operator with a non-finite result"
            )
        if not self.trained:
            return (
                f"no suggestion: none of the {swept} changed a parameter, so no rate was tested. "
                "Check the optimizer for a wrapper that skips or accumulates gradients, or for a "
                "rate of 0"
            )
        if skipped:
            end += f"; {skipped} of them were skipped because of a non-finite gradient"
        if self.suggestion is None or self.lowest is None:
            advice = (
                "start the sweep at a lower rate"
                if self.diverged
                else "sweep to a higher rate, or over more steps"
            )
            return f"no suggestion: the loss does not fall in {swept}{end}; {advice}"
        return (
            f"suggested learning rate {self.suggestion:.2g}, where the loss falls fastest (it is "
            f"lowest at {self.lowest:.2g})\n{swept}{end}"
        )


def learning_rate(
    steps: Any,
    state: Any,
    train_data: Any,
    *,
    lowest: float = 1e-7,
    highest: float = 10.0,
    n_steps: int = 100,
    diverged: float = 2.0,
    look_every: int = 20,
    compile: CompileOptions = True,
) -> RateSweep:
    r"""Sweep the learning rate from `lowest` to `highest` in one short run, on a copy of the state.

    Step $i$ of $n$ is taken with $\eta_i = \eta_0 (\eta_1 / \eta_0)^{i / (n - 1)}$. The suggestion is
    the rate at which the smoothed loss falls fastest over $\log \eta$, before its minimum. A rate whose
    step was skipped because of a non-finite gradient is not suggested. For an ensemble, the loss is the
    mean over its members, and a step counts as skipped if every member skips it.

    Args:
        steps: the result of `ftrain.make_steps`, or a step, whose optimizer keeps its rate in the state,
            `optim.with_hyperparams(optim.adamw, learning_rate=...)`; or a function of the rate,
            `lambda rate: ftrain.make_steps(model, loss_fn, optim.adamw(rate))`. It is called once, with
            a 0-d tensor that holds each rate in turn.
        state: the initial state, from `init_state` or of a trained model. Not changed.
        train_data: a `data.Loader`, a list of batches, or any iterable that restarts on each iteration;
            it is repeated if it is shorter than the sweep.
        lowest: the first rate, > 0.
        highest: the last rate.
        n_steps: number of steps, at least 10.
        diverged: the sweep ends when the mean of the last few losses is not finite, or exceeds the first
            loss and exceeds the lowest mean by more than `diverged` times the larger of
            (first loss - lowest mean) and |first loss|.
        look_every: steps between two reads of the losses; it does not change the result.
        compile: True if the step is compiled; or options for `ftrain.compile`.

    Returns:
        The sweep, with `.suggestion`.

    Raises:
        TypeError: the rate of `steps` is a constant.
        ValueError: an option is out of range; the data has no batch; the data has `last_batch="pad"` and
            the model takes statistics over the rows of a batch.

    Example:
        >>> import ftrain
        >>> from ftrain import optim
        >>> def loss_fn(model, batch):
        ...     return (model(batch) - batch.sum(1, keepdim=True)).square().mean()
        >>> def steps(rate):
        ...     return ftrain.make_steps(lambda: torch.nn.Linear(3, 1), loss_fn, optim.sgd(rate))
        >>> state = steps(0.1).init_state(0)
        >>> found = learning_rate(steps, state, [torch.eye(3)], n_steps=50, compile=False)
        >>> 0.01 < found.suggestion < 0.3, 1 < found.lowest < 3, found.diverged
        (True, True, True)

    References:
        Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3.
    """
    _check(lowest, highest, n_steps, diverged, look_every)
    device = next((leaf.device for leaf in tree.leaves(state)), torch.device("cpu"))
    wanted = torch.logspace(
        math.log10(lowest), math.log10(highest), n_steps, dtype=torch.float64, device=device
    )
    rates = [float(rate) for rate in wanted.cpu()]
    data = as_batches(train_data, "train_data")
    step = _stepper(steps, state, data, compile)
    before, state = state, copied(state)
    losses: list[float] = []
    skips: list[bool] = []
    unread: list[torch.Tensor] = []
    end: int | None = None
    for (batch, _), rate in zip(data.batches(epochs=None), wanted.unbind(), strict=False):
        state, metrics = step(state, batch, rate)
        unread.append(_seen(metrics))
        if len(unread) == look_every or len(losses) + len(unread) == n_steps:
            seen = torch.stack(unread).tolist()
            unread.clear()
            losses += [loss for loss, _ in seen]
            skips += [bool(skipped) for _, skipped in seen]
            end = stops_at(losses, diverged, max(2, round(SMOOTH * n_steps)))
            if end is not None:
                losses = losses[: end + 1]
                break
    if not losses:
        raise ValueError(
            "train_data: expected at least one batch, got none. Pass data with at least one batch."
        )
    rates, skips = rates[: len(losses)], skips[: len(losses)]
    even = smooth(capped(losses, diverged), SMOOTH * n_steps)
    trained = _has_trained(before, state)
    tried = trained and 2 * sum(skips) <= len(skips)
    best, bottom = suggest(rates, even, skips) if tried else (None, None)
    found = (tuple(rates), tuple(losses), tuple(even), best, bottom, end is not None)
    return RateSweep(*found, sum(skips), trained)


def _has_trained(before: Any, after: Any) -> bool:
    """Return True if a parameter changed, or if the state has no `params` to compare."""
    params = [tree.leaves(getattr(state, "params", None)) for state in (before, after)]
    same = [
        torch.equal(*(leaf.contiguous().reshape(-1).view(torch.uint8) for leaf in pair))
        for pair in zip(*params, strict=True)
    ]
    return not same or not all(same)


def _stepper(
    steps: Any, state: Any, data: Batches, options: CompileOptions
) -> Callable[[Any, Any, torch.Tensor], tuple[Any, Any]]:
    """Return a step `(state, batch, rate) -> (state, metrics)` that is compiled once for all rates."""
    if is_factory(steps):
        device = next((leaf.device for leaf in tree.leaves(state)), torch.device("cpu"))
        current = torch.zeros((), dtype=torch.float64, device=device)
        plain = step_of(steps(current), "steps(learning_rate)")
        check_padding(data, plain)
        step = compiled(plain, options)

        def with_rate(state: Any, batch: Any, rate: torch.Tensor) -> tuple[Any, Any]:
            current.copy_(rate)  # a program reads a captured tensor at each call
            return step(state, batch)

        return with_rate
    plain = step_of(steps, "finders.learning_rate")
    check_padding(data, plain)
    inner: Step = compiled(plain, options)
    settable = [p for p in tree.paths(state) if p.endswith(".hyperparams['learning_rate']")]
    if not settable:
        raise TypeError(
            "steps: expected a step with its learning rate in the state, got a constant learning rate. "
            "Keep it in the state, `optim.with_hyperparams(optim.adamw, learning_rate=1e-3)`, or pass a "
            "function of the rate, `lambda rate: ftrain.make_steps(model, loss_fn, optim.adamw(rate))`."
        )
    if not hasattr(state, "opt_state"):
        raise TypeError(
            f"state: expected a field `opt_state` that holds the learning rate, got a "
            f"{type(state).__name__} without one. Pass a function of the rate as steps, `lambda rate: "
            "my_step_with(rate)`."
        )

    def set_and_step(state: Any, batch: Any, rate: torch.Tensor) -> tuple[Any, Any]:
        opt_state = set_hyperparams(state.opt_state, learning_rate=rate)
        return inner(state.replace(opt_state=opt_state), batch)

    return set_and_step


def _seen(metrics: Any) -> torch.Tensor:
    """Return the loss and the metric `skipped` as one float64 tensor, reduced over ensemble members."""
    try:
        loss = metrics["loss"]
    except (KeyError, TypeError, IndexError):
        names = (
            ", ".join(map(str, metrics)) if isinstance(metrics, Mapping) else type(metrics).__name__
        )
        raise TypeError(
            f"metrics of the step: expected a 'loss', got {names}. Return "
            "`state, {'loss': loss}`."
        ) from None
    skipped = metrics.get("skipped", 0.0)
    found = [torch.as_tensor(x).detach().to(torch.float64) for x in (loss, skipped)]
    if found[0].ndim > 1:
        raise TypeError(
            f"metric 'loss': expected shape () or, for an ensemble, (members,), got shape "
            f"{tuple(found[0].shape)}. Reduce it first: value.mean()."
        )
    # A copy: the next step may overwrite the memory of the metrics.
    return torch.stack([found[0].mean(), found[1].amin().to(found[0].device)])


def _check(lowest: float, highest: float, n_steps: int, diverged: float, look_every: int) -> None:
    if not 0 < lowest < highest < math.inf:
        raise ValueError(
            f"lowest, highest: expected 0 < lowest < highest, got {lowest!r} and {highest!r}. Write "
            "lowest=1e-7, highest=10."
        )
    for name, count, least in (("n_steps", n_steps, 10), ("look_every", look_every, 1)):
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise ValueError(
                f"{name}: expected an integer of at least {least}, got {count!r}. Write {name}=100."
            )
    if not diverged > 0:
        raise ValueError(
            f"diverged: expected a number above 0, got {diverged!r}. Write diverged=4."
        )
