"""Sums over repeated indices on the CPU: the same bits in every call and with any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain.core import _sums_in_order
from ftrain.core.compile._toolchain import check_compiler

N = 4000  # 64 values each: eight times the size from which torch uses several threads
generator = torch.Generator().manual_seed(0)
ROWS = torch.randint(0, 20, (N,), generator=generator)
COLUMNS = torch.randint(0, 64, (N,), generator=generator)
FLAT = torch.randint(0, 3200, (25 * N,), generator=generator)
C = torch.randn(N, 64, generator=generator)
C1 = torch.randn(25 * N, generator=generator)
W = torch.randn(50, 64, generator=generator)

# Losses of a matrix whose gradient, or value, adds many numbers to the same elements.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "embedding": lambda w: (F.embedding(ROWS, w) * C).sum(),
    "rows": lambda w: (w[ROWS] * C).sum(),
    "table of rows": lambda w: (w[ROWS.view(8, 50, 10)] * C.view(8, 50, 10, 64)).sum(),
    "columns": lambda w: (w[:, ROWS] * C.T[:50]).sum(),
    "elements": lambda w: (w[FLAT % 50, FLAT % 64] * C1).sum(),
    "separated indices": lambda w: (w.view(5, 10, 64)[ROWS % 5, :, COLUMNS] * C[:, :10]).sum(),
    "take": lambda w: (torch.take(w, FLAT) * C1).sum(),
    "index_put": lambda w: torch.zeros_like(w).index_put((ROWS,), w[0] * C, True).square().sum(),
    "put": lambda w: torch.zeros_like(w).put(FLAT, w[0, 0] * C1, True).square().sum(),
    "index_add": lambda w: torch.zeros_like(w).index_add(0, ROWS, w[0] * C).square().sum(),
    "scatter_add": lambda w: torch.zeros(3200).scatter_add(0, FLAT, w[0, 0] * C1).square().sum(),
}


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keyed(function: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
    def run(w: Tensor) -> object:
        with ftrain.random.keyed(ftrain.random.key(0)):
            return function(w)

    return run


def different(function: Callable[[Tensor], object], n: int = 20) -> int:
    return len({ftrain.tree.digest(function(W)) for _ in range(n)})


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("run", ["eager", "keyed", "graph", "vmapped"])
def test_gradient_has_the_same_bits_in_every_call_on_two_threads(name: str, run: str) -> None:
    gradient = ftrain.value_and_grad(LOSSES[name])
    forms = {
        "eager": lambda: gradient,
        "keyed": lambda: keyed(gradient),
        "graph": lambda: ftrain.compile(gradient, backend="eager"),
        "vmapped": lambda: lambda w: torch.vmap(gradient)(torch.stack([w, -w])),
    }
    if run in ("eager", "vmapped") and name in ("index_put", "put"):
        pytest.skip("the forward pass is torch's own: only calls under `keyed` are changed")
    assert different(forms[run]()) == 1


@pytest.mark.usefixtures("two_threads")
def test_compiled_gradients_have_the_same_bits_in_every_call_on_two_threads() -> None:
    check_compiler(device_type="cpu")

    def gradients(w: Tensor) -> list[Tensor]:
        return [torch.func.grad(loss)(w) for loss in LOSSES.values()]

    assert different(ftrain.compile(gradients)) == 1


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_in_order_equals_torchs_deterministic_one(name: str) -> None:
    """By another way: the flag makes torch itself add on one thread."""
    loss, before = LOSSES[name], torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.random.fork_rng():
            _, ours = keyed(ftrain.value_and_grad(loss))(W)  # type: ignore[misc]
        torch.use_deterministic_algorithms(True)
        expected = torch.func.grad(loss)(W)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)
    assert ftrain.tree.digest(ours) == ftrain.tree.digest(expected)


class Table(nn.Module):
    """Model with rows looked up by index, as for relative positions, and an inner derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(50, 64))
        self.words = nn.Embedding(50, 64)

    def forward(self, batch: Tensor) -> Tensor:
        inner = torch.func.grad(lambda w: (w[batch] * C).sum())(self.rows)
        summed = torch.zeros(50, 64).index_put_((batch,), self.words(batch), accumulate=True)
        return self.rows[batch] + self.words(batch) + inner.sin()[batch] + summed[batch]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("compiled", [False, True])
def test_training_step_has_the_same_bits_in_every_call_on_two_threads(compiled: bool) -> None:
    def loss_fn(model: Table, batch: Tensor) -> Tensor:
        return (model(batch) * C).square().mean()

    init_state, train_step, _ = ftrain.make_steps(Table, loss_fn, ftrain.optim.sgd(0.1))
    step = ftrain.compile(train_step, backend="eager") if compiled else train_step
    state = init_state(0)
    assert len({ftrain.tree.digest(step(state, ROWS)) for _ in range(20)}) == 1


@st.composite
def sums(draw: st.DrawFn) -> tuple[Tensor, list[Tensor | None], Tensor]:
    """Return a tensor, indices of some of its dimensions, and values that fit them."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tensor = torch.randn(shape, generator=rng)
    common = draw(st.lists(st.integers(0, 3), max_size=2))
    indices: list[Tensor | None] = []
    for size in shape[: draw(st.integers(1, len(shape)))]:
        kind = draw(st.sampled_from(["none", "full", "row"]))
        given = common if kind == "full" else common[1:]
        index = torch.randint(-size, size, given, generator=rng)
        indices.append(None if kind == "none" else index)
    if all(index is None for index in indices):
        indices[0] = torch.randint(0, shape[0], common, generator=rng)
    values = torch.randn(tensor[tuple(_slices(indices))].shape, generator=rng)
    if values.ndim and draw(st.booleans()):
        values = values[:1]
    return tensor, indices, values


def _slices(indices: list[Tensor | None]) -> list[Tensor | slice]:
    return [slice(None) if index is None else index for index in indices]


@given(sums(), st.integers(1, 6))
def test_sum_in_parts_equals_torchs(
    case: tuple[Tensor, list[Tensor | None], Tensor], part: int
) -> None:
    """On small integers, whose float32 sums are exact in any order."""
    tensor, indices, values = case
    tensor, values = tensor.mul(4).round(), values.mul(4).round()
    expected = torch.ops.aten.index_put(tensor, indices, values, accumulate=True)
    before, threads = _sums_in_order._SERIAL, torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        _sums_in_order._SERIAL = part
        with _sums_in_order.in_order(adds=True):
            found = torch.ops.aten.index_put(tensor, indices, values, accumulate=True)
    finally:
        torch.set_num_threads(threads)
        _sums_in_order._SERIAL = before
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("two_threads")
def test_sum_over_a_mask_and_indices_equals_torchs() -> None:
    mask = torch.arange(20 * N).view(20, N) % 7 > 2
    columns = torch.arange(int(mask.sum())) % 3

    def total() -> Tensor:
        at = torch.arange(len(columns)) % 5 * 1.0
        return torch.ops.aten.index_put(torch.ones(20, N, 3), [mask, columns], at, accumulate=True)

    expected = total()  # no element gets two values, so torch's own order does not matter
    with _sums_in_order.in_order(adds=True):
        assert torch.equal(total(), expected)


@pytest.mark.usefixtures("two_threads")
def test_backward_pass_without_sums_is_not_watched() -> None:
    w = W.clone().requires_grad_()
    assert not _sums_in_order.adds_by_index([(w @ w.T).relu().sum(), F.embedding(ROWS, w).sum()])
    assert _sums_in_order.adds_by_index([w.sum(), (w[ROWS] * 2).sum()])
    torch.set_num_threads(1)
    assert not _sums_in_order.adds_by_index([w[ROWS].sum()])


@pytest.mark.usefixtures("two_threads")
def test_backward_pass_of_an_autograd_function_is_watched() -> None:
    class Rows(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, w: Tensor) -> Tensor:
            return w[ROWS]

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
            return torch.zeros(50, 64).index_put((ROWS,), grad, accumulate=True)

    def loss(w: Tensor) -> Tensor:
        return (Rows.apply(w) * C).sum()  # type: ignore[no-untyped-call]

    assert different(ftrain.value_and_grad(loss)) == 1
