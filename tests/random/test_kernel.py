"""Test compilation and caching of the C kernel, and the fallback without it."""

from __future__ import annotations

import os
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ftrain.core import _c_library, random
from ftrain.core.random import _cpu_kernel, _normal
from tests import preloaded


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_cpu_kernel, "_kernel", _cpu_kernel._UNTRIED)
    monkeypatch.setenv("FTRAIN_CACHE_DIR", str(tmp_path))


def draw() -> list[int]:
    return random.bits(random.key(0), 1000, 8).tolist()


def expected() -> list[int]:
    from ftrain.core.random import _threefry

    return _threefry.bits(random.key(0), (), (1000,), 8).tolist()


def test_kernel_is_compiled_at_the_first_draw_and_cached(tmp_path: Path) -> None:
    random.key(0)
    assert not list(tmp_path.iterdir())
    assert draw() == expected()
    (library,) = tmp_path.iterdir()
    written = library.stat().st_mtime_ns
    _cpu_kernel._kernel = _cpu_kernel._UNTRIED
    assert draw() == expected()
    assert library.stat().st_mtime_ns == written


def test_damaged_cached_kernel_is_compiled_again(tmp_path: Path) -> None:
    draw()
    (library,) = tmp_path.iterdir()
    damaged = tmp_path / "damaged"  # another file: this process has the first one mapped
    damaged.write_bytes(b"no library")
    os.replace(damaged, library)
    _cpu_kernel._kernel = _cpu_kernel._UNTRIED
    assert draw() == expected()
    assert isinstance(_cpu_kernel.kernel(), _cpu_kernel.Kernel)
    assert [path.name for path in tmp_path.iterdir()] == [library.name]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CC", "no-such-compiler", "No C compiler.*no-such-compiler"),
        ("CC", "false", "The compiler failed"),
        ("FTRAIN_CACHE_DIR", str(Path(__file__)), "FTRAIN_CACHE_DIR"),
    ],
)
def test_draws_without_a_compiled_c_kernel_warn_once_and_return_the_same_numbers(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.warns(RuntimeWarning, match=f"(?s)without its C kernel.*{words}"):
        assert draw() == expected()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw() == expected()


def test_compiled_kernel_that_draws_wrong_numbers_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_cpu_kernel, "_answers", lambda kernel: False)
    with pytest.warns(RuntimeWarning, match="computes wrong numbers"):
        assert draw() == expected()


def test_kernel_compiled_without_openmp_draws_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = _cpu_kernel._SOURCES, _cpu_kernel.Kernel, _cpu_kernel._answers, _c_library.compiler()
    for extra in (("-march=native",), ()):
        monkeypatch.setattr(_cpu_kernel, "_kernel", _c_library.library(*parts, extra))
        assert draw() == expected()


def test_kernel_cache_folder_follows_environment_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert _c_library.cache_folder() == tmp_path
    monkeypatch.delenv("FTRAIN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert _c_library.cache_folder() == Path("/cache/ftrain")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert _c_library.cache_folder() == Path("/home/someone/.cache/ftrain")


def test_two_processes_can_build_the_kernel_at_the_same_time(tmp_path: Path) -> None:
    code = (
        "import warnings; warnings.simplefilter('error', RuntimeWarning)\n"
        "from ftrain.core import random; from ftrain.core.random import _cpu_kernel\n"
        "import sys; sys.stdin.readline()\n"  # both have imported: start together
        "print(random.bits(random.key(0), 1000, 8).tolist(), _cpu_kernel.kernel() is not None)"
    )
    root = str(Path(_cpu_kernel.__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root}
    processes = [
        preloaded.start("-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=600)[0].strip() for process in processes]
    assert outputs == [f"{expected()} True"] * 2
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_number_of_cpu_threads_does_not_change_the_draws(threads: int) -> None:
    before = torch.get_num_threads()
    key = random.split(random.key(1), 3)
    torch.set_num_threads(1)
    single = torch.vmap(lambda key: random.normal(key, (50_001,)))(key)
    integers = random.randint(key[0], (70_001,), 0, 1000)
    try:
        torch.set_num_threads(threads)
        many = torch.vmap(lambda key: random.normal(key, (50_001,)))(key)
        assert torch.equal(many, single)
        assert torch.equal(random.randint(key[0], (70_001,), 0, 1000), integers)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_square_root_in_the_reference_implementation_is_correctly_rounded(
    dtype: torch.dtype,
) -> None:
    """`torch.sqrt` is 1 ulp off on some processors, and so were the tails of the reference."""
    x = torch.cat([torch.rand(100_000, dtype=torch.float64) * 40, torch.zeros(2)]).to(dtype)
    assert _normal._sqrt(x).numpy().tobytes() == np.sqrt(x.numpy()).tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_drawn_by_the_c_kernel_have_the_bits_of_the_reference_implementation(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = random.normal(random.key(1), (100_000,), dtype)
    monkeypatch.setattr(_cpu_kernel, "_kernel", None)
    found = random.normal(random.key(1), (100_000,), dtype)
    assert found.numpy().tobytes() == expected.numpy().tobytes()
