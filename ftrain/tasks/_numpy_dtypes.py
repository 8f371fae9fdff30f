"""Conversion of float64 (NumPy's default) and small integers to the dtypes that models and losses take.

Read next: `adapters.py`, which calls a model with the converted inputs.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_classes", "as_parameters", "integers_explained"]


def as_parameters(parameters: Iterable[Tensor], *inputs: Any) -> tuple[Any, ...]:
    """Return a model's inputs, with float64 tensors converted to its parameters' dtype; warn once.

    If there are no parameters, or some are float64, the inputs stay unchanged.
    """
    if not any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in inputs):
        return inputs
    dtypes = {p.dtype for p in parameters if p.is_floating_point()}
    if not dtypes or torch.float64 in dtypes:
        return inputs
    dtype = torch.float32 if torch.float32 in dtypes else next(iter(dtypes))
    _warn_once(
        f"batch: expected inputs of {dtype}, the dtype of the model's parameters, got torch.float64, "
        "which is NumPy's default. Each batch is converted; to save memory and time, convert the data "
        "once: x.astype('float32')."
    )
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and x.dtype == torch.float64 else x for x in inputs
    )


#: Matches torch's errors for inputs whose dtype differs from that of the weights, but not those for
#: indices.
_OTHER_DTYPE = re.compile(r"(?i)(same|expected) dtype|scalar type|should be the same|data ?type")


@contextlib.contextmanager
def integers_explained(parameters: Iterable[Tensor], *inputs: Any) -> Iterator[None]:
    """Replace torch's dtype error in a `with` block, if the inputs are integers, by a clear TypeError.

    Integers are not converted like float64 inputs: a model may use them as indices, and images need
    scaling.

    Raises:
        TypeError: the model raised an error about dtypes, and some inputs are integers.
    """
    try:
        yield
    except RuntimeError as error:
        dtypes = [x.dtype for x in inputs if isinstance(x, Tensor) and x.dtype in _WHOLE]
        floats = [p.dtype for p in parameters if p.is_floating_point()]
        about = _OTHER_DTYPE.search(str(error)) and "indices" not in str(error)
        if not (dtypes and floats and about):
            raise
        remedy = "x.astype('float32')"
        if torch.uint8 in dtypes:
            remedy = "x.astype('float32') / 255 for pixels, x.astype('float32') for other numbers"
        raise TypeError(
            f"batch: expected inputs of {floats[0]}, the dtype of the model's parameters, got "
            f"{dtypes[0]}. Convert the data: {remedy}."
        ) from error


def as_classes(labels: Tensor) -> Tensor:
    """Return integer labels as int64, the dtype that torch's losses take; warn once.

    Labels of other dtypes, such as soft labels, stay unchanged.
    """
    if labels.dtype not in _INTEGERS:
        return labels
    _warn_once(
        f"batch: expected classes of torch.int64, got {labels.dtype}. Each batch is converted; to "
        "convert only once, convert the data: y.astype('int64')."
    )
    return labels.to(torch.int64)


_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

#: Dtypes to convert. uint8 is not one of them, because torch's losses take it.
_INTEGERS = (torch.bool, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32)


#: Messages already shown. While a `Trainer` determines its columns, it ignores warnings; those are not
#: recorded here.
_GIVEN: set[str] = set()


def _warn_once(message: str) -> None:
    if message in _GIVEN:
        return
    first = tuple(warnings.filters[0]) if warnings.filters else ()
    if first != ("ignore", None, Warning, None, 0):
        _GIVEN.add(message)
    warnings.warn(message, UserWarning, stacklevel=4)
