"""Test built-in losses on NumPy's default dtypes: the bits of converted data, and one warning."""

from __future__ import annotations

import functools
import pathlib
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ftrain
from ftrain import data, optim, tasks
from ftrain.config import load, load_run
from ftrain.config.run import train
from ftrain.tasks import _numpy_dtypes
from ftrain.testing import assert_same_bits

X = np.random.default_rng(0).normal(size=(8, 4))
LABELS = np.arange(8) % 3
NUMBERS = X.sum(1)
TOKENS = np.arange(48).reshape(8, 6) % 5


@pytest.fixture(autouse=True)
def forget_given_warnings() -> None:
    _numpy_dtypes._GIVEN.clear()


def gpt() -> nn.Module:
    return tasks.models.GPT(5, context=6, layers=1, heads=1, width=8)


def trained(model: Any, loss: Any, batch: Any, **options: Any) -> Any:
    """Return state and metrics after a compiled step, and metrics of an evaluation."""
    steps = ftrain.make_steps(model, loss, optim.sgd(0.1), **options)
    state, metrics = ftrain.compile(steps.train_step, backend="eager")(steps.init_state(0), batch)
    return state, metrics, steps.eval_step(state, batch)


def batch_of(dataset: Any) -> Any:
    return next(iter(data.Loader(dataset, 8, shuffle=False)))


CLASSES: dict[str, tuple[Any, Any, Any]] = {
    "cross_entropy": (nn.Linear(4, 3), tasks.cross_entropy, LABELS),
    "image_classification": (nn.Linear(4, 3), tasks.image_classification().loss_fn, LABELS),
    "text_classification": (nn.Linear(4, 3), tasks.text_classification().loss_fn, LABELS),
    "mixup": (
        nn.Linear(4, 3),
        functools.partial(tasks.cross_entropy, mixup=0.5, classes=3),
        LABELS,
    ),
    "supervised_contrastive": (nn.Linear(4, 3), tasks.supervised_contrastive, LABELS),
    "focal": (
        nn.Sequential(nn.Linear(4, 12), nn.Unflatten(1, (3, 2, 2))),
        tasks.focal,
        LABELS[:, None, None].repeat(2, 1).repeat(2, 2),
    ),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, np.int32) for name in CLASSES),
        *(("cross_entropy", dtype) for dtype in (np.int8, np.int16, np.uint16)),
    ],
)
def test_classes_of_any_integer_dtype_train_as_int64_does(name: str, dtype: Any) -> None:
    model, loss, labels = CLASSES[name]
    x = X.astype(np.float32)
    expected = trained(model, loss, batch_of({"x": x, "y": labels}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = trained(model, loss, batch_of({"x": x, "y": labels.astype(dtype)}))
    assert_same_bits(got, expected)


NUMERIC: dict[str, tuple[Any, Any, Any]] = {
    "mse": (nn.Linear(4, 1), tasks.mse, NUMBERS),
    "mae": (nn.Linear(4, 1), tasks.mae, NUMBERS),
    "huber": (nn.Linear(4, 1), tasks.huber, NUMBERS),
    "gaussian_nll": (nn.Linear(4, 2), tasks.gaussian_nll, NUMBERS),
    "binary_cross_entropy": (nn.Linear(4, 1), tasks.binary_cross_entropy, LABELS % 2.0),
    "multi_label": (nn.Linear(4, 3), tasks.multi_label, np.eye(3)[LABELS]),
    "soft labels": (nn.Linear(4, 3), tasks.cross_entropy, np.eye(3)[LABELS]),
    "classes": (nn.Linear(4, 3), tasks.cross_entropy, LABELS),
    "segmentation": (
        nn.Sequential(nn.Linear(4, 12), nn.Unflatten(1, (3, 2, 2))),
        tasks.segmentation().loss_fn,
        LABELS[:, None, None].repeat(2, 1).repeat(2, 2),
    ),
}


@pytest.mark.parametrize(
    ("name", "precision", "container"),
    [
        *((name, "32-true", "dict") for name in NUMERIC),
        *(("classes", precision, "tuple") for precision in ("bf16-mixed", "bf16-true")),
        ("mse", "bf16-mixed", "tuple"),
    ],
)
def test_float64_inputs_train_as_float32_does(name: str, precision: Any, container: str) -> None:
    """float64 targets that are numbers are not converted, so that the loss has all their digits."""
    model, loss, labels = NUMERIC[name]
    single = X.astype(np.float32)
    pairs = [{"x": x, "y": labels} for x in (single, X)]
    batches = [batch_of(pair if container == "dict" else (*pair.values(),)) for pair in pairs]
    expected = trained(model, loss, batches[0], precision=precision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = trained(model, loss, batches[1], precision=precision)
    assert_same_bits(got, expected)


@pytest.mark.parametrize(
    "loss", [tasks.next_token, tasks.causal_lm, tasks.language_modeling().loss_fn]
)
def test_tokens_of_int32_train_as_int64_does(loss: Any) -> None:
    expected = trained(gpt, loss, torch.from_numpy(TOKENS))
    with pytest.warns(UserWarning, match=r"expected classes of torch\.int64, got torch\.int32"):
        got = trained(gpt, loss, torch.from_numpy(TOKENS.astype(np.int32)))
    assert_same_bits(got[0].params, expected[0].params)


def test_each_conversion_warns_once() -> None:
    batch = batch_of({"x": X, "y": LABELS.astype(np.int32)})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trained(nn.Linear(4, 3), tasks.cross_entropy, batch)
        steps = ftrain.make_steps(nn.Linear(4, 3), tasks.cross_entropy, optim.sgd(0.1))
        steps.train_step(steps.init_state(0), batch)
    texts = [str(each.message) for each in said]
    assert len(texts) == 2
    assert "expected inputs of torch.float32" in texts[0] + texts[1]
    assert "x.astype('float32')" in texts[0] + texts[1]
    assert "y.astype('int64')" in texts[0] + texts[1]


def test_model_of_float64_keeps_float64_inputs() -> None:
    batch = batch_of({"x": X, "y": NUMBERS})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state, metrics, _ = trained(lambda: nn.Linear(4, 1).double(), tasks.mse, batch)
    assert state.params["weight"].dtype == metrics["loss"].dtype == torch.float64


def test_npz_file_of_numpys_default_dtypes_trains_evaluates_and_predicts(
    tmp_path: pathlib.Path,
) -> None:
    labels = np.arange(60, dtype=np.int32) % 3
    inputs = np.eye(4)[labels]
    np.savez(tmp_path / "pairs.npz", x=inputs, y=labels)
    configuration = {
        "model": {"name": "mlp", "inputs": 4, "outputs": 3},
        "data": {"name": "arrays", "path": str(tmp_path / "pairs.npz")},
        "optimizer": {"name": "adamw", "learning_rate": 0.05},
        "epochs": 10,
        "batch_size": 12,
        "compile": False,
        "progress": False,
        "output_dir": str(tmp_path / "run"),
    }
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = train(load(configuration))
    assert result.eval is not None
    assert result.eval.metrics["accuracy"] == 1.0
    texts = [str(each.message) for each in said if str(each.message).startswith("batch: ")]
    assert [text.partition(", got ")[0] for text in texts] == [
        "batch: expected inputs of torch.float32, the dtype of the model's parameters",
        "batch: expected classes of torch.int64",
    ]
    run = load_run(tmp_path / "run")
    assert run.predict(torch.from_numpy(inputs)).argmax(1).tolist() == labels.tolist()
    assert run.predict({"x": torch.from_numpy(inputs)}).dtype == torch.float32


def test_dtype_error_in_a_custom_loss_names_the_conversion() -> None:
    def loss(model: Any, batch: Any) -> Any:
        return model(batch["x"]).square().mean()

    steps = ftrain.make_steps(nn.Linear(4, 1), loss, optim.sgd(0.1))
    with pytest.raises(RuntimeError) as caught:
        steps.train_step(steps.init_state(0), batch_of({"x": X}))
    assert "NumPy's default" in "".join(caught.value.__notes__)
