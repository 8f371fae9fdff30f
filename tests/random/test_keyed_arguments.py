"""Test that functions under `keyed` take, default and refuse their arguments as torch's functions do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ftrain.core.compile import compile
from ftrain.core.random import key, keyed, split
from tests.compile.cases import same_bytes
from tests.random._keyed_cases import draw

Call = Callable[[], Any]


def memory(dtype: torch.dtype = torch.float32, size: int = 40) -> Tensor:
    return torch.zeros(size, dtype=dtype)


INTS, BYTES, BOOLS = torch.int64, torch.uint8, torch.bool
ONES = torch.ones(4)
REFUSED: dict[str, Call] = {
    "uniform_ from": lambda: memory().uniform_(3, 2),
    "uniform_ dtype": lambda: memory(INTS).uniform_(),
    "normal_ std": lambda: memory().normal_(0, -1),
    "normal_ nan": lambda: memory().normal_(0, math.nan),
    "normal_ dtype": lambda: memory(INTS).normal_(),
    "exponential_ lambd": lambda: memory().exponential_(0.0),
    "exponential_ dtype": lambda: memory(INTS).exponential_(),
    "log_normal_ std": lambda: memory().log_normal_(0, 0.0),
    "log_normal_ dtype": lambda: memory(INTS).log_normal_(),
    "cauchy_ sigma": lambda: memory().cauchy_(0, 0.0),
    "cauchy_ dtype": lambda: memory(INTS).cauchy_(),
    "geometric_ 0": lambda: memory().geometric_(0.0),
    "geometric_ 1": lambda: memory().geometric_(1.0),
    "bernoulli p above": lambda: memory().bernoulli_(1.5),
    "bernoulli p below": lambda: torch.bernoulli(ONES, -0.5),
    "randint low": lambda: memory(INTS).random_(3, 3),
    "randint uint8": lambda: torch.randint(0, 257, (2,), dtype=BYTES),
    "randint negative uint8": lambda: torch.randint(-1, 9, (2,), dtype=BYTES),
    "randint bool": lambda: memory(BOOLS).random_(3),
    "randint float16": lambda: torch.randint_like(ONES.half(), 70_000),
    "randperm int8": lambda: torch.randperm(129, dtype=torch.int8),
    "normal std": lambda: torch.normal(ONES, -1.0),
    "normal std size": lambda: torch.normal(0.0, -1.0, (3,)),
    "normal dtype": lambda: torch.randn(3, dtype=INTS),
    "multinomial num_samples": lambda: torch.multinomial(ONES, 5),
    "dropout p": lambda: torch.dropout(ONES, 1.5, True),
    "dropout p below": lambda: torch.dropout(ONES, -0.5, True),
    "dropout alpha": lambda: torch.alpha_dropout(ONES, 1.5, True),
    "dropout features": lambda: torch.feature_dropout(ONES[None], 1.5, True),
    "dropout native": lambda: torch.native_dropout(ONES, -0.5, True),
    "dropout attention": lambda: F.scaled_dot_product_attention(
        *[ONES.view(1, 2, 2)] * 3, dropout_p=1.5
    ),
    "feature dropout: dimensions": lambda: torch.feature_dropout(ONES, 0.5, True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_keyed_functions_refuse_numbers_and_dtypes_that_torch_refuses(name: str) -> None:
    call, function = REFUSED[name], name.split(maxsplit=1)[0].rstrip(":")
    if name != "feature dropout: dimensions":
        function += ":"
    with torch.random.fork_rng(devices=[]), pytest.raises((RuntimeError, NotImplementedError)):
        call()
    with (
        keyed(key(0)),
        pytest.raises(
            (RuntimeError, ValueError, TypeError), match=rf"^{function} .*expected .*, got .*\. "
        ),
    ):
        call()


#: Calls that draw the same values under the same key.
SAME: dict[str, list[Call]] = {
    "uniform_": [
        lambda: memory().uniform_(2, 3),
        lambda: memory().uniform_(2, to=3),
        lambda: memory().uniform_(**{"from": 2, "to": 3}),
        lambda: 2 + memory().uniform_(),
    ],
    "uniform_ from": [
        lambda: memory().uniform_(0, 1),
        lambda: memory().uniform_(),
        lambda: memory().uniform_(0),
        lambda: torch.rand(40),
        lambda: torch.rand((40,)),
        lambda: torch.rand(size=[40]),
        lambda: torch.rand_like(memory()),
        lambda: torch.rand_like(memory(torch.float64), dtype=torch.float32),
    ],
    "random_": [
        lambda: memory(INTS).random_(5),
        lambda: memory(INTS).random_(0, 5),
        lambda: memory(INTS).random_(to=5),
        lambda: memory(INTS).random_(**{"from": 0, "to": 5}),
        lambda: memory(INTS).random_(0, to=5),
        lambda: torch.randint(5, (40,)),
        lambda: torch.randint(0, 5, (40,)),
        lambda: torch.randint(high=5, size=(40,)),
        lambda: torch.randint(0, high=5, size=(40,)),
        lambda: torch.randint(low=0, high=5, size=(40,)),
        lambda: torch.randint_like(memory(INTS), 5),
        lambda: torch.randint_like(memory(INTS), 0, 5),
        lambda: torch.randint_like(memory(INTS), low=0, high=5),
        lambda: torch.randint_like(memory(), torch.tensor(5), dtype=INTS),
    ],
    "random_ low": [
        lambda: memory(INTS).random_(2, 7),
        lambda: torch.randint(2, 7, (40,)),
        lambda: torch.randint(2, high=7, size=(40,)),
        lambda: torch.randint_like(memory(INTS), 2, high=7),
        lambda: torch.randint_like(memory(INTS), 2, 7),
    ],
    **{
        # torch's documentation: all integers that the dtype represents exactly. int64 leaves out one.
        f"random_ {dtype}": [
            lambda dtype=dtype: memory(dtype, 4000).random_(),
            lambda dtype=dtype: memory(dtype, 4000).random_(0, None),
            lambda dtype=dtype, high=high: memory(dtype, 4000).random_(0, high),
        ]
        for dtype, high in {
            torch.bool: 2, torch.uint8: 256, torch.int8: 128, torch.int32: 2**31,
            torch.int64: 2**63 - 1, torch.float16: 2**11 + 1, torch.bfloat16: 2**8 + 1,
        }.items()
    },
    "normal": [
        lambda: memory().normal_(),
        lambda: memory().normal_(0, 1),
        lambda: torch.randn(40),
        lambda: torch.randn(size=(40,)),
        lambda: torch.randn_like(memory()),
        lambda: torch.normal(0.0, 1.0, (40,)),
        lambda: torch.normal(0.0, 1.0, size=[40]),
        lambda: torch.normal(memory()),
        lambda: torch.normal(memory(), 1.0),
        lambda: torch.normal(0.0, memory() + 1),
        lambda: torch.normal(memory(size=1), memory() + 1),
        lambda: torch.normal(memory(), torch.ones(1, dtype=torch.float64)),
    ],
    "log_normal_": [
        lambda: memory().log_normal_(),
        lambda: memory().log_normal_(mean=1, std=2),
        lambda: (torch.randn(40) * 2 + 1).exp(),
    ],
    "normal_ mean and std": [
        lambda: memory().normal_(3, 2),
        lambda: memory().normal_(std=2, mean=3),
        lambda: torch.normal(3.0, 2.0, (40,)),
        lambda: torch.normal(3.0, torch.tensor(2.0), (40,)),
        lambda: torch.normal(torch.tensor(3.0), 2.0, (40,)),
        lambda: 3 + 2 * torch.randn(40),
        lambda: torch.normal(memory() + 3, memory() + 2),
    ],
    "normal_ complex": [
        lambda: memory(torch.complex64).normal_(3, 2),
        lambda: torch.randn(40, dtype=torch.complex64) * 2 + (3 + 3j),
    ],
    "uniform_ complex": [
        lambda: memory(torch.complex64).uniform_(),
        lambda: torch.rand(40, dtype=torch.complex64),
    ],
    "bernoulli": [
        lambda: memory().bernoulli_(),
        lambda: memory().bernoulli_(0.5),
        lambda: memory().bernoulli_(p=0.5),
        lambda: torch.bernoulli(memory(), 0.5),
        lambda: memory().bernoulli_(torch.tensor(0.5)),
        lambda: torch.bernoulli(memory() + 0.5),
        lambda: (torch.rand(40) < 0.5).float(),
    ],
    "exponential_": [
        lambda: memory().exponential_() / 2,
        lambda: memory().exponential_(1) / 2,
        lambda: memory().exponential_(lambd=2),
    ],
    "cauchy_": [
        lambda: memory().cauchy_(),
        lambda: memory().cauchy_(0, 1),
    ],
    "randperm": [
        lambda: torch.randperm(128),
        lambda: torch.randperm(128, dtype=torch.int8).long(),
        lambda: torch.randperm(128, dtype=torch.float16).long(),
    ],
    "normal_ with std 0": [
        lambda: memory() + 3,
        lambda: memory().normal_(3, 0),
        lambda: torch.normal(3.0, 0.0, (40,)),
    ],
    "normal_ with a small std": [
        lambda: memory().normal_(0, 0.5),
        lambda: torch.normal(0.0, 0.5, (40,)),
        lambda: memory().normal_() / 2,
    ],
    "multinomial of all": [
        lambda: torch.multinomial(ONES.expand(2, 3, 4)[0], 4).sort().values,
        lambda: torch.arange(4).expand(3, 4),
    ],
    "multinomial": [
        lambda: torch.multinomial(ONES, 1, True),
        lambda: torch.multinomial(ONES, 1, False),
        lambda: torch.multinomial(ONES, 1),
        lambda: ONES.multinomial(num_samples=1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_equal_calls_under_one_key_draw_the_same_values(name: str) -> None:
    first, *others = SAME[name]
    expected = draw(first)
    for call in others:
        assert same_bytes(draw(call), expected)


FILLS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform_": torch.Tensor.uniform_,
    "normal_": torch.Tensor.normal_,
    "bernoulli_": torch.Tensor.bernoulli_,
    "random_": torch.Tensor.random_,
    "exponential_": torch.Tensor.exponential_,
    "geometric_": lambda x: x.geometric_(0.3),
    "log_normal_": torch.Tensor.log_normal_,
    "cauchy_": torch.Tensor.cauchy_,
}


@pytest.mark.parametrize("name", FILLS)
def test_fills_return_their_tensor_and_count_as_one_draw_on_the_meta_device_too(name: str) -> None:
    fill = FILLS[name]

    def twice(x: Tensor) -> Tensor:
        assert fill(x) is x
        return torch.rand(5)

    assert same_bytes(draw(twice, memory().to("meta")), draw(twice, memory()))
    if name in ("uniform_", "normal_"):
        assert same_bytes(draw(twice, memory(torch.complex64)), draw(twice, memory()))


def test_complex_uniform_fill_has_both_parts_within_its_bounds() -> None:
    parts = torch.view_as_real(draw(memory(torch.complex64).uniform_, 2, 5))
    assert bool(((parts >= 2) & (parts < 5)).all())
    assert not same_bytes(parts[:, 0], parts[:, 1])


def test_normal_draws_between_tensors_have_the_dtype_of_the_mean_as_in_torch() -> None:
    for mean in (torch.float16, torch.float32, torch.float64):
        for std in (torch.float32, torch.float64):
            call = torch.zeros(2, dtype=mean), torch.ones(2, dtype=std)
            assert draw(torch.normal, *call).dtype == torch.normal(*call).dtype == mean


def test_compiled_fills_accept_traced_numbers() -> None:
    """The value of a traced number is unknown, so that it cannot be checked."""

    def run(key: Tensor, x: Tensor) -> list[Tensor]:
        with keyed(key):
            return [
                memory().normal_(0, x), memory().uniform_(0, x), memory().exponential_(x),
                memory().cauchy_(0, x), memory().log_normal_(0, x), torch.bernoulli(memory(), x / 4),
            ]  # fmt: skip

    x = torch.tensor(2.0)
    assert same_bytes(compile(run, backend="eager")(key(1), x), run(key(1), x))


def test_samples_with_replacement_have_the_shape_of_the_rows_of_weights() -> None:
    for rows in ((), (3,)):
        assert draw(torch.multinomial, torch.ones(*rows, 4), 7, True).shape == (*rows, 7)


def test_memory_under_a_vmap_over_keys_has_a_row_for_each_key_and_takes_no_gradient() -> None:
    def run(key: Tensor) -> Tensor:
        out = torch.zeros(2)
        with keyed(key):
            with pytest.raises(RuntimeError, match="requires_grad_"):
                torch.empty(2, requires_grad=True)
            assert torch.empty(2, out=out) is out
            return torch.empty_like(out).uniform_()

    first, second = torch.vmap(run)(split(key(1), 2))
    assert not same_bytes(first, second)
