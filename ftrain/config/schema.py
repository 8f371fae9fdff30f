"""The schema of a configuration: every key with its type, default and purpose.

Components that are built by name (model, data, loss, task, optimizer, schedule, callbacks) are a
`Component`: a name and its arguments, checked against the signature of the named function when the
run is built.

Read next: `load.py`, which reads a `Config` from a file and the command line.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from ftrain.config._source_locations import Path, Places

__all__ = ["Checkpoint", "Component", "Config", "Data", "Distributed", "EarlyStopping", "Optimizer"]

Count = Annotated[int, Field(ge=1)]
Threads = Annotated[int, Field(ge=1, le=4096)]  # with more, OpenMP ends the process
Workers = Annotated[int, Field(ge=0, le=1024)]  # each worker is a process
MeshAxis = Annotated[int, Field(ge=-1, lt=2**31)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_LISTED = Field(strict=False)  # files have lists; the frozen configuration has tuples
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _epochs(value: Any) -> Any:
    """Validate a positive number of epochs; return a whole number as an int."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (known and 0 < value < math.inf):
        raise PydanticCustomError("epochs", "expected a number above 0, such as 10 or 0.5")
    return int(value) if isinstance(value, float) and value == int(value) else value


def _held_out(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    share = isinstance(value, float) and 0 <= value < 1
    # A number in quotes is meant as a number, not as a file of this name.
    file = isinstance(value, str) and not re.fullmatch(r"[-+.\d\s]*(e[-+\d]+)?%?", value)
    if value is None or whole or share or file:
        return value
    raise PydanticCustomError(
        "held_out",
        "expected a number of samples (0: none), a share of them (below 1), or the name of a file",
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
                "component", "expected a name, or a mapping with a name and arguments"
            )
        return value

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the component: all keys of this section except `name`."""
        return dict(self.model_extra or {})


class Optimizer(Component):
    """A `Component` with a learning rate."""

    name: Annotated[str, Field(min_length=1)] = "adamw"
    """One of `ftrain.optim`, such as `adamw`, or an import path; it is called with the learning rate (or
    the schedule) first, and its own arguments, such as `weight_decay`."""
    learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """The rate; with a schedule, its peak. Null: the optimizer's own, or 0.001."""


class Data(Component):
    """A `Component` that loads data, of which samples may be held out for evaluation."""

    held_out: Annotated[int | float | str | None, BeforeValidator(_held_out)] = None
    """Number of samples to hold out, a share of them, or a file that contains them, such as `test.csv`.
    A data function that has an argument of this name receives the value; for others, samples are chosen
    at random, the same for every seed. 0: none. Null: the samples that the function itself holds out (a
    share of the data for built-in functions), or none."""


class Checkpoint(_Section):
    """Frequency and retention of a run's checkpoints."""

    every: Count | None = None
    """Steps between checkpoints; null: at the end of each epoch."""
    every_minutes: Positive | None = None
    """Minutes between checkpoints, in addition to `every`."""
    keep_last: Count = 3
    """Number of newest checkpoints to keep."""
    keep_best: Natural = 1
    """Number of best checkpoints by `monitor` to keep, in addition to the newest."""
    monitor: str = "eval/loss"
    """The metric that ranks checkpoints: `eval/` or `train/` and its name."""
    mode: Literal["min", "max"] = "min"
    """Direction in which the metric improves: `min` if lower is better, `max` if higher is."""
    asynchronous: bool = False
    """Write in the background while the next steps run."""
    lock: bool = True
    """Lock the run's directory against other processes; write false on file systems without locks."""


class EarlyStopping(_Section):
    """Criterion for stopping a run that no longer improves."""

    patience: Count
    """Evaluations without improvement before the run stops."""
    monitor: str = "eval/loss"
    """The metric: `eval/` or `train/` and its name."""
    mode: Literal["min", "max"] = "min"
    """Direction in which the metric improves: `min` if lower is better, `max` if higher is."""
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Smallest change of the metric that counts as an improvement."""


class Distributed(_Section):
    """Training on several processes (ranks), which torchrun or SLURM starts."""

    strategy: Literal["none", "data_parallel", "fully_sharded", "tensor_parallel"] = "none"
    """Division of the work: `data_parallel` gives each rank the whole state and an equal part of each
    batch; `fully_sharded` gives it a part of the parameters and of the optimizer's state as well;
    `tensor_parallel` gives it a part of each layer that `rules` names, and the whole batch.
    `none`: one process."""
    mesh: Annotated[tuple[MeshAxis, MeshAxis], _LISTED] | None = None
    """Numbers of ranks along two axes, such as `[-1, 8]`; -1: as many as there are. Along the first
    axis, ranks have equal parameters and their own rows; along the second, `fully_sharded` divides
    the parameters, and `tensor_parallel` the layers. null: one axis."""
    rules: dict[str, Literal["column", "row"]] | None = None
    """With `tensor_parallel`: `column` or `row` for patterns of paths of linear and embedding layers,
    such as `{blocks.*.inner: column, blocks.*.outer: row}`."""
    units: Annotated[tuple[str, ...], _LISTED] | None = None
    """With `fully_sharded`: patterns of paths of modules whose parameters are gathered together, such as
    `blocks.*`; null: the repeated blocks of the model."""
    logical_shards: Count | None = None
    """Number of parts of each batch whose gradients are summed in a fixed order, so that the bits of a
    run do not depend on the number of ranks, which must divide it; null: one part for each rank."""
    timeout: Positive = 300.0
    """Seconds that a rank waits for the others before the run fails."""


class Config(_Section):
    """A training run: all settings that determine its result, and its output directory.

    Built by `load`; frozen. Two runs of one resolved configuration on one machine end with the
    same bytes.
    """

    model: Component
    """The model: a function (or class) that builds an `nn.Module`."""
    data: Data
    """The data: a function that returns the training data, or `(training, held out)`."""
    loss: Component | None = None
    """`loss_fn(model, batch, **arguments)`; null: the loss of `task` or, without a
    task, `cross_entropy`."""
    task: Component | None = None
    """The kind of problem: a function that returns a `Task`, whose loss and evaluation take the place of
    `loss`; null: none."""
    imports: Annotated[tuple[str, ...], _LISTED] = ()
    """Modules or files to import first, because they register names."""

    seed: Seed = 0
    """Seed of initial weights, sample order, dropout and augmentation."""
    data_seed: Seed | None = None
    """Seed of sample order and augmentation only; null: `seed`."""
    epochs: Annotated[int | float | None, BeforeValidator(_epochs)] = None
    """Passes over the training data; may be a fraction, such as 0.5, if the data have a length."""
    max_steps: Count | None = None
    """Maximum number of updates; the run ends at `epochs` or `max_steps`, whichever comes first."""

    batch_size: Count = 32
    """Samples in an update, over all ranks together. The incomplete last batch of an epoch is dropped;
    its samples differ from epoch to epoch."""
    accumulate: Count = 1
    """Micro-batches into which each batch (of a rank) is split, to save memory; the result is the
    same."""
    eval_batch_size: Count | None = None
    """Samples in a batch of an evaluation; null: `batch_size`."""
    workers: Workers = 0
    """Processes that fetch data; batches do not depend on their number."""

    optimizer: Optimizer = Optimizer()
    """The optimizer and its learning rate."""
    schedule: Component | None = None
    """The learning-rate schedule, one of `ftrain.optim`'s; null: constant."""
    max_grad_norm: Positive | None = None
    """Maximum global norm; gradients with a larger one are scaled down to it; null: no clipping."""
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights. The average is evaluated as well, as
    `ema/...` (as a monitor: `eval/ema/loss`); null: no average."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"] = "32-true"
    """Precision of the arithmetic in the step."""
    nonfinite: Literal["skip", "raise", "ignore"] = "skip"
    """Treatment of a gradient that is infinite or NaN: skip the step, raise, or apply it."""

    compile: bool = True
    """Compile the whole step to machine code; needs a C++ compiler."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ...; auto: CUDA if it is available."""
    threads: Threads | None = None
    """CPU threads; null: torch's own choice. Bits on the CPU depend on it."""
    deterministic: bool = True
    """Use only algorithms that return the same bits each time."""

    distributed: Distributed = Distributed()
    """Training on several processes."""

    log_every: Count = 50
    """Steps between lines of the training log."""
    log_digests: Count | None = None
    """Steps between digests of state and batch in `metrics.jsonl`, by which `ftrain diff` compares runs;
    null: none."""
    eval_every: Count | None = None
    """Steps between evaluations; null: at the end of each epoch."""
    checkpoint: Checkpoint = Checkpoint()
    """Frequency and retention of checkpoints."""
    early_stopping: EarlyStopping | None = None
    """Criterion for stopping a run that no longer improves; null: none."""
    callbacks: Annotated[tuple[Component, ...], _LISTED] = ()
    """Additional callbacks, by registered name or import path."""
    progress: bool = True
    """Show a progress bar in a terminal, and a line every few seconds otherwise."""
    output_dir: Annotated[str, Field(min_length=1)] | None = None
    """The run's directory, relative to the current directory; null: `runs/` and the file's name."""
    versions: bool = False
    """If the directory holds a run, append `-2`, `-3`, ... to its name: the first that is free."""

    fast_dev_run: bool = False
    """Run a few steps and one evaluation, to check that everything works."""
    overfit_batches: Natural = 0
    """Number of batches to train and evaluate on, to check that the model can learn; 0: all."""
    detect_anomaly: bool = False
    """Run eagerly, and raise at the first operation whose gradient is NaN."""

    _places: Places = PrivateAttr(default_factory=lambda: Places("the configuration"))
    _base: pathlib.Path = PrivateAttr(default_factory=pathlib.Path)
    _builtin_only: bool = PrivateAttr(default=False)
    _of_run: bool = PrivateAttr(default=False)

    @model_validator(mode="before")
    @classmethod
    def _with_default_loss(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("loss") is None and value.get("task") is None:
            return {**value, "loss": {"name": "cross_entropy"}}
        return value

    @property
    def places(self) -> Places:
        """Source locations (file and line, or argument) of the keys."""
        return self._places

    @property
    def builtin_only(self) -> bool:
        """True if the configuration may use built-in names only, no code."""
        return self._builtin_only

    @property
    def of_run(self) -> bool:
        """True if the configuration was read from a run's directory."""
        return self._of_run

    @property
    def base(self) -> pathlib.Path:
        """Directory of the configuration file, in which relative paths are searched."""
        return self._base

    def beside(self, path: Path) -> pathlib.Path:
        """Return the directory against which a relative path at this key is resolved.

        The configuration's directory; the current one for a path given on the command line.
        """
        return pathlib.Path() if self._places.typed(path) else self._base

    def searched(self, path: Path) -> str:
        """Return a phrase for messages that says where a relative path at this key is searched."""
        if self._places.typed(path):
            return "in the current directory, because it was given on the command line"
        return f"beside {self._places.name}" if self._base.parts else "in the current directory"

    @property
    def folder(self) -> pathlib.Path:
        """The run's directory: `output_dir` or, by default, `runs/NAME` for a file `NAME.yaml`."""
        if self.output_dir is not None:
            return pathlib.Path(self.output_dir).expanduser()
        source = pathlib.PurePath(self._places.name)
        return pathlib.Path("runs") / (source.stem if source.suffix else "run")
