"""Random draws on CUDA: one kernel each, without a sync or a copy, also under capture."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import ftrain
from ftrain import optim, random
from ftrain.core.random import _cuda_kernel
from tests.nullcuda.device import counted

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def floats(n: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return parameters of five elements, which no launch fills."""
    return [torch.empty(5, dtype=dtype, device="cuda") for _ in range(n)]


def bounds(n: int) -> list[Tensor]:
    return [torch.empty(n, dtype=torch.int64, device="cuda") for _ in range(2)]


def between(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda key: random.uniform(key, (5,), dtype, *floats(2, dtype))


MANY = tuple(range(40))  # more than the 32 folds of one launch

DRAWS: dict[str, tuple[int, Callable[[Tensor], Any]]] = {
    **{f"uniform {d}": (1, lambda key, d=d: random.uniform(key, (3, 4), d)) for d in FLOATS},
    **{f"between {d}": (1, lambda key, d=d: random.uniform(key, (9,), d, -2, 3)) for d in FLOATS},
    **{f"normal {d}": (1, lambda key, d=d: random.normal(key, (3, 4), d)) for d in FLOATS},
    **{f"bits {w}": (1, lambda key, w=w: random.bits(key, (7,), w)) for w in (8, 16, 32, 64)},
    "bernoulli": (1, lambda key: random.bernoulli(key, 0.3, (100_000,))),
    "bernoulli of a tensor": (
        2,
        lambda key: random.bernoulli(key, torch.empty(5, device=key.device)),
    ),
    "randint": (1, lambda key: random.randint(key, (5,), 0, 10)),
    "randint of 8 bits": (1, lambda key: random.randint(key, (5,), 0, 10, torch.uint8)),
    "split": (1, lambda key: random.split(key, 5)),
    "fold_in": (1, lambda key: random.fold_in(key, 5)),
    "fold_in of a tensor": (
        1,
        lambda key: random.fold_in(key, torch.empty((), dtype=torch.int64, device=key.device)),
    ),
    "fold_in of a tensor after folds": (
        2,
        lambda key: random.fold_in(key, torch.empty(3, device=key.device).long(), folds=(1, 2)),
    ),
    "fold_in of a number on the host": (1, lambda key: random.fold_in(key, torch.tensor(5))),
    "folds": (1, lambda key: random.normal(key, (3,), folds=MANY[:32])),
    "many folds": (2, lambda key: random.normal(key, (3,), folds=MANY)),
    **{f"exponential {d}": (1, lambda key, d=d: random.exponential(key, (7,), d)) for d in FLOATS},
    **{f"laplace {d}": (1, lambda key, d=d: random.laplace(key, (7,), d)) for d in FLOATS},
    **{f"gumbel {d}": (1, lambda key, d=d: random.gumbel(key, (7,), d)) for d in FLOATS},
    **{f"between tensors {d}": (1, between(d)) for d in FLOATS},
    "randint between tensors": (1, lambda key: random.randint(key, (5,), *bounds(5))),
    "truncated normal": (1, lambda key: random.truncated_normal(key, *floats(2))),
    "truncated normal of numbers": (1, lambda key: random.truncated_normal(key, -2.0, 2.0, (5,))),
    "uniform from a number to a tensor": (
        1,
        lambda key: random.uniform(key, (5,), torch.float16, 0.5, *floats(1, torch.float16)),
    ),
    "randint from a number to a tensor": (
        1,
        lambda key: random.randint(key, (5,), 0, bounds(5)[0]),
    ),
    "gamma": (1, lambda key: random.gamma(key, *floats(1))),
    "gamma of a number": (1, lambda key: random.gamma(key, 2.0, (5,))),
    "beta": (3, lambda key: random.beta(key, *floats(2))),
    "beta of numbers": (3, lambda key: random.beta(key, 2.0, 3.0, (5,))),
    "beta of 64 bits": (3, lambda key: random.beta(key, 2.0, *floats(1, torch.float64))),
    "beta of numbers on the host": (3, lambda key: random.beta(key, *torch.ones(2), (5,))),
    "dirichlet": (2, lambda key: random.dirichlet(key, *floats(1))),
    "poisson": (3, lambda key: random.poisson(key, *floats(1))),
    "poisson of a number": (3, lambda key: random.poisson(key, 4.0, (5,))),
    "ball": (1, lambda key: random.ball(key, 3, 2.0, (5,))),
    "rademacher": (1, lambda key: random.rademacher(key, (5,))),
    "rademacher of 16 bits": (1, lambda key: random.rademacher(key, (5,), torch.bfloat16)),
    "categorical": (3, lambda key: random.categorical(key, *floats(1))),
    "choice": (1, lambda key: random.choice(key, 9, (3,))),
    "choice from a tensor": (2, lambda key: random.choice(key, *floats(1), (3,))),
    "weighted choice": (2, lambda key: random.choice(key, 5, (3,), p=floats(1)[0])),
    "weighted choice from a tensor": (
        3,
        lambda key: random.choice(key, floats(1)[0], (3,), p=floats(1)[0]),
    ),
    # A launch more for the conversion of each parameter of another dtype, and for the copy of one
    # that is broadcast, unless it is one number.
    "beta of two dtypes": (4, lambda key: random.beta(key, *floats(1), *floats(1, torch.float64))),
    "poisson of 64 bits": (4, lambda key: random.poisson(key, *floats(1, torch.float64))),
    "beta of a shape": (5, lambda key: random.beta(key, *floats(2), (3, 5))),
    "keys": (1, lambda key: torch.vmap(lambda k: random.normal(k, (3,)))(key.expand(6, 2))),
}


@pytest.fixture
def key() -> Tensor:
    return random.key(0, device="cuda")


@pytest.mark.parametrize("name", DRAWS)
def test_a_random_draw_launches_few_kernels_without_a_sync_or_a_copy(
    name: str, key: Tensor
) -> None:
    launches, draw = DRAWS[name]
    draw(key)
    if "after folds" in name:
        launches += 1  # the conversion to int64, which the draw here makes itself
    with counted() as counts:
        draw(key)
    assert (counts.launches, counts.waits, counts.bad_captures) == (launches, 0, 0)


#: Launches besides those of the sorts.
SORTED: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "permutation of a range": (2, lambda key: random.permutation(key, 100)),
    "permutation": (3, lambda key: random.permutation(key, *floats(1))),
    "permutation of rows": (
        3,
        lambda key: random.permutation(key, torch.empty(9, 5, device="cuda")),
    ),
    "independent permutation": (
        3,
        lambda key: random.permutation(key, torch.empty(9, device="cuda"), 0, True),
    ),
    "choice without replacement": (2, lambda key: random.choice(key, 9, (3,), replace=False)),
    "choice from a tensor without replacement": (
        3,
        lambda key: random.choice(key, *floats(1), (3,), replace=False),
    ),
    "weighted choice without replacement": (
        3,
        lambda key: random.choice(key, 5, (3,), replace=False, p=floats(1)[0]),
    ),
    "categorical without replacement": (
        2,
        lambda key: random.categorical(key, *floats(1), shape=(2,), replace=False),
    ),
}


@pytest.mark.parametrize("name", SORTED)
def test_a_draw_that_sorts_launches_at_most_three_kernels_besides_without_a_wait(
    name: str, key: Tensor
) -> None:
    launches, draw = SORTED[name]

    def sort() -> Tensor:
        return torch.empty(9, dtype=torch.int32, device="cuda").sort(stable=True).indices

    sort(), draw(key)
    with counted() as sorting:
        sort()
    with counted() as counts:
        draw(key)
    assert (counts.launches, counts.waits) == (launches + sorting.launches, 0)


def test_a_draw_that_factorises_launches_few_kernels_besides_without_a_wait(
    key: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuSOLVER factorises, of which the null device has no stub: its calls give empty memory here."""
    matrix, vector = torch.empty(5, 5, device="cuda"), torch.empty(5, device="cuda")
    info = torch.empty((), dtype=torch.int32, device="cuda")
    monkeypatch.setattr(torch.linalg, "qr", lambda x: (x, matrix))
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda x: (x, info))
    # A multivariate normal makes the covariance symmetric (2) and a factor that does not exist NaN (3).
    draws: list[tuple[int, Callable[[], Tensor]]] = [
        (3, lambda: random.orthogonal(key, 5)),
        (8, lambda: random.multivariate_normal(key, vector, matrix)),
    ]
    for launches, draw in draws:
        draw()
        with counted() as counts:
            draw()
        assert (counts.launches, counts.waits) == (launches, 0)


def test_a_large_permutation_launches_three_kernels_for_each_sort_without_a_wait(
    key: Tensor,
) -> None:
    random.permutation(key, 2000)  # sorted twice
    with counted() as counts:
        random.permutation(key, 2000)
    assert counts.waits == 0
    assert counts.launches <= 2 * 5


def test_draws_from_numbers_and_tensors_have_gradients_rows_and_fake_results(key: Tensor) -> None:
    draws: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda key, x: random.truncated_normal(key, -2.0, x),
        lambda key, x: random.beta(key, 2.0, x),
        lambda key, x: random.uniform(key, x.shape, x.dtype, -1, x),
    ]
    x, keys = floats(1)[0].requires_grad_(), random.split(key, 3)
    for draw in draws:
        draw(key, x).sum().backward()
        assert torch.vmap(draw, (0, None))(keys, x).shape == (3, 5)
        torch.func.jvp(lambda x, draw=draw: draw(key, x), (x.detach(),), (x.detach(),))
        assert ftrain.compile(draw, backend="eager")(key, x.detach()).is_cuda
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert random.poisson(key, 4.0, (5,)).is_cuda
        assert random.gamma(key, 4.0, (5,)).is_cuda
        assert random.randint(key, (5,), 0, floats(1)[0].long()).is_cuda


def test_a_draw_with_a_parameter_on_another_device_names_both(key: Tensor) -> None:
    draws: list[Callable[[], Tensor]] = [
        lambda: random.gamma(key, torch.ones(5)),
        lambda: random.beta(key, torch.ones(5), *floats(1)),
        lambda: random.choice(key, 5, (3,), p=torch.ones(5)),
        lambda: random.randint(key, (2,), 0, torch.arange(2)),
    ]
    for draw in draws:
        with pytest.raises(ValueError, match=r"on cuda:0, the device of its key, got one on cpu"):
            draw()


def test_dropout_under_keyed_launches_few_kernels_without_a_wait(key: Tensor) -> None:
    x = torch.ones(64, 64, device="cuda")
    drop = nn.Dropout(0.1)

    def masked() -> None:
        with random.keyed(key):
            drop(x)

    masked()
    with counted() as counts:
        masked()
    assert counts.launches <= 6  # the draw, a product, a quotient
    assert counts.waits == 0


def test_a_compiled_step_with_a_dropout_launches_few_kernels() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1)).cuda()

    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        loss: Tensor = model(batch).square().mean()
        return loss

    init_state, train_step, _ = ftrain.make_steps(model, loss_fn, optim.sgd(0.1))
    step = ftrain.compile(train_step, donate=True)
    state, batch = init_state(0), torch.ones(8, 16, device="cuda")
    for _ in range(2):
        state, _ = step(state, batch)
    with counted() as counts:
        state, _ = step(state, batch)
    assert counts.launches <= 40  # 744 when each draw was made of torch's operators
    assert counts.waits == 0


def test_samplers_that_reject_proposals_can_be_captured_in_a_cuda_graph(key: Tensor) -> None:
    names = ("gamma", "beta", "dirichlet", "poisson", "ball", "weighted choice")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), counted() as counts:
        for name in names:
            DRAWS[name][1](key)
    assert counts.launches == sum(DRAWS[name][0] for name in names)
    assert (counts.waits, counts.bad_captures) == (0, 0)
    graph.replay()


@pytest.mark.parametrize("mode", ["global", "thread_local"])
def test_first_draw_of_a_process_can_be_captured_in_a_cuda_graph(
    mode: str, key: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_kernel, "_kernels", {})
    graph = torch.cuda.CUDAGraph()
    with counted() as counts:
        with torch.cuda.graph(graph, capture_error_mode=mode):
            random.normal(random.fold_in(key, 3), (5,))
    assert (counts.launches, counts.bad_captures) == (2, 0)
    graph.replay()


def test_random_kernels_are_compiled_once_for_each_kind_of_draw(
    key: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def compiled(kind: int, architecture: str) -> bytes:
        seen.append(kind)
        return b""

    monkeypatch.setattr(_cuda_kernel, "_kernels", {})
    monkeypatch.setattr(_cuda_kernel, "compiled", compiled)
    for _ in range(3):
        random.normal(key, (5,))
        random.uniform(key, (5,))
    assert sorted(seen) == sorted(
        [_cuda_kernel.FOLD, _cuda_kernel.NORMAL32, _cuda_kernel.UNIFORM32]
    )


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvrtc_compiles_every_kind_of_random_kernel(architecture: str) -> None:
    for kind in range(_cuda_kernel.KINDS):
        assert _cuda_kernel.compiled(kind, architecture)[:4] == b"\x7fELF"


def test_random_kernels_round_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No contraction, no approximate division or square root, no flushed subnormals, no local memory."""
    library = _cuda_kernel._nvrtc()

    class Readable:
        def __getattr__(self, name: str) -> Any:
            return getattr(library, name.replace("CUBIN", "PTX"))

    monkeypatch.setattr(_cuda_kernel, "_nvrtc", Readable)
    # Sine, cosine and arc sine are CUDA's: they ask for fused operations, and a table for large angles.
    of_cuda = (_cuda_kernel.KEYED_VON_MISES, _cuda_kernel.KEYED_VON_MISES + 1)
    for kind in sorted({*range(_cuda_kernel.KINDS)} - {*of_cuda}):
        text = _cuda_kernel.compiled.__wrapped__(kind, "sm_90").decode()
        assert f".entry ftrain_{'sampler' if kind >= _cuda_kernel.SAMPLERS else 'kernel'}" in text
        uniform = (_cuda_kernel.UNIFORM32, _cuda_kernel.LAPLACE, _cuda_kernel.GUMBEL)
        uniform = (*uniform, _cuda_kernel.TRUNCATED, _cuda_kernel.BETWEEN)
        asked = int(kind in (*uniform, *(k + 1 for k in uniform)))  # of 32 and of 64 bits
        if kind in (_cuda_kernel.BETWEEN, _cuda_kernel.BETWEEN + 1):
            asked = 2  # a loop for bounds in memory, and one for a number passed by value
        assert len(re.findall(r"\bfma\.", text)) == asked, kind
        assert not re.findall(r"\S*\.(?:ftz|approx|full|local)\b", text), kind


def test_draws_without_nvrtc_warn_once_and_use_the_reference_implementation(
    key: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_kernel, "_kernels", {})
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    _cuda_kernel.compiled.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"libnvrtc\.so\.99.*Install nvidia-cuda-nvrtc"):
        random.normal(key, (5,))
    with warnings.catch_warnings(), counted() as counts:
        warnings.simplefilter("error")
        assert random.normal(key, (5,)).shape == (5,)
    assert counts.launches > 100


def test_a_random_draw_in_a_new_thread_launches_one_kernel_without_a_wait(key: Tensor) -> None:
    with counted() as counts:
        thread = threading.Thread(target=lambda: random.bits(key, (5,)))
        thread.start()
        thread.join()
    assert (counts.launches, counts.waits) == (1, 0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices (NC_DEVICES=2)")
def test_a_random_draw_runs_on_the_device_of_its_key_and_the_current_stream_there() -> None:
    key = random.key(0, device="cuda:1")
    assert torch.cuda.current_device() == 0
    side = torch.cuda.Stream("cuda:1")
    streams: list[int] = []
    kernel = _cuda_kernel.kernel(key.device)
    assert kernel is not None
    launch = kernel._launch

    def watched(*args: Any) -> None:
        streams.append(_cuda_kernel.raw_stream(1))
        launch(*args)

    kernel._launch = watched
    try:
        with torch.cuda.stream(side), torch.cuda.device(0), counted() as counts:
            assert random.normal(key, (5,)).device == key.device
    finally:
        kernel._launch = launch
    assert torch.cuda.current_device() == 0
    assert streams == [side.cuda_stream]
    assert (counts.launches, counts.waits) == (1, 0)
