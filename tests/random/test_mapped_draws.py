"""Test the errors for draws that cannot use a key: each names the draw, its line and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ftrain.core.errors import UnkeyedRandomError
from ftrain.core.random._refusal import (
    in_function,
    mapped_draw,
    refusal,
    scripted_inside,
    unkeyed_draw,
)


def raised(call: Callable[[], Any]) -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        call()
    return caught.value


def test_draw_that_vmap_refuses_is_named_by_its_line() -> None:
    error = mapped_draw(raised(lambda: torch.vmap(lambda x: x + torch.rand(()))(torch.ones(3))))
    assert isinstance(error, UnkeyedRandomError)
    assert "torch.vmap" in str(error)
    assert "torch.rand(())" in str(error)
    assert "write instead:  ftrain.random.uniform(key, shape)" in str(error)
    for other in (RuntimeError("another error"), ValueError("randomness error mode")):
        assert mapped_draw(other) is None


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.rand, "torch.rand"),
        (torch.Tensor.normal_, "torch.Tensor.normal_"),
        (torch.ops.aten.rand.default, "aten.rand.default"),
        (torch.nn.functional.dropout, "torch.nn.functional.dropout"),
        (raised, "raised"),
        (3, "3"),
    ],
)
def test_refused_function_is_named_as_users_write_it(function: Any, name: str) -> None:
    error = refusal(function, "draws")
    assert str(error).startswith(f"{name} draws. Its numbers would not come from the key")
    assert "test_mapped_draws.py" in str(error)
    assert "write instead:  ftrain.random.uniform(key, shape)" in str(error)


TORCH, OTHERS, BEARTYPE = (
    "Call torch.manual_seed",
    "Pass the numbers in with the",
    "Turn the checks",
)


@pytest.mark.parametrize(
    ("names", "where", "whose", "remedy"),
    [
        (("torch",), "here", "torch's global generator was", TORCH),
        (("device",), "here", "torch's global generator of the device was", TORCH),
        (("numpy",), "here", "NumPy's global generator was", OTHERS),
        (("own",), "here", "a generator that the function can reach", OTHERS),
        (
            ("numpy", "torch"),
            "here",
            "NumPy's global generator and torch's global generator",
            TORCH,
        ),
        (("python",), "in <@beartype(f) at 0x1>", "Python's global generator", BEARTYPE),
        (("torch",), "in <@beartype(f) at 0x1>", "torch's global generator", BEARTYPE),
    ],
)
def test_unkeyed_draw_is_named_by_its_generator_with_its_remedy(
    names: tuple[str, ...], where: str, whose: str, remedy: str
) -> None:
    message = str(unkeyed_draw(names, where))
    assert message.startswith(whose)
    assert f"was drawn from or seeded {where}\n\n" in message
    assert [text in message for text in (TORCH, OTHERS, BEARTYPE)] == [
        text == remedy for text in (TORCH, OTHERS, BEARTYPE)
    ]


@pytest.mark.parametrize("method", ["forward", "jvp", "setup_context", "vmap"])
def test_draw_in_a_method_of_an_autograd_function_is_named_by_method_and_function(
    method: str,
) -> None:
    class Noise(torch.autograd.Function):
        pass

    message = str(in_function(Noise, method))
    assert message.startswith(
        f"a random draw in the {method} of the autograd function Noise cannot"
    )
    assert "Noise.apply(x, torch.rand(x.shape))" in message


def test_trace_of_torch_jit_inside_keyed_is_named_by_its_line() -> None:
    error = scripted_inside(raised(lambda: torch.ones(2) @ torch.ones(3)))
    assert type(error) is RuntimeError
    assert "torch.ones(2) @ torch.ones(3)" in str(error)
    assert "Leave out torch.jit.trace" in str(error)
