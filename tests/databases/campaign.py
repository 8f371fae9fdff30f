"""Draw inputs of torch's operator database for some minutes: `python -m tests.databases.campaign`.

`make databases` takes every sample input of every operator, in the order of the database, for hours.
This draws operators and dtypes at random, and a few inputs of each at random, those that torch compares
with NumPy among them (`reference_inputs`): broadcast, empty, noncontiguous, extreme. It prints what came
of them, and each failure with the number of the input, which takes it again.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.testing._internal import common_methods_invocations as methods

from tests.databases.test_operators import case_of, name_of, outcome_of

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "complex128": torch.complex128,
    "bfloat16": torch.bfloat16,
}

#: Operators whose gradient in torch writes out of bounds, which ends the process (2.13).
CORRUPTING = {("nn.functional.grid_sample", torch.bfloat16)}


def samples_of(op: Any, dtype: torch.dtype) -> Iterator[Any]:
    """Yield all inputs of an operator that require a gradient."""
    torch.manual_seed(0)
    try:
        yield from list(op.reference_inputs("cpu", dtype, requires_grad=True))
    except ValueError:  # some of its own cannot require one
        yield from op.sample_inputs("cpu", dtype, requires_grad=True)


def drawn(op: Any, dtype: torch.dtype, count: int, rng: random.Random) -> Iterator[tuple[int, Any]]:
    """Yield `count` of an operator's inputs, all equally likely, with their numbers."""
    kept: list[tuple[int, Any]] = []
    for number, sample in enumerate(samples_of(op, dtype)):
        if len(kept) < count:
            kept.append((number, sample))
        elif (place := rng.randint(0, number)) < count:
            kept[place] = (number, sample)
    yield from sorted(kept, key=lambda each: each[0])


def numbered(op: Any, dtype: torch.dtype, number: int) -> Iterator[tuple[int, Any]]:
    """Yield the input of an operator with this number."""
    yield number, next(itertools.islice(samples_of(op, dtype), number, None))


def run(
    op: Any, dtype: torch.dtype, inputs: Iterator[tuple[int, Any]]
) -> tuple[Counter[str], list[str]]:
    """Check inputs of an operator; return outcomes and failures."""
    outcomes: Counter[str] = Counter()
    failures = []
    for number, sample in inputs:
        try:
            case = case_of(op, sample)
            said = "no input requires a gradient" if case is None else outcome_of(op.name, case)
        except Exception:  # reported below as a failure, so that the other inputs run too
            said, where = "failed", f"{name_of(op)} {dtype} input {number}"
            failures.append(f"{where}\n{traceback.format_exc(limit=-6)}")
        outcomes[said] += 1
    return outcomes, failures


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="of a processor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=8, help="of an operator and a dtype")
    parser.add_argument("--dtypes", nargs="*", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--only", help="an operator's name, for one input of one dtype")
    parser.add_argument("--number", type=int, help="of that input")
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    pairs = [
        (op, DTYPES[name])
        for op, name in itertools.product(methods.op_db, options.dtypes)
        if op.supports_autograd and DTYPES[name] in op.supported_backward_dtypes("cpu")
        if options.only in (None, name_of(op))
        if (name_of(op), DTYPES[name]) not in CORRUPTING
    ]
    rng.shuffle(pairs)
    until = time.process_time() + 60 * options.minutes
    outcomes: Counter[str] = Counter()
    tried, failed = 0, 0
    # Without torch's seeding of random operators, so that they draw from the generator or a key.
    with mock.patch.object(
        methods, "wrapper_set_seed", lambda op, *args, **kwargs: op(*args, **kwargs)
    ):
        for op, dtype in pairs:
            if time.process_time() > until:
                break
            tried += 1
            if options.number is None:
                inputs = drawn(op, dtype, options.inputs, rng)
            else:
                inputs = numbered(op, dtype, options.number)
            found, failures = run(op, dtype, inputs)
            outcomes += found
            failed += len(failures)
            print(*failures, sep="\n", end="\n" if failures else "", flush=True)
    print(f"{tried} of {len(pairs)} operators with a dtype, {outcomes.total()} inputs:")
    for outcome, n in sorted(outcomes.items()):
        print(f"  {outcome}: {n}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
