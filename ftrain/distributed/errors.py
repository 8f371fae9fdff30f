"""Errors of runs on several ranks."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["RankError", "named"]


class RankError(RuntimeError):
    """Error of a run on several ranks, raised on every rank that is alive.

    Args:
        message: what is wrong, with the ranks, their hosts and a remedy.
        ranks: the ranks that the message names.
        lost: True if their processes have ended or cannot be reached.

    Attributes:
        ranks: the ranks that failed, are missing, or differ from the others, in ascending order.
        lost: True if their processes have ended or cannot be reached.

    Example:
        >>> RankError("rank 3 on node-b did not start", [3]).ranks
        (3,)
    """

    def __init__(self, message: str, ranks: Iterable[int] = (), lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost
        self.ranks = tuple(sorted(ranks))


def named(ranks: Iterable[int]) -> str:
    """Return a phrase that lists ranks in ascending order.

    >>> named([2]), named([0, 1, 2, 5])
    ('rank 2', 'ranks 0-2, 5')
    """
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and parts[-1][-1] == rank - 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    listed = ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
    return f"rank{'s' if sum(map(len, parts)) > 1 else ''} {listed}"
