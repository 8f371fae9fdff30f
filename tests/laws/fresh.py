"""Train in a process of its own: `python -m tests.laws.fresh MODE FROM.npz TO.npz STEPS FIRST`.

Starts from the seed where FROM is `-`, else from the leaves stored there; stores those it ends with.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

import ftrain
from ftrain import optim
from ftrain.core import tree
from tests.zoo import ZOO

CASES = (
    ("mlp", "16-mixed", 4),
    ("convnet", "32-true", 1),
    ("gpt", "bf16-mixed", 4),
    ("gpt", "bf16-true", 1),
    ("lstm", "32-true", 4),
)


def train(mode: str, source: str, target: str, count: int, first: int) -> None:
    torch.set_num_threads(1)
    stored = {} if source == "-" else np.load(source)
    ended = {}
    for model, precision, accumulate in CASES:
        if mode == "inductor" and model not in ("mlp", "lstm"):
            continue
        case = ZOO[model]
        init_state, step, _ = ftrain.make_steps(
            case.model, case.loss_fn, optim.adamw(optim.warmup_cosine(1e-2, 2, 20)),
            precision=precision, accumulate=accumulate,
        )  # fmt: skip
        if mode != "eager":
            step = ftrain.compile(step, donate=True, backend="eager" if mode == "traced" else mode)
        state = init_state(5)
        leaves, treedef = tree.flatten(state)
        name = f"{model} {precision} {accumulate} "
        if stored:
            leaves = [
                torch.from_numpy(stored[name + str(i)]).view(leaf.dtype).reshape(leaf.shape).clone()
                for i, leaf in enumerate(leaves)
            ]
            state = tree.unflatten(treedef, leaves)
        for i in range(first, first + count):
            state, _ = step(state, case.batch(i, 8))
        for i, leaf in enumerate(tree.leaves(state)):
            ended[name + str(i)] = leaf.contiguous().reshape(-1).view(torch.uint8).numpy()
    np.savez(target, **ended)


if __name__ == "__main__":
    _, mode, source, target, count, first = sys.argv
    train(mode, source, target, int(count), int(first))
