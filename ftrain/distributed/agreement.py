"""Agreement of the ranks on Python values, outside of steps.

Every function is a collective: all ranks of the mesh call it, in the same order. Values travel pickled
between the processes of one job, which trust each other.

Read next: `loop/_many_ranks.py`, what a run compares before its first step.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ftrain.distributed._heartbeats import Channel
from ftrain.distributed._world import control_group, current
from ftrain.distributed.errors import RankError, named

__all__ = ["agree", "check_same", "gather", "is_lost", "lost_rank", "together"]

#: Parts of the messages of gloo, NCCL and a `FileStore` about ranks that do not answer.
_SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Wait timeout",
    "Application timeout caused pair closure",
    "Socket Timeout",
    "Broken pipe",
    "/gloo/transport/",
    "NCCL communicator was aborted",
    "remote process exited",
)


def gather(mesh: DeviceMesh | None, value: Any, what: str = "a value") -> list[Any]:
    """Return the values that the ranks passed, in the order of the ranks, on every rank.

    Args:
        mesh: the ranks, a mesh with one axis; `None`: this process alone.
        value: a value that can be pickled.
        what: what the value is, for messages.

    Raises:
        RankError: a rank failed, or did not call `gather` within the time-out.

    Example:
        >>> gather(None, 3)
        [3]
    """
    if mesh is None or mesh.size() == 1:
        return [value]
    return _exchange(mesh, value, what, None)


def agree(mesh: DeviceMesh | None, value: Any, what: str = "a value") -> Any:
    """Return the value of rank 0 on every rank, for decisions that depend on clocks or files.

    Args:
        mesh: as for `gather`.
        value: as for `gather`; the values of other ranks than 0 are not used.
        what: what the value is, for messages.

    Raises:
        RankError: as `gather`.

    Example:
        >>> agree(None, "runs/digits-2")
        'runs/digits-2'
    """
    if mesh is None or mesh.size() == 1:
        return value
    return gather(mesh, value if mesh.get_rank() == 0 else None, what)[0]


def check_same(mesh: DeviceMesh | None, values: Mapping[str, Any], remedy: str) -> None:
    """Raise on every rank unless all ranks passed equal values.

    Args:
        mesh: as for `gather`.
        values: values that can be pickled and compared, by their names in the message.
        remedy: a sentence that says what to do if they differ.

    Raises:
        RankError: a value differs; the message names it, the ranks, their hosts and both values.

    Example:
        >>> check_same(None, {"epochs": 3}, "Pass the same epochs on every rank.")
    """
    found = gather(mesh, (socket.gethostname(), dict(values)), "values to compare")
    hosts = [host for host, _ in found]
    each = [of_rank for _, of_rank in found]
    names = dict.fromkeys(name for of_rank in each for name in of_rank)
    missing = object()
    for name in names:
        column = [of_rank.get(name, missing) for of_rank in each]
        if all(value == column[0] for value in column[1:]):
            continue
        usual, others = _split(column)
        got = "; ".join(
            f"{'nothing' if column[group[0]] is missing else repr(column[group[0]])} on "
            f"{named(group)} ({_hosts(hosts, group)})"
            for group in others
        )
        expected = "nothing" if column[usual[0]] is missing else repr(column[usual[0]])
        raise RankError(
            f"{name}: expected the same on all ranks, {expected} as on {named(usual)} "
            f"({_hosts(hosts, usual)}), got {got}. {remedy}",
            [rank for group in others for rank in group],
        )


@contextlib.contextmanager
def together(mesh: DeviceMesh | None, what: str) -> Iterator[None]:
    """Make a `with` block end alike on all ranks: raise on every rank if the block raised on one.

    A rank whose block raised an exception raises that exception; the others raise a `RankError` that
    names the rank, its host and the exception.

    Args:
        mesh: as for `gather`.
        what: what the block does, such as "build the model".

    Example:
        >>> with together(None, "read the data"):
        ...     pass
    """
    try:
        yield
    except RankError:  # raised on all ranks, so that no further exchange is needed
        raise
    except Exception as error:
        if mesh is not None and mesh.size() > 1:
            cause = f"could not {what}; its error is {type(error).__name__}: {error}"
            with contextlib.suppress(RankError):
                _exchange(mesh, None, what, cause)
        raise
    gather(mesh, None, what)


def _exchange(mesh: DeviceMesh, value: Any, what: str, failure: str | None) -> list[Any]:
    """Return the values of all ranks; raise on every rank if one of them passed a failure."""
    found: list[Any] = [None] * mesh.size()
    mine = (value, what, failure and f"{failure} (on {socket.gethostname()})")
    try:
        dist.all_gather_object(found, mine, group=control_group(mesh))
    except RuntimeError as error:
        raise lost_rank(error, f'in the exchange "{what}"') from error
    failed = [rank for rank, (_, _, cause) in enumerate(found) if cause is not None]
    if failed:
        raise RankError(f"rank {failed[0]} {found[failed[0]][2]}", failed)
    others = [rank for rank, (_, of_rank, _) in enumerate(found) if of_rank != found[0][1]]
    if others:
        raise RankError(
            f'expected all ranks in the exchange "{found[0][1]}", as rank 0 is, got '
            f'"{found[others[0]][1]}" on {named(others)}. Call the same functions in the same order on '
            "every rank.",
            others,
        )
    return [value for value, _, _ in found]


def is_lost(error: BaseException) -> bool:
    """Return True if an exception, or a cause of it, shows that another rank does not answer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (RankError, dist.DistError)):
            return True
        if isinstance(cause, RuntimeError) and any(sign in str(cause) for sign in _SIGNS):
            return True
        cause = cause.__cause__
    return False


def lost_rank(error: BaseException, where: str, channel: Channel | None = None) -> RankError:
    """Return an error that names the rank that made a collective fail.

    Args:
        error: the exception of the collective.
        where: when it was raised, such as "in step 12".
        channel: the channel of the ranks; `None`: that of `initialize`.
    """
    if isinstance(error, RankError):
        return error
    says = str(error).partition("\n")[0].rpartition("] ")[2][:300]
    world = current()
    channel = channel or (None if world is None else world.channel)
    if channel is None:
        return RankError(
            f"a rank failed or did not answer {where}: {says}. Read the output of the other ranks."
        )
    channel.report(error, origin=False)
    try:
        reports = channel.reports()
    except RuntimeError:
        return RankError(
            f"rank 0 failed {where}: its rendezvous store does not answer. Read the output of rank 0.",
            [0],
            lost=True,
        )
    origins = [one for one in reports if one.origin]
    lost = [one for one in reports if not one.alive]
    stalled = [one for one in reports if one.alive and not one.cause]
    # A rank in the same phase of the same step may have waited as this rank did.
    here = (channel.step, channel.phase())
    stalled = [one for one in stalled if (one.step, one.phase) != here] or stalled
    for group, how in (
        (origins, "failed"),
        (lost, "was killed or lost after its heartbeat"),
        (stalled, "is stalled"),
    ):
        if group:
            first = group[0]
            cause = f" with {first.cause}" if first.cause else ""
            also = f" (likewise {named(r.rank for r in group[1:])})" if group[1:] else ""
            return RankError(
                f"rank {first.rank} on {first.host} {how} at step {first.step}, phase {first.phase}"
                f"{also}{cause}. This rank ended {where}. Read the output of rank {first.rank}.",
                [one.rank for one in group],
                lost=group is not stalled,
            )
    first = min(reports, key=lambda one: one.rank)
    return RankError(
        f"a collective failed {where} on all ranks: {says}; on rank {first.rank}: {first.cause}. Check "
        "that no rank was stopped for longer than the time-out, and the network."
    )


def _split(column: Sequence[Any]) -> tuple[list[int], list[list[int]]]:
    """Group ranks by their values; return the largest group, and a list of the other groups."""
    groups: list[list[int]] = []
    for rank, value in enumerate(column):
        for group in groups:
            if column[group[0]] == value:
                group.append(rank)
                break
        else:
            groups.append([rank])
    usual = max(groups, key=len)  # the first of the largest, so rank 0's in a tie
    return usual, [group for group in groups if group is not usual]


def _hosts(hosts: Sequence[str], ranks: Sequence[int]) -> str:
    return ", ".join(dict.fromkeys(hosts[rank] for rank in ranks))
