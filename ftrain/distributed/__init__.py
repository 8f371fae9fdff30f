"""Pure training steps on many ranks (processes), with the collectives of `torch.distributed`.

Each process (rank) runs the same functions on its own rows of a batch; collectives are operators of
the step's graph. There are no wrapper modules, no hooks and no launcher: torchrun or SLURM starts the
processes, and a `DeviceMesh` names them.

W ranks with `accumulate=a` compute what one process with `accumulate=W*a` computes on the whole batch.
Rank `r` has the micro-batches `r*a` to `r*a + a - 1` of that process: their rows
(`data.Loader(rank=r, ranks=W)`), and their random keys, so that dropout masks agree. Gradients are
summed with their weights and divided once; metrics are merged in rank order. All ranks hold the same
state, and either all of them skip a step or none does.
"""

from ftrain.distributed._sharded_steps import ShardedStep
from ftrain.distributed.agreement import agree, check_same, gather, together
from ftrain.distributed.data_parallel import data_parallel
from ftrain.distributed.dcp import from_dcp, to_dcp
from ftrain.distributed.errors import RankError
from ftrain.distributed.fully_sharded import fully_sharded
from ftrain.distributed.initialize import initialize
from ftrain.distributed.load import load
from ftrain.distributed.save import save
from ftrain.distributed.sharding import Sharding, shard, sharding_of, unshard
from ftrain.distributed.store import ShardedStore
from ftrain.distributed.tensor_parallel import tensor_parallel

__all__ = [
    "RankError",
    "ShardedStep",
    "ShardedStore",
    "Sharding",
    "agree",
    "check_same",
    "data_parallel",
    "from_dcp",
    "fully_sharded",
    "gather",
    "initialize",
    "load",
    "save",
    "shard",
    "sharding_of",
    "tensor_parallel",
    "to_dcp",
    "together",
    "unshard",
]
