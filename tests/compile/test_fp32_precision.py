"""Torch's switches of float32 precision, older and newer, around compiled calls, saves and laws."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import pytest
import torch

import ftrain
from ftrain import checkpoint, testing
from ftrain.checkpoint import _determinism
from ftrain.core import _torch_precision
from ftrain.core.errors import RecompileWarning

HOLDERS = {
    "torch.backends": lambda: torch.backends,
    "cuda.matmul": lambda: torch.backends.cuda.matmul,
    "cudnn": lambda: torch.backends.cudnn,
    "cudnn.conv": lambda: torch.backends.cudnn.conv,
    "cudnn.rnn": lambda: torch.backends.cudnn.rnn,
    "mkldnn": lambda: torch.backends.mkldnn,
    "mkldnn.matmul": lambda: torch.backends.mkldnn.matmul,
    "mkldnn.conv": lambda: torch.backends.mkldnn.conv,
    "mkldnn.rnn": lambda: torch.backends.mkldnn.rnn,
}


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Put every switch back to its default."""
    parts = [("generic", "all"), ("cuda", "all"), ("mkldnn", "all")]
    parts += [(b, k) for b in ("cuda", "mkldnn") for k in ("matmul", "conv", "rnn")]
    before = {part: torch._C._get_fp32_precision_getter(*part) for part in parts}
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for part, precision in before.items():
            torch._C._set_fp32_precision_setter(*part, precision)


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
@pytest.mark.parametrize("name", HOLDERS)
def test_compile_save_and_assert_pure_work_with_any_fp32_precision_setting(
    name, precision, tmp_path
):
    double = ftrain.compile(lambda x: x * 2, backend="eager")
    x = torch.ones(2)
    with restored():
        HOLDERS[name]().fp32_precision = precision
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RecompileWarning)
            testing.assert_same_bits(double(x), x * 2)
            testing.assert_pure(lambda x: x * 2, x)
        checkpoint.save(tmp_path / "a", {"w": x})
        testing.assert_same_bits(checkpoint.load(tmp_path / "a", {"w": x})[0], {"w": x})


def test_change_of_the_matmul_precision_recompiles():
    double = ftrain.compile(lambda x: x * 2, backend="eager")
    x = torch.ones(2)
    with restored():
        double(x)
        torch.set_float32_matmul_precision("highest")  # by default already
        double(x)
        assert double.n_compiles == 1
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        with pytest.warns(RecompileWarning, match=r"mkldnn.matmul.*'ieee'.*'bf16'"):
            double(x)
        assert double.n_compiles == 2


def test_assert_pure_detects_a_changed_fp32_precision():
    def switches(x):
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        return x * 2

    with restored(), pytest.raises(AssertionError, match="float32 precision"):
        testing.assert_pure(switches, torch.ones(2))


def test_checkpoints_record_tf32_under_the_setting_names_from_before_torch_2_9():
    """Checkpoints of earlier versions recorded these."""
    with restored():
        for name in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(name)
            assert _determinism.fingerprint()["float32 matmul precision"] == name
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        found = _determinism.fingerprint()["float32 matmul precision"]
        assert found == "cuda.matmul tf32, mkldnn.matmul ieee"
        assert "onednn float32" not in _determinism.fingerprint()
        torch.backends.mkldnn.conv.fp32_precision = "bf16"
        expected = "mkldnn.conv bf16, mkldnn.rnn ieee"
        assert _determinism.fingerprint()["onednn float32"] == expected
        assert _determinism._cudnn() is True
        torch.backends.cudnn.rnn.fp32_precision = "ieee"
        assert _determinism._cudnn() == "cuda.conv tf32, cuda.rnn ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        assert _determinism._cudnn() is False


@pytest.mark.parametrize("name", ["highest", "high", "medium"])
def test_fp32_precision_read_as_before_torch_2_9_equals_that_read_by_the_newer_api(name):
    """They serve torch before 2.9."""
    with restored():
        torch.set_float32_matmul_precision(name)
        for part in (*_torch_precision.PRODUCTS, *_torch_precision.CONVOLUTIONS):
            assert (
                _torch_precision._read_older(*part) == _torch_precision.fp32_precision((part,))[0]
            )
