"""Check random programs for some minutes: `python -m tests.compositions.campaign --minutes 30`.

All kinds of programs in all modes come up in turns, with seeds of their own; the number of a seed draws
its programs again. A failure prints the shrunk program as source.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import traceback
import warnings

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import HypothesisWarning

from tests.compositions.outcomes import COUNTS, MODES, check
from tests.compositions.programs import Program
from tests.compositions.strategies import points, programs
from tests.compositions.test_compositions import KINDS

#: Programs of one kind in one mode in a turn. Hypothesis draws small ones first.
TURN = 25


class _TimeIsUp(BaseException):
    pass


def turn(kinds: str, mode: str, seed: int, until: float) -> str | None:
    """Check some programs; return the text of a failure, if any.

    A program that has failed is shrunk even if the time is up; otherwise it would not be reported.
    """
    failed = False

    @seeded(seed)
    @settings(
        max_examples=TURN,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(programs(3, 3, KINDS[kinds]), points())
    def run(program: Program, points: list[float]) -> None:
        nonlocal failed
        if time.process_time() > until and not failed:
            raise _TimeIsUp
        try:
            check(program, points, mode)
        except Exception:  # raised again: the program is then shrunk, even if the time is up
            failed = True
            raise

    try:
        run()
    except Exception as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        return f"{kinds}, {mode}, seed {seed}\n{traceback.format_exc(limit=-4)}\n{notes}"
    return None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="of a processor")
    parser.add_argument("--seed", type=int, default=0, help="of the first turn")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", HypothesisWarning)
    torch.set_num_threads(1)
    until = time.process_time() + 60 * options.minutes
    failed = 0
    turns = itertools.cycle(itertools.product(options.kinds, MODES))
    try:
        for number, (kinds, mode) in enumerate(turns, options.seed):
            failure = turn(kinds, mode, number, until)
            if failure is not None:
                failed += 1
                print(failure, flush=True)
    except (_TimeIsUp, KeyboardInterrupt):
        print(f"{number - options.seed} turns, seeds {options.seed} to {number}")
    print(f"{sum(COUNTS.values())} programs:")
    for (mode, outcome), n in sorted(COUNTS.items()):
        print(f"{n:6} {mode}: {outcome}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
