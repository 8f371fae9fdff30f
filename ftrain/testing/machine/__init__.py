"""Stateful Hypothesis test of a training run: random sequences of steps, saves and crashes.

    TestTraining = training_machine(make, batches).TestCase     # pytest collects it

The run is compared with a model: digests of the state after each step of an uninterrupted run. If they
differ, Hypothesis prints the shortest sequence of rules that reproduces the difference.

Read next: `training_machine.py`, the rules.
"""

# The check must run before the imports that need Hypothesis.
from ftrain.testing._hypothesis import require_hypothesis

require_hypothesis("ftrain.testing.machine")

from ftrain.testing.machine.make import training_machine  # noqa: E402
from ftrain.testing.machine.training_machine import TrainingMachine  # noqa: E402

__all__ = ["TrainingMachine", "training_machine"]
