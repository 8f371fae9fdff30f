"""The core: pure steps over one immutable state. Start at `step.py`."""
