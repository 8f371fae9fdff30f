"""Numerical precision: the dtypes of weights and of products, and the loss scale.

The order within a step is fixed: unscale, finite check, clip, update. Autocast is active inside the loss
only; around a compiled region it overflows silently in float16's backward (pytorch#153044).

Read next: `accumulate.py`, where a policy is applied.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch

from ftrain.core import tree

__all__ = ["LossScale", "LossScaleState", "Policy", "Precision"]

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"]


class LossScaleState(NamedTuple):
    """State of the dynamic loss scaler, part of the training state.

    Attributes:
        scale: float32, 0-d. The factor of the loss before the backward pass.
        growth_tracker: int32, 0-d. Finite steps since the scale last changed.
    """

    scale: torch.Tensor
    growth_tracker: torch.Tensor


@dataclasses.dataclass(frozen=True)
class LossScale:
    """Dynamic loss scaling as a pure function, by the rule of `torch.amp.GradScaler`.

    A step with non-finite gradients multiplies the scale by `backoff_factor`; `growth_interval`
    consecutive finite steps multiply it by `growth_factor`. Unlike in GradScaler, the scale has a lower
    bound (GradScaler's can decrease to exactly zero and stay there) and an upper bound, and nothing
    waits for the device.

    Args:
        init: the first scale.
        growth_factor: above 1.
        backoff_factor: in (0, 1).
        growth_interval: the number of consecutive finite steps before the scale grows.
        floor: the smallest scale.
        ceiling: the largest scale.

    Raises:
        ValueError: a factor would not increase or decrease the scale, or the first scale is out of
            bounds.

    >>> scaling = LossScale(init=1024.0, growth_interval=2)
    >>> state = scaling.init_state()
    >>> for finite in (True, True, False):
    ...     state = scaling.update(state, torch.tensor(finite))
    ...     print(state.scale.item())
    1024.0
    2048.0
    1024.0
    """

    init: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    floor: float = 1.0
    ceiling: float = 2.0**24

    def __post_init__(self) -> None:
        if not self.growth_factor > 1.0:
            raise ValueError(
                f"growth_factor: expected a number above 1, got {self.growth_factor}. Write "
                "growth_factor=2.0."
            )
        if not 0.0 < self.backoff_factor < 1.0:
            raise ValueError(
                f"backoff_factor: expected a number inside (0, 1), got {self.backoff_factor}. Write "
                "backoff_factor=0.5."
            )
        if self.growth_interval < 1:
            raise ValueError(
                f"growth_interval: expected at least 1, got {self.growth_interval}. Write "
                "growth_interval=2000."
            )
        if not 0.0 < self.floor <= self.init <= self.ceiling:
            raise ValueError(
                "loss scale: expected 0 < floor <= init <= ceiling, got "
                f"floor={self.floor}, init={self.init}, ceiling={self.ceiling}. Change the one out of "
                "order."
            )

    def init_state(self, device: torch.device | str | None = None) -> LossScaleState:
        """Return the state before the first step."""
        return LossScaleState(
            torch.tensor(self.init, dtype=torch.float32, device=device),
            torch.tensor(0, dtype=torch.int32, device=device),
        )

    def update(self, state: LossScaleState, finite: torch.Tensor) -> LossScaleState:
        """Return the state after a step; `finite` (bool, 0-d) is True if its gradients were finite."""
        # Computed in float64 and rounded once, like GradScaler's kernel, so that 2**16 * 1.3 has the
        # same bits.
        scale = state.scale.double()
        grown = (scale * self.growth_factor).float().clamp(max=self.ceiling)
        backed_off = (scale * self.backoff_factor).float().clamp(min=self.floor)
        in_a_row = state.growth_tracker + 1
        grows = in_a_row >= self.growth_interval
        kept = torch.where(grows & torch.isfinite(grown), grown, state.scale)
        return LossScaleState(
            torch.where(finite, kept, backed_off),
            torch.where(finite & ~grows, in_a_row, torch.zeros_like(in_a_row)),
        )

    @staticmethod
    def inverse(state: LossScaleState) -> torch.Tensor:
        """Return the factor that unscales the gradients: float32, 0-d."""
        return state.scale.double().reciprocal().float()


@dataclasses.dataclass(frozen=True)
class Policy:
    """Dtypes and loss scaling of a step.

    Args:
        params: dtype of parameters, floating buffers and floating inputs; `None` leaves them unchanged.
        autocast: dtype of `torch.autocast` inside the loss; `None` disables it there.
        loss_scale: the dynamic loss scaling; `None` for none.

    >>> Policy.named("bf16-mixed")
    Policy(params=None, autocast=torch.bfloat16, loss_scale=None)
    """

    params: torch.dtype | None = None
    autocast: torch.dtype | None = None
    loss_scale: LossScale | None = None

    @staticmethod
    def named(precision: Precision | Policy) -> Policy:
        """Return the policy with this name; return a policy unchanged.

        Raises:
            ValueError: the name is unknown; the message lists the known names.
        """
        if isinstance(precision, Policy):
            return precision
        try:
            return _POLICIES[precision]
        except (KeyError, TypeError):
            raise ValueError(
                "precision: expected one of "
                f"{', '.join(map(repr, _POLICIES))}, or an ftrain.Policy, got {precision!r}. Write "
                "precision='bf16-mixed'."
            ) from None

    def cast(self, values: Any) -> Any:
        """Cast the floating-point tensors of a tree to the dtype of the parameters."""
        dtype = self.params
        if dtype is None:
            return values
        return tree.map(
            lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x,
            values,
        )

    @contextlib.contextmanager
    def inside_loss(self, device_type: str) -> Iterator[None]:
        """Return a context with this policy's autocast in place of the caller's."""
        with torch.autocast(
            device_type,
            dtype=self.autocast,
            enabled=self.autocast is not None,
            # The cache is disabled because it stores cast weights by identity, across the tensors of two
            # states.
            cache_enabled=False,
        ):
            yield


_POLICIES: dict[str, Policy] = {
    "32-true": Policy(),
    "bf16-mixed": Policy(autocast=torch.bfloat16),
    "16-mixed": Policy(autocast=torch.float16, loss_scale=LossScale()),
    "bf16-true": Policy(params=torch.bfloat16),
}
