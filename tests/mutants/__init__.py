"""Mutation testing: change one token of `ftrain/core` at a time, and see a test fail.

    python -m tests.mutants --sample 200 --seed 1   200 mutants drawn at random from all modules
    python -m tests.mutants commit random.keys      every mutant of two modules
    python -m tests.mutants --survivors --imported  once more those that the last call did not kill

It prints every mutant that survives, and the share that is killed with its confidence interval.
`mutations.py` makes the mutants, `lines.py` finds the tests that run a line (cached under `build`) and
puts a module's own tests first, `trial.py` runs them on one mutant in a forked process whose processor
time is limited, `swap.py` spares the fork most imports, `harmless.py` explains mutants that no test need
kill, and `survey.py` counts.
"""
