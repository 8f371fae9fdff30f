"""The core: training steps as pure functions of one state. `step.py` is the entry point."""
