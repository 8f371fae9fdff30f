"""Peak memory of a run."""

from __future__ import annotations

import resource
import sys

import torch

from ftrain.loop.callback import Action, Log
from ftrain.loop.events import Event, TrainBegin, WindowEnd

__all__ = ["MemoryMonitor"]


class MemoryMonitor:
    """Add `memory/peak_mib` to the training rows of the log.

    For a state on a GPU: the peak of tensor memory allocated there since the previous row (on several
    GPUs, of the fullest). Elsewhere: the peak resident memory of the process since it started, which
    never decreases.

    Example:
        >>> import torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1))
        >>> trainer = loop.Trainer(steps, [MemoryMonitor()], compile=False, log_every=1)
        >>> data = [torch.ones(4, 3)]
        >>> events = trainer.events(steps.init_state(0), data, epochs=1, kinds=(loop.Logged,))
        >>> next(events).values["memory/peak_mib"] > 10
        True
    """

    listens = (TrainBegin, WindowEnd)
    on_error = "warn"

    def __init__(self) -> None:
        self._on_cuda: tuple[str, ...] = ()

    def init(self) -> None:
        """Return `None` as the state of this callback: peak memory is not saved in checkpoints."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Log the peak memory of the run at the end of a log window."""
        if isinstance(event, TrainBegin):
            self._on_cuda = tuple(name for name in event.plan.devices if name.startswith("cuda"))
            return None, ()
        return None, (Log({"memory/peak_mib": _peak(self._on_cuda) / 2**20}),)


def _peak(on_cuda: tuple[str, ...]) -> float:
    """Return the peak memory in bytes, of CUDA devices if there are any."""
    if on_cuda:
        found = max(map(torch.cuda.max_memory_allocated, on_cuda))
        for device in on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        return float(found)
    # ru_maxrss is in KiB, except on macOS, where it is in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
