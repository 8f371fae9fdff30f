"""Programs that are known not to fit into a CUDA graph are named before they run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, random, tree
from ftrain.core.compile._cuda_graph import replays, why_not_captured


def reason(fn: Any, *args: Any) -> str | None:
    graph = ftrain.compile(fn).graph(*args)
    inputs = tree.leaves(args)
    return why_not_captured(graph, inputs, [f"x{i}" for i in range(len(inputs))])


@pytest.mark.parametrize(("nonfinite", "named"), [("raise", "require_finite"), ("skip", None)])
def test_step_that_raises_for_nonfinite_gradients_is_not_captured_as_a_cuda_graph(
    nonfinite: Any, named: str | None
) -> None:
    steps = ftrain.make_steps(
        lambda: nn.Linear(4, 4),
        lambda model, batch: F.mse_loss(model(batch["x"]), batch["y"]),
        optim.sgd(0.1),
        nonfinite=nonfinite,
    )
    batch = {name: torch.ones(2, 4) for name in "xy"}
    found = reason(steps.train_step, steps.init_state(0), batch)
    if named is None:
        assert found is None
    else:
        assert found == f"its operator `{named}` acts on the host"


def test_function_that_prints_is_not_captured_as_a_cuda_graph() -> None:
    def prints(x: torch.Tensor) -> torch.Tensor:
        ftrain.debug.print("x: {}", x)
        return x * 2

    found = reason(prints, torch.ones(2))
    assert found == "its operator `print` acts on the host"


@pytest.mark.parametrize("sample", [random.gamma, random.poisson, random.exponential])
def test_function_with_a_sampler_of_one_kernel_may_be_captured_as_a_cuda_graph(sample: Any) -> None:
    given = (3,) if sample is random.exponential else torch.ones(3)
    assert reason(lambda key: sample(key, given), random.key(0)) is None


@pytest.mark.parametrize("name", ["Gamma", "VonMises"])
def test_function_with_a_keyed_rejection_sampler_may_be_captured_as_a_cuda_graph(name: str) -> None:
    def sample(key: torch.Tensor) -> Any:
        with random.keyed(key):
            return getattr(torch.distributions, name)(torch.ones(3), torch.ones(3)).sample()

    assert reason(sample, random.key(0)) is None


def test_reason_for_not_capturing_a_cuda_graph_names_inputs_on_two_devices() -> None:
    graph = ftrain.compile(lambda x: x * 2).graph(torch.ones(2))
    inputs = [torch.ones(2), torch.ones(2, device="meta")]
    assert why_not_captured(graph, inputs, ["a", "b"]) == (
        "its inputs are on several devices: `a` on cpu, `b` on meta"
    )


@pytest.mark.parametrize("mode", [None, "reduce-overhead", "max-autotune"])
def test_programs_on_the_cpu_are_not_captured_as_cuda_graphs(mode: str | None) -> None:
    assert not replays(mode, [torch.ones(2)])
