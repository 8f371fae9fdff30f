"""Test that programs whose kernels C++ code calls compute the same, and which programs are left out."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, transforms
from ftrain.core import _torch_inductor
from ftrain.core.compile import _program
from ftrain.core.compile._cpp_wrapper import why_no_cpp_wrapper
from ftrain.core.errors import DonatedStateError, NonFiniteError
from ftrain.testing import assert_same_bits


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 1))


def loss_fn(net: Any, batch: Any) -> torch.Tensor:
    return F.mse_loss(net(batch["x"]), batch["y"])


def clipped(**options: Any) -> ftrain.Steps:
    optimizer = optim.chain(optim.clip_by_global_norm(0.1), optim.adamw(1e-2))
    return ftrain.make_steps(model, loss_fn, optimizer, **options)


def batch_of(rows: int, *leading: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(*leading, rows, 8, generator=generator),
        "y": torch.randn(*leading, rows, 1, generator=generator),
    }


@pytest.mark.inductor
def test_scan_of_clipped_steps_with_dropout_has_the_same_bits_with_a_cpp_wrapper() -> None:
    steps = clipped()
    loop = transforms.scan(steps.train_step, 3)
    found = []
    for cpp_wrapper in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            run = ftrain.compile(loop, donate=True, cpp_wrapper=cpp_wrapper)
            state = steps.init_state(0)
            for _ in range(3):
                before = state
                state, metrics = run(state, batch_of(4, 3))
        with pytest.raises(DonatedStateError):
            run(before, batch_of(4, 3))
        assert run.n_compiles == 1
        found.append(ftrain.tree.digest((state, metrics)))
    assert found[0] == found[1]


@pytest.mark.inductor
def test_step_with_a_cpp_wrapper_raises_nonfinite_error_and_keeps_the_state() -> None:
    steps = clipped(nonfinite="raise")
    step = ftrain.compile(steps.train_step, donate=True, cpp_wrapper=True)
    with pytest.warns(UserWarning, match="from Python: its operator .*require_finite"):
        state, _ = step(steps.init_state(0), batch_of(4))
    digest = ftrain.tree.digest(state)
    with pytest.raises(NonFiniteError):
        step(state, {"x": torch.full((4, 8), torch.nan), "y": torch.zeros(4, 1)})
    assert ftrain.tree.digest(state) == digest


def test_program_with_an_lstm_gets_no_cpp_wrapper() -> None:
    steps = ftrain.make_steps(
        lambda: nn.LSTM(3, 3), lambda net, x: net(x)[0].square().mean(), optim.sgd(0.1)
    )
    state, x = steps.init_state(0), torch.ones(2, 1, 3)
    traced = ftrain.compile(steps.train_step).graph(state, x)
    reason = str(why_no_cpp_wrapper(traced, [x]))
    assert "rnn" in reason
    assert "quotes" in reason


def test_program_that_prints_gets_no_cpp_wrapper() -> None:
    def printed(x: torch.Tensor) -> torch.Tensor:
        ftrain.debug.print("x {}", x)
        return x + 1

    traced = ftrain.compile(printed).graph(torch.ones(2))
    assert "acts on the host" in str(why_no_cpp_wrapper(traced, [torch.ones(2)]))


def test_program_on_a_device_other_than_the_cpu_gets_no_cpp_wrapper() -> None:
    traced = ftrain.compile(torch.sin).graph(torch.ones(2))
    assert why_no_cpp_wrapper(traced, [torch.ones(2)]) is None
    assert why_no_cpp_wrapper(traced, [torch.ones(2, device="meta")]) == "an input is on meta"


@pytest.mark.parametrize("options", [{"backend": "eager"}, {"mode": "reduce-overhead"}])
def test_cpp_wrapper_with_another_backend_or_mode_raises(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cpp_wrapper: expected backend='inductor' and mode=None"):
        ftrain.compile(torch.sin, cpp_wrapper=True, **options)


def wrappers_of_programs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Compile no program from here on; return a list of the option `cpp_wrapper` of each."""
    seen: list[bool] = []

    def compiled(graph: Any, tensors: Any, mode: Any, config: dict[str, Any]) -> Any:
        seen.append(config["cpp_wrapper"])
        return graph.forward

    monkeypatch.setattr(_torch_inductor, "inductor_compile", compiled)
    return seen


@pytest.mark.parametrize("cpp_wrapper", [False, True])
def test_cpp_wrapper_argument_is_passed_to_inductor_as_an_option(
    cpp_wrapper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = wrappers_of_programs(monkeypatch)
    ftrain.compile(lambda x: x.sin(), cpp_wrapper=cpp_wrapper)(torch.ones(2))
    assert seen == [cpp_wrapper]


def test_program_that_gets_no_cpp_wrapper_is_compiled_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = wrappers_of_programs(monkeypatch)
    monkeypatch.setattr(_program, "why_no_cpp_wrapper", lambda graph, inputs: "it is a test")
    with pytest.warns(UserWarning, match="it is a test"):
        ftrain.compile(lambda x: x.sin(), cpp_wrapper=True)(torch.ones(2))
    assert seen == [False]


@pytest.mark.parametrize("strided", [lambda x: x, lambda x: x[:, None].expand(2, 3)])
@pytest.mark.parametrize("cpp_wrapper", [False, True])
def test_captured_tensors_with_a_conjugate_or_negative_bit_have_their_values(
    strided: Any, cpp_wrapper: bool
) -> None:
    z = torch.tensor([1 + 2j, 3 - 1j])
    x, negative = strided(z.conj()), strided(z.conj().imag)
    assert negative.is_neg()
    assert x.is_conj()

    def f(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return negative + y, x * y

    y = torch.tensor([[1.0], [2.0]]).expand(negative.shape) if negative.ndim == 2 else torch.ones(2)
    compiled = ftrain.compile(f, cpp_wrapper=cpp_wrapper)
    for _ in range(2):
        assert_same_bits(compiled(y), f(y))


def test_captured_tensor_that_gets_a_negative_bit_later_has_its_values() -> None:
    captured = torch.arange(4.0)[::2]
    compiled = ftrain.compile(lambda y: captured + y, cpp_wrapper=True)
    y = torch.ones(2)
    assert_same_bits(compiled(y), captured + y)
    captured.data = torch.tensor([1 + 2j, 3 - 1j]).conj().imag
    assert captured.is_neg()
    assert_same_bits(compiled(y), captured + y)
    assert compiled.n_compiles == 1
