"""Check that a `torch.optim` class has no state beside that of its parameters.

`from_torch` constructs an optimizer for each update, so that anything else that a step changes would be
lost: an attribute, a value in a parameter group, state under another key than a parameter.

Read next: `_torch_step.py`, which takes the steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch

from ftrain.core._torch_levels import below
from ftrain.core.compile._trace import is_tracing
from ftrain.optim._torch_step import first_entries, step_once

__all__ = ["preserved_generator", "refuse_hidden_state"]

#: Number of steps that are compared. Most hidden state shows in the second.
_STEPS = 6
_PLAIN = (type(None), bool, int, float, complex, str)
# Torch's records of checks that it has made (2.11 to 2.14), which have no effect on a step.
_HARMLESS = {"_need_device_dtype_check_for_fused", "_warned_capturable_if_run_uncaptured"}


def refuse_hidden_state(
    make: type[torch.optim.Optimizer], options: Mapping[str, Any], numbers: Collection[str]
) -> None:
    """Raise unless a class takes the same steps when it is constructed anew for each of them.

    Args:
        make: the class.
        options: its arguments.
        numbers: the names of state entries that the optimizer stores as Python numbers.

    Raises:
        ValueError: it takes other steps, or a step changes a plain attribute of the optimizer.
    """
    if is_tracing():  # without values, there is nothing to compare
        return
    with below(), preserved_generator() as generator:
        theirs = torch.tensor([[0.5, -1.0], [2.0, 0.25]])
        reference = make([theirs], **options)
        (group,) = reference.param_groups
        rate = torch.tensor(group.get("lr", 0.0), dtype=torch.float64)
        mine = [theirs.clone()]
        entries = first_entries(make, options, rate, mine)
        before = _plain_attributes(reference)
        for step in range(_STEPS):
            grad = torch.cos(torch.arange(4.0) * (step + 1) + 0.5).reshape(2, 2)
            theirs.grad = grad.clone()
            generator.manual_seed(step)
            reference.step()
            generator.manual_seed(step)
            entries = [{k: _tensor(v) for k, v in e.items() if v is not None} for e in entries]
            mine, entries = step_once(make, options, rate, mine, [grad], entries, numbers)
            after = _plain_attributes(reference)
            changed = sorted(name for name in after if after[name] != before.get(name, _MISSING))
            others = [key for key in reference.state if key is not theirs]
            if changed:
                _refuse(make, f"whose step also changes its attribute {changed[0]!r}")
            if others:
                _refuse(make, f"which also keeps state under the key {others[0]!r}")
            if not _same_bytes(mine[0], theirs):
                _refuse(
                    make,
                    f"whose step {step + 1} depends on more than parameters, gradients and their state: "
                    "on another attribute, a parameter group, a hook, or on which gradient is the first",
                )


_MISSING = object()


def _refuse(make: type, what: str) -> None:
    raise ValueError(
        f"optimizer: expected a class that keeps its state per parameter, got {make.__name__}, {what}: "
        "it would be lost, because each update constructs the optimizer anew. Write it as a "
        "GradientTransformation."
    )


def _plain_attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the numbers and strings that a class adds to the attributes of `torch.optim.Optimizer`."""
    return {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, _PLAIN)
        and not hasattr(torch.optim.Optimizer, name)
        and name not in _HARMLESS
    }


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)


def _same_bytes(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.equal(x.contiguous().view(torch.uint8), y.detach().contiguous().view(torch.uint8))


@contextlib.contextmanager
def preserved_generator() -> Iterator[torch.Generator]:
    """Restore torch's global generator, which the context may seed, when the context ends."""
    generator = torch.default_generator
    state = generator.get_state()
    try:
        yield generator
    finally:
        generator.set_state(state)
