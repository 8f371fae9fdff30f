"""Steps of every optimizer: three are known to wait for the device."""

from __future__ import annotations

from typing import Any

import pytest

import ftrain
from ftrain import tree
from tests.nullcuda.device import counted
from tests.optim.cases import CASES
from tests.zoo import ZOO

#: Values that a step reads on the host: SOAP and Sophia branch every few steps, L-BFGS searches a line.
READS = {"soap": 1, "sophia": 1, "lbfgs": 20}


def on_cuda(value: Any) -> Any:
    return tree.map(lambda leaf: leaf.cuda(), value)


@pytest.mark.parametrize("form", ["eager", "traced"])
@pytest.mark.parametrize("name", CASES)
def test_step_of_an_optimizer_keeps_its_state_on_the_device_and_does_not_wait(
    name: str, form: str
) -> None:
    case = ZOO["mlp"]
    steps = ftrain.make_steps(case.model, case.loss_fn, CASES[name].build(1e-2))
    step: Any = steps.train_step
    if form == "traced":
        step = ftrain.compile(step, donate=True, backend="eager")
    state, batch = on_cuda(steps.init_state(0)), on_cuda(case.batch(0, 8))
    state, _ = step(state, batch)
    with counted() as counts:
        state, metrics = step(state, batch)
    assert all(leaf.is_cuda for leaf in tree.leaves((state, metrics)))
    reads = READS.get(name, 0)
    assert (counts.syncs, counts.to_host, counts.to_device) == (reads, reads, 0), counts
