"""Architectures of the table that ftrain refuses, with the reason."""

from __future__ import annotations

from typing import NamedTuple

from ftrain.core.errors import TraceError


class Refusal(NamedTuple):
    """A message of ftrain's own.

    Attributes:
        error: its class.
        match: its text, over several lines.
        reason: what the architecture does.
    """

    error: type[Exception]
    match: str
    reason: str


#: By architecture and check.
REFUSED: dict[tuple[str, str], Refusal] = {
    ("JetMoeForCausalLM", "compiled"): Refusal(
        TraceError,
        r"asks for the value of a tensor.*modeling_jetmoe\.py.*expert_size\.tolist\(\)",
        "it reads how many tokens each expert got, and splits by these numbers",
    ),
}
