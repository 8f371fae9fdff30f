"""Mutation testing: change one token of `ftrain/core` at a time, and see a test fail.

    python -m tests.mutants                         every subject of `subjects.py`
    python -m tests.mutants commit metrics          some
    python -m tests.mutants --minutes 20 --seed 1   as many mutants as fit, drawn at random

`mutations.py` makes the mutants, `coverage.py` finds the tests that run a line, `trial.py` runs them on
one mutant in a forked process.
"""
