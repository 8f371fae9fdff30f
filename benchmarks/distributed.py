"""Time and traffic of parallel steps, compared with torch's DDP and FSDP2, on two gloo ranks.

Each rank has one thread. All contenders train one MLP with AdamW on the same rows from the same weights,
take turns in each round, and wait for each other before each turn. Traffic is the number of bytes that a
rank sends in a step by the ring algorithms.
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
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import ftrain
from benchmarks.measure import Report, Turns, arguments, die_unless
from ftrain import optim
from ftrain.core._torch_fake_ranks import Traffic
from ftrain.distributed import data_parallel, fully_sharded

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


#: Contenders of ftrain by name.
STRATEGIES = {"ftrain": data_parallel, "ftrain, sharded": fully_sharded}


def ours(
    mesh: Any, width: int, batch: Any, backend: str | None, strategy: Any = data_parallel
) -> Callable[[], float]:
    start = model(width)
    steps = ftrain.make_steps(start, loss_fn, optim.adamw(1e-3, weight_decay=0.01))
    init_state, step, _ = strategy(steps, mesh)
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
    return hand_written(module, batch, backend)


def fsdp2(mesh: Any, width: int, batch: Any, backend: str | None) -> Any:
    module = model(width)
    for layer in module:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return hand_written(module, batch, backend)


def hand_written(module: Any, batch: Any, backend: str | None) -> Callable[[], float]:
    """Return a step of torch's AdamW on a module that reduces its gradients itself."""
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3, weight_decay=0.01, fused=True)
    call = module if backend is None else torch.compile(module, backend=backend)

    def one() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn(call, batch)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return one


class Sent(TorchDispatchMode):
    """Count of the bytes that a rank sends in torch's own collectives, by the ring algorithms."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic(RANKS)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = {
            "c10d::allreduce_": "all_reduce",
            "c10d::_allgather_base_": "all_gather_into_tensor",
            "c10d::_reduce_scatter_base_": "reduce_scatter_tensor",
        }
        name = names.get(func._schema.name)
        if name == "all_reduce":
            size = sum(x.nbytes for x in args[0])
            self.traffic.add(name, RANKS, size, size)
        elif name is not None:
            self.traffic.add(name, RANKS, args[1].nbytes, args[0].nbytes)
        return func(*args, **(kwargs or {}))


def traffic(mesh: Any, width: int, batch: Any) -> dict[str, float]:
    """Return the KiB that a rank sends in one eager step, by name."""
    found = {}
    handed = Bytes()
    one = ddp(width, batch, None, handed)
    one()  # DDP forms new buckets after the first step
    handed.count = 0
    one()
    found["DDP"] = 2 * (RANKS - 1) / RANKS * handed.count / KIB
    one = fsdp2(mesh, width, batch, None)
    one()
    sent = Sent()
    with sent:
        one()
    found["FSDP2"] = sent.traffic.sent / KIB
    for name, strategy in STRATEGIES.items():
        one, counted = ours(mesh, width, batch, None, strategy), Traffic(RANKS)
        with counted.counted():
            one()
        found[name] = counted.sent / KIB
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
            ("ftrain, sharded", lambda how: ours(mesh, width, batch, how, fully_sharded)),
            ("FSDP2", lambda how: fsdp2(mesh, width, batch, how)),
        ):
            torch.manual_seed(0)  # both start from the same weights
            contenders[f"{name}, {kind}"] = one = made(how)
            mean = []
            for _ in range(5):
                loss = torch.tensor(one())
                if name in ("DDP", "FSDP2"):  # of this rank's rows only
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
    report = Report("distributed", "Many ranks: two gloo ranks, one thread each")
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
        for own, theirs in (("ftrain", "DDP"), ("ftrain, sharded", "FSDP2")):
            ratio = turns.ratio(f"{own}, {kind}", f"{theirs}, {kind}")
            report.target(f"{kind}: time of {own} over {theirs}", ratio, "at most", 1.0)
    report.section("Bytes that a rank sends in a step, by the ring algorithms, in")
    for name, size in found["traffic"].items():
        report.figure(f"traffic: {name}", size, "KiB", name)
    return report


if __name__ == "__main__":
    options = arguments(__doc__)
    finished = run(options.quick, "eager" if options.quick else "inductor")
    if not options.no_save:
        finished.save()
