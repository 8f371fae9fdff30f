"""Steps that were skipped because of non-finite gradients: counts and messages.

In an ensemble, members skip steps independently. A run ends only if no member trains any longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "Counts",
    "Skip",
    "all_skipped_message",
    "skip_messages",
    "skipped_by_all",
    "skipped_in_a_row",
    "skipped_message",
    "stuck_members_message",
]

#: Number of steps skipped in a row; in an ensemble, one number per member.
Counts = int | tuple[int, ...]

_MOST = 5  # maximum number of steps or members listed in a message


class Skip(NamedTuple):
    """Step that was skipped because of non-finite gradients.

    Attributes:
        step: number of the step.
        epoch: epoch of the step.
        batch: number of the step in its epoch.
        member: the ensemble member that skipped it; `None` for a single run.
    """

    step: int
    epoch: int
    batch: int
    member: int | None = None


def skipped_in_a_row(skipped: Sequence[float], before: int) -> int:
    """Return the number of steps skipped in a row up to the last step, continuing an earlier count.

    Args:
        skipped: for each step 1 if it was skipped, else 0.
        before: the number of steps skipped in a row before these steps.

    Example:
        >>> skipped_in_a_row([1, 1], 3), skipped_in_a_row([1, 0, 1], 3), skipped_in_a_row([0], 3)
        (5, 1, 0)
    """
    if not any(skipped):
        return 0
    for one in skipped:
        before = before + 1 if one else 0
    return before


def skipped_by_all(counts: Counts) -> int:
    """Return the number of consecutive steps, up to the latest, that every ensemble member skipped."""
    return min(counts, default=0) if isinstance(counts, tuple) else counts


def skip_messages(
    skipped: Sequence[Skip], counts: Counts, most: int | None, steps: int
) -> list[str]:
    """Return the messages about the skipped steps of a log window.

    Args:
        skipped: the skipped steps to list.
        counts: number of steps skipped in a row up to the end of the window.
        most: number of steps skipped in a row that ends a run; `None`: never.
        steps: number of steps in the window.
    """
    messages = [skipped_message(skipped, steps)] if skipped else []
    stuck = None if most is None else stuck_members_message(counts, most, steps)
    return messages if stuck is None else [*messages, stuck]


def skipped_message(skipped: Sequence[Skip], steps: int) -> str:
    """Return a message that lists the skipped steps among the last `steps` steps.

    Example:
        >>> skipped_message([Skip(4, 1, 4)], 6)
        '1 of the last 6 steps were skipped because of non-finite gradients: step 4 (epoch 1, batch 4)'
        >>> print(skipped_message([Skip(4, 1, 4, 0), Skip(4, 1, 4, 2), Skip(5, 1, 5, 2)], 6))
        members skipped some of the last 6 steps because of non-finite gradients: member 0 skipped step 4
        (epoch 1, batch 4); member 2 skipped 2 steps, the last one at step 5 (epoch 1, batch 5)
    """
    if skipped[0].member is None:
        n, more = len(skipped), _more(len(skipped), "")
        listed = "; ".join(map(_place, skipped[:_MOST]))
        return (
            f"{n} of the last {steps} steps were skipped because of non-finite gradients: "
            f"{listed}{more}"
        )
    members = sorted({skip.member for skip in skipped if skip.member is not None})
    each = []
    for member in members[:_MOST]:
        own = [skip for skip in skipped if skip.member == member]
        what = _place(own[0])
        if len(own) > 1:
            what = f"{len(own)} steps, the last one at {_place(own[-1])}"
        each.append(f"member {member} skipped {what}")
    return (
        f"members skipped some of the last {steps} steps because of non-finite gradients: "
        f"{'; '.join(each)}{_more(len(members), ' members')}"
    )


def stuck_members_message(counts: Counts, most: int, steps: int) -> str | None:
    """Return a message that names the ensemble members that newly reached `most` skipped steps in a row.

    `None` if there is no such member, or if no member trains any longer.

    Example:
        >>> print(stuck_members_message((0, 7, 30), 5, 10))
        member 1 skipped 5 or more steps in a row and did not change. Still training: 1 of 3 members.
        Start member 1 again with a lower learning rate, or check its batches
    """
    if not isinstance(counts, tuple) or skipped_by_all(counts) >= most:
        return None
    stuck = [i for i, count in enumerate(counts) if count >= most]
    new = [i for i in stuck if counts[i] - steps < most]
    if not new:
        return None
    who = f"member{'s' if len(new) > 1 else ''} {', '.join(map(str, new[:_MOST]))}"
    return (
        f"{who}{_more(len(new), '')} skipped {most} or more steps in a row and did not change. "
        f"Still training: {len(counts) - len(stuck)} of {len(counts)} members. Start {who} again with a "
        "lower learning rate, or check its batches"
    )


def all_skipped_message(counts: Counts, source: str) -> str:
    """Return the error message of a run that ends after too many skipped steps in a row.

    Args:
        counts: number of steps skipped in a row.
        source: a sentence on the source of the non-finite values.
    """
    whose = " by every member" if isinstance(counts, tuple) else ""
    return (
        f"{skipped_by_all(counts)} steps in a row were skipped{whose} because of non-finite gradients. "
        f"{source} Lower the learning rate, clip gradients, check these batches, or write "
        "max_skipped=None to continue."
    )


def _place(skip: Skip) -> str:
    return f"step {skip.step} (epoch {skip.epoch}, batch {skip.batch})"


def _more(n: int, what: str) -> str:
    return f"; and {n - _MOST}{what} more" if n > _MOST else ""
