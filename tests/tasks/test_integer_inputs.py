"""Test messages for integer inputs of a model whose weights are floats, such as the pixels of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, tasks
from tests.campaign import product


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten())


class Named(nn.Module):
    """Model with a named input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = convolution()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


FORMS = [(flat, False), (convolution, False), (convolution, True), (Named, False), (Named, True)]


@pytest.mark.parametrize(
    ("form", "dtype", "precision"),
    product(FORMS, [torch.uint8, torch.int64, torch.int16, torch.bool], ["32-true", "bf16-true"]),
)
def test_integer_inputs_raise_an_error_with_the_conversion_to_write(
    form: tuple[Callable[[], nn.Module], bool], dtype: torch.dtype, precision: Any
) -> None:
    model, compiled = form
    steps = ftrain.make_steps(model, tasks.cross_entropy, optim.sgd(0.1), precision=precision)
    batch = {"x": torch.ones(2, 1, 4, 4).to(dtype), "y": torch.tensor([0, 1])}
    step = ftrain.compile(steps.train_step, backend="eager") if compiled else steps.train_step
    with pytest.raises(
        Exception, match=rf"expected inputs of .*, got {dtype}. Convert the data"
    ) as found:
        step(steps.init_state(0), batch)
    pixels = "x.astype('float32') / 255" in str(found.value)
    assert pixels == (dtype == torch.uint8)


def test_model_that_converts_its_integer_inputs_gets_them_unchanged() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = flat()

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.uint8
            result: Tensor = self.layer(x.float() / 255)
            return result

    steps = ftrain.make_steps(Scaled, tasks.cross_entropy, optim.sgd(0.1))
    batch = {"x": torch.ones(2, 1, 4, 4, dtype=torch.uint8), "y": torch.tensor([0, 1])}
    _, metrics = steps.train_step(steps.init_state(0), batch)
    assert metrics["loss"].isfinite()


def test_other_errors_of_models_with_integer_inputs_are_unchanged() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.words(x).mean(1)
            return result

    steps = ftrain.make_steps(Words, tasks.cross_entropy, optim.sgd(0.1))
    for tokens, says in (
        (torch.full((2, 5), 9), "index out of range"),
        (torch.ones(2, 5).bool(), "indices"),
    ):
        with pytest.raises((IndexError, RuntimeError), match=says):
            steps.train_step(steps.init_state(0), {"x": tokens, "y": torch.tensor([0, 1])})


def test_compiled_product_of_integers_raises_with_the_conversion_to_write() -> None:
    """Its trace passes, because fake tensors do not compare the dtypes of a product."""
    steps = ftrain.make_steps(flat, tasks.cross_entropy, optim.sgd(0.1))
    for dtype in (torch.uint8, torch.int64):
        step = ftrain.compile(steps.train_step, backend="eager")
        batch = {"x": torch.ones(2, 1, 4, 4, dtype=dtype), "y": torch.tensor([0, 1])}
        with pytest.raises(RuntimeError) as found:
            step(steps.init_state(0), batch)
        note = found.value.__notes__[-1]
        assert "batch['x']" in note
        assert ("x.astype('float32') / 255" in note) == (dtype == torch.uint8)


@pytest.mark.parametrize("compiled", [False, True])
def test_convolution_of_integers_in_a_custom_loss_raises_with_the_conversion_to_write(
    compiled: bool,
) -> None:
    steps = ftrain.make_steps(
        lambda: torch.nn.Conv2d(1, 2, 3), lambda m, b: m(b["x"]).mean(), optim.sgd(0.1)
    )
    step = ftrain.compile(steps.train_step, backend="eager") if compiled else steps.train_step
    with pytest.raises(RuntimeError) as found:
        step(steps.init_state(0), {"x": torch.ones(2, 1, 4, 4, dtype=torch.uint8)})
    notes = "\n".join(found.value.__notes__)
    assert "batch['x'] is uint8" in notes
    assert "x.astype('float32') / 255 for pixels" in notes
