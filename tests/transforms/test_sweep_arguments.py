"""Test that a sweep refuses arguments that it cannot train, and suggests names."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import ftrain
from ftrain import optim, testing, transforms
from tests.transforms.cases import Line, line_steps, squares


def partitioned(**hyperparams: Any) -> Any:
    one = functools.partial(optim.with_hyperparams, optim.sgd, **hyperparams)
    return optim.chain(one(), one())


ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "no member": (
        lambda: transforms.sweep(line_steps()),
        ValueError,
        "expected the argument n or over",
    ),
    "n of 0": (lambda: transforms.sweep(line_steps(), 0), ValueError, "n: expected an integer"),
    "n and seeds": (
        lambda: transforms.sweep(line_steps(), 2, over={"seed": [1]}),
        ValueError,
        "n: expected None, since `over` has an entry 'seed'",
    ),
    "an empty list": (lambda: transforms.sweep(line_steps(), over=[]), ValueError, "got 0"),
    "an empty axis": (
        lambda: transforms.sweep(line_steps(), over={"seed": []}),
        ValueError,
        "seed: expected at least one value",
    ),
    "other names": (
        lambda: transforms.sweep(line_steps(), over=[{"seed": 1}, {"learning_rate": 1.0}]),
        ValueError,
        r"over\[1\]: expected the names \['seed'\]",
    ),
    "a text": (
        lambda: transforms.sweep(line_steps(), over={"learning_rate": ["fast"]}),
        TypeError,
        "expected a number, got str 'fast'",
    ),
    "a seed of half": (
        lambda: transforms.sweep(line_steps(), over={"seed": [0.5]}),
        TypeError,
        "expected an integer, got 0.5",
    ),
    "a NaN": (
        lambda: transforms.sweep(line_steps(), over={"learning_rate": [float("nan")]}),
        ValueError,
        "expected a finite number",
    ),
    "batches": (
        lambda: transforms.sweep(line_steps(), 2, batches="each"),  # type: ignore[arg-type]
        ValueError,
        "expected 'shared' or 'own'",
    ),
    "chunks": (
        lambda: transforms.sweep(line_steps(), 2, chunk_size=0),
        ValueError,
        "chunk_size: expected an integer of at least 1",
    ),
    "a compiled step": (
        lambda: transforms.sweep(
            line_steps()._replace(train_step=ftrain.compile(line_steps().train_step)), 2
        ),
        TypeError,
        r"compile last: ftrain.compile\(sweep",
    ),
    "an unknown name": (
        lambda: transforms.sweep(line_steps(), over={"weight_decay": [0.1]}).init_state(0),
        LookupError,
        "no hyper-parameter in this state is called 'weight_decay'",
    ),
    "torch's name of a hyper-parameter": (
        lambda: transforms.sweep(line_steps(), over={"lr": [0.1]}).init_state(0),
        LookupError,
        r"is called 'lr'\. Did you mean 'learning_rate'\? It has: .*'learning_rate'\]\.$",
    ),
    "a misspelled name": (
        lambda: transforms.sweep(line_steps(), over={"learnig_rate": [0.1]}).init_state(0),
        LookupError,
        r"Did you mean 'learning_rate'\? It has: .*'learning_rate'\]\.$",
    ),
    "torch's name without a hyper-parameter": (
        lambda: transforms.sweep(
            ftrain.make_steps(Line(), squares, optim.sgd(0.1)), over={"lr": [0.1]}
        ).init_state(0),
        LookupError,
        r"optim\.with_hyperparams\(optim\.adamw, learning_rate=\.\.\.\) and sweep over 'learning_rate'",
    ),
    "no seed": (
        lambda: transforms.sweep(line_steps(), 2).init_state(),  # type: ignore[call-arg]
        TypeError,
        r"^init_state\(\) missing 1 required positional argument: 'seed'",
    ),
    "a value out of range": (
        lambda: transforms.sweep(line_steps(), over={"learning_rate": [0.1, -1.0]}).init_state(0),
        ValueError,
        "learning_rate: expected a finite number >= 0, got -1.0",
    ),
    "two optimizers": (
        lambda: transforms.sweep(
            line_steps(partitioned(learning_rate=0.1)), over={"learning_rate": [0.1]}
        ).init_state(0),
        ValueError,
        r"got the name of 2: .opt_state",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_sweep_refuses_arguments_that_it_cannot_train(case: str) -> None:
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()


def test_numpy_numbers_sweep_the_same_members_as_numbers_of_python() -> None:
    swept = transforms.sweep(line_steps(), np.int64(3)).init_state(np.int64(1))
    testing.assert_same_bits(swept, transforms.sweep(line_steps(), 3).init_state(1))
    over = {"learning_rate": np.array([0.5, 0.25], np.float32), "seed": np.arange(2)}
    expected = {"learning_rate": [0.5, 0.25], "seed": [0, 1]}
    found = transforms.sweep(line_steps(), over=over).init_state(0)
    testing.assert_same_bits(found, transforms.sweep(line_steps(), over=expected).init_state(0))
