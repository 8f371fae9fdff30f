"""Callbacks that ship with ftrain.

For people:

    ProgressBar()                       a bar in a terminal, periodic lines elsewhere
    ConsoleLogger()                     rows of the log as lines
    FileLogger("train.log")             a journal of the events
    Curves("curves.png")                the log as a picture
    TextSamples(generate, folder)       texts that the model generates
    ImageGrid(predict, folder)          images that the model generates or classifies

Logs for programs:

    JSONLLogger("metrics.jsonl")        one object per row
    CSVLogger("metrics.csv")            a table
    TensorBoardLogger(folder)           with tensorboard
    WandbLogger(project)                with wandb
    MLflowLogger(experiment)            with mlflow

Additional values in the log:

    Throughput()                        steps, samples and tokens per second
    LearningRateMonitor()               every learning rate in the state
    GradientMonitor()                   reports layers whose gradients vanish or explode
    GradientHistograms(folder)          histograms of gradients by module, for TensorBoard
    monitored_steps(...)                ftrain.make_steps with the gradient statistics that they need
    WindowedAverage()  RunningAverage() averages of any metric
    EMAEvaluation()                     evaluations of averaged weights
    MemoryMonitor()                     the peak memory
    PhaseTimes()                        seconds for data, steps and everything else
    Profiler(folder)                    a trace of a few steps

Control of a run:

    EarlyStopping(patience)             ends a run when a metric no longer improves
    TimeLimit(hours=8)                  ends a run after a given time
    Checkpointing(best=3)               saves every n steps or minutes, and the k best
    AccumulationSchedule({0: 1, 5: 4})  joins batches into one step

If a callback that only reports fails, it issues a warning and the run continues. Callbacks that write
files or print do so only in the process of rank 0.

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
from ftrain.loop.callbacks.gradient_histograms import GradientHistograms
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
    "GradientHistograms",
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
