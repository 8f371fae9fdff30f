"""Private torch APIs: operators, modes below autograd, and the active transforms.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch._functorch.autograd_function import custom_function_call
from torch._functorch.vmap import vmap_impl
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "CUSTOM_FUNCTION_CALL",
    "DRAWS",
    "RECURRENT",
    "SLOPES",
    "TRACED_TENSORS",
    "VMAP",
    "DispatchMode",
    "HigherOrderOperator",
    "OpOverload",
    "OpOverloadPacket",
    "backward_pass",
    "dispatch_depth",
    "dynamo_original",
    "in_gradient_transform",
    "is_all_true",
    "is_batched_tensor",
    "is_generated_function",
    "makes_values",
    "may_return_input",
    "names_of",
    "running_jvps",
    "runs_by_others",
    "schema_of",
]

#: Operator by which `torch.autograd.Function.apply` runs under transforms of torch.func (2.0 and later).
CUSTOM_FUNCTION_CALL: Any = custom_function_call

# Code of the method that calls the `jvp` of an autograd function (1.11 and later).
_APPLY_JVP = torch.autograd.function.BackwardCFunction.apply_jvp.__code__

#: Code of the function that runs under `torch.vmap` (2.0 and later).
VMAP = vmap_impl.__code__

#: Tensor classes of torch's own tracers (2.1 and later).
TRACED_TENSORS = (FakeTensor, FunctionalTensor)

#: The functions that `nn.RNN` and similar layers call, by name (1.0 and later).
RECURRENT: dict[str, Any] = {
    name: getattr(torch._VF, name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
}

#: The samplers that `torch.distributions` calls, by name (1.0 and later).
DRAWS: dict[str, Any] = {
    "standard_gamma": torch._standard_gamma,
    "sample_dirichlet": torch._sample_dirichlet,
}

#: The derivatives of gamma and Dirichlet draws with respect to their parameters, by name (1.0 and
#: later).
SLOPES: dict[str, Any] = {
    "gamma": torch._standard_gamma_grad,
    "dirichlet": torch._dirichlet_grad,
}

#: The method by which torch checks all elements of a condition (2.0 and later).
is_all_true: Any = torch.Tensor._is_all_true

#: `is_batched_tensor(tensor)`: True if the outermost wrapper belongs to a `torch.vmap` (2.0 and later).
is_batched_tensor = torch._C._functorch.is_batchedtensor

#: `backward_pass()`: the number of the backward pass that runs in this thread, or -1 (1.12 and later).
backward_pass = torch._C._current_graph_task_id


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
    """Base class of ftrain's dispatch modes, under which `cond`, `scan` and Dynamo work.

    The attribute and the two class methods below have these purposes: torch allows `cond` and other
    higher-order operators in the mode (2.7 and later), torch's own `cond` and `scan` can call Dynamo
    (2.8 and later), and the first operator does not import Dynamo, which takes a second and switches off
    the validation of torch.distributions.
    """

    supports_higher_order_operators = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Return True, so that Dynamo compiles functions that are called under this mode."""
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def is_generated_function(function: type) -> bool:
    """Return True for an autograd function that torch generated to run another one under vmap (2.0)."""
    return function.__module__ == type(CUSTOM_FUNCTION_CALL).__module__


def running_jvps() -> list[type]:
    """Return the autograd functions whose `jvp` runs in this thread, the innermost last (torch 1.11)."""
    found: list[type] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _APPLY_JVP:
            found.append(frame.f_locals["self"]._forward_cls)
        frame = frame.f_back
    return found[::-1]


def in_gradient_transform() -> bool:
    """Return True if a `torch.func.grad` or vjp is running (torch 2.0 and later)."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(each.key() == torch._C._functorch.TransformType.Grad for each in stack)


def dispatch_depth() -> int:
    """Return the number of active TorchDispatchModes (torch 2.0 and later)."""
    return torch._C._len_torch_dispatch_stack()


def dynamo_original(fn: Any) -> Any:
    """Return the function inside a `torch.compile` wrapper; `None` without one (torch 2.0 and later)."""
    return getattr(fn, "_torchdynamo_orig_callable", None)


def runs_by_others(kind: type) -> bool:
    """Return True if a tensor class has its own `__torch_dispatch__` (torch 2.0 and later)."""
    own = getattr(kind, "__torch_dispatch__", None)
    ordinary = (None, torch.Tensor.__torch_dispatch__, torch._C._disabled_torch_dispatch_impl)
    return own not in ordinary


def schema_of(operator: Any) -> Any:
    """Return the schema of an operator; `None` for any other callable (torch 1.13 and later)."""
    return getattr(operator, "_schema", None)


def names_of(operator: Any) -> tuple[str, str]:
    """Return the operator name and the overload name of an `OpOverload` (torch 1.13 and later)."""
    return operator._opname, operator._overloadname


def makes_values(operator: OpOverload[..., Any]) -> bool:
    """Return True if an operator computes values, not mere views or uninitialized memory (torch 2.0)."""
    if "empty" in names_of(operator)[0]:
        return False
    returns = schema_of(operator).returns
    views = [each.alias_info is not None and not each.alias_info.is_write for each in returns]
    return not views or not all(views)


def may_return_input(operator: OpOverload[..., Any]) -> bool:
    """Return True if an output of an operator may share memory with an input (torch 2.0 and later).

    Composite operators such as `reshape` may do so without declaring it in their schemas.
    """
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        operator._name, "CompositeImplicitAutograd"
    )
    returns = schema_of(operator).returns
    return composite or any(each.alias_info is not None for each in returns)
