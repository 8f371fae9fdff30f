"""Measure a training step: time, throughput, FLOP/s, kernels, memory, compile latency.

    ftrain bench config.yaml                              # the step of a configuration
    ftrain bench train.py:steps                           # a step that the function `steps` returns
    ftrain bench config.yaml --precision 32-true,bf16-mixed --accumulate 1,4
    ftrain bench train.py:steps --sweep batch_size=8,16,32 --out growth.png
    ftrain bench train.py:steps --out results.json        # then, in CI, on the same machine:
    ftrain bench train.py:steps --against results.json --limit 1.1

`steps` is a function that returns (step, state, batch) for a pure step (state, batch) -> (state, ...),
or (step, batch) for a step that updates a model in place. The values of --precision, --accumulate and
--sweep are arguments of that function, or keys of the configuration; the key `models` is the number
of models that are trained together. The exit code is 1 if --against finds a step that is worse.
"""

from __future__ import annotations

import argparse
import pathlib

from ftrain.cli._no_code import add_no_code


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ftrain bench` to its parser."""
    add = parser.add_argument
    add("target", metavar="CONFIG|FILE.py:NAME", help="a configuration, or a function")
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="replace a value of the configuration, or pass an argument to the function",
    )
    add(
        "--variants",
        metavar="LIST",
        help="some of eager,compiled,donated; default: all that the step allows",
    )
    add("--precision", metavar="LIST", help="precisions, such as 32-true,bf16-mixed")
    add("--accumulate", metavar="LIST", help="numbers of micro-batches, such as 1,4,16")
    add(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=LIST",
        help="values of a key or argument, such as batch_size=8,16,32; may be given several times",
    )
    add("--rounds", type=int, default=15, metavar="N", help="turns of each variant; default: 15")
    add(
        "--seconds",
        type=float,
        default=0.2,
        metavar="S",
        help="length of a turn; default: 0.2",
    )
    add("--explain", action="store_true", help="show operators and kernels with their times")
    add(
        "--latency",
        action="store_true",
        help="time the first call in a fresh process, with an empty and a full cache of compiled code",
    )
    add("--json", action="store_true", help="print the report as JSON")
    add(
        "--out",
        action="append",
        default=[],
        type=pathlib.Path,
        metavar="FILE",
        help="write the report (.json) or a picture (.png, .svg, .pdf); may be given several times",
    )
    add("--against", type=pathlib.Path, metavar="FILE", help="compare with an earlier report")
    add(
        "--limit",
        type=float,
        default=1.1,
        metavar="R",
        help="with --against: the largest ratio of times, and of peak memory, that is not worse; "
        "default: 1.1",
    )
    add(
        "--any-machine",
        action="store_true",
        help="with --against: compare also with a report of another machine",
    )
    add(
        "--backend",
        choices=("inductor", "eager"),
        default="inductor",
        help="eager: run compiled variants operator by operator, without a C++ compiler",
    )
    add_no_code(parser)
    add("--first-call", metavar="VARIANT", help=argparse.SUPPRESS)  # in the process of --latency


def run(options: argparse.Namespace) -> int:
    """Measure steps and print the report; return 1 if a step is worse than in `--against REPORT`."""
    from ftrain.cli.bench import bench  # noqa: PLC0415  # imports torch

    return bench(options)
