"""The core: pure steps over one immutable state. `step.py` is the entry point."""
