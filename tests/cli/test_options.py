"""Test the messages for command-line options that do not exist."""

from __future__ import annotations

import pytest

from ftrain.cli import main

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train a.yaml --epochs 3", "unknown option --epochs. Write epochs=3"),
        ("train a.yaml --epochs=3", "unknown option --epochs. Write epochs=3"),
        ("train --seed -1 a.yaml", "unknown option --seed. Write seed=-1"),
        ("train --epochs 3 a.yaml seed=1", "unknown option --epochs. Write epochs=3"),
        ("train --bf16 a.yaml", "unknown option --bf16. Write precision=bf16-mixed"),
        (
            "train a.yaml --lr 1e-3 --batch-size 8",
            "unknown options --lr, --batch-size. Write optimizer.learning_rate=1e-3 batch_size=8",
        ),
        ("train a.yaml --model.outputs 3", "--model.outputs. Write model.outputs=3"),
        ("train a.yaml --bf16", "unknown option --bf16. Write precision=bf16-mixed"),
        ("train a.yaml --no-progress", "unknown option --no-progress. Write progress=false"),
        ("train a.yaml --overwite", "unknown option --overwite. Did you mean --overwrite?"),
        ("resume runs/a --num_train_epochs 9", "Write epochs=9"),
        ("eval runs/a --data.path new.csv", "Write data.path=new.csv"),
        ("runs --epochs 9", "unknown option --epochs. Choose one of --help, "),
        ("train a.yaml --warmup-ratio 0.1", "unknown option --warmup-ratio. "),
    ],
)
def test_error_for_an_unknown_option_suggests_the_configuration_key(
    arguments: str, message: str, capsys: Captured
) -> None:
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith(f"ftrain {arguments.split(maxsplit=1)[0]}: ")
    assert len(err.splitlines()) == 1
