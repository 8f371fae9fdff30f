"""Checks, compute dtypes and layouts of leaves, shared by the algorithms.

The checks read structure, shapes and dtypes only, never values: they cost no host sync, and nothing
at all in a compiled step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ftrain.core import tree
from ftrain.core._words import a_or_an
from ftrain.optim.protocol import Hyperparameter, PyTree

__all__ = [
    "add_scaled",
    "compute_dtype",
    "first_device",
    "matching_leaves",
    "parameters",
    "safe_sqrt",
    "scalars_by_device",
    "within",
    "zeros_like",
]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of moments and updates: at least float32."""
    return torch.promote_types(dtype, torch.float32) if dtype.itemsize > 1 else torch.float32


def parameters(params: PyTree) -> tuple[list[torch.Tensor], tree.TreeDef]:
    """Return the leaves of a parameter tree, each checked to be a floating-point tensor."""
    return _floating(
        params,
        "parameter",
        "Only floating-point tensors can be optimized: leave all others out of `params` (ftrain keeps "
        "them in the state's `buffers`).",
    )


def gradients(grads: PyTree) -> tuple[list[torch.Tensor], tree.TreeDef]:
    """Return the leaves of a gradient tree, each checked to be a dense floating-point tensor."""
    return _floating(
        grads,
        "gradient",
        "Pass dense floating-point gradients (`.to_dense()` converts a sparse one).",
    )


def matching_leaves(
    first: tuple[str, PyTree], *rest: tuple[str, PyTree], strict_dtype: bool = True
) -> tuple[tuple[list[torch.Tensor], ...], tree.TreeDef]:
    """Return the leaves of several trees; raise unless all match the first in structure, shape, dtype.

    With `strict_dtype` a leaf may have the dtype of the first tree's leaf or its compute dtype;
    otherwise any floating dtype.
    """
    first_name, first_tree = first
    expected, treedef = tree.flatten(first_tree)
    columns = [expected]
    for name, other in rest:
        found, found_def = tree.flatten(other)
        if found_def != treedef:
            for field, value in ((first_name, first_tree), (name, other)):
                if field.startswith("state.") and isinstance(value, tuple) and not value:
                    raise ValueError(
                        f"`{field}` is empty: the optimizer that made this state had other options. "
                        "Pass the same options, or create a new state with `init(params)`."
                    )
            raise ValueError(
                f"`{name}` and `{first_name}` differ in structure "
                f"{tree.first_difference(other, first_tree)}. Pass gradients for exactly "
                "the parameters that were passed to `init`; leave out frozen parameters in both calls."
            )
        for index, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
            problem = _mismatch(ours, theirs, strict_dtype)
            if problem:
                kind, text = problem
                path = tree.paths(first_tree)[index] or "the root"
                raise kind(f"`{name}` at {path}: {text.format(name=first_name)}")
        columns.append(found)
    return tuple(columns), treedef


def zeros_like(params: PyTree) -> PyTree:
    """Return a tree of zeros in the shapes of the parameters and the dtypes of their moments."""
    leaves, treedef = parameters(params)
    return tree.unflatten(
        treedef, [torch.zeros_like(p, dtype=compute_dtype(p.dtype)) for p in leaves]
    )


def first_device(leaves: Sequence[torch.Tensor]) -> torch.device:
    """Return the device of the first leaf, where counts and rates are kept."""
    return leaves[0].device if leaves else torch.device("cpu")


def scalars_by_device(
    *scalars: Hyperparameter,
) -> Callable[[torch.device, torch.dtype], tuple[Hyperparameter, ...]]:
    """Return a function that converts the scalars to a given device and dtype, and caches the result.

    Scalars in float64 would widen 0-d parameters. Python numbers pass through. Two or more tensors
    are stacked, because inductor writes a stack to memory: otherwise it repeats the whole schedule and
    both powers in the inner loop of every parameter (AdamW on the 27 parameters of a small GPT, one
    core: 3.0 ms against 0.5 ms).
    """
    tensors = [s for s in scalars if isinstance(s, torch.Tensor)]
    done: dict[tuple[torch.device, torch.dtype], tuple[Hyperparameter, ...]] = {}

    def place(device: torch.device, dtype: torch.dtype) -> tuple[Hyperparameter, ...]:
        if not tensors:
            return scalars
        if (device, dtype) not in done:
            here = [t.to(device=device, dtype=dtype) for t in tensors]
            entries = iter(torch.stack(here if len(here) > 1 else here * 2).unbind())
            done[device, dtype] = tuple(
                next(entries) if isinstance(s, torch.Tensor) else s for s in scalars
            )
        return done[device, dtype]

    return place


def add_scaled(x: torch.Tensor, y: torch.Tensor, factor: Hyperparameter) -> torch.Tensor:
    """Return `x + factor y`; on the CPU it is rounded once, as in `torch.optim`."""
    if isinstance(factor, torch.Tensor):
        return torch.addcmul(x, y, factor)
    return torch.add(x, y, alpha=factor)


def within(x: torch.Tensor, bound: Hyperparameter) -> torch.Tensor:
    """Return `x` with each entry clamped to `[-bound, bound]`."""
    # clamp accepts numbers and tensors; its stubs require both bounds to be of one kind.
    return torch.clamp(x, -bound, bound)  # type: ignore[arg-type]


def safe_sqrt(squares: torch.Tensor) -> torch.Tensor:
    """Return the square root, with derivative 0 at 0 instead of infinity.

    An entry whose gradients were all zero (a row of an embedding that no batch has used) would make
    every hypergradient NaN. Values below the smallest normal number count as that number: beside an
    `eps` of 1e-11 or more the result equals `sqrt` to the bit, and without one `0 / safe_sqrt(0)` is 0.
    """
    return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()


def _floating(values: PyTree, noun: str, remedy: str) -> tuple[list[torch.Tensor], tree.TreeDef]:
    flat, treedef = tree.flatten(values)
    for index, leaf in enumerate(flat):
        problem = _not_floating(leaf)
        if problem:
            path = tree.paths(values)[index] or "the root"
            if isinstance(leaf, torch.Tensor) and leaf.is_complex():
                remedy = "Make real and imaginary parts the parameter, torch.view_as_real(x)."
            raise TypeError(f"the {noun} at {path} is {problem}. {remedy}")
    return flat, treedef


def _not_floating(leaf: object) -> str | None:
    if not isinstance(leaf, torch.Tensor):
        return f"{a_or_an(type(leaf).__name__)}, not a tensor"
    if not leaf.is_floating_point():
        return f"of dtype {leaf.dtype}"
    if leaf.layout is not torch.strided:
        return f"of layout {leaf.layout}"
    return None


def _mismatch(
    ours: torch.Tensor, theirs: object, strict_dtype: bool
) -> tuple[type[Exception], str] | None:
    if not isinstance(theirs, torch.Tensor):
        return TypeError, f"expected a tensor, got {a_or_an(type(theirs).__name__)}."
    if theirs.layout is not torch.strided:
        return TypeError, f"layout {theirs.layout}. Make it dense first (`.to_dense()`)."
    if theirs.shape != ours.shape:
        return ValueError, (
            f"shape {tuple(theirs.shape)}, but `{{name}}` has {tuple(ours.shape)} there. "
            "Updates are not broadcast: give it the same shape."
        )
    if theirs.dtype is ours.dtype or (not strict_dtype and theirs.is_floating_point()):
        return None
    if theirs.dtype is compute_dtype(ours.dtype):
        return None
    return TypeError, (
        f"dtype {theirs.dtype}, but `{{name}}` has {ours.dtype} there. "
        f"Convert it with `.to({ours.dtype})`."
    )
