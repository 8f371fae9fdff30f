"""Peers that run the loop themselves: Lightning, the Trainer of transformers, and Keras.

All optional features of the peers are off. The model and loss are compiled, the optimizer is torch's
fused AdamW (in Keras, its own), and accumulation, clipping and mixed precision are those of the peer.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.contenders import (
    BETAS,
    EPS,
    Batch,
    HandUpdate,
    compiled,
    initial_model,
    loss_under,
    split,
    torch_adamw,
)
from benchmarks.peers.loops import Feed, Loop, trained
from benchmarks.peers.workloads import Workload
from ftrain import optim

__all__ = ["LossModule", "keras", "lightning", "quiet", "transformers"]


class LossModule(nn.Module):
    """Model and loss as one module, which records the loss of each call."""

    def __init__(self, work: Workload, backend: str | None) -> None:
        super().__init__()
        task = work.task()
        self.model = initial_model(task)
        self.loss_of = compiled(loss_under(task, self.model), backend)
        self.seen: list[torch.Tensor] = []

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = self.loss_of(batch)
        self.seen.append(loss.detach())
        return {"loss": loss}


def lightning(work: Workload, backend: str | None) -> Loop:
    import lightning as peer  # noqa: PLC0415  # optional

    inner = LossModule(work, backend)
    # Under mixed precision Lightning refuses to clip for a fused optimizer.
    update: HandUpdate = "fused" if work.precision == "32-true" or not work.clip else "foreach"
    optimizer = torch_adamw(work.task(), inner.model, update)

    class Module(peer.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def training_step(self, batch: Batch, index: int) -> torch.Tensor:
            return inner(**batch)["loss"]  # type: ignore[no-any-return]

        def configure_optimizers(self) -> Any:
            return optimizer

    module, feed = Module(), _feed(work)

    def fit(steps: int) -> None:
        with quiet():
            trainer = peer.Trainer(
                barebones=True,
                accelerator="cpu",
                precision=work.precision,
                max_steps=steps,
                accumulate_grad_batches=work.accumulate,
                gradient_clip_val=work.max_norm if work.clip else None,
            )
            trainer.fit(module, feed)

    return trained(feed, fit, inner.seen, work.accumulate)


def transformers(work: Workload, backend: str | None) -> Loop:
    import transformers as peer  # noqa: PLC0415  # optional

    model, feed = LossModule(work, backend), _feed(work)
    optimizer = torch_adamw(work.task(), model.model)
    folder = tempfile.TemporaryDirectory(prefix="ftrain-transformers-")

    def fit(steps: int) -> None:
        with quiet():
            options = peer.TrainingArguments(
                output_dir=folder.name, use_cpu=True, bf16=work.precision == "bf16-mixed",
                max_grad_norm=work.max_norm if work.clip else 0.0, max_steps=steps,
                gradient_accumulation_steps=work.accumulate, per_device_train_batch_size=1,
                lr_scheduler_type="constant", logging_strategy="no", save_strategy="no",
                eval_strategy="no", report_to=[], disable_tqdm=True, dataloader_pin_memory=False,
                logging_nan_inf_filter=False, remove_unused_columns=False,
            )  # fmt: skip
            constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
            trainer = peer.Trainer(
                model,
                options,
                train_dataset=feed,
                data_collator=lambda rows: rows[0],
                optimizers=(optimizer, constant),
            )
            trainer.train()

    return trained(feed, fit, model.seen, work.accumulate)


def keras(work: Workload, backend: str | None) -> Loop:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras as peer  # noqa: PLC0415  # optional

    if peer.backend.backend() != "torch":
        raise RuntimeError(
            f"KERAS_BACKEND: expected 'torch', got {peer.backend.backend()!r}. Unset the variable."
        )
    task, feed, seen = work.task(), _feed(work), list[torch.Tensor]()
    with torch.device("cpu"):
        model = initial_model(task)
    loss_of = compiled(loss_under(task, model, work.precision), backend)

    class Model(peer.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = peer.layers.TorchModuleWrapper(model)
            self.built = True  # so that the first call of `fit` does not run the model once more

        def call(self, batch: Batch) -> torch.Tensor:
            loss: torch.Tensor = loss_of(batch)
            seen.append(loss.detach())
            return loss

        def compute_loss(self, x: Any, y: Any, y_pred: Any, *unused: Any, **options: Any) -> Any:
            return y_pred

    outer = Model()
    optimizer = peer.optimizers.AdamW(
        work.rate, work.decay, *BETAS, EPS,
        global_clipnorm=work.max_norm if work.clip else None,
        gradient_accumulation_steps=work.accumulate if work.accumulate > 1 else None,
    )  # fmt: skip
    if task.mask is optim.matrices:
        optimizer.exclude_from_weight_decay([v for v in outer.trainable_variables if v.ndim < 2])
    outer.compile(optimizer=optimizer, jit_compile=False)

    def examples() -> Iterator[tuple[Batch]]:
        return ((batch,) for batch in feed)

    def fit(steps: int) -> None:
        with quiet():
            outer.fit(examples(), steps_per_epoch=len(feed), epochs=1, verbose=0)

    return trained(feed, fit, seen, work.accumulate)


def _feed(work: Workload) -> Feed:
    parts = [part for batch in work.task().batches for part in split(batch, work.accumulate)]
    return Feed(parts, work.accumulate)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output and the warnings of a peer at each start."""
    nowhere = io.StringIO()
    with (
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for name in ("lightning", "lightning.pytorch", "transformers", "accelerate"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
