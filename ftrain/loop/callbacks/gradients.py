"""Layers whose gradients vanish or explode, by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import TypedDict

from ftrain.loop.callback import Action
from ftrain.loop.events import Event, LoopWarning, WindowEnd

__all__ = ["GradientMonitor", "GradientState"]

_PREFIX = "grad_norm/"
_DECAY = 0.9  # a window


class GradientState(TypedDict):
    """What the monitor knows of each layer.

    Attributes:
        usual: the layer's norm, averaged over windows.
        said: what was last said about it: "vanishing" or "exploding".
    """

    usual: dict[str, float]
    said: dict[str, str]


class GradientMonitor:
    """Warns where a layer's gradient is nearly nothing, or far more than it was.

    Looks at the means over a window that a step of `monitored_steps` reports. A layer is named once,
    and again only after it has recovered.

    Args:
        vanishing: of a layer whose norm is less than this part of the largest layer's.
        exploding: of a layer whose norm is more than this many times its usual one.

    Raises:
        ValueError: an argument is out of its range; the step reports no norms by layer.

    >>> import torch, ftrain
    >>> from ftrain import loop, optim
    >>> from ftrain.loop.callbacks import monitored_steps
    >>> def loss_fn(model, batch):
    ...     return model[1](model[0](batch).detach()).mean()
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    >>> steps = monitored_steps(model, loss_fn, optim.sgd(0.1))
    >>> trainer = loop.Trainer(steps, [GradientMonitor()], compile=False, log_every=1)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     result = trainer.fit(steps.init_state(0), [torch.ones(4, 3)], max_steps=1)
    >>> print(caught[0].message)
    step 1: vanishing gradient in layer 0: its norm is 0, the largest layer's (1) ...
    """

    listens = (WindowEnd,)
    on_error = "warn"

    def __init__(self, *, vanishing: float = 1e-6, exploding: float = 50.0) -> None:
        if not 0 <= vanishing < 1 < exploding:
            raise ValueError(
                f"vanishing lies below 1 and exploding above, found {vanishing!r} and {exploding!r}"
            )
        self.vanishing, self.exploding = vanishing, exploding

    def init(self) -> GradientState:
        """No layer known."""
        return {"usual": {}, "said": {}}

    def __call__(
        self, state: GradientState, event: Event
    ) -> tuple[GradientState, Iterable[Action]]:
        """Compare each layer's norm with the others, and with what it was."""
        assert isinstance(event, WindowEnd)
        norms = {
            name.removeprefix(_PREFIX): value
            for name, value in event.values.items()
            if name.startswith(_PREFIX) and math.isfinite(value)
        }
        if not norms:
            if any(name.startswith(_PREFIX) for name in event.values):
                return state, ()  # every step of the window was skipped
            raise ValueError(
                "GradientMonitor sees no norms by layer: make the steps with "
                "ftrain.loop.callbacks.monitored_steps(...) in the place of ftrain.make_steps(...)"
            )
        said, usual = dict(state["said"]), dict(state["usual"])
        largest = max(norms, key=lambda layer: norms[layer])
        for layer, norm in norms.items():
            kind, against = self._judge(norm, usual.get(layer), largest, norms[largest])
            if kind and said.get(layer) != kind:
                warnings.warn(
                    f"step {event.progress.step}: {kind} gradient in layer {layer}: its norm is "
                    f"{norm:.3g}, {against}",
                    LoopWarning,
                    stacklevel=2,
                )
            if kind:
                said[layer] = kind
            else:
                said.pop(layer, None)
            usual[layer] = _DECAY * usual.get(layer, norm) + (1 - _DECAY) * norm
        return {"usual": usual, "said": said}, ()

    def _judge(
        self, norm: float, usual: float | None, largest: str, most: float
    ) -> tuple[str, str]:
        if usual and norm > self.exploding * usual:
            return "exploding", f"its usual one {usual:.3g}. Clip, or lower the learning rate"
        if norm <= self.vanishing * most and most:
            return "vanishing", f"the largest layer's ({largest}) {most:.3g}"
        return "", ""
