"""Train the run that a configuration describes.

Keys can be overridden after the file:

    ftrain train config.yaml epochs=5 optimizer.learning_rate=1e-3
"""

from __future__ import annotations

import argparse

from ftrain.cli._no_code import add_no_code
from ftrain.config.load import load
from ftrain.core._terminal import say

_START = " To train on N ranks, write torchrun --nproc-per-node N -m ftrain train config.yaml."


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ftrain train` to its parser."""
    add = parser.add_argument
    add("config", help="a .yaml, .json or .toml file; `ftrain init` writes one")
    add("overrides", nargs="*", metavar="key=value", help="replace a value of the file")
    add(
        "--dry-run",
        action="store_true",
        help="print parameters, memory, steps, FLOPs; train nothing",
    )
    add(
        "--world-size",
        type=int,
        metavar="N",
        help="with --dry-run: memory and traffic of one of N data-parallel ranks",
    )
    add(
        "--fast-dev-run",
        action="store_true",
        help="run a few steps and one evaluation, and keep no files",
    )
    add("--overfit-batches", type=int, metavar="N", help="train and evaluate on N batches only")
    add(
        "--detect-anomaly",
        action="store_true",
        help="run eagerly, and stop at the operation whose gradient is NaN",
    )
    add("--overwrite", action="store_true", help="delete the run in the output directory first")
    add_no_code(parser)


def run(options: argparse.Namespace) -> int:
    """Train the configured run, or print its requirements (`--dry-run`); return the exit code."""
    flags = []
    if options.fast_dev_run:
        flags.append("fast_dev_run=true")
    if options.detect_anomaly:
        flags.append("detect_anomaly=true")
    if options.overfit_batches is not None:
        flags.append(f"overfit_batches={options.overfit_batches}")
    if options.world_size is not None and (not options.dry_run or options.world_size < 1):
        got = f"{options.world_size}{'' if options.dry_run else ' without --dry-run'}"
        say(
            f"--world-size: expected a number above 0 with --dry-run, got {got}.{_START}",
            error=True,
        )
        return 2
    config = load(options.config, [*options.overrides, *flags], code=not options.no_code)

    if options.dry_run:
        from ftrain.cli.dry_run import dry_run  # noqa: PLC0415  # imports torch: after the keys are checked

        say(dry_run(config, options.world_size))
        return 0
    from ftrain.cli._training import report  # noqa: PLC0415

    return report(config, overwrite=options.overwrite)
