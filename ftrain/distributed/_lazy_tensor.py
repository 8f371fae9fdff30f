"""Tensor that stores one rank's part, and is gathered whole when a torch function reads its values.

Read next: `_units.py` and `_split_layers.py`, whose tensors these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ftrain.core import _torch_pytree as torch_pytree
from ftrain.core._torch_wrapper import METADATA, Wrapper, plain_functions
from ftrain.core._writes import versions
from ftrain.core.errors import ImpureFunctionError

__all__ = ["REMEDY", "LazyTensor"]

REMEDY = "A step must leave its inputs as they are: compute with a changed copy instead"


class LazyTensor(Wrapper):
    """Tensor with the whole shape that stores one rank's part; torch functions that read it gather it.

    Attributes:
        what: the tensor, for messages.
    """

    what: ClassVar[str]

    def gathered(self) -> torch.Tensor:
        """Return the whole tensor; its gradient flows back to the part of this rank."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(  # type: ignore[override]  # torch gives defaults
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with plain_functions():
                return func(*args, **kwargs)
        gathered: list[torch.Tensor] = []

        def gather(tensor: LazyTensor) -> torch.Tensor:
            gathered.append(tensor.gathered())
            return gathered[-1]

        args, kwargs = torch_pytree.tree_map_only(LazyTensor, gather, (tuple(args), kwargs))
        before = versions(gathered)
        result = func(*args, **kwargs)
        if versions(gathered) != before:
            raise ImpureFunctionError(f"{cls.what} was changed in place", f"{REMEDY}.")
        return result
