"""The loop: epochs, evaluation, checkpoints and callbacks around pure steps; nothing hidden.

Read next: `trainer.py`; `events.py` and `callback.py` for what a callback sees and may ask for.
"""

from ftrain.loop.callback import (
    Accumulate,
    Action,
    Callback,
    CallbackWarning,
    Evaluate,
    Log,
    Replace,
    Save,
    Stop,
    adapt,
)
from ftrain.loop.events import (
    BackwardEnd,
    BatchBegin,
    BatchEnd,
    EpochBegin,
    EpochEnd,
    EvaluateBegin,
    EvaluateEnd,
    Event,
    Failure,
    Logged,
    LoopWarning,
    Notice,
    Plan,
    Progress,
    Saved,
    TrainBegin,
    TrainEnd,
    WindowEnd,
)
from ftrain.loop.result import EpochResult, FitResult, Status
from ftrain.loop.state import LoopState
from ftrain.loop.trainer import Trainer

__all__ = [
    "Accumulate",
    "Action",
    "BackwardEnd",
    "BatchBegin",
    "BatchEnd",
    "Callback",
    "CallbackWarning",
    "EpochBegin",
    "EpochEnd",
    "EpochResult",
    "Evaluate",
    "EvaluateBegin",
    "EvaluateEnd",
    "Event",
    "Failure",
    "FitResult",
    "Log",
    "Logged",
    "LoopState",
    "LoopWarning",
    "Notice",
    "Plan",
    "Progress",
    "Replace",
    "Save",
    "Saved",
    "Status",
    "Stop",
    "TrainBegin",
    "TrainEnd",
    "Trainer",
    "WindowEnd",
    "adapt",
]
