"""Test errors of `grad_cache`, warnings about micro-batches, and contrastive losses in chunks."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import optim, tasks
from ftrain.tasks import functional, grad_cache
from ftrain.tasks._nonfinite_modules import watching_outputs
from ftrain.testing import assert_close_norm
from tests.config.test_build import built
from tests.tasks import towers
from tests.tasks.towers import (
    ENCODERS,
    LIMIT,
    Towers,
    assert_equal,
    cached,
    of_embeddings,
    results,
)

dtypes = st.sampled_from(sorted(LIMIT, key=str))


REFUSED: dict[str, Any] = {
    "rows differ": (
        lambda: (
            cached(3),
            {**towers.batch(8), "query": {"a": torch.ones(3, 1), "b": torch.ones(4)}},
        ),
        ValueError,
        r"batch\['query'\]\['b'\]: expected 3 rows as in batch\['query'\]\['a'\], got",
    ),
    "no rows": (
        lambda: (cached(3), {**towers.batch(8), "query": torch.ones(0, 5)}),
        ValueError,
        r"batch\['query'\]: expected rows, got",
    ),
    "nothing to cut": (
        lambda: (cached(3), {**towers.batch(8), "query": torch.tensor(1.0)}),
        ValueError,
        r"batch\['query'\]: expected a tensor with a first axis",
    ),
    "a list of strings": (
        lambda: (cached(3), {**towers.batch(8), "query": {"x": torch.ones(2), "y": ["a", "b"]}}),
        TypeError,
        r"only tensors can be cut",
    ),
    "no entry": (
        lambda: (cached(3), {"query": torch.ones(8, 5)}),
        KeyError,
        r"expected an entry 'document' for the encoder of that name, got \['query'\]",
    ),
    "no submodule": (
        lambda: (cached(3, encoders={"query": "queries"}), towers.batch(8)),
        ValueError,
        r"got 'queries'; its submodules are query, document",
    ),
    "embeddings without rows": (
        lambda: (cached(3, encoders={"query": lambda m, x: m.query(x).mean(0)}), towers.batch(8)),
        ValueError,
        r"expected one entry for each of 3 rows, got",
    ),
    "an embedding that is not a tensor": (
        lambda: (cached(3, encoders={"query": lambda m, x: {"a": 1.0}}), towers.batch(8)),
        TypeError,
        r"expected a real tensor, got",
    ),
    "nothing to train": (
        lambda: (
            cached(3, encoders={name: detached(name) for name in ENCODERS}),
            towers.batch(8),
        ),
        ValueError,
        r"expected an encoder that depends on trainable parameters, got none",
    ),
}


def detached(name: str) -> Any:
    return lambda model, x: getattr(model, name)(x).detach()


@pytest.mark.parametrize("name", REFUSED)
def test_grad_cache_step_raises_one_clear_error_for_invalid_input(name: str) -> None:
    make, error, message = REFUSED[name]
    loss_fn, batch = make()
    steps = ftrain.make_steps(Towers, loss_fn, optim.sgd(0.1))
    with pytest.raises(error, match=message):
        steps.train_step(steps.init_state(0), batch)


@pytest.mark.parametrize(
    ("encode", "size", "error", "message"),
    [
        ({}, 3, ValueError, "got an empty mapping"),
        ({"a": 3}, 3, TypeError, r"encode\['a'\]: expected a function"),
        (3, 3, TypeError, "encode: expected a function"),
        (
            lambda model, x, extras: x,
            3,
            TypeError,
            "expected a function without a parameter named `extras`",
        ),
        (ENCODERS, 0, ValueError, "whole number of at least 1, got 0"),
        (ENCODERS, 2.5, ValueError, "whole number of at least 1, got 2.5"),
        (ENCODERS, {"query": 3}, ValueError, r"each of the encoders \['query', 'document'\]"),
    ],
)
def test_grad_cache_refuses_invalid_arguments(
    encode: Any, size: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        grad_cache(encode, of_embeddings, chunk_size=size)


def test_grad_cache_refuses_a_captured_parameter() -> None:
    other = nn.Linear(4, 4).double()
    encoders = {"query": lambda m, x: other(m.query(x)), "document": "document"}
    steps = ftrain.make_steps(Towers, cached(3, encoders=encoders), optim.sgd(0.1))
    with pytest.raises(ValueError, match="requires a gradient and is not in the state"):
        steps.train_step(steps.init_state(0), towers.batch(8))


def test_grad_cache_refuses_a_parameter_captured_by_one_of_two_encoders_of_equal_name() -> None:
    other = nn.Linear(5, 3)

    def encoder(weight: Any) -> Any:
        return lambda model, inputs: inputs @ (model.project.weight if weight is None else weight).T

    batch = {"query": torch.ones(4, 5), "document": torch.ones(4, 5)}
    encoders = {"query": encoder(None), "document": encoder(other.weight)}
    model = nn.Sequential()
    model.add_module("project", nn.Linear(5, 3))
    loss_fn = grad_cache(
        encoders, lambda model, z, batch: z["query"].mean() + z["document"].mean(), chunk_size=2
    )
    _, step, _ = steps = ftrain.make_steps(model, loss_fn, optim.sgd(0.1))
    with pytest.raises(ValueError, match="requires a gradient and is not in the state"):
        step(steps.init_state(0), batch)


MICRO = "micro-batches change .*ftrain.tasks.grad_cache"


@pytest.mark.parametrize(
    "loss_fn",
    [
        tasks.info_nce,
        functools.partial(tasks.info_nce, temperature=0.1),
        tasks.supervised_contrastive,
        cached(3),
        tasks.compares_rows(lambda model, batch: towers.whole(model, batch)),
        tasks.compares_rows(functools.partial(lambda *args, k: towers.whole(*args), k=1)),
        watching_outputs(tasks.compares_rows(functools.partial(towers.whole))),
    ],
)
def test_accumulation_of_a_loss_that_compares_rows_warns_once(loss_fn: Any) -> None:
    with pytest.warns(UserWarning, match=MICRO) as warned:
        ftrain.make_steps(Towers, loss_fn, optim.sgd(0.1), accumulate=2)
    assert len(warned) == 1


def test_micro_batches_of_a_loss_that_compares_rows_warn_once() -> None:
    loss_fn = tasks.compares_rows(lambda model, batch: towers.whole(model, batch))
    steps = ftrain.make_steps(Towers, loss_fn, optim.sgd(0.1))
    state = steps.init_state(0)
    parts = ftrain.MicroBatches((towers.batch(4), towers.batch(4, seed=1)))
    with pytest.warns(UserWarning, match=MICRO) as warned:
        state, _ = ftrain.scan(lambda s, _: steps.train_step(s, parts), state, length=2)
    assert len(warned) == 1


def test_accumulation_of_a_loss_of_independent_rows_does_not_warn(
    recwarn: pytest.WarningsRecorder,
) -> None:
    ftrain.make_steps(Towers, tasks.triplet, optim.sgd(0.1), accumulate=2)
    ftrain.make_steps(Towers, cached(3), optim.sgd(0.1))
    assert not recwarn.list


@given(
    rows=st.integers(1, 9),
    negatives=st.integers(0, 3),
    size=st.integers(1, 12),
    symmetric=st.booleans(),
    normalize=st.booleans(),
    seed=st.integers(0, 5),
)
def test_info_nce_in_chunks_has_the_value_and_gradients_of_info_nce_without_chunks(
    rows: int, negatives: int, size: int, symmetric: bool, normalize: bool, seed: int
) -> None:
    data = towers.batch(rows, negatives, seed=seed)
    mask = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.8
    mask[0] = True

    def loss(x: Any, chunk_size: int) -> Tensor:
        found = functional.info_nce(
            x["query"], x["document"], temperature=x["heat"], symmetric=symmetric,
            normalize=normalize, mask=mask, chunk_size=chunk_size,
        )  # fmt: skip
        return found.value

    x = {**data, "heat": torch.tensor(0.5, dtype=torch.float64)}
    value, grads = ftrain.value_and_grad(loss)(x, size)
    expected, others = ftrain.value_and_grad(loss)(x, 0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    for name, grad in grads.items():
        assert torch.allclose(grad, others[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
def test_cached_info_nce_has_the_gradients_and_the_recall_of_info_nce(symmetric: bool) -> None:
    options: dict[str, Any] = {"logit_scale": "log_temperature", "symmetric": symmetric}
    plain = functools.partial(tasks.info_nce, **options)
    batch, loss_fn = towers.batch(8), tasks.cached_info_nce(chunk_size=3, **options)
    found, expected = results(Towers, batch, loss_fn, plain)
    assert_equal(found, expected, 1e-12)
    made = [ftrain.make_steps(Towers, fn, optim.sgd(0.1)) for fn in (loss_fn, plain)]
    evaluated = [steps.eval_step(made[0].init_state(0), batch).compute() for steps in made]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-12)


def test_two_towers_train_by_cached_info_nce_from_a_configuration() -> None:
    tokens = torch.randint(1, 20, (24, 6), generator=torch.Generator().manual_seed(0))
    rows = {"query": tokens[:, :3].contiguous(), "document": tokens}
    parts = built(
        model={"name": "ftrain.tasks:TwoTower", "vocabulary": 20, "width": 16, "dropout": 0.0},
        loss={"name": "cached_info_nce", "chunk_size": 5, "logit_scale": "logit_scale"},
    )
    state = parts.init_state()
    plain = functools.partial(tasks.info_nce, first=0, second=1, logit_scale="logit_scale")
    expected = ftrain.make_steps(parts.model, plain, optim.sgd(0.1)).train_step
    assert_close_norm(
        parts.steps.train_step.gradients(state, rows).grads,
        expected.gradients(state, rows).grads,
        4e-6,
    )
