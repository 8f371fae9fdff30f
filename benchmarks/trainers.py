"""Overhead per step of `Trainer.fit` with its usual callbacks, beyond the bare compiled step.

    python -m benchmarks.trainers

The model is an MLP of three layers of width 16 on a batch of 8, whose arithmetic takes almost no time.
Each turn is a whole run of some thousand steps, evaluation and files included. Time is the processor
time of the one thread that does all the work, so that other processes cost only what they do to the
caches.

Lightning, Accelerate and the Trainer of transformers are timed too if they are installed
(`pip install lightning accelerate transformers`), with all optional features off. Each is compared with
an eager hand-written loop, which is what it wraps.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import pathlib
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

import ftrain
from benchmarks.contenders import MLP, mlp_task, square_loss
from benchmarks.measure import Report, arguments
from ftrain import optim
from ftrain.loop import Trainer
from ftrain.loop.callbacks import CSVLogger, EarlyStopping, JSONLLogger, ProgressBar, Throughput

BARE, PLAIN = "the compiled step, donated, in a for loop", "Trainer.fit without callbacks"
FULL = "Trainer.fit: progress, JSONL, CSV, throughput, early stopping"
EAGER = "eager loop by hand"
BOUND = 25.0

Run = Callable[[], float]  # seconds of the steps of one run


def run(
    quick: bool = False,
    *,
    steps: int = 4000,
    rounds: int = 15,
    backend: Literal["inductor", "eager"] = "inductor",
) -> Report:
    report = Report("trainers", "What a trainer costs a step")
    torch.set_num_threads(1)
    steps, rounds = (100, 2) if quick else (steps, rounds)
    with tempfile.TemporaryDirectory() as folder:
        contenders = ours(pathlib.Path(folder), steps, backend)
        found = turns(contenders, rounds)
        report.section("MLP of three 16-wide layers, batch 8, AdamW + clip, log_every=50: a step")
        _report(report, found, steps, BARE)
        cost = _over(found, FULL, BARE, steps)
        report.target(
            "trainer with its usual callbacks over the bare step, us", cost, "at most", BOUND
        )
        others = theirs(pathlib.Path(folder), steps)
        if len(others) > 1:
            report.section("Other trainers on the same model, eager, each over the loop it wraps")
            _report(report, turns(others, min(rounds, 5)), steps, EAGER)
        for name in ("lightning", "accelerate", "transformers"):
            if importlib.util.find_spec(name) is None:
                report.note(f"{name} is not installed here, and was not timed")
    return report


def ours(folder: pathlib.Path, steps: int, backend: Any) -> Mapping[str, Run]:
    task = mlp_task()
    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-3))
    made = ftrain.make_steps(task.model, task.loss_fn, optimizer)
    step = ftrain.compile(made.train_step, donate=True, backend=backend)
    batches = [*task.batches] * (-(-steps // len(task.batches)))
    batches = batches[:steps]

    def bare() -> float:
        state = ftrain.tree.map(torch.clone, made.init_state(0))
        state, _ = step(state, batches[0])
        began = time.thread_time()
        for batch in batches:
            state, _ = step(state, batch)
        return time.thread_time() - began

    def fit(*callbacks: Any) -> float:
        trainer = Trainer((step, made.eval_step), callbacks, log_every=50, compile=False)
        state = ftrain.tree.map(torch.clone, made.init_state(0))
        began = time.thread_time()
        trainer.fit(state, batches, batches[:1], epochs=1)
        return time.thread_time() - began

    def full() -> float:
        return fit(
            ProgressBar(),
            JSONLLogger(folder / "metrics.jsonl"),
            CSVLogger(folder / "metrics.csv"),
            Throughput(),
            EarlyStopping(10**6),
        )

    return {BARE: bare, PLAIN: fit, FULL: full}


def theirs(folder: pathlib.Path, steps: int) -> Mapping[str, Run]:
    """Return runs of other trainer libraries, configured for the least overhead."""
    batches = [mlp_task().batches[0]] * steps
    found: dict[str, Run] = {}

    def by_hand() -> float:
        model = MLP(16)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        began = time.thread_time()
        for batch in batches:
            loss = square_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return time.thread_time() - began

    found[EAGER] = by_hand
    if importlib.util.find_spec("lightning") is not None:
        found["Lightning, barebones"] = lambda: _lightning(batches)
    if importlib.util.find_spec("accelerate") is not None:
        found["Accelerate"] = lambda: _accelerate(batches)
    # Its Trainer imports accelerate.
    if all(importlib.util.find_spec(name) for name in ("transformers", "accelerate")):
        found["transformers.Trainer"] = lambda: _transformers(batches, folder)
    return found


def _lightning(batches: Any) -> float:
    import lightning  # type: ignore[import-not-found]  # noqa: PLC0415  # optional

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = MLP(16)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return square_loss(self.model, batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-3)

    class Batches:  # Lightning would take a list for one loader per batch
        def __iter__(self) -> Any:
            return iter(batches)

    trainer = lightning.Trainer(barebones=True, max_epochs=1, accelerator="cpu")
    began = time.thread_time()
    trainer.fit(Module(), Batches())
    return time.thread_time() - began


def _accelerate(batches: Any) -> float:
    from accelerate import Accelerator  # type: ignore[import-not-found]  # noqa: PLC0415  # optional

    accelerator = Accelerator(cpu=True)
    model = MLP(16)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 1e-3))
    began = time.thread_time()
    for batch in batches:
        loss = square_loss(model, batch)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    return time.thread_time() - began


def _transformers(batches: Any, folder: pathlib.Path) -> float:
    import transformers  # type: ignore[import-not-found]  # noqa: PLC0415  # optional

    class Model(MLP):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
            return {"loss": torch.nn.functional.mse_loss(super().forward(x), y)}

    options = transformers.TrainingArguments(
        output_dir=str(folder / "transformers"), use_cpu=True, max_grad_norm=0.0, learning_rate=1e-3,
        num_train_epochs=1, per_device_train_batch_size=1, lr_scheduler_type="constant",
        logging_strategy="no", save_strategy="no", eval_strategy="no", report_to=[],
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = transformers.Trainer(
        Model(16), options, train_dataset=batches, data_collator=lambda rows: rows[0]
    )
    began = time.thread_time()
    trainer.train()
    return time.thread_time() - began


def turns(contenders: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Time each contender once per round, with a different first contender in each round."""
    names = list(contenders)
    for name in names:
        _quietly(contenders[name])
    gc.collect()
    gc.freeze()  # so that the first full collection within a turn does not scan all of torch
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            found[name].append(_quietly(contenders[name]))
    gc.unfreeze()
    return found


def _quietly(contender: Run) -> float:
    nowhere = io.StringIO()
    with (
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return contender()


def _report(report: Report, found: Mapping[str, list[float]], steps: int, base: str) -> None:
    for name, seconds in found.items():
        report.figure(name, statistics.median(seconds) / steps * 1e6, "us", name)
    for name in found:
        if name != base:
            what = f"{name}: over {base}"
            report.figure(f"over: {name}", _over(found, name, base, steps), "us", what)


def _over(found: Mapping[str, list[float]], name: str, base: str, steps: int) -> float:
    """Return the median over the rounds of the difference of two contenders, in µs per step."""
    pairs = zip(found[name], found[base], strict=True)
    return statistics.median(a - b for a, b in pairs) / steps * 1e6


if __name__ == "__main__":
    options = arguments(__doc__)
    finished = run(options.quick)
    if not options.no_save:
        finished.save()
    sys.exit(0)
