"""Random draws in a `scan` body differ between iterations and match in every execution mode."""

from __future__ import annotations

import hashlib
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ftrain
from ftrain import optim, random
from ftrain.core import tree
from ftrain.core.compile import compile
from ftrain.core.errors import TraceError
from tests.compile.cases import same_bytes

KEY = random.key(5)
XS = torch.linspace(-1, 1, 24).view(3, 8)


def keyed(key: Tensor, loop: Any, *args: Any) -> Any:
    with random.keyed(key):
        return loop(*args)


def dropped(xs: Tensor) -> Any:
    """Scan with draws in its body, some of them in a layer, and a draw before and after."""
    layer = nn.Dropout(0.5)
    before = torch.rand(2)

    def body(c: Tensor, x: Tensor) -> Any:
        return c + layer(torch.ones_like(x)), (F.dropout(x), layer(x), torch.rand(3))

    return before, ftrain.scan(body, torch.zeros_like(xs[0]), xs), torch.rand(2)


def nested(xs: Tensor) -> Any:
    def outer(c: Tensor, x: Tensor) -> Any:
        inner = ftrain.scan(lambda c, y: (c + torch.rand(()), torch.rand(2)), c, x)
        return inner[0] + torch.rand(()), inner[1]

    return ftrain.scan(outer, torch.zeros(()), xs)


def without_xs(xs: Tensor) -> Any:
    return ftrain.scan(
        lambda c, _: (c + torch.randn(()), torch.randn(3)), torch.zeros(()), length=len(xs)
    )


def gradients_inside(xs: Tensor) -> Any:
    def body(w: Tensor, x: Tensor) -> Any:
        def loss(w: Tensor) -> Tensor:
            return F.dropout(torch.tanh(x * w), 0.4).square().sum()

        value, grad = ftrain.value_and_grad(loss)(w)
        return w - 0.1 * grad * torch.rand(()), value

    return ftrain.scan(body, torch.ones_like(xs[0]), xs)


def gradient_of_the_loop(xs: Tensor) -> Any:
    def loss(w: Tensor) -> Tensor:
        def body(h: Tensor, x: Tensor) -> Any:
            return F.dropout(torch.tanh(h * w + x), 0.4), None

        return ftrain.scan(body, torch.zeros_like(w), xs)[0].square().sum()

    return ftrain.value_and_grad(loss)(torch.ones_like(xs[0]))


def keys_inside(xs: Tensor) -> Any:
    return ftrain.scan(lambda c, x: (c, random.next_key()), (), xs)[1]


def checkpointed(xs: Tensor) -> Any:
    def loss(w: Tensor) -> Tensor:
        def region(h: Tensor, x: Tensor) -> Tensor:
            return F.dropout(torch.tanh(h * w + x), 0.4)

        def body(h: Tensor, x: Tensor) -> Any:
            return checkpoint(region, h, x, use_reentrant=False), None

        return ftrain.scan(body, torch.zeros_like(w), xs)[0].square().sum()

    return ftrain.value_and_grad(loss)(torch.ones_like(xs[0]))


LOOPS = [
    dropped,
    nested,
    without_xs,
    gradients_inside,
    gradient_of_the_loop,
    keys_inside,
    checkpointed,
]


@pytest.mark.parametrize("loop", LOOPS)
def test_scan_draws_match_in_eager_compiled_and_vmapped_code(loop: Any) -> None:
    def run(key: Tensor, xs: Tensor) -> Any:
        return keyed(key, loop, xs)

    keys = random.split(KEY, 2)
    compiled = compile(run, backend="eager")
    rows = torch.vmap(run, (0, None))(keys, XS)
    both = compile(torch.vmap(run, (0, None)), backend="eager")(keys, XS)
    for i, key in enumerate(keys):
        eager = run(key, XS)
        assert same_bytes(compiled(key, XS), eager)
        assert same_bytes(tree.map(lambda leaf, i=i: leaf[i], rows), eager)
        assert same_bytes(tree.map(lambda leaf, i=i: leaf[i], both), eager)
    assert not same_bytes(run(keys[0], XS), run(keys[1], XS))


@pytest.mark.parametrize("loop", [dropped, gradients_inside])
@given(n=st.integers(1, 5), width=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=4)
def test_traced_scan_with_draws_equals_eager_for_any_length(
    loop: Any, n: int, width: int, seed: int
) -> None:
    xs = torch.linspace(-1, 1, n * width).view(n, width)

    def run(key: Tensor, xs: Tensor) -> Any:
        return keyed(key, loop, xs)

    key = random.key(seed)
    assert same_bytes(compile(run, backend="eager")(key, xs), run(key, xs))


def test_each_scan_iteration_call_site_and_loop_has_a_distinct_key() -> None:
    def body(c: Any, x: Tensor) -> Any:
        inner = ftrain.scan(lambda c, y: (c, random.next_key()), (), x[:2])[1]
        return c, [random.next_key(), random.next_key(), *inner]

    with random.keyed(KEY):
        loops = [ftrain.scan(body, (), XS)[1] for _ in range(2)]
        outside = random.next_key()
    found = [tuple(row) for row in torch.cat([*loops[0], *loops[1]]).tolist()]
    assert len({*found, tuple(outside.tolist())}) == len(found) + 1 == 2 * 3 * 4 + 1


def test_draws_outside_scan_do_not_depend_on_draws_inside() -> None:
    layer = nn.Dropout(0.5)

    def run(draws: int, loops: int) -> Any:
        with random.keyed(KEY):
            first = torch.rand(3), layer(XS)
            for _ in range(loops):
                ftrain.scan(
                    lambda c, x: (c, [layer(x) + torch.rand(()) for _ in range(draws)]), (), XS
                )
            return first, torch.rand(3), layer(XS)

    assert same_bytes(run(2, 2), run(0, 0))
    with random.keyed(KEY):
        torch.rand(7)
        moved = ftrain.scan(lambda c, x: (c, torch.rand(3)), (), XS)[1]
    with random.keyed(KEY):
        assert moved.equal(ftrain.scan(lambda c, x: (c, torch.rand(3)), (), XS)[1])


def test_key_of_a_scan_iteration_is_folded_from_its_path_and_index() -> None:
    """The derivation is public behaviour: runs may be resumed after years."""
    with random.keyed(KEY):
        ys = ftrain.scan(lambda c, x: (c, torch.rand(3)), (), XS)[1]

    def folds(path: str, count: int) -> tuple[int, int, int]:
        digest = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big")
        return digest >> 33, (digest & 0xFFFFFFFF) >> 1, count

    for i, y in enumerate(ys):
        iteration = random.fold_in(KEY, i, folds=folds("=scan", 0))
        assert y.equal(random.uniform(iteration, (3,), folds=folds("", 0)))


def test_scan_body_without_draws_adds_no_random_operators_to_the_graph() -> None:
    def run(key: Tensor, xs: Tensor) -> Any:
        return keyed(key, lambda: ftrain.scan(lambda c, x: (c + x, c), torch.zeros(8), xs))

    nodes = compile(run, backend="eager").graph(KEY, XS).graph.nodes
    assert not any("arange" in node.name or "threefry" in node.name for node in nodes)


class Recurrent(nn.Module):
    """Recurrent model with dropout between the iterations of a scan."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.dropout = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, xs: Tensor) -> Tensor:
        def body(h: Tensor, x: Tensor) -> Any:
            return self.dropout(torch.tanh(self.cell(h + x))), None

        return ftrain.scan(body, torch.zeros_like(xs[:, 0]), xs.transpose(0, 1))[0]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_with_dropout_in_scan_gives_equal_results_eager_compiled_and_vmapped(
    accumulate: int,
) -> None:
    def loss_fn(model: Any, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    steps = ftrain.make_steps(Recurrent, loss_fn, optim.sgd(0.1), accumulate=accumulate)
    batch = torch.linspace(-1, 1, 64).view(4, 2, 8)
    eager = compiled = steps.init_state(0)
    step = compile(steps.train_step, backend="eager")
    rows = tree.map(lambda leaf: torch.stack([leaf, leaf]), eager)
    for _ in range(2):
        eager, _ = steps.train_step(eager, batch)
        compiled, _ = step(compiled, batch)
        rows, _ = torch.vmap(steps.train_step, (0, None))(rows, batch)
    # Products of other layouts and batched ones sum in another order; another mask is off by 1e-2.
    for found in (compiled, tree.map(lambda leaf: leaf[0], rows)):
        for p, q in zip(tree.leaves(found.params), tree.leaves(eager.params), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_dropout_masks_of_scan_iterations_are_independent() -> None:
    """Check that half of 200,000 entries are kept, and half equal the one before (5 standard errors)."""
    with random.keyed(KEY):
        kept = ftrain.scan(lambda c, x: (c, F.dropout(x) > 0), (), torch.ones(200, 1000))[
            1
        ].double()
    bound = 5 * 0.5 / (200_000**0.5)
    assert abs(kept.mean() - 0.5) < bound
    assert abs((kept[1:] == kept[:-1]).double().mean() - 0.5) < bound


def test_next_key_outside_keyed_raises() -> None:
    with pytest.raises(ValueError, match="expected a call inside of `with ftrain.random.keyed"):
        random.next_key()


def test_scan_body_that_reads_a_tensor_value_raises_when_traced() -> None:
    with pytest.raises(TraceError):
        compile(
            lambda xs: ftrain.scan(lambda c, x: (c, x * float(x.sum())), (), xs), backend="eager"
        )(XS)
