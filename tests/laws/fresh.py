"""Train in a separate process: `python -m tests.laws.fresh FROM.npz TO.npz`.

Every case starts from its seed and takes `STEPS` steps; its leaves are stored as they were at half of
them and at the end. Where FROM is not `-`, it starts once more from the leaves stored there at half.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

import ftrain
from ftrain import optim
from ftrain.core import tree
from tests.campaign import choice
from tests.zoo import ZOO

STEPS = 4
MODELS = (
    ("mlp", "16-mixed", 4),
    ("convnet", "32-true", 1),
    ("gpt", "bf16-mixed", 4),
    ("gpt", "bf16-true", 1),
    ("lstm", "32-true", 4),
)
IN_MACHINE_CODE = choice(["mlp"], ["mlp", "lstm"])  # each compiles for many seconds
CASES = [
    (mode, *case)
    for mode in ("eager", "traced", "inductor")
    for case in MODELS
    if mode != "inductor" or case[0] in IN_MACHINE_CODE
]


def stored(state: Any) -> list[np.ndarray]:
    return [
        leaf.contiguous().reshape(-1).view(torch.uint8).numpy().copy()
        for leaf in tree.leaves(state)
    ]


def loaded(arrays: list[np.ndarray], like: Any) -> Any:
    leaves, treedef = tree.flatten(like)
    return tree.unflatten(
        treedef,
        [
            torch.from_numpy(array).view(leaf.dtype).reshape(leaf.shape).clone()
            for array, leaf in zip(arrays, leaves, strict=True)
        ],
    )


def train(source: str, target: str) -> None:
    torch.set_num_threads(1)
    half = {} if source == "-" else np.load(source)
    found = {}
    for mode, model, precision, accumulate in CASES:
        case = ZOO[model]
        init_state, step, _ = ftrain.make_steps(
            case.model, case.loss_fn, optim.adamw(optim.warmup_cosine(1e-2, 2, 20)),
            precision=precision, accumulate=accumulate,
        )  # fmt: skip
        if mode != "eager":
            step = ftrain.compile(step, donate=True, backend="eager" if mode == "traced" else mode)
        name = f"{mode} {model} {precision}"

        def run(state: Any, first: int, label: str, step: Any = step, case: Any = case) -> None:
            for i in range(first, STEPS):
                if i == STEPS // 2:
                    keep(f"{label} at half", state)
                state, _ = step(state, case.batch(i, 8))
            keep(f"{label} at the end", state)

        def keep(label: str, state: Any, name: str = name) -> None:
            found.update({f"{name} {label} {i:03}": leaf for i, leaf in enumerate(stored(state))})

        run(init_state(5), 0, "whole")
        if half:
            start = f"{name} whole at half"
            arrays = [half[key] for key in half.files if key.startswith(start)]
            run(loaded(arrays, init_state(5)), STEPS // 2, "resumed")
    np.savez(target, **found)


if __name__ == "__main__":
    train(*sys.argv[1:])
