"""Memory, FLOPs, steps and parameters of a configured run, determined without training.

One gradient is computed in eager mode, to count the memory that is kept for the backward pass.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import ftrain
from ftrain.config._environment import environment
from ftrain.config.build import Parts, build
from ftrain.config.schema import Config
from ftrain.core import tree
from ftrain.core.step import TrainStep

__all__ = ["dry_run", "first_batch"]

_ENTRY = re.compile(r"\['(\w+)'\]")  # the path of a dict's


def dry_run(config: Config, world_size: int | None = None) -> str:
    """Return a table of the memory, FLOPs, steps and parameters that training would need.

    Args:
        config: the configuration.
        world_size: the number of ranks that train together; the table then describes one rank, with its
            traffic per step. `None`: one process.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(environment(config))
        mesh, traffic = None, None
        if world_size is not None:
            # A torch without torch.distributed cannot import it.
            from ftrain.core._torch_fake_ranks import Traffic, fake_mesh  # noqa: PLC0415

            mesh, traffic = stack.enter_context(fake_mesh(world_size, "cpu")), Traffic(world_size)
        parts = build(config, mesh=mesh)
        batch = first_batch(parts.train)
        state = parts.init_state()
        with contextlib.nullcontext() if traffic is None else traffic.counted():
            flops, kept = _measured(parts, state, batch)
    config = parts.config
    params = list(state.params.values())
    carried = [leaf for leaf in tree.leaves(state.opt_state) if isinstance(leaf, torch.Tensor)]
    gradients, gathered = _bytes(params), _gathered(parts)
    total = _bytes(tree.leaves(state)) + gradients + gathered + kept + _bytes(tree.leaves(batch))
    steps = parts.total_steps
    per_epoch = len(parts.train) if hasattr(parts.train, "__len__") else None
    epochs = f", {steps / per_epoch:.4g} epochs of {per_epoch:,}" if steps and per_epoch else ""
    rows = [
        ("model", config.model.name),
        ("parameters", f"{sum(p.numel() for p in params):,} in {len(params)} tensors"),
        ("batch", _described(batch)),
        ("steps", f"{steps:,}{epochs}" if steps else "unknown: the data has no length"),
        ("held out", _batches(parts.held_out)),
        (
            "FLOPs",
            f"{_quantity(flops)} a step"
            + (f", {_quantity(flops * steps)} in all" if steps else ""),
        ),
        ("memory", f"{_size(total)}, about, on {parts.device}"),
        ("  parameters", _size(_bytes(params))),
        ("  buffers", _size(_bytes(state.buffers.values()))),
        ("  optimizer", f"{_size(_bytes(carried))} ({config.optimizer.name})"),
        ("  gradients", _size(gradients)),
        *(
            [("  gathered", f"{_size(gathered)} (whole parameters at one time, and gradients)")]
            if gathered
            else []
        ),
        ("  activations", f"{_size(kept)} (kept for the backward pass, eager)"),
        *(_ranks(traffic, config, flops) if traffic else ()),
        ("precision", config.precision),
        ("run directory", f"{config.folder}{_occupied(config)}"),
    ]
    return "\n".join(f"{name:<16}{value}" for name, value in rows)


def _gathered(parts: Parts) -> int:
    """Return the bytes of unsharded parameters and gradients in memory during a sharded step."""
    step = parts.steps.train_step
    is_sharded = parts.config.distributed.strategy == "fully_sharded" and parts.mesh is not None
    return 2 * step.model.gathered_bytes() if is_sharded else 0  # type: ignore[attr-defined]


def _ranks(traffic: Any, config: Config, flops: int) -> list[tuple[str, str]]:
    """Return the table rows about the ranks and the bytes that each of them sends per step."""
    options = config.distributed
    strategy: str = "data_parallel" if options.strategy == "none" else options.strategy
    if options.mesh is not None:
        strategy += f" on a mesh of {' x '.join(map(str, options.mesh))}"
    shards = options.logical_shards
    strategy += f", {shards} logical shards" if shards else ""
    ratio = f", {flops / traffic.sent:.3g} FLOPs a byte" if traffic.sent else ""
    return [
        ("ranks", f"{traffic.size:,}, {strategy}; batch, FLOPs and memory are those of one rank"),
        (
            "traffic",
            f"{_size(round(traffic.sent))} sent by each rank a step, in {traffic.collectives} "
            f"collectives{ratio}",
        ),
    ]


def _occupied(config: Config) -> str:
    if not (config.folder / "config.yaml").is_file():
        return ""
    return " (holds a run: resume it, or write output_dir=... or --overwrite)"


def first_batch(train: Any) -> Any:
    """Return the first batch of training data."""
    return train[0] if isinstance(train, list) else next(iter(train.batches()))[0]


def _measured(parts: Parts, state: ftrain.TrainState, batch: Any) -> tuple[int, int]:
    """Return the FLOPs of a forward and backward pass, and the bytes kept for the backward pass."""
    config = parts.config
    step = parts.steps.train_step
    assert isinstance(step, TrainStep)
    own = {leaf.untyped_storage().data_ptr() for leaf in tree.leaves((state, batch))}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda t: t):
        step.gradients(state, batch)
    return counter.get_total_flops(), sum(seen.values()) // config.accumulate


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def _described(batch: Any) -> str:
    leaves = zip(tree.paths(batch), tree.leaves(batch), strict=True)
    return ", ".join(f"{_named(path)} {_dtype(leaf)} {tuple(leaf.shape)}" for path, leaf in leaves)


def _named(path: str) -> str:
    """Shorten a pytree path: `['a']['b']` becomes `a/b`."""
    return _ENTRY.sub(r"/\1", path).lstrip("/") or "tensor"


def _dtype(leaf: torch.Tensor) -> str:
    return str(leaf.dtype).removeprefix("torch.")


def _batches(held_out: Any) -> str:
    if held_out is None:
        return "none, so no evaluation"
    return f"{len(held_out):,} batches" if hasattr(held_out, "__len__") else "a stream"


def _size(count: int) -> str:
    return _scaled(count, 1024, ("bytes", "KiB", "MiB", "GiB", "TiB"))


def _quantity(count: int) -> str:
    return _scaled(count, 1000, ("", "thousand", "million", "billion", "trillion", "quadrillion"))


def _scaled(count: float, by: int, units: tuple[str, ...]) -> str:
    power = 0
    while count >= by and power < len(units) - 1:
        count, power = count / by, power + 1
    return f"{count:.3g} {units[power]}".rstrip()
