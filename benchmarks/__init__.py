"""Benchmarks that compare ftrain with hand-written training loops.

    python -m benchmarks              # all of them, in under ten minutes; or: make bench
    python -m benchmarks.speed        # one of them
    python -m benchmarks.peers        # other libraries, over a table of workloads: hours

Contenders take turns within one run, so that a change in the machine's load affects all of them; figures
are medians over the turns, ratios are medians of the ratios within a turn. Every report names the
machine and the versions, and is saved in `results/`.

Read next: `measure.py` (how), `contenders.py` (what), then `speed.py`.
"""
