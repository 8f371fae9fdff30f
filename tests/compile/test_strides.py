"""Operators whose results have other strides than torch's fake kernels predict."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ftrain import value_and_grad
from ftrain.core import _torch, _torch_fake
from ftrain.core.compile import compile
from tests.compile.cases import same_bytes


def softplus_of_a_view(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return a softplus whose gradient has other strides in a real run than in the trace."""
    return (F.softplus(x.view(2, 3, 4)).transpose(1, 2) * w).sum()


def test_compiled_view_of_a_tensor_whose_strides_differ_from_the_trace_equals_eager():
    x = torch.linspace(-2, 2, 24).view(6, 4)
    w = torch.linspace(0, 1, 24).view(2, 4, 3)
    step = value_and_grad(softplus_of_a_view)
    assert same_bytes(compile(step, backend="eager")(x, w), step(x, w))


FORMATS = {
    "contiguous": torch.randn(2, 3, 4),
    "transposed": torch.randn(2, 4, 3).transpose(1, 2),
    "permuted": torch.randn(4, 3, 2).permute(2, 1, 0),
    "images": torch.randn(2, 3, 4, 5),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "images transposed": torch.randn(2, 3, 5, 4).transpose(2, 3),
    "volumes": torch.randn(2, 3, 2, 4, 5).to(memory_format=torch.channels_last_3d),
    "rows": torch.randn(3, 2).t(),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("of", FORMATS)
def test_fake_batch_norm_has_the_strides_of_the_real_kernels(of: str, training: bool) -> None:
    x = FORMATS[of]
    mode = _torch.fake_mode()

    def strides(x: torch.Tensor, grad: torch.Tensor, w: torch.Tensor) -> list[tuple[int, ...]]:
        out, *by = torch.ops.aten.native_batch_norm(x, w, w, w * 0, w, training, 0.1, 1e-5)
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, x, w, w * 0, w, *by, training, 1e-5, [True, True, True]
        )
        return [t.stride() for t in (out, *by, *grads)]

    for grad in (x, torch.randn(x.shape), torch.randn(x.shape[::-1]).permute(*range(x.ndim)[::-1])):
        args = (x, grad, torch.ones(3))
        with _torch_fake.fake_kernels(), mode:
            faked = strides(*[mode.from_tensor(t) for t in args])
        assert faked == strides(*args)


def test_traced_batch_norm_of_a_transposed_batch_has_eager_strides() -> None:
    """With other strides, a following linear layer would use another kernel and give other bits."""

    def normed(x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        y = F.batch_norm(x.transpose(1, 2), None, None, training=True)
        return y, y.stride()

    x = torch.randn(4, 37, 32)
    (found, strides), (expected, expected_strides) = compile(normed, backend="eager")(x), normed(x)
    assert strides == expected_strides
    assert same_bytes(found, expected)


def test_ftrains_fake_kernels_leave_no_entries_in_torchs_fake_tensor_cache() -> None:
    def results() -> list:
        operators = _torch_fake._kernels()
        return [key for key in torch._subclasses.FakeTensorMode.cache if key.key[0] in operators]

    def normed(x: torch.Tensor) -> torch.Tensor:
        return (F.batch_norm(x, None, None, training=True) * x).sum()

    compile(value_and_grad(normed), backend="eager")(torch.randn(5, 4, 3).mT)
    assert not results()
