"""What only a GPU can show: values. One command, under ten minutes on one GPU:

    python -m pytest tests/cuda -m cuda

Without a CUDA device, all are skipped. `tests/nullcuda` counts launches, syncs and copies without a GPU.
"""
