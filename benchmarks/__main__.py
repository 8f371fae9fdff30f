"""Run all benchmarks, each in its own process: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import time

NAMES = (
    "speed",
    "trainers",
    "memory",
    "draws",
    "loading",
    "checkpoints",
    "latency",
    "chains",
    "digests",
)
LONG = (
    "optimizers",
    "grad_cache",
    "sweep",
    "distributed",
    "peers",
)  # they take a quarter of an hour or more, so they run by name only


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", help=f"default: {', '.join(NAMES)}; also: {', '.join(LONG)}"
    )
    parser.add_argument("--quick", action="store_true", help="few turns: checks the plumbing only")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    flags = [
        f"--{flag}" for flag in ("quick", "no-save") if getattr(options, flag.replace("-", "_"))
    ]
    unknown = sorted(set(options.names) - {*NAMES, *LONG})
    if unknown:
        parser.error(
            f"unknown benchmark {', '.join(unknown)}; choose from {', '.join((*NAMES, *LONG))}"
        )
    start, failed = time.monotonic(), []
    for name in options.names or NAMES:
        command = [sys.executable, "-m", f"benchmarks.{name}", *flags]
        if subprocess.run(
            command, cwd=pathlib.Path(__file__).parent.parent, check=False
        ).returncode:
            failed.append(name)
        print(f"({time.monotonic() - start:.0f} s since the start)\n", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
