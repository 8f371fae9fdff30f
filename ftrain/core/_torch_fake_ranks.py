"""Process group of torch that sends no data, to run one rank of many on one machine.

Tested with torch 2.13. `torch.testing._internal.distributed.fake_pg` registers the backend "fake", whose
collectives return their inputs at once. Builds without `torch.distributed` raise ImportError here.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg as _registers_backend  # noqa: F401
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from ftrain.core import _torch_pytree as torch_pytree
from ftrain.core._torch_stores import hash_store
from ftrain.core._torch_wrapper import Wrapper

__all__ = ["Traffic", "fake_mesh"]


@contextlib.contextmanager
def fake_mesh(size: int, device: str) -> Iterator[DeviceMesh]:
    """Yield a mesh of `size` ranks, of which this process is rank 0 and the others do not exist."""
    dist.init_process_group("fake", store=hash_store(), rank=0, world_size=size)
    try:
        yield init_device_mesh(device, (size,), mesh_dim_names=("data",))
    finally:
        dist.destroy_process_group()


@dataclasses.dataclass
class Traffic:
    """Bytes that one rank sends, and collectives that it takes part in.

    Attributes:
        size: the number of all ranks.
        sent: bytes that the rank sends, by the ring algorithms: each of W ranks of a collective sends an
            all-reduced tensor 2 (W - 1) / W times, and a gathered or scattered one (W - 1) / W times.
        collectives: number of collectives.
    """

    size: int
    sent: float = 0.0
    collectives: int = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count the functional collectives that run in a `with` block."""
        with _Counter(self):
            yield

    def add(self, name: str, size: int, inputs: int, outputs: int) -> None:
        """Add one collective of `size` ranks, with the bytes of its inputs and outputs on one rank."""
        share = (size - 1) / size
        name = name.removesuffix("_coalesced")
        factors = {
            "all_reduce": 2 * share * inputs,
            "all_gather_into_tensor": share * outputs,
            "reduce_scatter_tensor": share * inputs,
            "all_to_all_single": share * inputs,
            "broadcast": inputs,
        }
        self.sent += factors[name]
        self.collectives += 1


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, Wrapper) for kind in types):
            return NotImplemented  # the operators of which it consists come next
        found = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        # Operators with a leading underscore, such as `_wrap_tensor_autograd`, send nothing.
        if namespace == "_c10d_functional" and not name.startswith(("_", "wait_tensor")):
            named: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]  # private
            size = named(args[-1]).size()
            self._traffic.add(name, size, _bytes(args), _bytes(found))
        return found


def _bytes(values: Any) -> int:
    return sum(x.nbytes for x in torch_pytree.tree_leaves(values) if isinstance(x, torch.Tensor))
