"""Tensor parallelism: each rank computes a part of every cut layer, on the same rows of the batch.

Read next: `_split_model.py` (which layers are cut), `_split_layers.py` (what they compute).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ftrain.core._torch_collectives import Group, group_of
from ftrain.core.ranks import Ranks
from ftrain.core.step import Steps
from ftrain.distributed._running_statistics import BufferChoice
from ftrain.distributed._sharded_steps import Parts, checked_steps, sharded_steps
from ftrain.distributed._shards import TensorShards
from ftrain.distributed._split_model import Rules, SplitBound

__all__ = ["tensor_parallel"]


def tensor_parallel(
    steps: Steps,
    mesh: DeviceMesh,
    rules: Rules,
    *,
    buffers: Mapping[str, BufferChoice] | None = None,
) -> Steps:
    """Return steps on ranks that each compute a part of the selected layers, on the same batch rows.

    They compute what one process computes on the batch, but for rounding. A rule names `nn.Linear` and
    `nn.Embedding` layers by a pattern of their paths:

    - `"column"`: a rank has some output features.
    - `"row"`: a rank has some input features (of an embedding: some of the vocabulary), and the products
      of all ranks are summed.

    Models need no change: an input is whole on every rank, and an output is gathered by the first
    function that reads it, unless that is elementwise or a row-wise layer. So a column-wise layer, an
    activation and a row-wise layer (the two halves of an MLP) take one all-reduce of the output, and one
    in the backward pass. Any other order is right as well, but costs traffic. Dropout masks are those of
    one process.

    Each rank holds rows of the weights, 1/W of them and of their optimizer state, whichever way a layer
    is cut; a row-wise layer exchanges them for columns in each micro-batch (an all-to-all of 1/W of the
    weight). States are laid out like those of `fully_sharded`, so optimizers, clipping, `shard`,
    `unshard`, `ShardedStore` and averages work alike. Parameters of other layers are replicated.

    Args:
        steps: of `make_steps`.
        mesh: the ranks, a mesh with one axis; all take the same batch. Or a mesh with two named axes, of
            which the second cuts layers, and ranks along the first have rows of their own, as of
            `data_parallel`: `Loader(rank=mesh.get_local_rank(0), ranks=mesh.size(0))`.
        rules: `"column"` or `"row"` for patterns of the paths of layers, as of `ftrain.remat`:
            `{"blocks.*.inner": "column", "blocks.*.outer": "row"}`. Weights that are tied may be cut in
            both ways. Frozen parameters are replicated.
        buffers: as of `data_parallel`.

    Returns:
        Steps whose states are parts; `init_state` draws the whole initial parameters on each rank.

    Raises:
        TypeError: the steps are not those of `make_steps`.
        ValueError: a pattern selects no layer, or one that cannot be cut (another class, an embedding
            with `max_norm`, `scale_grad_by_freq` or `sparse`); a parameter has a hook; a transformation
            has wrapped the steps; the mesh has more than two axes.
        NotImplementedError: in a step, as of `fully_sharded`; derivatives of a step.

    Example:
        >>> import ftrain, torch
        >>> from ftrain import distributed, optim
        >>> def model():
        ...     return nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2))
        >>> steps = ftrain.make_steps(model, lambda m, x: m(x).square().mean(), optim.adamw(1e-3))
        >>> with distributed.initialize(device="cpu") as mesh:
        ...     parallel = tensor_parallel(steps, mesh, {"0": "column", "2": "row"})
        ...     state, metrics = parallel.train_step(parallel.init_state(seed=0), torch.ones(4, 3))
        >>> int(state.step)
        1

    References:
        Shoeybi et al. (2019), [Megatron-LM](https://arxiv.org/abs/1909.08053).
    """
    if mesh.ndim > 2 or (mesh.ndim == 2 and mesh.mesh_dim_names is None):
        raise ValueError(
            "mesh: expected one axis, or two axes with names (layers are cut over the second), got "
            f"{mesh.ndim} axes {mesh.mesh_dim_names}. Write init_device_mesh(..., "
            "mesh_dim_names=('data', 'tensor'))."
        )
    step, _ = checked_steps(steps)
    batch = Group("", 0, 1) if mesh.ndim == 1 else group_of(mesh, 0)
    group = group_of(mesh, mesh.ndim - 1)
    bound = SplitBound(step.model, rules, group)
    rows = list(bound.rows.values())

    def build(module: nn.Module, accumulate: int) -> Ranks:
        return TensorShards(batch, module, accumulate, buffers or {}, rows, group)

    return sharded_steps(steps, Parts(bound, rows, group, batch), build)
