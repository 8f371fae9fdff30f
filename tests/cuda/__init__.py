"""Checks of values on a GPU, by one command meant to take under ten minutes:

    python -m pytest tests/cuda -m cuda

Without a CUDA device, all are skipped. `tests/nullcuda` counts launches, syncs and copies without a GPU.
"""
