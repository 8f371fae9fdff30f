"""Models whose `train()` or `eval()` does more than set the `training` flag of each submodule.

Such a method may keep a BatchNorm in evaluation mode, merge adapters into weights or set attributes. A
step calls these methods, as an ordinary training loop does, so that both compute the same.

Read next: `_skeleton.py`, which records what they do.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ftrain.core._restored_objects import Owned

__all__ = ["has_own_modes", "in_training_mode", "set_flags", "settled"]


def has_own_modes(module: nn.Module) -> bool:
    """Return True if the class of a submodule overrides `train` or `eval`."""
    return any(
        type(m).train is not nn.Module.train or type(m).eval is not nn.Module.eval
        for m in module.modules()
    )


def in_training_mode(module: nn.Module) -> nn.Module:
    """Call `module.train()`, but leave submodules that are in evaluation mode so; return the module."""
    frozen = [m for m in module.modules() if module.training and not m.training]
    module.train()
    for m in frozen:
        m.training = False
    return module


def settled(module: nn.Module) -> bool:
    """Call a module's own `train()`; return True if it changed more than the `training` flags."""
    owned = Owned([("", module)])
    before = [(m, m.training) for m in module.modules()]
    after = [(m, m.training) for m in in_training_mode(module).modules()]
    for m, flag in before:
        m.training = flag
    changes, refusals = owned.restore()
    if changes or refusals:
        in_training_mode(module)
        return True
    for m, flag in after:
        m.training = flag
    return False


def set_flags(flags: Sequence[tuple[nn.Module, bool]]) -> None:
    """Set the attribute `training` of each module."""
    for module, flag in flags:
        attributes = module.__dict__
        if "training" in attributes:  # avoids nn.Module.__setattr__, which takes 2 µs
            attributes["training"] = flag
        else:
            module.training = flag
