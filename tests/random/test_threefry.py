"""Test the Threefry generator: known answers, equality with JAX, kernel, batching and graphs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ftrain.core import random
from ftrain.core.random import _cpu_kernel, _threefry
from tests.campaign import examples

jax = pytest.importorskip("jax")

SEEDS = st.integers(-(2**63), 2**63 - 1)
WORDS = st.integers(0, 2**32 - 1)
FOLDS = st.lists(WORDS, max_size=3)
SHAPES = st.sampled_from(
    [(), (0,), (1,), (7,), (2, 3), (3, 0, 2), (2, 1, 4)]
)  # JAX compiles for each
WIDTHS = st.sampled_from([8, 16, 32, 64])

quick = settings(max_examples=examples(20, 30))


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


def jax_key(seed: int, folds: list[int] | tuple[int, ...] = ()):
    with jax.enable_x64(True):
        key = jax.random.key(seed)
        for data in folds:
            key = jax.random.fold_in(key, data)
        return key


def jax_words(key) -> bytes:
    return jax.numpy.asarray(jax.random.key_data(key)).tobytes()


# -- the block cipher -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [  # Random123 1.09, kat_vectors, threefry2x32 20 rounds
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_matches_the_known_answers_of_random123(key, counter, answer) -> None:
    words = torch.tensor([*key, *counter], dtype=torch.int64).to(torch.int32)
    out = _threefry.threefry2x32(words[:2], words[2], words[3])
    assert tuple(int(word) % 2**32 for word in out) == answer


# -- keys -------------------------------------------------------------------------------------------


@quick
@given(seed=SEEDS | st.sampled_from([0, -1, 2**32 - 1, 2**32, -(2**63), 2**63 - 1]))
def test_key_equals_jax(seed: int) -> None:
    assert raw(random.key(seed)) == jax_words(jax_key(seed))
    assert raw(random.key(torch.tensor(seed))) == jax_words(jax_key(seed))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "uint64"])
def test_key_of_a_tensor_of_seeds_equals_jax(dtype: str) -> None:
    import numpy as np

    info = np.iinfo(dtype)
    seeds = np.array([info.min, 0, 1, info.max], dtype=dtype)
    with jax.enable_x64(True):
        expected = jax.random.key_data(jax.vmap(jax.random.key)(seeds))
    assert raw(random.key(torch.from_numpy(seeds))) == jax.numpy.asarray(expected).tobytes()


def test_key_of_an_unsigned_seed_uses_its_bit_pattern() -> None:
    assert raw(random.key(2**64 - 1)) == raw(random.key(-1))


@quick
@given(seed=SEEDS, folds=FOLDS, shape=SHAPES)
def test_split_equals_jax(seed: int, folds: list[int], shape: tuple[int, ...]) -> None:
    ours = random.split(random.key(seed), shape, folds=folds)
    assert ours.shape == (*shape, 2)
    assert raw(ours) == jax_words(jax.random.split(jax_key(seed, folds), shape))


@quick
@given(seed=SEEDS, data=WORDS, folds=FOLDS)
def test_fold_in_equals_jax(seed: int, data: int, folds: list[int]) -> None:
    expected = jax_words(jax_key(seed, [*folds, data]))
    key = random.key(seed)
    assert raw(random.fold_in(key, data, folds=folds)) == expected
    assert raw(random.fold_in(key, torch.tensor(data), folds=folds)) == expected


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.uint32, torch.uint64]
)
def test_fold_in_of_an_integer_tensor_uses_its_lower_32_bits(
    dtype: torch.dtype, monkeypatch
) -> None:
    data = torch.tensor([-1, 3]).to(dtype)
    if dtype == torch.int64:
        data = data + (5 << 32)
    key = random.key(1)
    ours = random.fold_in(key, data)
    for row, value in zip(ours, data.tolist(), strict=True):
        assert raw(row) == raw(random.fold_in(key, value % 2**32))
    monkeypatch.setattr(_cpu_kernel, "_kernel", None)
    assert raw(random.fold_in(key, data)) == raw(ours)


def test_row_i_of_split_equals_fold_in_of_i() -> None:
    key = random.key(3)
    for i, row in enumerate(random.split(key, 5)):
        assert raw(row) == raw(random.fold_in(key, i))


def test_fold_in_broadcasts_over_keys_and_data() -> None:
    keys, data = random.split(random.key(0), (3, 1)), torch.arange(4)
    table = random.fold_in(keys, data)
    assert table.shape == (3, 4, 2)
    for i in range(3):
        for j in range(4):
            assert raw(table[i, j]) == raw(random.fold_in(keys[i, 0], j))
    assert raw(random.fold_in(keys, 7)[2, 0]) == raw(random.fold_in(keys[2, 0], 7))


def test_key_data_returns_unsigned_words() -> None:
    assert random.key_data(random.key(-1)).tolist() == [2**32 - 1] * 2


# -- words ------------------------------------------------------------------------------------------


@quick
@given(seed=SEEDS, folds=FOLDS, shape=SHAPES, width=WIDTHS)
def test_bits_equal_jax(seed: int, folds: list[int], shape: tuple[int, ...], width: int) -> None:
    ours = random.bits(random.key(seed), shape, width, folds=folds)
    with jax.enable_x64(True):
        theirs = jax.random.bits(jax_key(seed, folds), shape, dtype=f"uint{width}")
    assert ours.shape == shape
    assert ours.dtype == getattr(torch, f"uint{width}")
    assert raw(ours) == jax.numpy.asarray(theirs).tobytes()


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("count", [511, 512, 513, 70_001])
def test_bits_of_the_c_kernel_equal_the_reference_at_block_and_thread_boundaries(
    width: int, count: int
) -> None:
    key = random.key(9)
    assert raw(random.bits(key, count, width, folds=(4,))) == raw(
        _threefry.bits(key, (4,), (count,), width)
    )


# -- what every operator promises -------------------------------------------------------------------

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "bits8": lambda key: random.bits(key, (2, 3), 8, folds=(1,)),
    "bits64": lambda key: random.bits(key, (2, 3), 64),
    "uniform": lambda key: random.uniform(key, (2, 3), folds=(1, 2)),
    "uniform between": lambda key: random.uniform(key, (7,), torch.float64, -0.3, 0.7),
    "uniform bfloat16": lambda key: random.uniform(key, (), torch.bfloat16, 0.1, 2.0),
    "normal": lambda key: random.normal(key, (513,)),
    "normal float64": lambda key: random.normal(key, (5,), torch.float64),
    "normal float16": lambda key: random.normal(key, (5,), torch.float16),
    "bernoulli": lambda key: random.bernoulli(key, 0.3, (40,), folds=(9,)),
    "bernoulli of a tensor": lambda key: random.bernoulli(key, torch.linspace(0, 1, 9)),
    "randint": lambda key: random.randint(key, (6,), -3, 1000, folds=(2,)),
    "randint int32": lambda key: random.randint(key, (6,), -3, 1000, torch.int32),
    "randint of tensors": lambda key: random.randint(key, (6,), 0, torch.arange(1, 7)),
    "permutation": lambda key: random.permutation(key, 11),
    "permutation of rows": lambda key: random.permutation(key, torch.arange(8).reshape(4, 2)),
    "split": lambda key: random.split(key, (2, 2), folds=(3,)),
    "fold_in": lambda key: random.fold_in(key, 5, folds=(3,)),
    "fold_in of a tensor": lambda key: random.fold_in(key, torch.tensor(5)),
    "empty": lambda key: random.normal(key, (0, 3)),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


@every_draw
def test_random_functions_are_pure_functions_of_their_key(draw: Callable[[Tensor], Tensor]) -> None:
    key, state = random.key(11), torch.get_rng_state()
    before = raw(key)
    first, second = draw(key), draw(key)
    assert raw(first) == raw(second)
    assert raw(key) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert first.data_ptr() != key.data_ptr()


@every_draw
def test_draws_of_the_c_kernel_equal_the_reference_implementation(
    draw: Callable[[Tensor], Tensor], monkeypatch
) -> None:
    assert _cpu_kernel.kernel() is not None, "this machine has a compiler"
    compiled = draw(random.key(13))
    monkeypatch.setattr(_cpu_kernel, "_kernel", None)
    plain = draw(random.key(13))
    assert (plain.dtype, plain.shape, plain.stride()) == (
        compiled.dtype,
        compiled.shape,
        compiled.stride(),
    )
    assert raw(plain) == raw(compiled)


@every_draw
def test_vmapped_draws_equal_single_draws(draw: Callable[[Tensor], Tensor]) -> None:
    keys = random.split(random.key(17), (3, 2))
    table = torch.vmap(torch.vmap(draw))(keys)
    for i in range(3):
        for j in range(2):
            assert raw(table[i, j]) == raw(draw(keys[i, j]))
    columns = torch.vmap(draw, in_dims=1)(keys[0].T.contiguous())
    assert raw(columns) == raw(torch.vmap(draw)(keys[0]))


@every_draw
def test_draws_traced_on_fake_tensors_equal_eager(draw: Callable[[Tensor], Tensor]) -> None:
    graph = make_fx(draw, tracing_mode="fake")(random.key(0))
    key = random.key(19)
    traced, eager = graph(key), draw(key)
    assert (traced.dtype, traced.stride()) == (eager.dtype, eager.stride())
    assert raw(traced) == raw(eager)


@every_draw
def test_traced_vmapped_draws_equal_eager(draw: Callable[[Tensor], Tensor]) -> None:
    keys = random.split(random.key(23), 3)
    graph = make_fx(torch.vmap(draw), tracing_mode="fake")(keys)
    assert raw(graph(keys)) == raw(torch.vmap(draw)(keys))
    one = make_fx(draw, tracing_mode="fake")(keys[0])
    of_ftrain = [
        [node.target for node in each.graph.nodes if "ftrain" in str(node.target)]
        for each in (graph, one)
    ]
    assert of_ftrain[0] == of_ftrain[1]  # one operator draws for all keys


@every_draw
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_draws_compiled_by_dynamo_equal_eager(
    draw: Callable[[Tensor], Tensor], backend: str
) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(draw, backend=backend, fullgraph=True)
    key = random.key(29)
    assert raw(compiled(key)) == raw(draw(key))


def test_each_random_draw_is_one_operator_in_a_graph() -> None:
    """The generator is not inlined: a graph of a Bernoulli and a normal draw has two operators."""

    def draws(key: Tensor) -> tuple[Tensor, Tensor]:
        return random.bernoulli(key, 0.5, (4,), folds=(1, 2)), random.normal(key, (4,), folds=(3,))

    graph = make_fx(draws, tracing_mode="fake")(random.key(0)).graph
    calls = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert calls == ["ftrain.threefry_bernoulli.default", "ftrain.threefry_normal.default"]


def test_bernoulli_traced_with_symbolic_shapes_accepts_other_shapes() -> None:
    def draw(key: Tensor, like: Tensor) -> Tensor:
        return random.bernoulli(key, 0.5, like.shape)

    graph = make_fx(draw, tracing_mode="symbolic")(random.key(0), torch.zeros(3, 4))
    key = random.key(1)
    assert raw(graph(key, torch.zeros(5, 6))) == raw(random.bernoulli(key, 0.5, (5, 6)))


def test_fold_in_vmaps_over_keys_data_or_both() -> None:
    keys, data = random.split(random.key(0), 3), torch.arange(3)
    both = torch.vmap(random.fold_in)(keys, data)
    only_data = torch.vmap(random.fold_in, in_dims=(None, 0))(keys[0], data)
    only_keys = torch.vmap(random.fold_in, in_dims=(0, None))(keys, data[1])
    for i in range(3):
        assert raw(both[i]) == raw(random.fold_in(keys[i], i))
        assert raw(only_data[i]) == raw(random.fold_in(keys[0], i))
        assert raw(only_keys[i]) == raw(random.fold_in(keys[i], 1))
    nested = torch.vmap(torch.vmap(random.fold_in, in_dims=(None, 0)), in_dims=(0, None))
    assert raw(nested(keys, data)) == raw(random.fold_in(keys[:, None], data))


def test_threefry_operators_pass_opcheck() -> None:
    key = random.key(0)
    for operator, args in {
        torch.ops.ftrain.threefry_bits.default: (key, [1], [3], 16),
        torch.ops.ftrain.threefry_uniform.default: (key, [], [3], torch.float32, 0.0, 1.0),
        torch.ops.ftrain.threefry_normal.default: (key, [], [], torch.float64),
        torch.ops.ftrain.threefry_bernoulli.default: (key, [], [0, 2], 0.5),
        torch.ops.ftrain.threefry_randint.default: (key, [], [2], torch.int32, 0, 9),
        torch.ops.ftrain.threefry_split.default: (key, [], [3]),
        torch.ops.ftrain.threefry_fold.default: (key, [3]),
        torch.ops.ftrain.threefry_fold_in.default: (key, torch.tensor(3)),
    }.items():
        torch.library.opcheck(operator, args)


@pytest.mark.inductor
def test_draws_compiled_by_inductor_equal_eager() -> None:
    """Compile the opaque operators alone, since C++ arithmetic would take a minute to compile."""
    names = ("bits8", "uniform", "normal", "bernoulli", "randint", "split", "fold_in of a tensor")

    def draws(key: Tensor) -> tuple[Tensor, ...]:
        return tuple(DRAWS[name](key) for name in names)

    torch._dynamo.reset()
    key = random.key(31)
    compiled = torch.compile(draws, fullgraph=True)
    for name, ours, eager in zip(names, compiled(key), draws(key), strict=True):
        assert raw(ours) == raw(eager), name


# -- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: random.key(2**64), "64 bits"),
        (lambda: random.key(-(2**63) - 1), "64 bits"),
        (lambda: random.fold_in(random.key(0), 2**32), r"expected an integer in \[0, 2"),
        (lambda: random.fold_in(random.key(0), -1), r"expected an integer in \[0, 2"),
        (lambda: random.bits(random.key(0), folds=(-1,)), r"expected an integer in \[0, 2"),
        (lambda: random.split(random.key(0), -1), "num: expected an int >= 0, .* got -1"),
        (lambda: random.split(random.key(0), (2, -1)), r"num: expected .* got \(2, -1\)"),
        (lambda: random.split(random.key(0), 2.0), r"num: expected .* got 2.0"),
        (lambda: random.bits(random.split(random.key(0))), "torch.vmap"),
        (lambda: random.split(random.split(random.key(0))), "torch.vmap"),
        (lambda: random.bits(random.key_data(random.key(0))), "View it as torch.int32"),
        (lambda: random.bits(torch.zeros(3)), "random.key"),
        (lambda: random.bits(random.key(0), width=12), "12"),
    ],
)
def test_random_functions_refuse_invalid_arguments_with_a_remedy(
    call: Callable[[], Tensor], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_key_and_fold_in_refuse_data_other_than_integers() -> None:
    with pytest.raises(TypeError, match="integer"):
        random.key(1.5)  # type: ignore[arg-type]
    for data in (torch.tensor(1.5), torch.tensor(True), torch.tensor(1j)):
        with pytest.raises(TypeError, match=f"an integer tensor, got {data.dtype}. Convert it"):
            random.fold_in(random.key(0), data)
    assert random.split(random.key(0), 0).shape == (0, 2)


def test_draws_ignore_the_default_device_and_dtype() -> None:
    expected = raw(random.normal(random.key(0), (3,)))
    key = random.key(0)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert raw(random.normal(key, (3,))) == expected
            assert raw(random.permutation(key, 5)) == raw(random.permutation(key, 5))
    finally:
        torch.set_default_dtype(torch.float32)


def test_every_bit_position_of_random_words_is_set_in_half_of_them() -> None:
    """Over 2^14 words, each of 64 bits is set half of the time, within six standard deviations."""
    words = random.bits(random.key(0), 2**14, 64).view(torch.int64)
    shares = torch.stack([(words >> i & 1).double().mean() for i in range(64)])
    assert (shares - 0.5).abs().max() < 6 * 0.5 / math.sqrt(2**14)
