"""Measurement of one variant of a step."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from ftrain.bench.noise import median_interval
from ftrain.core.cost import Cost

__all__ = ["Measurement"]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Measured figures of one variant of a step.

    Attributes:
        variant: "eager", "compiled" or "donated".
        settings: the arguments that the step was built with, such as `{"batch_size": 32}`.
        seconds: the median time of a step in each turn.
        p5: the 5th percentile of the times of single steps, in seconds.
        p95: the 95th percentile.
        samples: rows in a step.
        tokens: tokens in a step; 0 if the batch has none.
        flops: floating-point operations of products, convolutions and attention, by dtype.
        rates: the rates of large matrix products in the same turns, in FLOP/s, by dtype.
        kernels: kernels in a step: operators, and loops that the compiler fused from several.
        device_seconds: the time inside kernels.
        host_seconds: on the CPU, the remaining time of a step; on an accelerator, the time until the
            call returns.
        first_call: seconds of the first call in this process, compilation included.
        second_call: seconds of the second call in this process.
        cold_call: seconds of the first call in a fresh process with an empty cache; `None`: not
            measured.
        warm_call: seconds of the first call in a fresh process with a full cache; `None`: not measured.
        peak_bytes: the most memory held during a step, state and batch included.
        steady_bytes: memory held between steps.
        cost: operators and kernels of a step; `None`: not measured.
    """

    variant: str
    settings: Mapping[str, Any]
    seconds: tuple[float, ...]
    p5: float
    p95: float
    samples: int
    tokens: int
    flops: Mapping[str, int]
    rates: Mapping[str, float]
    kernels: int
    device_seconds: float
    host_seconds: float
    first_call: float
    second_call: float
    peak_bytes: int
    steady_bytes: int
    cold_call: float | None = None
    warm_call: float | None = None
    cost: Cost | None = dataclasses.field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The variant and its settings: `compiled, batch_size=32`."""
        return ", ".join([self.variant, *(f"{k}={v}" for k, v in self.settings.items())])

    @property
    def median(self) -> float:
        """Median time of a step over all turns (rounds of timing), in seconds."""
        return statistics.median(self.seconds)

    @property
    def noise(self) -> float:
        """Half the width of the 99 % confidence interval of the median, relative to the median."""
        low, high = median_interval(self.seconds)
        return (high - low) / (2 * self.median)

    @property
    def samples_per_second(self) -> float:
        """Samples (rows) per second."""
        return self.samples / self.median

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second."""
        return self.tokens / self.median

    @property
    def flops_per_second(self) -> float:
        """Counted floating-point operations per second."""
        return sum(self.flops.values()) / self.median

    @property
    def matrix_share(self) -> float | None:
        """Counted FLOP/s of a step, divided by the measured FLOP/s of large matrix products.

        `None` if there are no such operations.
        """
        if not self.flops or not self.flops.keys() <= self.rates.keys():
            return None
        return sum(n / self.rates[dtype] for dtype, n in self.flops.items()) / self.median

    def to_json(self) -> dict[str, Any]:
        """Return the measurement as JSON values, derived figures included."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "cost"
        }
        settings = {key: _plain(value) for key, value in self.settings.items()}
        derived = {
            "median": self.median,
            "noise": self.noise if self.noise < float("inf") else None,
            "samples_per_second": self.samples_per_second,
            "tokens_per_second": self.tokens_per_second,
            "flops_per_second": self.flops_per_second,
            "matrix_share": self.matrix_share,
        }
        cost = {"cost": self.cost.to_json()} if self.cost is not None else {}
        return {**fields, "settings": settings, "seconds": list(self.seconds), **derived, **cost}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Measurement:
        """Return a measurement from its JSON values; its field `cost` is `None`.

        Raises:
            KeyError: a figure is missing.
        """
        fields = [field for field in dataclasses.fields(cls) if field.name != "cost"]
        values = {field.name: found[field.name] for field in fields}
        return cls(**{**values, "seconds": tuple(values["seconds"])})


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
