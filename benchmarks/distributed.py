"""Time and traffic of a data-parallel step, compared with torch's DDP, on two gloo ranks.

Each rank has one thread. All contenders train one MLP with AdamW on the same rows from the same weights,
take turns in each round, and wait for each other before each turn. Traffic is the number of bytes that a
rank passes to collectives in a step.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import ftrain
from benchmarks.measure import Report, Turns, arguments, die_unless
from ftrain import optim
from ftrain.distributed import _buckets, data_parallel

RANKS = 2
KIB = 1024.0


def model(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 10)
    )


def loss_fn(module: Any, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(module(batch["x"]), batch["y"])


class Bytes:
    """Counter of the bytes that a rank passes to collectives."""

    def __init__(self) -> None:
        self.count = 0

    def counting(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a collective so that it adds the bytes of its tensors to the count."""

        def counted(tensors: Any, *args: Any) -> Any:
            each = tensors if isinstance(tensors, list) else [tensors]
            self.count += sum(x.numel() * x.element_size() for x in each)
            return collective(tensors, *args)

        return counted


def ours(mesh: Any, width: int, batch: Any, backend: str | None) -> Callable[[], float]:
    start = model(width)
    steps = ftrain.make_steps(start, loss_fn, optim.adamw(1e-3, weight_decay=0.01))
    init_state, step, _ = data_parallel(steps, mesh)
    call: Any = step if backend is None else ftrain.compile(step, backend=backend, donate=True)
    now = [init_state(0)]

    def one() -> float:
        now[0], metrics = call(now[0], batch)
        return float(metrics["loss"])

    return one


def ddp(width: int, batch: Any, backend: str | None, sent: Bytes | None = None) -> Any:
    module = DistributedDataParallel(model(width))
    if sent is not None:

        def hook(state, bucket):  # DDP compares annotations with its classes
            sent.count += bucket.buffer().numel() * bucket.buffer().element_size()
            return allreduce_hook(dist.group.WORLD, bucket)

        module.register_comm_hook(None, hook)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3, weight_decay=0.01, fused=True)
    call = module if backend is None else torch.compile(module, backend=backend)

    def one() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn(call, batch)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return one


def traffic(mesh: Any, width: int, batch: Any) -> dict[str, float]:
    """Return the KiB that DDP and ftrain pass to collectives in one eager step, by name."""
    found = {}
    theirs, own = Bytes(), Bytes()
    one = ddp(width, batch, None, theirs)
    one()  # DDP forms new buckets after the first step
    theirs.count = 0
    one()
    found["DDP"] = theirs.count / KIB
    step = ours(mesh, width, batch, None)
    plain = _buckets.all_reduce_each, _buckets.all_gather
    _buckets.all_reduce_each, _buckets.all_gather = map(own.counting, plain)
    try:
        step()
    finally:
        _buckets.all_reduce_each, _buckets.all_gather = plain
    found["ftrain"] = own.count / KIB
    return found


def measure(rank: int, folder: str, quick: bool, backend: str) -> None:
    """Time all contenders on one rank; rank 0 writes the result into the folder."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    mesh = dist.init_device_mesh("cpu", (RANKS,))
    width, rows, rounds, calls = (16, 8, 2, 1) if quick else (768, 128, 9, 10)
    torch.manual_seed(1 + rank)
    batch = {"x": torch.randn(rows, width), "y": torch.randint(0, 10, (rows,))}
    contenders: dict[str, Callable[[], float]] = {}
    losses: dict[str, list[float]] = {}
    for kind, how in (("eager", None), ("compiled", backend)):
        for name, made in (
            ("ftrain", lambda how: ours(mesh, width, batch, how)),
            ("DDP", lambda how: ddp(width, batch, how)),
        ):
            torch.manual_seed(0)  # both start from the same weights
            contenders[f"{name}, {kind}"] = one = made(how)
            mean = []
            for _ in range(5):
                loss = torch.tensor(one())
                if name == "DDP":  # of this rank's rows only
                    dist.all_reduce(loss)
                    loss = loss / RANKS
                mean.append(float(loss))
            losses[f"{name}, {kind}"] = mean
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            dist.barrier()
            start = time.perf_counter()
            for _ in range(calls):
                contenders[name]()
            seconds[name].append((time.perf_counter() - start) / calls)
    sent = traffic(mesh, width, batch)
    if rank == 0:
        content = {"seconds": seconds, "losses": losses, "traffic": sent}
        pathlib.Path(folder, "result.json").write_text(json.dumps(content))
    dist.barrier()
    dist.destroy_process_group()


def run(quick: bool = False, backend: str = "inductor") -> Report:
    report = Report("distributed", "Data parallelism: two gloo ranks, one thread each")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=measure, args=(rank, folder, quick, backend))
            for rank in range(RANKS)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        die_unless(all(rank.exitcode == 0 for rank in ranks), "a rank failed")
        found = json.loads(pathlib.Path(folder, "result.json").read_text())
    first = found["losses"]["ftrain, eager"]
    for name, losses in found["losses"].items():
        apart = max(abs(a - b) / abs(b) for a, b in zip(losses, first, strict=True))
        die_unless(apart < 1e-4, f"{name} computes other losses, {apart:.2g} apart")
    report.section("Time of a step, in")
    turns = Turns(found["seconds"])
    report.turns("step", turns)
    for kind in ("eager", "compiled"):
        ratio = turns.ratio(f"ftrain, {kind}", f"DDP, {kind}")
        report.target(f"{kind}: time of ftrain over DDP", ratio, "at most", 1.0)
    report.section("Bytes that a rank hands to collectives in a step, in")
    for name, size in found["traffic"].items():
        report.figure(f"traffic: {name}", size, "KiB", name)
    return report


if __name__ == "__main__":
    options = arguments(__doc__)
    finished = run(options.quick, "eager" if options.quick else "inductor")
    if not options.no_save:
        finished.save()
