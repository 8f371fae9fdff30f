"""Run the quick tests on several versions of Python and torch: `python -m tests.matrix`."""
