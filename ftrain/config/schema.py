"""The schema of a configuration: every key, its type, its default, its purpose.

Components that are built by name (model, data, loss, optimizer, schedule, callbacks) are a
`Component`: a name and its arguments, checked against the signature of the named function when the
run is built.

Read next: `load.py`, which reads a `Config` from a file and the command line.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from ftrain.config._places import Path, Places

__all__ = ["Checkpoint", "Component", "Config", "Data", "EarlyStopping", "Optimizer"]

Count = Annotated[int, Field(ge=1)]
Threads = Annotated[int, Field(ge=1, le=4096)]  # of more, OpenMP ends the process
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_LISTED = Field(strict=False)  # a file has lists, a frozen value tuples
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _held_out(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    share = isinstance(value, float) and 0 <= value < 1
    # A number in quotes is meant as a number, not as a file of this name.
    file = isinstance(value, str) and not re.fullmatch(r"[-+.\d\s]*(e[-+\d]+)?%?", value)
    if value is None or whole or share or file:
        return value
    raise PydanticCustomError(
        "held_out",
        "must be how many samples (0: none), a share of them (below 1), or the name of a file",
    )


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


class Component(BaseModel):
    """A component built by name: `{name: ..., argument: value, ...}`, or the name alone.

    The name is a registered one, or an import path: `package.module:attribute`, or
    `file.py:attribute` with the file searched beside the configuration. All other keys are its
    arguments.

    Example:
        >>> Component.model_validate("digits").arguments
        {}
        >>> Component.model_validate({"name": "model.py:Net", "width": 64}).arguments
        {'width': 64}
    """

    model_config = ConfigDict(
        extra="allow", strict=True, frozen=True, use_attribute_docstrings=True
    )

    name: Annotated[str, Field(min_length=1)]
    """A registered name, `file.py:NAME`, or `package.module:NAME`."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, Mapping):
            raise PydanticCustomError(
                "component", "must be a name, or a mapping with a name and arguments"
            )
        return value

    @property
    def arguments(self) -> dict[str, Any]:
        """All keys but the name."""
        return dict(self.model_extra or {})


class Optimizer(Component):
    """A `Component` with a learning rate."""

    name: Annotated[str, Field(min_length=1)] = "adamw"
    """One of `ftrain.optim`, such as `adamw`, or an import path; it is called with the learning rate (or
    the schedule) first, and its own arguments, such as `weight_decay`."""
    learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """The rate; with a schedule, its peak. Null: the optimizer's own, or 0.001."""


class Data(Component):
    """A `Component` with a part held out for evaluation."""

    held_out: Annotated[int | float | str | None, BeforeValidator(_held_out)] = None
    """How many samples to hold out, which share of them, or a file of their own, such as `test.csv`. A
    function that has an argument of this name gets it; else the samples are chosen at random, the same
    for every seed. 0: none. Null: what the function itself holds out (those built in: a share), or
    none."""


class Checkpoint(_Section):
    """Times of the checkpoints of a run, and their retention."""

    every: Count | None = None
    """Steps between checkpoints; null: at the end of each epoch."""
    every_minutes: Positive | None = None
    """Minutes between checkpoints, beside those."""
    keep_last: Count = 3
    """How many of the newest are kept."""
    keep_best: Natural = 1
    """How many of the best by `monitor` are kept beside those."""
    monitor: str = "eval/loss"
    """The metric that says which are best: `eval/` or `train/` and its name."""
    mode: Literal["min", "max"] = "min"
    """Whether less of it is better, or more."""
    asynchronous: bool = False
    """Write in the background while the next steps run."""


class EarlyStopping(_Section):
    """End of a run that no longer improves."""

    patience: Count
    """Evaluations without a better value after which the run stops."""
    monitor: str = "eval/loss"
    """The metric: `eval/` or `train/` and its name."""
    mode: Literal["min", "max"] = "min"
    """Whether less of it is better, or more."""
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """How much better a value must be to count."""


class Config(_Section):
    """A training run: everything that decides its bits, and its output directory.

    Made by `load`; frozen. Two runs of one resolved configuration, on one machine, end with the
    same bytes.
    """

    model: Component
    """What is trained: a function (or class) that builds an `nn.Module`."""
    data: Data
    """What it is trained on: a function that returns the training data, or `(training, held out)`."""
    loss: Component = Component(name="cross_entropy")
    """`loss_fn(model, batch, **arguments)`."""
    imports: Annotated[tuple[str, ...], _LISTED] = ()
    """Modules or files that are imported first, because they register names."""

    seed: Seed = 0
    """Of weights, order, dropout and augmentation."""
    epochs: Count | None = None
    """Passes over the training data."""
    max_steps: Count | None = None
    """Updates; the run ends with whichever of the two comes first."""

    batch_size: Count = 32
    """Samples in an update. Those of an epoch that fill no batch are left out, others each time."""
    accumulate: Count = 1
    """Micro-batches that each batch is cut into, to save memory; the result is the same."""
    eval_batch_size: Count | None = None
    """Samples at a time in an evaluation; null: `batch_size`."""
    workers: Natural = 0
    """Processes that fetch data; no batch depends on it."""

    optimizer: Optimizer = Optimizer()
    """What moves the weights."""
    schedule: Component | None = None
    """The course of the learning rate, one of `ftrain.optim`'s schedules; null: constant."""
    max_grad_norm: Positive | None = None
    """Gradients with a larger global norm are scaled down to it; null: never."""
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of an average of the weights, evaluated beside them as `ema/...` (as a monitor:
    `eval/ema/loss`); null: no average."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"] = "32-true"
    """Of the arithmetic in the step."""
    nonfinite: Literal["skip", "raise", "ignore"] = "skip"
    """What a gradient that is infinite or NaN does."""

    compile: bool = True
    """The whole step as one graph of machine code; needs a C++ compiler."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ...; auto: CUDA where there is any."""
    threads: Threads | None = None
    """CPU threads; null: torch's own choice. Bits on the CPU depend on it."""
    deterministic: bool = True
    """Only algorithms that give the same bits each time."""

    log_every: Count = 50
    """Steps between two lines of the training log."""
    eval_every: Count | None = None
    """Steps between evaluations; null: at the end of each epoch."""
    checkpoint: Checkpoint = Checkpoint()
    """When the run is saved, and what is kept."""
    early_stopping: EarlyStopping | None = None
    """When a run that no longer gets better ends; null: never."""
    callbacks: Annotated[tuple[Component, ...], _LISTED] = ()
    """What else looks on, by registered name or import path."""
    progress: bool = True
    """A bar where there is a terminal, a line every few seconds elsewhere."""
    output_dir: Annotated[str, Field(min_length=1)] | None = None
    """The run's directory, seen from where the command is started; null: `runs/` and the file's name."""

    fast_dev_run: bool = False
    """A few steps and one evaluation through everything, to see whether it runs."""
    overfit_batches: Natural = 0
    """Train and evaluate on this many batches only, to see whether it can learn; 0: on all."""
    detect_anomaly: bool = False
    """Eager mode, and an error at the first operation whose gradient is NaN."""

    _places: Places = PrivateAttr(default_factory=lambda: Places("the configuration"))
    _base: pathlib.Path = PrivateAttr(default_factory=pathlib.Path)

    @property
    def places(self) -> Places:
        """Source location of each key."""
        return self._places

    @property
    def base(self) -> pathlib.Path:
        """The directory in which files are searched: that of the configuration."""
        return self._base

    def beside(self, path: Path) -> pathlib.Path:
        """Return the directory in which a relative path at this key is searched.

        The configuration's directory; the current one for a path given on the command line.
        """
        return pathlib.Path() if self._places.typed(path) else self._base

    def sought(self, path: Path) -> str:
        """Return that directory in words, for messages."""
        if self._places.typed(path):
            return "in the current directory, because it was given on the command line"
        return f"beside {self._places.name}" if self._base.parts else "in the current directory"

    @property
    def folder(self) -> pathlib.Path:
        """The run's directory: `output_dir`, or `runs/` and the name of the file."""
        if self.output_dir is not None:
            return pathlib.Path(self.output_dir).expanduser()
        source = pathlib.PurePath(self._places.name)
        return pathlib.Path("runs") / (source.stem if source.suffix else "run")
