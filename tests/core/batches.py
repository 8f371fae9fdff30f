"""One batch in many containers, and steps whose result must not depend on the container."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, UserList, defaultdict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

import ftrain
from ftrain import optim, tree

ROWS = 24


class Pair(NamedTuple):
    x: Any
    y: Any


class AttrDict(dict[str, Any]):
    """Dict with attribute access that raises KeyError, as in many configuration libraries."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Itself(dict[str, Any]):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class Mirrored(dict[str, Any]):
    """Dict whose items are attributes as well, as in `EasyDict` and `ModelOutput`."""

    def __init__(self, **items: Any) -> None:
        for name, value in items.items():
            dict.__setitem__(self, name, value)
            self.__dict__[name] = value


class Fixed(Mapping[str, Any]):
    """Mapping with its own storage."""

    def __init__(self, items: dict[str, Any]) -> None:
        self._items = items

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Encoding(UserDict[str, Any]):
    """Mapping with items as attributes and extra attributes, like Hugging Face's `BatchEncoding`."""

    def __init__(self, data: Any = None) -> None:
        super().__init__(data)
        self._encodings = [object()]
        self._n_sequences = 1

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


class Listing(list[Any]):
    pass


class Row(tuple[Any, ...]):
    __slots__ = ()


@dataclasses.dataclass
class Plain:
    x: Any
    y: Any

    def __post_init__(self) -> None:
        if not isinstance(self.x, torch.Tensor):
            raise TypeError("x is a tensor")


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: Any
    y: Any


@tree.register_dataclass
class Registered:
    x: Any
    y: Any


BY_KEY: dict[str, Callable[[Any, Any], Any]] = {
    "dict": lambda x, y: {"x": x, "y": y},
    "OrderedDict": lambda x, y: OrderedDict(y=y, x=x),
    "defaultdict": lambda x, y: defaultdict(list, x=x, y=y),
    "UserDict": lambda x, y: UserDict(x=x, y=y),
    "MappingProxyType": lambda x, y: MappingProxyType({"x": x, "y": y}),
    "AttrDict": lambda x, y: AttrDict(x=x, y=y),
    "Itself": lambda x, y: Itself(x=x, y=y),
    "Mirrored": lambda x, y: Mirrored(x=x, y=y),
    "Fixed": lambda x, y: Fixed({"x": x, "y": y}),
    "Encoding": lambda x, y: Encoding({"x": x, "y": y}),
}
BY_PLACE: dict[str, Callable[[Any, Any], Any]] = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "UserList": lambda x, y: UserList([x, y]),
    "Listing": lambda x, y: Listing([x, y]),
    "Row": lambda x, y: Row((x, y)),
}
BY_NAME: dict[str, Callable[[Any, Any], Any]] = {
    "NamedTuple": Pair,
    "Plain": Plain,
    "Frozen": Frozen,
    "Registered": Registered,
}
FORMS = {**BY_KEY, **BY_PLACE, **BY_NAME}


def first(batch: Any) -> Any:
    """Return the x of one container."""
    return _entry(batch, "x", 0)


def second(batch: Any) -> Any:
    """Return the y of one container."""
    return _entry(batch, "y", 1)


def _entry(batch: Any, name: str, place: int) -> Any:
    if isinstance(batch, (tuple, list, UserList)):
        return batch[place]
    return batch[name] if isinstance(batch, Mapping) else getattr(batch, name)


def tensors(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two tensors of the innermost container."""
    while not isinstance(first(batch), torch.Tensor):
        batch = first(batch)
    return first(batch), second(batch)


def loss_fn(model: Any, batch: Any) -> Any:
    """Return a loss without weights, with a random draw, and an auxiliary mean."""
    x, y = tensors(batch)
    error = model(x) - y
    return error.square().mean(), {"error": error.abs().mean()}


def rows(n: int = ROWS, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator), torch.randn(n, 1, generator=generator)


def steps(accumulate: int) -> ftrain.Steps:
    return ftrain.make_steps(
        lambda: nn.Sequential(nn.Dropout(0.3), nn.BatchNorm1d(3), nn.Linear(3, 1)),
        loss_fn,
        optim.sgd(0.1),
        accumulate=accumulate,
    )
