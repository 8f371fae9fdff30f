"""Small network of `torch.nn` layers, described by a tuple of layer names.

Read next: `modules.py`, which draws them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ftrain.core.step import Steps, make_steps

__all__ = ["LAYERS", "Network"]


class _First(nn.Module):
    """Wrapper that returns a layer's first output; for attention, query, key and value are the input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> Any:
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.layer(x, x, x, need_weights=False)[0]
        return self.layer(x)[0]


# Layers by name: functions of the length and width of their input `(rows, length, width)`.
LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": lambda length, width: nn.Linear(width, width),
    "tanh": lambda length, width: nn.Tanh(),
    "relu": lambda length, width: nn.ReLU(),
    "gelu": lambda length, width: nn.GELU(),
    "dropout": lambda length, width: nn.Dropout(0.5),
    "layer norm": lambda length, width: nn.LayerNorm(width),
    "rms norm": lambda length, width: nn.RMSNorm(width),
    "group norm": lambda length, width: nn.GroupNorm(1, length),
    "batch norm": lambda length, width: nn.BatchNorm1d(length),
    "convolution": lambda length, width: nn.Conv1d(length, length, 3, padding=1),
    "attention": lambda length, width: _First(
        nn.MultiheadAttention(width, 1, dropout=0.5, batch_first=True)
    ),
    "transformer": lambda length, width: nn.TransformerEncoderLayer(
        width, 1, 2 * width, batch_first=True
    ),
    "gru": lambda length, width: _First(nn.GRU(width, width, batch_first=True)),
    "lstm": lambda length, width: _First(nn.LSTM(width, width, batch_first=True)),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """Small network as a model function: `make_steps(network, network.loss_fn, optimizer)`.

    The module maps `(rows, length, width)` to the same shape: the layers in order, then a linear layer.

    Attributes:
        layers: one text for each layer: its name ("linear", "dropout", "attention", ...); "frozen " and
            a name, for a layer without gradients; "layer 0 again", for that same submodule once more;
            "linear tied to 0", for a linear layer with the weight of the linear layer 0.
        length: the size of the middle axis.
        width: the size of the last axis.

    Raises:
        ValueError: a text does not describe a layer.

    Example:
        >>> network = Network(("linear", "dropout", "layer 0 again"))
        >>> [name for name, _ in network().named_parameters()]
        ['0.weight', '0.bias', '3.weight', '3.bias']
        >>> sorted(network.batch(rows=2))
        ['x', 'y']
    """

    layers: tuple[str, ...]
    length: int = 2
    width: int = 2

    def __post_init__(self) -> None:
        for i, text in enumerate(self.layers):
            _check(self.layers, i, text)

    def __call__(self) -> nn.Sequential:
        """Build the module, with initial weights from torch's generator."""
        built: list[nn.Module] = []
        for text in self.layers:
            built.append(self._layer(text, built))
        return nn.Sequential(*built, nn.Linear(self.width, self.width))

    def batch(self, rows: int = 2) -> dict[str, torch.Tensor]:
        """Return an example batch for `loss_fn`: inputs `x` and targets `y`, without randomness."""
        size = rows * self.length * self.width
        x = torch.linspace(-1.0, 1.0, size).reshape(rows, self.length, self.width)
        return {"x": x, "y": x.cos()}

    @staticmethod
    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        """Return the mean squared error of a batch."""
        error: torch.Tensor = model(batch["x"]) - batch["y"]
        return error.square().mean()

    def steps(self, optimizer: Any, **options: Any) -> Steps:
        """Return the steps that `make_steps` builds from this network and its loss function."""
        return make_steps(self, self.loss_fn, optimizer, **options)

    def _layer(self, text: str, built: list[nn.Module]) -> nn.Module:
        if text.endswith(" again"):
            return built[int(text.split()[1])]
        name = text.removeprefix("frozen ")
        layer = LAYERS[name.partition(" tied")[0]](self.length, self.width)
        if " tied to " in text:
            layer.weight = built[int(text.rsplit(maxsplit=1)[-1])].weight
        if name != text:
            layer.requires_grad_(False)
        return layer


def _check(layers: tuple[str, ...], i: int, text: str) -> None:
    words = text.split()
    earlier = [str(each) for each in range(i)]
    if len(words) == 3 and words[0] == "layer" and words[2] == "again" and words[1] in earlier:
        return
    tied = len(words) == 4 and words[:3] == ["linear", "tied", "to"] and words[3] in earlier
    if tied and layers[int(words[3])].removeprefix("frozen ").startswith("linear"):
        return
    if text.removeprefix("frozen ") in LAYERS:
        return
    raise ValueError(
        f"layers[{i}]: expected a name ({', '.join(LAYERS)}), 'frozen NAME', 'layer I again' or "
        f"'linear tied to I' with an earlier layer I, got {text!r}. Write one of these."
    )
