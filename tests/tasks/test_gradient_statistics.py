"""Test gradient statistics by module: against NumPy, for each ensemble member, and disabled."""

from __future__ import annotations

import functools
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, fx, nn

import ftrain
from ftrain import optim, random, tasks, testing, tree
from ftrain.core._compares_rows import compares_rows
from ftrain.core.compile._trace import trace
from ftrain.loop.callbacks import monitored_steps
from ftrain.tasks import gradient_statistics
from ftrain.tasks.metrics import histogram, log_edges
from tests.zoo import ZOO

NAMES = ("blocks.0.mlp.weight", "blocks.0.mlp.bias", "blocks.1.weight", "scale")
EDGES = log_edges(1e-3, 10.0)


def module(name: str, depth: int | None) -> str:
    names = name.split(".")[:-1]
    return ".".join(names if depth is None else names[:depth]) or "model"


@st.composite
def gradients(draw: st.DrawFn, rows: tuple[int, ...] = ()) -> dict[str, Tensor]:
    seed = draw(st.integers(0, 2**31))
    generator = np.random.default_rng(seed)
    found = {}
    for name in NAMES:
        shape = draw(st.lists(st.integers(1, 4), max_size=2))
        values = generator.normal(size=(*rows, *shape)) * 10.0 ** generator.integers(-6, 3)
        values *= generator.random(values.shape) < 0.8
        found[name] = torch.as_tensor(values)
    return found


ORACLES = {
    "norm": lambda x: np.sqrt((x**2).sum()),
    "rms": lambda x: np.sqrt((x**2).mean()),
    "max": lambda x: np.abs(x).max(),
    "mean": lambda x: x.mean(),
    "zeros": lambda x: (x == 0).mean(),
}


@given(gradients(), st.sampled_from([None, 0, 1, 2, 9]))
def test_gradient_statistics_by_module_equal_those_of_numpy(
    grads: dict[str, Tensor], depth: int | None
) -> None:
    found = gradient_statistics(
        grads,
        statistics=tuple(ORACLES),
        depth=depth,
        vanishing_below=1e-3,
        exploding_above=1.0,
        histogram_edges=EDGES,
    )
    flat: dict[str, Any] = {}
    for name, grad in grads.items():
        path = module(name, depth)
        flat[path] = np.concatenate([flat.get(path, np.zeros(0)), grad.numpy().ravel()])
    norms = {path: ORACLES["norm"](x) for path, x in flat.items()}
    for path, x in flat.items():
        for statistic, oracle in ORACLES.items():
            value = float(found[f"grad_{statistic}/{path}"].value)
            np.testing.assert_allclose(value, oracle(x), rtol=1e-6, atol=1e-12)
        largest = max(norms.values())
        is_small = norms[path] <= 1e-3 * largest and largest > 0
        assert int(found[f"grad_vanishing/{path}"].value) == is_small
        assert int(found[f"grad_exploding/{path}"].value) == (norms[path] > 1)
        counts, _ = np.histogram(-x, [-np.inf, *(-e for e in reversed(EDGES)), np.inf])
        # NumPy's intervals include the lower edge, so the values and the edges are negated.
        assert found[f"grad_histogram/{path}"].value.tolist() == counts[::-1].tolist()
    assert len(found) == len(flat) * (len(ORACLES) + 3)


@given(gradients(rows=(3,)))
@settings(max_examples=10)
def test_vmapped_gradient_statistics_equal_those_of_each_row(grads: dict[str, Tensor]) -> None:
    options: Any = {
        "statistics": tuple(ORACLES),
        "vanishing_below": 1e-3,
        "exploding_above": 1.0,
        "histogram_edges": EDGES,
    }
    finite = torch.tensor([True, False, True])

    def values(grads: dict[str, Tensor], finite: Tensor) -> dict[str, Tensor]:
        found = gradient_statistics(grads, finite, **options)
        return {name: torch.stack(tree.leaves(metric)).double() for name, metric in found.items()}

    mapped = torch.vmap(values)(grads, finite)
    for i in range(3):
        row = values({name: x[i] for name, x in grads.items()}, finite[i])
        for name, value in row.items():
            torch.testing.assert_close(mapped[name][i], value, rtol=1e-12, atol=0)
            assert finite[i] or not value.any()


def test_histogram_bins_include_their_upper_edge_and_the_last_bin_counts_nan() -> None:
    values = torch.tensor([-1.0, 0.0, 1.0, torch.nan, torch.inf, -torch.inf], dtype=torch.bfloat16)
    assert histogram(values, (-1.0, 0.0, 1.0)).value.tolist() == [2, 1, 1, 2]
    merged = histogram(values[:2], (0.0,)).merge(histogram(values[2:], (0.0,)))
    assert merged.value.tolist() == histogram(values, (0.0,)).value.tolist() == [3, 3]
    assert histogram(values[:0], (-1.0, 0.0, 1.0)).value.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistics": ("nrom",)}, "expected some of 'norm', .*got 'nrom'. Did you mean 'norm'"),
        ({"depth": -1}, "depth: expected the number of names .*got -1"),
        ({"vanishing_below": 1.0}, "vanishing_below: expected a fraction .*got 1.0"),
        ({"exploding_above": 0}, "exploding_above: expected a norm above 0, got 0"),
        ({"histogram_edges": (1.0, 1.0)}, r"edges: expected strictly increasing .*\(1.0, 1.0\)"),
    ],
)
def test_gradient_statistics_refuse_invalid_arguments(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_statistics({}, **options)
    with pytest.raises(ValueError, match=message):
        monitored_steps(nn.Linear(1, 1), lambda m, x: m(x).sum(), optim.sgd(0.1), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistics": None}, "statistics: expected a tuple of names, some of 'norm'.* got None"),
        ({"statistics": "norm"}, "statistics: expected a tuple of names.* got 'norm'"),
        ({"vanishing_below": "x"}, "vanishing_below: expected a number or None, got 'x'"),
        ({"exploding_above": [1]}, r"exploding_above: expected a number or None, got \[1\]"),
        ({"histogram_edges": 3}, "edges: expected a tuple of numbers, got 3"),
        ({"histogram_edges": "abc"}, "edges: expected a tuple of numbers, got 'abc'"),
    ],
)
def test_gradient_statistics_refuse_arguments_of_wrong_types(options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        gradient_statistics({}, **options)
    with pytest.raises(TypeError, match=message):
        monitored_steps(nn.Linear(1, 1), lambda m, x: m(x).sum(), optim.sgd(0.1), **options)


def test_gradient_statistics_error_names_a_statistic_that_is_not_a_string() -> None:
    with pytest.raises(ValueError, match="expected some of 'norm', .*got 1"):
        gradient_statistics({}, statistics=(1,))  # type: ignore[arg-type]


def test_log_edges_refuse_a_lowest_edge_of_zero() -> None:
    with pytest.raises(ValueError, match=r"log_edges: expected 0 < low < high .*got 0.0"):
        log_edges(0.0)


ALL: dict[str, Any] = {
    "statistics": tuple(ORACLES),
    "depth": 1,
    "vanishing_below": 1e-3,
    "exploding_above": 10.0,
    "histogram_edges": EDGES,
    "first_nonfinite": True,
}


def nodes(steps: ftrain.Steps, batch: Any) -> list[Any]:
    """Return operators and arguments of the graph of a step, by position."""
    leaves, treedef = tree.flatten(((steps.init_state(0), batch), {}))
    names = [f"leaf {i}" for i in range(len(leaves))]
    graph = trace(steps.train_step, "step", treedef, leaves, names, donate=True).graph.graph
    places = {node: i for i, node in enumerate(graph.nodes)}
    return [
        (node.op, str(node.target), str(fx.map_arg((node.args, node.kwargs), places.__getitem__)))
        for node in graph.nodes
    ]


def test_monitored_steps_with_no_statistics_have_the_same_graph_as_plain_steps() -> None:
    case = ZOO["mlp"]
    batch = case.batch(0, 4)
    plain = nodes(ftrain.make_steps(case.model, case.loss_fn, optim.sgd(0.1)), batch)
    off = nodes(monitored_steps(case.model, case.loss_fn, optim.sgd(0.1), statistics=()), batch)
    assert off == plain
    norms = nodes(monitored_steps(case.model, case.loss_fn, optim.sgd(0.1)), batch)
    assert len(norms) > len(plain)


@pytest.mark.parametrize(
    ("mode", "accumulate"), [("eager", 2), ("compiled", 2), ("vmapped", 1), ("compiled vmapped", 1)]
)
def test_gradient_statistics_do_not_change_the_trained_bits(mode: str, accumulate: int) -> None:
    case = ZOO["mlp"]

    def trained(make: Any, **options: Any) -> tuple[Any, Any]:
        steps = make(case.model, case.loss_fn, optim.sgd(0.1), accumulate=accumulate, **options)
        state, step = steps.init_state(0), steps.train_step
        if "vmapped" in mode:
            state = torch.vmap(lambda key: steps.init_state(0).replace(rng=key))(
                random.split(random.key(3), 2)
            )
            step = torch.vmap(step, (0, None))
        if "compiled" in mode:
            step = ftrain.compile(step, backend="eager")
        return step(state, case.batch(0, 4))  # type: ignore[no-any-return]

    state, metrics = trained(monitored_steps, **ALL)
    expected, plain = trained(ftrain.make_steps)
    testing.assert_same_bits(state, expected)
    for name in plain:
        testing.assert_same_bits(metrics[name], plain[name])
    assert metrics["grad_histogram/layers"].sum(-1).unique().tolist() == [155]
    assert not any(metrics[name].any() for name in metrics if name.startswith("nonfinite_"))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_gradient_statistics_are_finite_in_every_precision(precision: Any) -> None:
    case = ZOO["mlp"]
    steps = monitored_steps(case.model, case.loss_fn, optim.sgd(0.1), precision=precision, **ALL)
    _, metrics = steps.train_step(steps.init_state(0), case.batch(0, 4))
    assert metrics["grad_norm/layers"].dtype == torch.float32
    assert 0 < metrics["grad_norm/layers"] < torch.inf


class Faulty(nn.Module):
    """Chain of layers, one of which divides by zero in the forward or in the backward pass."""

    def __init__(self, layer: int, where: str) -> None:
        super().__init__()
        self.last = nn.Linear(3, 3)  # registered first, called last
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.layer, self.where = layer, where

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i == self.layer and self.where == "between":
                x = x / 0
            if i == self.layer and self.where == "backward":
                x = x + (x - x.detach()).abs().sqrt()  # value 0, gradient infinite
        return self.last(x)  # type: ignore[no-any-return]


def marked(steps: ftrain.Steps, state: Any, mode: str = "eager") -> list[str]:
    step = steps.train_step
    if mode == "compiled":
        step = ftrain.compile(step, backend="eager")
    _, metrics = step(state, torch.ones(4, 3))
    return [n for n in metrics if n.startswith("nonfinite_") and metrics[n]]


def square_loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


@pytest.mark.parametrize(("mode", "accumulate"), [("eager", 1), ("compiled", 2)])
@pytest.mark.parametrize(
    ("layer", "where", "expected"),
    [
        (1, "backward", "nonfinite_grad/layers.1"),
        (2, "backward", "nonfinite_grad/layers.2"),
        (0, "between", "nonfinite_output/model"),
        (0, "nowhere", None),
    ],
)
def test_first_nonfinite_module_is_found_in_the_forward_or_the_backward_pass(
    layer: int, where: str, expected: str | None, accumulate: int, mode: str
) -> None:
    options = {"first_nonfinite": True, "accumulate": accumulate}
    steps = monitored_steps(lambda: Faulty(layer, where), square_loss, optim.sgd(0.1), **options)
    found = marked(steps, steps.init_state(0), mode)
    assert found == ([] if expected is None else [expected])


@pytest.mark.parametrize("name", ["layers.0.weight", "layers.2.bias", "last.weight"])
@pytest.mark.parametrize("nonfinite", ["skip", "ignore"])
def test_module_with_a_nonfinite_parameter_is_the_first_nonfinite_one(
    name: str, nonfinite: Any
) -> None:
    options = {"first_nonfinite": True, "nonfinite": nonfinite}
    steps = monitored_steps(lambda: Faulty(0, "nowhere"), square_loss, optim.sgd(0.1), **options)
    state = steps.init_state(0)
    params = {**state.params, name: torch.full_like(state.params[name], torch.nan)}
    found = marked(steps, state.replace(params=params))
    assert found == [f"nonfinite_output/{name.rpartition('.')[0]}"]


def test_loss_function_is_reported_as_first_nonfinite_if_the_model_is_finite() -> None:
    def loss_fn(model: nn.Module, x: Tensor, key: Tensor) -> Any:
        return (model(x) * 0).log().mean() + random.uniform(key, ()), {"seen": x.mean()}

    steps = monitored_steps(nn.Linear(3, 3), loss_fn, optim.sgd(0.1), first_nonfinite=True)
    assert marked(steps, steps.init_state(0)) == ["nonfinite_output/(loss)"]


def test_loss_watched_for_nonfinite_modules_still_gets_extras_and_warns_if_it_compares_rows() -> (
    None
):
    def loss_fn(model: nn.Module, batch: Tensor, extras: Any, *, scale: float) -> Tensor:
        return square_loss(model, batch) * extras["factor"] * scale

    marked_loss = functools.partial(compares_rows(loss_fn), scale=2.0)
    with pytest.warns(UserWarning, match="2 micro-batches change .*loss_fn"):
        steps = monitored_steps(
            nn.Linear(3, 3), marked_loss, optim.sgd(0.1), first_nonfinite=True, accumulate=2
        )
    state = steps.init_state(0).replace(extras={"factor": torch.zeros(())})
    _, metrics = steps.train_step(state, torch.ones(4, 3))
    assert metrics["loss"] == 0


def test_first_nonfinite_refuses_a_loss_that_computes_its_gradients_itself() -> None:
    loss_fn = tasks.grad_cache("0", lambda model, z, batch: z.square().mean(), chunk_size=2)
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="first_nonfinite: expected a loss .* got .*grad_cache"):
        monitored_steps(model, loss_fn, optim.sgd(0.1), first_nonfinite=True)
    steps = monitored_steps(model, loss_fn, optim.sgd(0.1))
    _, metrics = steps.train_step(steps.init_state(0), torch.ones(4, 3))
    assert metrics["grad_norm/0"] > 0


def test_modules_in_the_body_of_a_scan_or_vmap_are_not_watched_for_nonfinite_values() -> None:
    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x, _ = ftrain.scan(lambda c, _: (self.layer(c), ()), x, length=2)
            return torch.vmap(self.layer)(x)

    steps = monitored_steps(Looped, square_loss, optim.sgd(0.1), first_nonfinite=True)
    for mode in ("eager", "compiled"):
        assert marked(steps, steps.init_state(0), mode) == []


def test_nonfinite_module_of_an_ensemble_is_marked_for_the_affected_member_only() -> None:
    steps = monitored_steps(
        lambda: Faulty(0, "nowhere"), square_loss, optim.sgd(0.1), first_nonfinite=True
    )
    state = torch.vmap(lambda key: steps.init_state(0).replace(rng=key))(
        random.split(random.key(0), 2)
    )
    bad = state.params["last.bias"].clone()
    bad[1] = torch.inf
    state = state.replace(params={**state.params, "last.bias": bad})
    _, metrics = torch.vmap(steps.train_step, (0, None))(state, torch.ones(4, 3))
    assert metrics["nonfinite_output/last"].tolist() == [0, 1]
    assert metrics["nonfinite_grad/last"].tolist() == [0, 0]
