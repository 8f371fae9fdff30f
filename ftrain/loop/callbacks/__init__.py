"""The callbacks that come with ftrain.

What a person sees:

    ProgressBar()                       a bar in a terminal, a line now and then elsewhere
    ConsoleLogger()                     rows of the log as lines
    FileLogger("train.log")             a journal of all that happened
    Curves("curves.png")                the log as a picture
    TextSamples(generate, folder)       texts that the model writes
    ImageGrid(predict, folder)          pictures that the model makes or judges

Logs for programs:

    JSONLLogger("metrics.jsonl")        one object a row
    CSVLogger("metrics.csv")            a table
    TensorBoardLogger(folder)           with tensorboard
    WandbLogger(project)                with wandb
    MLflowLogger(experiment)            with mlflow

What else is logged:

    Throughput()                        steps, samples and tokens a second
    LearningRateMonitor()               every learning rate in the state
    GradientMonitor()                   names layers whose gradients vanish or explode
    monitored_steps(...)                ftrain.make_steps, with the norms that it looks at
    WindowedAverage()  RunningAverage() of any metric
    EMAEvaluation()                     averaged weights beside the weights
    MemoryMonitor()                     the peak
    PhaseTimes()                        where the time goes
    Profiler(folder)                    a trace of a few steps

What changes a run:

    EarlyStopping(patience)             ends it when it no longer gets better
    TimeLimit(hours=8)                  ends it when its time is over
    Checkpointing(best=3)               saves every n steps or minutes, and the best k
    AccumulationSchedule({0: 1, 5: 4})  joins batches into one step

Those that only report warn where they fail, and the run goes on. Those that write files or print do so
in the process of rank 0 alone.

Start reading at `throughput.py`, the shortest; `ftrain/loop/callback.py` has the protocol.
"""

from ftrain.loop.callbacks.accumulation import AccumulationSchedule
from ftrain.loop.callbacks.averages import RunningAverage, WindowedAverage
from ftrain.loop.callbacks.checkpointing import Checkpointing
from ftrain.loop.callbacks.console import ConsoleLogger
from ftrain.loop.callbacks.csv import CSVLogger
from ftrain.loop.callbacks.curves import Curves
from ftrain.loop.callbacks.early_stopping import EarlyStopping
from ftrain.loop.callbacks.ema import EMAEvaluation
from ftrain.loop.callbacks.gradient_norms import monitored_steps
from ftrain.loop.callbacks.gradients import GradientMonitor
from ftrain.loop.callbacks.image_grid import ImageGrid
from ftrain.loop.callbacks.journal import FileLogger
from ftrain.loop.callbacks.jsonl import JSONLLogger
from ftrain.loop.callbacks.learning_rate import LearningRateMonitor
from ftrain.loop.callbacks.memory import MemoryMonitor
from ftrain.loop.callbacks.mlflow import MLflowLogger
from ftrain.loop.callbacks.phases import PhaseTimes
from ftrain.loop.callbacks.profiler import Profiler
from ftrain.loop.callbacks.progress import ProgressBar
from ftrain.loop.callbacks.tensorboard import TensorBoardLogger
from ftrain.loop.callbacks.text_samples import TextSamples
from ftrain.loop.callbacks.throughput import Throughput
from ftrain.loop.callbacks.time_limit import TimeLimit
from ftrain.loop.callbacks.wandb import WandbLogger

__all__ = [
    "AccumulationSchedule",
    "CSVLogger",
    "Checkpointing",
    "ConsoleLogger",
    "Curves",
    "EMAEvaluation",
    "EarlyStopping",
    "FileLogger",
    "GradientMonitor",
    "ImageGrid",
    "JSONLLogger",
    "LearningRateMonitor",
    "MLflowLogger",
    "MemoryMonitor",
    "PhaseTimes",
    "Profiler",
    "ProgressBar",
    "RunningAverage",
    "TensorBoardLogger",
    "TextSamples",
    "Throughput",
    "TimeLimit",
    "WandbLogger",
    "WindowedAverage",
    "monitored_steps",
]
