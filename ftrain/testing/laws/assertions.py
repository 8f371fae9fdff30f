"""Assertions of the laws that a training step obeys, one per law.

Each takes a step `(state, batch) -> (state, metrics)`, compiled or not, ftrain's or your own, and raises
an `AssertionError` that names what broke and where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._owned import Owned
from ftrain.core._reach import spell
from ftrain.testing._world import changes, world
from ftrain.testing.compare import assert_same_bits, describe_difference

__all__ = [
    "assert_deterministic",
    "assert_evaluation_is_pure",
    "assert_fixpoint",
    "assert_pure",
    "assert_resumes",
    "assert_rows_close",
    "assert_skips",
    "assert_vmap_rows",
]

Step = Callable[[Any, Any], tuple[Any, Any]]


def assert_pure(fn: Callable[..., Any], *args: Any, model: Any = None) -> None:
    """Raise unless law 1 holds: no input or global state changes, and no output aliases an input.

    The global state is the random states of torch, NumPy and Python, and torch's modes and settings.

    Args:
        fn: the function.
        *args: its arguments.
        model: a module or other object that `fn` reads. It must keep its attributes, its hooks and
            all objects that it holds: nested containers, instances, the data of its classes.

    >>> assert_pure(lambda x: x + 1, torch.zeros(3))
    >>> assert_pure(lambda x: x.add_(1), torch.zeros(3))
    Traceback (most recent call last):
        ...
    AssertionError: an input changed: [0]: 3 of 3 elements, first at (0,): 1.0 against 0.0
    >>> counts = {"calls": [0]}
    >>> assert_pure(lambda: counts["calls"].append(1), model=counts)
    Traceback (most recent call last):
        ...
    AssertionError: the call changed ['calls'] of the model
    """
    before = tree.map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, args)
    owned = Owned([("", model)])
    tensors = {spell(path): t for path, t in owned.found.tensors if not t.is_meta}
    held = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    around = world()
    out = fn(*args)
    inputs = [x for x in tree.leaves(args) if isinstance(x, torch.Tensor)]
    kept = [x for x in tree.leaves(before) if isinstance(x, torch.Tensor)]
    assert_same_bits(inputs, kept, "an input changed")
    for what in changes(around):
        raise AssertionError(f"the call changed the {what}")
    changed, unrestored = owned.restore()
    for change in changed:
        where = owned.path(change.node)
        changed_part = f"{where} of the model" if where else "the model itself"
        raise AssertionError(f"the call changed {changed_part}")
    for refusal in unrestored:
        raise AssertionError(refusal)
    assert_same_bits(tensors, held, "a tensor of the model changed")
    memory: dict[int, str] = {}
    for path, leaf in zip(tree.paths(args), tree.leaves(args), strict=True):
        if isinstance(leaf, torch.Tensor) and leaf.numel():
            memory[leaf.untyped_storage().data_ptr()] = f"input {path}"
    for name, tensor in tensors.items():
        if tensor.numel():
            memory[tensor.untyped_storage().data_ptr()] = f"{name} of the model"
    for path, leaf in zip(tree.paths(out), tree.leaves(out), strict=True):
        if isinstance(leaf, torch.Tensor) and leaf.numel():
            owner = memory.get(leaf.untyped_storage().data_ptr())
            assert owner is None, f"output {path} shares memory with {owner}"


def assert_deterministic(fn: Callable[..., Any], *args: Any, times: int = 2) -> None:
    """Raise unless law 2 holds: calls with equal input bytes return equal output bytes."""
    first = fn(*args)
    for _ in range(times - 1):
        assert_same_bits(fn(*args), first, "two equal calls differ")


def assert_fixpoint(step: Step, state: Any, batch: Any) -> None:
    """Raise unless law 3 holds: the state keeps its structure, shapes, dtypes, devices and strides."""
    was = _layout(state)
    new_state, _ = step(state, batch)
    now = _layout(new_state)
    assert was.keys() == now.keys(), f"leaves differ: {sorted(was.keys() ^ now.keys())}"
    for path, layout in was.items():
        assert layout == now[path], f"state{path} was {layout}, is {now[path]}"


def assert_skips(
    step: Step,
    state: Any,
    poisoned_batch: Any,
    *,
    moving: Sequence[str] = ("rng",),
    free: Sequence[str] = ("scaler",),
) -> None:
    """Raise unless law 6 holds: a step with non-finite gradients changes only scaler and key.

    Args:
        step: the step; its metrics have an entry `skipped`.
        state: a `TrainState`, or a tree of another class with fields or keys.
        poisoned_batch: a batch whose gradients are not finite.
        moving: fields of the state that must change, if it has them: the key.
        free: fields of the state that may change.

    Example:
        >>> def step(state, batch):
        ...     ok = torch.isfinite(batch).all()
        ...     w = torch.where(ok, state["w"] - batch, state["w"])
        ...     return {"w": w, "key": state["key"] + 1}, {"skipped": ~ok}
        >>> state = {"w": torch.zeros(2), "key": torch.tensor(0)}
        >>> assert_skips(step, state, torch.tensor([torch.nan, 1.0]), moving=["key"])
    """
    kept = tree.map(torch.clone, state)
    new_state, metrics = step(state, poisoned_batch)
    assert "skipped" in metrics, f"the step reports no metric 'skipped'; it has {[*metrics]}"
    assert int(metrics["skipped"]) == 1, "the step was not skipped"
    difference = tree.first_difference(kept, new_state)
    assert difference is None, f"a skipped step changed the state: {difference}"
    before, after = tree.one_level(kept), tree.one_level(new_state)
    if not before:  # a tensor by itself
        assert_same_bits(new_state, kept, "a skipped step changed the state")
    for path, was in before.items():
        name = path.strip(".[]'")
        if name in moving:
            changed = describe_difference(after[path], was)
            assert changed is not None, f"a skipped step must change state{path}, but kept it"
        elif name not in free:
            assert_same_bits(after[path], was, f"a skipped step changed the state at {path}")


def assert_resumes(step: Step, state: Any, batches: Iterable[Any]) -> None:
    """Raise unless law 7 holds: a run resumed from the state's bytes computes the same bits.

    Each leaf passes through numpy and comes back in fresh memory, as from a checkpoint.
    """
    for i, batch in enumerate(batches):
        reloaded = tree.map(_through_bytes, state)
        assert_same_bits(reloaded, state, f"reloading before step {i} changed the state")
        resumed, resumed_metrics = step(reloaded, batch)
        state, metrics = step(state, batch)
        assert_same_bits(resumed, state, f"resuming before step {i} gave another state")
        assert_same_bits(resumed_metrics, metrics, f"resuming before step {i} gave other metrics")


def assert_vmap_rows(
    step: Step, states: list[Any], batch: Any, *, relative: float = 0.0, compile: Any = None
) -> None:
    """Raise unless law 8 holds: each row of a vmapped step equals the step of that row alone.

    Args:
        step: the step.
        states: the rows.
        batch: one batch, the same for each row.
        relative: the largest relative distance of a row's state (a batched matrix product may sum in
            another order than a single one); 0 requires the same bits.
        compile: applied to the vmapped step; `ftrain.compile`, say.
    """
    stacked = tree.map(lambda *leaves: torch.stack(leaves), *states)
    vmapped = torch.vmap(step, in_dims=(0, None))
    together, _ = (compile(vmapped) if compile else vmapped)(stacked, batch)
    for i, state in enumerate(states):
        alone, _ = step(state, batch)
        row = tree.map(lambda leaf, i=i: leaf[i], together)
        assert_rows_close(
            row,
            alone,
            relative,
            f"row {i} of the vmapped step differs from the step of that row alone",
        )


def assert_rows_close(found: Any, expected: Any, relative: float, message: str) -> None:
    """Raise unless each float leaf agrees within `relative` in norm, each other leaf in bytes."""
    if relative == 0.0:
        assert_same_bits(found, expected, message)
        return
    for path, a, b in zip(
        tree.paths(found), tree.leaves(found), tree.leaves(expected), strict=True
    ):
        if not a.is_floating_point():
            assert_same_bits(a, b, f"{message}: {path}")
            continue
        apart = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)
        assert float(apart) <= relative, f"{message}: {path} is {float(apart):.3g} apart"


def assert_evaluation_is_pure(
    step: Step, evaluate: Callable[[Any, Any], Any], state: Any, batch: Any
) -> None:
    """Raise unless law 10 holds: evaluations between steps do not change a run."""
    plain, _ = step(state, batch)
    assert_pure(evaluate, state, batch)
    evaluate(state, batch)
    watched, _ = step(state, batch)
    assert_same_bits(watched, plain, "evaluation changed training")


def _layout(state: Any) -> dict[str, tuple[Any, ...]]:
    return {
        path: (tuple(leaf.shape), leaf.dtype, leaf.device, leaf.stride())
        for path, leaf in zip(tree.paths(state), tree.leaves(state), strict=True)
    }


def _through_bytes(leaf: torch.Tensor) -> torch.Tensor:
    plain = leaf.detach().cpu().clone(memory_format=torch.contiguous_format)
    flat = plain.reshape(-1).view(torch.uint8)
    payload = flat.numpy().tobytes()
    fresh = torch.empty_like(leaf)
    if payload:
        # reshape: a 0-d tensor cannot be viewed in a dtype of another size.
        loaded = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        fresh.copy_(loaded.view(leaf.dtype).reshape(leaf.shape))
    return fresh
