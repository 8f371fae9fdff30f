"""Private torch API: `torch.utils._pytree`, the trees of torch's transforms (torch 2.2 and later)."""

from torch.utils._pytree import (
    SUPPORTED_NODES,
    GetAttrKey,
    register_pytree_node,
    tree_leaves,
    tree_map_only,
)

__all__ = ["SUPPORTED_NODES", "GetAttrKey", "register_pytree_node", "tree_leaves", "tree_map_only"]
