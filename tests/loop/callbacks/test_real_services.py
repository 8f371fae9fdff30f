"""Test service loggers against the installed packages of the services, offline.

`test_services.py` checks each call to a service, with fake packages.
"""

from __future__ import annotations

import json
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from ftrain.loop import callbacks
from tests.loop.runs import fit, trainer

TRAIN, EVAL = [3, 6, 7, 9], [7, 9]  # steps with rows, of a run to step 7 that is resumed to step 9


def logged(folder: pathlib.Path, make: Any) -> list[Any]:
    """Return the results of a run that is resumed once."""
    return [
        fit(trainer(make(), store=folder / "checkpoints"), max_steps=end, resume="auto")
        for end in (7, 9)
    ]


def test_tensorboard_reads_back_the_logged_values(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "tensorboard"
    results = logged(tmp_path, lambda: callbacks.TensorBoardLogger(folder))
    found = EventAccumulator(str(folder))
    found.Reload()
    assert [each.step for each in found.Scalars("train/loss")] == TRAIN
    losses = [(each.step, each.value) for each in found.Scalars("eval/loss")]
    assert losses == [(r.step, pytest.approx(r.eval.loss, rel=1e-6)) for r in results]


def test_mlflow_reads_back_the_logged_values(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "mlruns").as_uri()
    logged(tmp_path, lambda: callbacks.MLflowLogger("digits", tracking_uri=uri, run_name="first"))
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    for name, steps in (("train/loss", TRAIN), ("eval/loss", EVAL)):
        assert [m.step for m in client.get_metric_history(run.info.run_id, name)] == steps


def test_wandb_reads_back_the_logged_values(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    pytest.importorskip("wandb")
    logged(
        tmp_path, lambda: callbacks.WandbLogger("digits", mode="offline", dir=str(tmp_path), id="a")
    )
    rows, ids = [], set()
    for file in tmp_path.rglob("*.wandb"):
        for record in records(file.read_bytes()):
            ids |= {record.run.run_id} if record.HasField("run") else set()
            if record.HasField("history"):
                items = record.history.item
                rows.append(
                    {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items}
                )
    rows.sort(key=lambda row: row["_step"])
    assert ids == {"a"}
    assert [(row["_step"], row["epoch"]) for row in rows] == [(3, 1), (6, 1), (7, 1), (9, 2)]
    assert all("train/loss" in row for row in rows)
    assert [row["_step"] for row in rows if "eval/loss" in row] == EVAL


def records(data: bytes) -> Iterator[Any]:
    """Return the records of an offline run: LevelDB log of protocol buffers after 7 header bytes."""
    from wandb.proto import wandb_internal_pb2

    at, part = 7, b""
    while at + 7 <= len(data):
        left = (1 << 15) - at % (1 << 15)  # bytes left in a block, which splits no header
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield wandb_internal_pb2.Record.FromString(part)
            part = b""
