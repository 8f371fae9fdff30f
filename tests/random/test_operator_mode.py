"""Test the operator mode of `keyed`: every operator that draws is keyed or refused."""

from __future__ import annotations

import contextlib
import math
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftrain.core.errors import UnkeyedRandomError
from ftrain.core.random import _watched_block, key, keyed, split
from ftrain.core.random._keyed_operators import _handler, _is_drawing, here
from ftrain.core.random._keyed_reach import is_seeded

from .ways_to_draw import KEYED, REFUSED

KEYS = split(key(1), 3)
N = 20_000
ONES, HALF = torch.ones(N), torch.full((N,), 0.5)
aten = torch.ops.aten


@contextlib.contextmanager
def operators(key: Tensor) -> Iterator[None]:
    """Enter `keyed` with the operator mode alone, without a function mode, as in a trace."""
    before, here.operators, here.watching = (here.operators, here.watching), True, True
    try:
        with keyed(key), torch._C.DisableTorchFunction():
            yield
    finally:
        here.operators, here.watching = before


@pytest.fixture(autouse=True)
def _global_generator_is_untouched() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.get_rng_state().equal(before)


def tagged() -> list[torch._ops.OpOverload]:
    found = []
    for schema in torch._C._jit_get_all_schemas():
        packet = getattr(aten, schema.name.removeprefix("aten::"), None)
        if not schema.name.startswith("aten::") or packet is None:
            continue
        overload = getattr(packet, schema.overload_name or "default", None)
        if isinstance(overload, torch._ops.OpOverload) and is_seeded(overload):
            found.append(overload)
    return found


# Each operator that has a keyed form, with the mean and the standard deviation of what it draws.
_SQRT = math.sqrt
CASES: dict[str, tuple[Callable[[], Any], float, float]] = {
    "rand.default": (lambda: aten.rand.default([N]), 0.5, _SQRT(1 / 12)),
    "rand.out": (lambda: aten.rand.out([N], out=torch.empty(0)), 0.5, _SQRT(1 / 12)),
    "rand_like.default": (lambda: aten.rand_like.default(ONES), 0.5, _SQRT(1 / 12)),
    "randn.default": (lambda: aten.randn.default([N]), 0, 1),
    "randn_like.default": (lambda: aten.randn_like.default(ONES), 0, 1),
    "randint.default": (lambda: aten.randint.default(10, [N]), 4.5, _SQRT(99 / 12)),
    "randint.low": (lambda: aten.randint.low(-3, 3, [N]), -0.5, _SQRT(35 / 12)),
    "randint_like.default": (lambda: aten.randint_like.default(ONES, 10), 4.5, _SQRT(99 / 12)),
    "randint_like.low_dtype": (
        lambda: aten.randint_like.low_dtype(ONES, -3, 3), -0.5, _SQRT(35 / 12),
    ),
    "randperm.default": (lambda: aten.randperm.default(N), (N - 1) / 2, _SQRT((N**2 - 1) / 12)),
    "normal.Tensor_Tensor": (lambda: aten.normal.Tensor_Tensor(ONES, HALF), 1, 0.5),
    "normal.Tensor_float": (lambda: aten.normal.Tensor_float(ONES, 0.5), 1, 0.5),
    "normal.float_Tensor": (lambda: aten.normal.float_Tensor(1.0, HALF), 1, 0.5),
    "normal.float_float": (lambda: aten.normal.float_float(1.0, 0.5, [N]), 1, 0.5),
    "normal.out": (lambda: aten.normal.out(ONES, 1.0, 0.5, out=torch.empty(N)), 1, 0.5),
    "normal_functional.default": (lambda: aten.normal_functional.default(ONES, 1.0, 0.5), 1, 0.5),
    "normal_.default": (lambda: aten.normal_.default(torch.empty(N), 1.0, 0.5), 1, 0.5),
    "uniform.default": (lambda: aten.uniform.default(ONES, -1.0, 1.0), 0, _SQRT(1 / 3)),
    "uniform_.default": (lambda: aten.uniform_.default(torch.empty(N), -1.0, 1.0), 0, _SQRT(1 / 3)),
    "bernoulli.default": (lambda: aten.bernoulli.default(HALF), 0.5, 0.5),
    "bernoulli.p": (lambda: aten.bernoulli.p(ONES, 0.5), 0.5, 0.5),
    "bernoulli.Tensor": (lambda: aten.bernoulli.Tensor(ONES, HALF), 0.5, 0.5),
    "bernoulli_.float": (lambda: aten.bernoulli_.float(torch.empty(N), 0.5), 0.5, 0.5),
    "bernoulli_.Tensor": (lambda: aten.bernoulli_.Tensor(torch.empty(N), HALF), 0.5, 0.5),
    "random_.from": (lambda: getattr(aten.random_, "from")(torch.empty(N), 0, 10), 4.5, _SQRT(8.25)),
    "random_.to": (lambda: aten.random_.to(torch.empty(N), 10), 4.5, _SQRT(8.25)),
    "random.to": (lambda: aten.random.to(ONES, 10), 4.5, _SQRT(8.25)),
    "random_.default": (lambda: aten.random_.default(torch.empty(N, dtype=torch.bool)), 0.5, 0.5),
    "exponential.default": (lambda: aten.exponential.default(ONES, 2.0), 0.5, 0.5),
    "exponential_.default": (lambda: aten.exponential_.default(torch.empty(N), 2.0), 0.5, 0.5),
    "geometric_.default": (lambda: aten.geometric_.default(torch.empty(N), 0.5), 2, _SQRT(2)),
    "log_normal_.default": (
        lambda: aten.log_normal_.default(torch.empty(N), 0.0, 0.25).log(), 0, 0.25,
    ),
    "cauchy_.default": (
        lambda: aten.cauchy_.default(torch.empty(N)).atan(), 0, math.pi / _SQRT(12),
    ),
    "multinomial.default": (
        lambda: aten.multinomial.default(torch.ones(10), N, True), 4.5, _SQRT(8.25),
    ),
    "native_dropout.default": (lambda: aten.native_dropout.default(ONES, 0.5, True)[0], 1, 1),
    "rrelu_with_noise.default": (
        lambda: aten.rrelu_with_noise.default(-ONES, torch.empty(N), 0.0, 1.0, True),
        -0.5, _SQRT(1 / 12),
    ),
    "rrelu_with_noise_.default": (
        lambda: aten.rrelu_with_noise_.default(-ONES, torch.empty(N), 0.0, 1.0, True),
        -0.5, _SQRT(1 / 12),
    ),
    "rrelu_with_noise_functional.default": (
        lambda: aten.rrelu_with_noise_functional.default(-ONES, ONES, 0.0, 1.0, True)[1],
        0.5, _SQRT(1 / 12),
    ),
    "dropout.default": (lambda: aten.dropout.default(ONES, 0.5, True), 1, 1),
    "alpha_dropout.default": (lambda: aten.alpha_dropout.default(0 * ONES, 0.5, True) > 0, 0.5, 0.5),
    "rrelu.default": (lambda: aten.rrelu.default(-ONES, 0.0, 1.0, True), -0.5, _SQRT(1 / 12)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_keyed_operator_has_the_mean_and_spread_of_torchs_operator(name: str) -> None:
    call, mean, std = CASES[name]
    drawn = []
    for each in (KEYS[0], KEYS[0], KEYS[1]):
        with operators(each):
            drawn.append(call().double())
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])
    # Five standard errors; the spread of the spread for a kurtosis of at most 9.
    spread = std / math.sqrt(N)
    if name == "randperm.default":
        assert drawn[0].sort().values.equal(torch.arange(N).double())
        return
    assert abs(drawn[0].mean() - mean) < 5 * spread
    assert abs(drawn[0].std() - std) < 5 * spread * math.sqrt(2)


def test_every_operator_tagged_as_random_is_keyed_or_refused() -> None:
    names = {f"{each._opname}.{each._overloadname}": each for each in tagged() if _is_drawing(each)}
    keyed_names = {name for name, each in names.items() if _handler(each) is not None}
    assert keyed_names >= {
        name for name in CASES if not name.startswith(("dropout", "alpha", "rrelu."))
    }
    for name in names.keys() - keyed_names:
        try:
            composite = torch._C._dispatch_has_kernel_for_dispatch_key(
                names[name].name(), "CompositeImplicitAutograd"
            )
        except RuntimeError:  # TorchScript's own, which no dispatcher knows
            continue
        kernels = (
            "attention",
            "rnn",
            "lstm",
            "dropout",
            "poisson",
            "binomial",
            "gamma",
            "dirichlet",
        )
        assert composite or any(part in name for part in kernels), name


def test_attention_dropout_keyed_by_the_dispatch_mode_is_a_function_of_the_key() -> None:
    x = torch.ones(1, 2, 3, 4)
    with operators(KEYS[0]):
        a = F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
    with operators(KEYS[0]):
        assert a.equal(F.scaled_dot_product_attention(x, x, x, dropout_p=0.5))
    assert a.unique().numel() > 1


@pytest.mark.parametrize("name", KEYED)
def test_every_way_to_draw_inside_keyed_is_a_function_of_the_key(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One block for all names: none may know what an earlier one needed.
    monkeypatch.setattr(_watched_block, "_blocks", {})
    drawn = []
    for each in (KEYS[0], KEYS[0], KEYS[1]):
        with keyed(each):
            drawn.append(KEYED[name]((4, 4)).detach().clone())
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


@pytest.mark.parametrize("name", ["custom operator", "torch.Generator"])
def test_draw_that_cannot_use_a_key_raises_with_its_operator_and_line(name: str) -> None:
    with keyed(KEYS[0]), pytest.raises(UnkeyedRandomError, match=r"ways_to_draw\.py:\d+") as caught:
        REFUSED[name]((4, 4))
    assert "ftrain_tests.noise" in str(caught.value) or "torch.rand" in str(caught.value)


def test_global_draw_in_a_keyed_block_while_another_thread_runs_warns() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    before = random.getstate()
    try:
        with pytest.warns(UserWarning, match="by this thread or by another") as caught:
            with keyed(KEYS[0]):
                random.random()
    finally:
        stop.set()
        thread.join()
        random.setstate(before)
    assert caught[0].filename == __file__


def test_a_draw_inside_torchscript_does_not_change_dropout_masks_outside_of_it() -> None:
    def run(hidden: bool) -> Tensor:
        drop = nn.Dropout(0.5)
        first = drop(ONES)
        if hidden:
            KEYED["jit"]((3,))
        return torch.stack([first, drop(ONES)])

    with keyed(KEYS[0]):
        plain = run(hidden=False)
    with keyed(KEYS[0]):
        assert run(hidden=True).equal(plain)


def test_draw_that_only_the_dispatch_mode_sees_raises_under_torch_vmap() -> None:
    def hidden(x: Tensor) -> Tensor:
        return torch.jit.script(_scripted)(x)

    with (
        keyed(KEYS[0]),
        pytest.raises((UnkeyedRandomError, RuntimeError), match="vmap|TorchScript"),
    ):
        torch.vmap(hidden, randomness="different")(torch.ones(3, 4))
    with pytest.raises(UnkeyedRandomError, match="vmap"), keyed(KEYS[0]):
        torch.vmap(lambda x: aten.rand_like(x))(torch.ones(3, 4))


def _scripted(x: Tensor) -> Tensor:
    return x * torch.rand_like(x)


def test_randomized_leaky_relu_keeps_positive_inputs_and_gives_them_the_slope_1() -> None:
    x, noise = torch.tensor([1e-3, 0.5, 1.0, 3.0, -2.0, 0.0]), torch.zeros(6)
    with operators(KEYS[0]):
        output = aten.rrelu_with_noise.default(x, noise, 0.1, 0.3, True)
    assert torch.equal(output[:4], x[:4])
    assert torch.equal(noise[:4], torch.ones(4))
    assert 0.1 <= float(noise[4]) < 0.3
    assert float(output[4]) == float(x[4] * noise[4])


def test_random_operators_in_eval_mode_draw_nothing() -> None:
    x = torch.ones(1, 2, 3, 4)
    with torch.random.fork_rng([]):
        lstm = nn.LSTM(2, 2, 2, dropout=0.5).eval()
    with operators(KEYS[0]):
        here.keyed = 0
        assert aten.native_dropout.default(ONES, 0.5, False)[0].equal(ONES)
        aten.rrelu_with_noise.default(-ONES, ONES, 0.1, 0.3, False)
        F.scaled_dot_product_attention(x, x, x)
        lstm(torch.ones(3, 2))
        assert here.keyed == 0
        lstm.train()(torch.ones(3, 2))
        assert here.keyed == 1
    assert aten.native_dropout.default(ONES, 0.5, False)[0].equal(ONES)


@pytest.mark.parametrize("context", [keyed, operators])
@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.rrelu(x, 0.1, 0.4),
        lambda x: torch.rrelu(x, 0.1, 0.4),
        lambda x: torch.rrelu_(x.clone(), 0.1, 0.4),
        lambda x: aten.rrelu_with_noise.default(x, torch.ones_like(x), 0.1, 0.4),
        lambda x: F.dropout(x, 0.3, training=False),
        lambda x: F.alpha_dropout(x, 0.3),
        lambda x: F.feature_alpha_dropout(x.view(1, 2, -1), 0.3),
        lambda x: torch.native_dropout(x, 0.3, False)[0],
    ],
)
def test_layers_in_eval_mode_compute_what_torch_computes(
    call: Callable[[Tensor], Tensor], context: Callable[[Tensor], Any]
) -> None:
    x = torch.linspace(-1, 1, 6)
    expected = call(x)
    with context(KEYS[0]):
        assert call(x).equal(expected)


def test_initializing_a_model_does_not_import_torch_dynamo() -> None:
    """Importing dynamo takes a second and disables the validation of torch.distributions."""
    program = (
        "import sys, torch, ftrain\n"
        "ftrain.bind(lambda: torch.nn.Linear(2, 1)).init(ftrain.random.key(0))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("context", [keyed, operators])
def test_custom_operator_tagged_as_random_draws_from_the_key_by_its_parts_or_raises(
    context: Callable[[Tensor], Any],
) -> None:
    name = f"ftrain_tagged_{context.__name__}"
    library = torch.library.Library(name, "DEF")
    for part, dispatch in (("made", "CompositeImplicitAutograd"), ("closed", "CPU")):
        library.define(f"{part}(Tensor x) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
        library.impl(part, lambda x: x + torch.rand_like(x), dispatch)
    made, closed = getattr(torch.ops, name).made, getattr(torch.ops, name).closed

    def drawn(operator: Callable[[Tensor], Tensor], key: Tensor) -> Tensor:
        with context(key):
            return operator(torch.zeros(N))

    found = drawn(made, KEYS[0])
    assert found.equal(drawn(made, KEYS[0]))
    assert not found.equal(drawn(made, KEYS[1]))
    assert found.min() >= 0
    assert found.max() < 1
    with torch.inference_mode():  # in which torch shows the operator itself to the mode
        assert drawn(made, KEYS[0]).equal(found)
    with pytest.raises(UnkeyedRandomError, match=f"{name}.closed.default draws .* no replacement"):
        drawn(closed, KEYS[0])
