"""Training loop: epochs, evaluation, checkpoints and callbacks around pure steps.

Read next: `trainer.py`; `events.py` and `callback.py` for the events that a callback receives and the
actions that it can request.
"""

from ftrain.loop import finders as finders  # so that `import ftrain` is enough to use it
from ftrain.loop._log_locks import LogLockedError
from ftrain.loop.callback import (
    Accumulate,
    Action,
    Callback,
    CallbackWarning,
    Evaluate,
    Log,
    Notify,
    Replace,
    Save,
    Stop,
    adapt,
)
from ftrain.loop.events import (
    BackwardEnd,
    BatchBegin,
    BatchEnd,
    CompileBegin,
    CompileEnd,
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
    "CompileBegin",
    "CompileEnd",
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
    "LogLockedError",
    "Logged",
    "LoopState",
    "LoopWarning",
    "Notice",
    "Notify",
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
