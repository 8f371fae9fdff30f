"""Loading of a trained run: its model at a checkpoint, its configuration and its predictions.

    run = load_run("runs/irises")
    logits = run.predict(x)

Read next: `build.py`, which builds the parts; `ftrain/core/evaluate.py`, which calls the model.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ftrain import checkpoint as checkpoints
from ftrain.config import _data_json
from ftrain.config._checkpoints import checkpoint_of, loaded
from ftrain.config._environment import environment
from ftrain.config.build import Parts, build
from ftrain.config.folders import run_config, run_folder
from ftrain.config.schema import Config
from ftrain.core import tree
from ftrain.core._loss_notes import not_tensors
from ftrain.core._words import kind
from ftrain.core.evaluate import prediction
from ftrain.core.state import TrainState
from ftrain.core.step import Steps
from ftrain.loop import LoopWarning
from ftrain.tasks._numpy_dtypes import as_parameters
from ftrain.tasks.adapters import OF_THE_LOSS

__all__ = ["Trained", "checkpoint_of", "load_run"]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model: the weights in a checkpoint, with the configuration of its run.

    Attributes:
        folder: the run's directory.
        checkpoint: the checkpoint that the state was loaded from.
        state: the saved state; `state.params` are the weights that `predict` uses.
        parts: the components that the configuration names, without data.
        fitted: the run's fitted preprocessing, as in `data.json`; empty: none.
    """

    folder: pathlib.Path
    checkpoint: pathlib.Path
    state: TrainState
    parts: Parts = dataclasses.field(repr=False)
    fitted: Mapping[str, Any] = dataclasses.field(repr=False)

    @property
    def config(self) -> Config:
        """The configuration, with every value filled in."""
        return self.parts.config

    @property
    def steps(self) -> Steps:
        """The run's `Steps`, but with a constant learning rate, because the schedule has ended.

        For another rate or schedule: `run.parts.steps_at(rate)`.
        """
        return self.parts.steps

    def predict(self, inputs: Any) -> Any:
        """Return the model's outputs in eval mode and in the run's precision, as in `eval_step`.

        Args:
            inputs: the input of the model's `forward`, in the form that the run's data function returns
                (numbers of a table are standardized; float64 is converted to the dtype of the
                parameters); or a batch, whose entry `loss.input` is used.

        Returns:
            The model's outputs: without gradient, in memory of their own, on the run's device.

        Raises:
            TypeError: the inputs are a list, a path or another value that the model does not take.
            ValueError: rows of a table have another number of features than those of the run.
            KeyError: a batch does not have the model's input.
        """
        if isinstance(inputs, Mapping) and (name := self._input(inputs)) is not None:
            if name not in inputs:
                there = ", ".join(map(repr, inputs))
                raise KeyError(
                    f"inputs: expected a batch with {name!r}, the model's input, got {there}. Add it to "
                    "the batch."
                )
            inputs = inputs[name]
        device = self.parts.device
        here = tree.map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, inputs)
        (here,) = as_parameters(self.state.params.values(), here)
        try:
            return prediction(self.parts.model, precision=self.config.precision)(self.state, here)
        except Exception as error:
            cause = self._refusal(inputs)
            if cause is None:
                raise
            raise cause from error

    def _refusal(self, inputs: Any) -> Exception | None:
        """Return an error that explains why the model failed on these inputs; `None` if unknown."""
        if isinstance(inputs, (str, os.PathLike)):
            return TypeError(
                f"inputs: expected a tensor, got {os.fspath(inputs)!r}. To predict the rows of a file, "
                f"write in a shell: `ftrain predict {self.folder} data.path={os.fspath(inputs)}`."
            )
        others = list(not_tensors("inputs", inputs))
        if others:
            name, what = others[0]
            made = "torch.as_tensor" if "ndarray" in what else "torch.tensor"
            return TypeError(f"{name}: expected a tensor, got {what}. Write {made}({name}).")
        facts = self.parts.facts or {}
        features, columns = facts.get("features"), facts.get("columns") or ()
        if not isinstance(inputs, torch.Tensor) or not isinstance(features, int):
            return None
        if inputs.ndim != 2 or inputs.shape[1] == features:
            return None
        listed = f" ({', '.join(map(str, columns))})" if columns else ""
        return ValueError(
            f"inputs: expected rows of {features} features{listed}, got {kind(inputs)}. Give each row "
            "the features of the training data, in their order."
        )

    def module(self) -> nn.Module:
        """Return an ordinary `nn.Module` with copies of the weights, in eval mode.

        Its outputs equal those of `predict`; for a run in mixed precision, under the same autocast.
        """
        module: nn.Module = self.parts.model.module(self.state.params, self.state.buffers)
        return module

    def _input(self, batch: Mapping[str, Any]) -> str | None:
        """Return the key of the model's input in a batch; `None` if the model takes the whole batch."""
        objective = self.parts.resolved.objective
        if not objective.takes("input"):
            return None
        default = inspect.signature(objective.function).parameters["input"].default
        name = objective.arguments.get("input", default)
        if isinstance(name, str):
            return name
        entries = [entry for entry in batch if entry not in OF_THE_LOSS]
        return entries[0] if len(entries) == 1 else None


def load_run(
    folder: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] = "best",
    overrides: Sequence[str] = (),
    *,
    code: bool = True,
) -> Trained:
    """Return the trained model of a run.

    The training data need not exist, unless `data.json` holds no facts about them (a custom data
    function without `fitted`, an earlier version).

    Args:
        folder: the run's directory, such as `runs/irises`; it may have been moved.
        checkpoint: `"best"` (the newest if no checkpoint is ranked), `"latest"`, the name of one of the
            run's checkpoints, or the path of any.
        overrides: changes to its configuration, such as `device=cpu`.
        code: False: raise if the run names code that is not built in. A run of somebody else may name
            any code, which this function runs.

    Raises:
        ConfigError: the directory is not a run, or the checkpoint is missing; something that the
            configuration names, such as the model's file, is missing.
        CheckpointError: the checkpoint is damaged, or of another model.
    """
    folder = run_folder(folder)
    config = run_config(folder, overrides, code=code)
    which = os.fspath(checkpoint)
    path = checkpoint_of(config, folder, which)
    with environment(config):
        _, fitted, facts = _data_json.stored(config, folder)
        parts = build(config, fitted=fitted, evaluation=True, facts=facts)
        if (
            facts is None
            and (says := _data_json.missing_warning(parts, folder, fitted)) is not None
        ):
            warnings.warn(says, LoopWarning, stacklevel=2)
        with warnings.catch_warnings():  # not trained further: no warning that bits may differ
            warnings.simplefilter("ignore", checkpoints.DeterminismWarning)
            path, state, _ = loaded(config, folder, which, path, parts.init_state())
    parts = dataclasses.replace(parts, train=None, held_out=None)
    return Trained(folder, path, state, parts, fitted)
