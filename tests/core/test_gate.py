"""A gate is the identity, whose gradients pass at applied steps only."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from ftrain.core import _skip_nonfinite
from ftrain.core._kept_graph import keeping_graph


def gradient(passes: Tensor | None) -> Tensor:
    """Return the gradient of `3 x` at 1 through a gate that is set after the call."""
    gate, x = _skip_nonfinite.Gate(), torch.ones((), requires_grad=True)
    with keeping_graph():
        y = gate({"x": x})["x"]
    gate.passes = passes
    assert torch.equal(y, x)
    (3 * y).backward()
    assert x.grad is not None
    return x.grad


def test_gate_passes_gradients_unless_its_flag_is_false() -> None:
    assert gradient(None) == gradient(torch.tensor(True)) == 3
    assert gradient(torch.tensor(False)) == 0


def test_gate_returns_values_that_require_no_gradient_unchanged() -> None:
    gate = _skip_nonfinite.Gate()
    values = {"plain": torch.ones(2), "number": 2, "graph": torch.ones(2, requires_grad=True)}
    assert gate(values) is values  # outside of `keeping_graph`
    with keeping_graph():
        found = gate(values)
    assert found["plain"] is values["plain"]
    assert found["number"] == 2
    assert found["graph"] is not values["graph"]


def test_gate_does_not_stop_gradients_of_torch_func_transforms() -> None:
    gate = _skip_nonfinite.Gate()
    gate.passes = torch.tensor(False)

    def loss(x: Tensor) -> Tensor:
        with keeping_graph():
            return 3 * gate(x)

    assert torch.func.grad(loss)(torch.ones(())) == 3


@pytest.mark.parametrize("keeps", [True, False])
def test_gated_values_pass_gradients_only_if_the_step_was_applied(keeps: bool, monkeypatch) -> None:
    monkeypatch.setattr(_skip_nonfinite, "value_at_hand", lambda passes: None)  # as in a trace
    for flag, slope in ((True, 3), (False, 0)):
        x = torch.ones((), requires_grad=True)
        values = {"x": x, "plain": torch.ones(2), "number": 2}
        with keeping_graph() if keeps else contextlib.nullcontext():
            found = _skip_nonfinite.gated(values, torch.tensor(flag))
        assert found["plain"] is values["plain"]
        assert found["number"] == 2
        assert (found["x"] is x) == (not keeps)
        (3 * found["x"] + 0 * x).backward()
        assert x.grad == (slope if keeps else 3)


def test_gated_returns_its_values_unchanged_if_its_flag_is_none_or_an_untraced_tensor() -> None:
    values = {"x": torch.ones((), requires_grad=True)}
    with keeping_graph():
        assert _skip_nonfinite.gated(values, None) is values
        assert _skip_nonfinite.gated(values, torch.tensor(False)) is values
