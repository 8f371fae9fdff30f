"""Speed of a run in steps, samples and tokens per second."""

from __future__ import annotations

from ftrain.loop.callback import Action, Log
from ftrain.loop.events import Event, WindowEnd

__all__ = ["Throughput"]


class Throughput:
    """Add `steps_per_second`, `samples_per_second` and `tokens_per_second` to each training row.

    The speeds are over the window's time, without evaluation and checkpoints. The first window includes
    the compilation; a window that a previous process began has no speeds.

    Example:
        >>> import torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.0))
        >>> trainer = loop.Trainer(steps, [Throughput()], compile=False, log_every=2)
        >>> data = [torch.zeros(4, 3)] * 2
        >>> events = trainer.events(steps.init_state(0), data, epochs=1, kinds=(loop.Logged,))
        >>> sorted(next(event.values for event in events if event.split == "train"))
        ['grad_norm', ..., 'samples_per_second', 'skipped', 'steps_per_second']
    """

    listens = (WindowEnd,)
    on_error = "warn"

    def init(self) -> None:
        """Return `None` as the state of this callback: speeds are not saved in checkpoints."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Log steps, samples and tokens per second at the end of a log window."""
        assert isinstance(event, WindowEnd)
        if not event.duration:
            return None, ()
        counts = {"steps": event.steps, "samples": event.samples, "tokens": event.tokens}
        rates = {f"{name}_per_second": n / event.duration for name, n in counts.items() if n}
        return None, (Log(rates),)
