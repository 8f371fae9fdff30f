"""Monitor for layers whose gradients vanish or explode, or in which non-finite values begin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypedDict

from ftrain.loop.callback import Action, Notify
from ftrain.loop.events import Event, WindowEnd
from ftrain.tasks.gradient_statistics import check_statistics

__all__ = ["GradientMonitor", "GradientState"]

_PREFIX = "grad_norm/"
_NOT_FINITE = "not finite"
#: Prefix of a metric that counts steps: the kind of the report about a layer, and its text.
_COUNTED = {
    "grad_vanishing/": ("vanishing", "vanishing gradient in layer {} in {} of {} steps"),
    "grad_exploding/": (
        "exploding",
        "exploding gradient in layer {} in {} of {} steps. Clip gradients, or lower the learning rate",
    ),
    "nonfinite_output/": (_NOT_FINITE, "first non-finite output in layer {} in {} of {} steps"),
    "nonfinite_grad/": (
        _NOT_FINITE,
        "first non-finite gradient of the backward pass in layer {} in {} of {} steps",
    ),
}
_DECAY = 0.9  # per window: weight of the past in a layer's average norm
_SILENCE = 20  # minimum number of windows between two reports about a layer
_MOST = 5  # maximum number of layers in a notice


class GradientState(TypedDict):
    """State of `GradientMonitor`: per layer, the average gradient norm and the kind of the last report.

    Attributes:
        usual: the layer's norm, averaged over windows; in an ensemble, for each member's layer.
        said: the last report, "vanishing", "exploding" or "not finite", if it still applies.
        silent: number of remaining windows in which the layer is not reported again.
    """

    usual: dict[str, float]
    said: dict[str, str]
    silent: dict[str, int]


class GradientMonitor:
    """Report the paths of layers whose gradient norm nearly vanishes or far exceeds its average.

    The trainer needs the steps of `monitored_steps(...)` instead of those of `ftrain.make_steps(...)`; a
    run from a configuration with `callbacks: [GradientMonitor]` builds them. The monitor reads the means
    of the norms over a window, and the numbers of steps that exceeded a limit (`vanishing_below`,
    `exploding_above`, `first_nonfinite`), which show single steps as well. It emits at most one
    `Notice` per window, which the console and `train.log` print. A layer is reported once, and again
    only after it has recovered, at the earliest 20 windows later.

    Args:
        vanishing: report a layer whose mean norm is at most this fraction of the largest layer's.
        exploding: report a layer whose mean norm is more than this many times its average.
        statistics: these and the arguments below are those of `monitored_steps`, to which a
            configuration passes them. In Python, pass them to `monitored_steps` yourself.
        depth: see `monitored_steps`.
        vanishing_below: see `monitored_steps`.
        exploding_above: see `monitored_steps`.
        first_nonfinite: see `monitored_steps`.

    Raises:
        ValueError: an argument is out of range; the step reports no norms by layer.

    Example:
        >>> import torch, ftrain
        >>> from ftrain import loop, optim
        >>> from ftrain.loop.callbacks import monitored_steps
        >>> def loss_fn(model, batch):
        ...     return model[1](model[0](batch).detach()).mean()
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        >>> steps = monitored_steps(model, loss_fn, optim.sgd(0.1))
        >>> trainer = loop.Trainer(steps, [GradientMonitor()], compile=False, log_every=1)
        >>> data = [torch.ones(4, 3)]
        >>> events = trainer.events(steps.init_state(0), data, max_steps=1, kinds=(loop.Notice,))
        >>> next(events).message
        "step 1: vanishing gradient in layer 0: its norm is 0, the largest layer's (1) ...
    """

    listens = (WindowEnd,)
    on_error = "warn"

    def __init__(
        self,
        *,
        vanishing: float = 1e-6,
        exploding: float = 50.0,
        statistics: Sequence[str] = ("norm",),
        depth: int | None = None,
        vanishing_below: float | None = None,
        exploding_above: float | None = None,
        first_nonfinite: bool = False,
    ) -> None:
        check_statistics(statistics, depth, vanishing_below, exploding_above, None)
        if "norm" not in statistics:
            raise ValueError(
                f"statistics: expected a list with 'norm', which the monitor compares, got "
                f"{tuple(statistics)}. Add 'norm'."
            )
        if not 0 <= vanishing < 1 < exploding:
            raise ValueError(
                f"vanishing, exploding: expected 0 <= vanishing < 1 < exploding, got {vanishing!r} and "
                f"{exploding!r}. Write vanishing=0.01, exploding=100."
            )
        self.vanishing, self.exploding = vanishing, exploding

    def init(self) -> GradientState:
        """Return the initial state, before the first log window."""
        return {"usual": {}, "said": {}, "silent": {}}

    def __call__(
        self, state: GradientState, event: Event
    ) -> tuple[GradientState, Iterable[Action]]:
        """Compare each layer's gradient norm with the largest norm and with its own past average."""
        assert isinstance(event, WindowEnd)
        groups = _norms(event)
        if not any(name.startswith(_PREFIX) for name in event.members or event.values):
            raise ValueError(
                "GradientMonitor: expected gradient norms by layer in the metrics of the step, got "
                "no norms. Make the steps with ftrain.loop.callbacks.monitored_steps(...), not "
                "ftrain.make_steps(...)."
            )
        said, usual = dict(state["said"]), dict(state["usual"])
        silent = {layer: n - 1 for layer, n in state["silent"].items() if n > 1}
        news: list[str] = []
        found = list(_counted(event))
        counted = {layer: kind for layer, kind, _ in found}
        # These paths, such as `(loss)` or a path cut by `depth`, may have no norm that recovers.
        said = {a: kind for a, kind in said.items() if kind != _NOT_FINITE or a in counted}
        for layer, kind, text in found:
            if said.get(layer) != kind and layer not in silent:
                news.append(text)
                silent[layer] = _SILENCE
        for whose, norms in groups.items():
            largest = max(norms, key=lambda layer: norms[layer], default="")
            for name, norm in norms.items():
                layer = f"{name}{whose}"
                kind, against = self._judge(norm, usual.get(layer), largest, norms[largest])
                usual[layer] = _DECAY * usual.get(layer, norm) + (1 - _DECAY) * norm
                if layer in counted:
                    continue
                if kind and said.get(layer) != kind and layer not in silent:
                    news.append(
                        f"{kind} gradient in layer {layer}: its norm is {norm:.3g}, {against}"
                    )
                    silent[layer] = _SILENCE
                if kind:
                    said[layer] = kind
                else:
                    said.pop(layer, None)
        said |= counted
        new: GradientState = {"usual": usual, "said": said, "silent": silent}
        if not news:
            return new, ()
        more = [f"and {len(news) - _MOST} layers more"] if len(news) > _MOST else []
        return new, (Notify(f"step {event.progress.step}: {'; '.join([*news[:_MOST], *more])}"),)

    def _judge(
        self, norm: float, usual: float | None, largest: str, most: float
    ) -> tuple[str, str]:
        if usual and norm > self.exploding * usual:
            return (
                "exploding",
                f"its average norm {usual:.3g}. Clip gradients, or lower the learning rate",
            )
        if norm <= self.vanishing * most and most:
            return "vanishing", f"the largest layer's ({largest}) {most:.3g}"
        return "", ""


def _rows(event: WindowEnd) -> dict[str, dict[str, float]]:
    """Return a window's metrics by ensemble member, under keys such as ` of member 2`.

    The metrics of a single run have the key `""`.
    """
    rows: dict[str, dict[str, float]] = {}
    if not event.members:
        rows[""] = dict(event.values)
    for name, values in event.members.items():
        for i, value in enumerate(values):
            rows.setdefault(f" of member {i}", {})[name] = value
    return rows


def _counted(event: WindowEnd) -> Iterator[tuple[str, str, str]]:
    """Yield layer, kind and message for each layer with vanishing, exploding or non-finite values."""
    for whose, row in _rows(event).items():
        for prefix, (kind, text) in _COUNTED.items():
            for name, value in row.items():
                if name.startswith(prefix) and value > 0:
                    layer = f"{name.removeprefix(prefix)}{whose}"
                    yield layer, kind, text.format(layer, f"{value:.0f}", event.steps)


def _norms(event: WindowEnd) -> dict[str, dict[str, float]]:
    """Return a window's gradient norms by ensemble member (as in `_rows`) and layer."""
    return {
        whose: {
            name.removeprefix(_PREFIX): value
            for name, value in row.items()
            if name.startswith(_PREFIX) and math.isfinite(value)
        }
        for whose, row in _rows(event).items()
    }
