"""Test loading a trained run in Python: its predictions, training and stock module."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch

import ftrain
from ftrain.checkpoint import CheckpointMismatchError, save
from ftrain.config import ConfigError, load, load_run
from ftrain.config.run import train
from ftrain.core import tree
from ftrain.testing import assert_same_bits

MODEL = """
import torch
import torch.nn.functional as F
from torch import nn

SEEN = []

class Net(nn.Module):
    \"\"\"Tied weights, statistics, a buffer that no state dict has, a frozen weight, dropout.\"\"\"

    def __init__(self, inputs, width=6):
        super().__init__()
        self.into = nn.Linear(inputs, width)
        self.norm = nn.BatchNorm1d(width)
        self.mix = nn.Linear(width, width)
        self.again = nn.Linear(width, width)
        self.again.weight = self.mix.weight
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(width, 3)
        self.out.bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls += 1
        x = self.drop(F.gelu(self.norm(self.into(x))))
        x = self.again(self.mix(x)) + self.calls
        return self.out(x + torch.rand_like(x) if self.training else x)

def loss_fn(model, batch):
    logits = model(batch["x"])
    SEEN.append(logits.detach().clone())
    return F.cross_entropy(logits.float(), batch["y"])
"""

RUN = """
model: {name: model.py:Net, inputs: "${data.features}"}
data: {name: csv, path: table.csv, target: kind, held_out: 0.25}
loss: model.py:loss_fn
epochs: 3
batch_size: 8
schedule: cosine
ema: 0.9
compile: false
progress: false
"""


def write_table(path: pathlib.Path) -> None:
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randn(48, 3, generator=draw).tolist()
    rows = [",".join([f"{x:.4f}" for x in row] + ["abc"[i % 3]]) for i, row in enumerate(numbers)]
    path.write_text("\n".join(["u,v,w,kind", *rows]) + "\n")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "model.py").write_text(MODEL)
    (folder / "run.yaml").write_text(RUN)
    write_table(folder / "table.csv")
    for name in ("32-true", "bf16-mixed", "bf16-true"):
        overrides = [f"precision={name}", f"output_dir={folder}/{name}"]
        train(load(folder / "run.yaml", overrides))
    return folder


def batch() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {"x": torch.randn(5, 3, generator=draw), "y": torch.arange(5) % 3}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_predict_equals_the_outputs_of_eval_step(project: pathlib.Path, precision: str) -> None:
    run = load_run(project / precision)
    given = batch()
    before = tree.digest((run.state, given))
    torch.manual_seed(0)
    draws = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):  # the caller's modes are not the run's
        outputs = run.predict(given["x"])
    run.steps.eval_step(run.state, given)
    seen = run.parts.loss_fn.__globals__["SEEN"][-1]
    assert_same_bits(outputs, seen)
    assert not outputs.requires_grad
    assert_same_bits(run.predict(given["x"]), outputs)

    cast = given["x"].to(torch.bfloat16) if precision == "bf16-true" else given["x"]
    mixed = precision == "bf16-mixed"
    module = run.module()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
        assert_same_bits(module(cast), outputs)
    assert not module.training
    assert module.again.weight is module.mix.weight
    assert not module.out.bias.requires_grad
    assert module.calls == run.state.buffers["calls"] + 1

    with torch.no_grad():
        module.out.weight.zero_()  # its own memory
    outputs.zero_()
    assert tree.digest((run.state, given)) == before
    assert torch.equal(torch.get_rng_state(), draws)


def test_load_run_chooses_the_checkpoint_by_name_or_path(project: pathlib.Path) -> None:
    folder = project / "32-true"
    latest = load_run(folder, "latest")
    assert latest.state.step == 12
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    assert load_run(folder, kept[0]).checkpoint.name == kept[0]
    assert load_run(folder, folder / "checkpoints" / kept[-1]).state.step == 12
    best = min(
        (row["loss"], row["step"])
        for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if row["split"] == "eval"
    )
    assert load_run(folder).state.step == best[1]


def test_moved_run_loads_without_its_data(project: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The run is moved with its model, without its data."""
    elsewhere = tmp_path / "deeper" / "project"
    shutil.copytree(project, elsewhere)
    (elsewhere / "table.csv").unlink()
    first, moved = load_run(project / "32-true"), load_run(elsewhere / "32-true")
    assert moved.checkpoint.is_relative_to(elsewhere)
    assert_same_bits(moved.predict(batch()["x"]), first.predict(batch()["x"]))
    assert moved.fitted == first.fitted
    assert moved.fitted["target"]["classes"] == ["a", "b", "c"]
    # A former version stored no facts about the data, so the data are read.
    found = json.loads((elsewhere / "32-true/data.json").read_text())
    del found["facts"]
    (elsewhere / "32-true/data.json").write_text(json.dumps(found))
    with pytest.raises(ConfigError, match="file not found"):
        load_run(elsewhere / "32-true")
    shutil.copy(project / "table.csv", elsewhere)
    again = load_run(elsewhere / "32-true")
    assert_same_bits(again.predict(batch()["x"]), first.predict(batch()["x"]))


def test_predict_accepts_a_batch_or_the_input_of_the_model(
    project: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Losses with and without an argument `input`, which names the model's input, are tested."""
    path = ["model=mlp", "model.inputs=64", "model.outputs=10", "data=digits", "loss=cross_entropy"]
    config = load(project / "run.yaml", [*path, "max_steps=1", f"output_dir={tmp_path / 'run'}"])
    result = train(config)
    run = load_run(tmp_path / "run", "latest")
    assert_same_bits(run.state, result.state)
    x = torch.rand(2, 1, 8, 8)
    assert_same_bits(run.predict({"x": x}), run.predict(x))
    with pytest.raises(KeyError, match="expected a batch with 'x'.*'image'"):
        run.predict({"image": x})
    with pytest.raises(
        ValueError, match=r"expected rows of 64 features, got float32\[2, 7\]"
    ) as caught:
        run.predict(torch.rand(2, 7))
    assert caught.value.__cause__ is not None
    assert "`Sequential`" in caught.value.__cause__.__notes__[-1]
    with pytest.raises(RuntimeError) as caught_in_the_model:
        run.predict(torch.rand(2, 1, 8, 9))
    assert "`Sequential`" in caught_in_the_model.value.__notes__[-1]
    assert caught_in_the_model.value.__cause__ is None
    average = ftrain.optim.get(run.state.opt_state, "ema")
    assert average.keys() == run.state.params.keys()


@pytest.mark.parametrize(
    ("inputs", "kind", "says"),
    [
        ([[0.0, 0.0, 0.0]], TypeError, r"got a list of lists\. Write torch\.tensor\(inputs\)"),
        (
            torch.zeros(2, 3).numpy(),
            TypeError,
            r"got an ndarray\. Write torch\.as_tensor\(inputs\)",
        ),
        ("new.csv", TypeError, r"got 'new\.csv'\. .*ftrain predict .*32-true data\.path=new\.csv"),
        (pathlib.Path("new.csv"), TypeError, r"got 'new\.csv'"),
        ({"x": [[0.0, 0.0, 0.0]]}, TypeError, r"got a list of lists"),
        (torch.zeros(2, 4), ValueError, r"rows of 3 features \(u, v, w\), got float32\[2, 4\]"),
    ],
)
def test_predict_refuses_invalid_inputs_with_the_reason(
    project: pathlib.Path, inputs: Any, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=rf"inputs.*: expected .*{says}"):
        load_run(project / "32-true").predict(inputs)


def test_run_that_cannot_be_loaded_raises_with_the_reason(
    project: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def refused(*arguments: Any) -> str:
        with pytest.raises((ConfigError, CheckpointMismatchError)) as caught:
            load_run(*arguments)
        return str(caught.value)

    assert "directory not found. Make one with `ftrain train CONFIG`" in refused(
        tmp_path / "nowhere"
    )
    said = refused(project)
    assert "expected a run, got no config.yaml. Choose one of " in said
    assert "32-true" in said
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.yaml").write_text("{model: mlp, data: digits, epochs: 1}")
    assert "has no checkpoint. Train it: `ftrain resume" in refused(tmp_path / "begun")
    assert "got 'step-7', which does not exist. Choose one of best, latest" in refused(
        project / "32-true", "step-7"
    )
    assert "into.weight" in refused(project / "32-true", "best", ["model.width=7"])
    save(tmp_path / "other", {"w": torch.ones(2)})
    assert "w" in refused(project / "32-true", tmp_path / "other")


def test_loaded_run_trains_at_a_constant_learning_rate(project: pathlib.Path) -> None:
    run = load_run(project / "32-true", "latest")
    state, metrics = run.steps.train_step(run.state, batch())
    assert state.step == run.state.step + 1
    assert float(metrics["learning_rate"]) == pytest.approx(run.config.optimizer.learning_rate)
    tuned = dataclasses.replace(run, state=state)
    assert not torch.equal(tuned.predict(batch()["x"]), run.predict(batch()["x"]))
    assert len(repr(run)) < 1000


@pytest.mark.parametrize("shared", [False, True])
def test_module_built_from_params_gives_the_outputs_of_the_bound_function(shared: bool) -> None:
    """The model is a function or an instance, which stays unchanged; an LSTM has lists of weights."""

    def model() -> torch.nn.Module:
        return torch.nn.LSTM(3, 4, num_layers=2)

    net = model()
    before = tree.digest(dict(net.state_dict()))
    apply = ftrain.bind(net if shared else model)
    params, buffers = apply.init(ftrain.random.key(1))
    params = tree.map(lambda leaf: leaf + 1, params)
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    expected, _ = apply(params, buffers, ftrain.random.key(0), x, training=False)
    assert_same_bits(apply.module(params, buffers)(x), expected)
    assert tree.digest(dict(net.state_dict())) == before
    with pytest.raises(ValueError, match="params do not fit LSTM: missing"):
        apply.module({}, buffers)


def test_importing_config_does_not_import_torch() -> None:
    code = (
        "import sys, ftrain.config as c; assert 'torch' not in sys.modules; c.load_run; c.Trained"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
