"""Each value of a global setting that a program depends on has a program of its own."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import ftrain
from ftrain.core._torch_precision import (
    COMPILED,
    CONVOLUTIONS,
    PRODUCTS,
    fp32_precision,
    set_fp32_precision,
)
from ftrain.core.compile._call import global_settings

Enter = Callable[[], contextlib.AbstractContextManager[Any]]


def restored(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Enter:
    """Return a function that makes a context in which a setting has a value."""

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        before = read()
        write(value)
        try:
            yield
        finally:
            write(before)

    return context


def dtype(value: torch.dtype) -> Enter:
    return restored(torch.get_default_dtype, torch.set_default_dtype, value)


def device(value: str) -> Enter:
    return lambda: torch.device(value)


def autocast(dtype: torch.dtype, enabled: bool = True) -> Enter:
    return lambda: torch.autocast("cpu", dtype, enabled)


def threads(value: int) -> Enter:
    return restored(torch.get_num_threads, torch.set_num_threads, value)


def deterministic(value: bool) -> Enter:
    read = torch.are_deterministic_algorithms_enabled
    return restored(read, torch.use_deterministic_algorithms, value)


def precision(value: str) -> Enter:
    """Set the precision of products in oneDNN, which compiled programs depend on."""
    assert ("mkldnn", "matmul") in COMPILED
    convolutions = fp32_precision(CONVOLUTIONS)
    products = tuple(value if part[0] == "mkldnn" else "ieee" for part in PRODUCTS)
    return restored(
        lambda: fp32_precision(PRODUCTS),
        lambda parts: set_fp32_precision(parts, convolutions),
        products,
    )


SETTINGS: dict[str, list[Enter]] = {
    "default dtype": [dtype(each) for each in (torch.float32, torch.float64, torch.bfloat16)],
    "default device": [contextlib.nullcontext, device("cpu"), device("meta")],
    "autocast": [
        autocast(torch.bfloat16, enabled=False),
        autocast(torch.bfloat16),
        autocast(torch.float16),
    ],
    "deterministic algorithms": [deterministic(False), deterministic(True)],
    "number of threads": [threads(1), threads(2)],
    "float32 precision of mkldnn.matmul": [precision("ieee"), precision("bf16")],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_value_of_a_global_setting_has_a_program_of_its_own(name: str) -> None:
    compiled = ftrain.compile(lambda x: x * 2, backend="eager")
    x, values, found = torch.ones(2), SETTINGS[name], set()
    for again in range(2):
        for enter in values:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with enter():
                    compiled(x)
                    found.add(global_settings())
            texts = [str(each.message) for each in caught if "compiled again" in str(each.message)]
            is_first = again or enter is values[0]
            assert [f"\n  {name}" in text for text in texts] == ([] if is_first else [True])
    assert compiled.n_compiles == len(found) == len(values)
