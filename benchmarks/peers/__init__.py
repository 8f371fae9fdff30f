"""A training step of ftrain and of its peers on the same model, weights, batches and optimizer.

    python -m benchmarks.peers                                    # all workloads: hours
    python -m benchmarks.peers --workloads mlp-3,gpt-0.8m --minutes 10
    python -m benchmarks.peers --accumulate 1,4,16 --precision 32-true,bf16-mixed
    python -m benchmarks.peers --growth leaves                    # or parameters, batch, k
    python -m benchmarks.peers --goals                            # the goals of the step, met or missed

Read next: `workloads.py` (models and data), `contenders.py` (the programs), then `cell.py` (the
measurement).
"""
