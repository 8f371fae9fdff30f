"""Models whose parts `torch.compile` has compiled: they run as plain Python, with the same draws."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ftrain
from ftrain import optim, testing

BATCH = torch.linspace(-1, 1, 12).reshape(4, 3)
BACKEND = "eager"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*runs as plain Python inside of ftrain")
        yield


def doubled(x: Tensor, training: bool) -> Tensor:
    return F.dropout(x * 2, 0.5, training)


class Net(nn.Module):
    """A layer that draws in a module, a function that draws; `alter` may compile parts of it."""

    def __init__(self, alter: Callable[[Any], None]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
        self.function = doubled
        alter(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.second(self.first(x)), self.training)


def by_function(net: Any, **options: Any) -> None:
    net.function = torch.compile(doubled, backend=BACKEND, **options)


def by_method(net: Any) -> None:
    net.forward = torch.compile(net.forward, backend=BACKEND)


ALTERED: dict[str, Callable[[Any], None]] = {
    "layer.compile()": lambda net: net.second.compile(backend=BACKEND),
    "model.compile()": lambda net: net.compile(backend=BACKEND),
    "function": by_function,
    "fullgraph": lambda net: by_function(net, fullgraph=True),
    "aot_eager": lambda net: setattr(net, "function", torch.compile(doubled, backend="aot_eager")),
    "method": by_method,
}


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    value: Tensor = model(batch).square().mean()
    return value


def steps_of(alter: Callable[[Any], None]) -> ftrain.Steps:
    return ftrain.make_steps(lambda: Net(alter), loss_fn, optim.sgd(0.1))


@pytest.mark.parametrize("name", ALTERED)
def test_train_step_of_a_model_with_torch_compiled_parts_equals_that_of_the_plain_model(
    name: str,
) -> None:
    plain, steps = steps_of(lambda net: None), steps_of(ALTERED[name])
    state = steps.init_state(0)
    testing.assert_same_bits(state, plain.init_state(0))
    expected = plain.train_step(state, BATCH)
    for _ in range(2):
        testing.assert_same_bits(steps.train_step(state, BATCH), expected)
    compiled = ftrain.compile(steps.train_step, backend="eager")
    testing.assert_same_bits(compiled(state, BATCH), expected)


def test_vmapped_train_step_of_a_model_with_torch_compiled_parts_matches_single_steps() -> None:
    steps = steps_of(by_function)
    states = torch.vmap(steps.init_state)(torch.arange(2))
    losses = torch.vmap(lambda s: steps.train_step(s, BATCH)[1]["loss"])(states)
    for row in range(2):
        single = steps.train_step(ftrain.tree.map(lambda t, i=row: t[i], states), BATCH)
        testing.assert_close_norm(losses[row], single[1]["loss"], 1e-6)


def test_modules_wrapped_by_torch_compile_give_the_same_bits_in_eager_and_compiled_steps() -> None:
    def make() -> nn.Module:
        layers = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5))
        return nn.Sequential(torch.compile(layers, backend=BACKEND), nn.Linear(8, 2))

    for model in (make, make(), lambda: torch.compile(make(), backend=BACKEND)):
        steps = ftrain.make_steps(model, loss_fn, optim.sgd(0.1))
        state = steps.init_state(0)
        expected = steps.train_step(state, BATCH)
        compiled = ftrain.compile(steps.train_step, backend="eager")
        testing.assert_same_bits(compiled(state, BATCH), expected)


def test_torch_compiled_part_of_a_model_warns_with_the_line_that_calls_it() -> None:
    steps = steps_of(by_function)
    with pytest.warns(UserWarning, match="runs as plain Python inside of ftrain") as caught:
        steps.train_step(steps.init_state(0), BATCH)
    assert caught[0].filename == __file__


def test_keyed_disables_torch_compile_only_inside_its_block_and_thread() -> None:
    counts: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        counts.append(1)
        return graph.forward

    function = torch.compile(lambda x: x.sin() + 1, backend=backend)
    with ftrain.random.keyed(ftrain.random.key(0)):
        function(BATCH)
        assert counts == []
        thread = threading.Thread(target=lambda: function(BATCH))
        thread.start()
        thread.join()
        assert counts == [1]
    torch.compiler.reset()
    function(BATCH)
    assert counts == [1, 1]


def test_compiler_stance_set_by_the_user_applies_outside_of_keyed() -> None:
    function = torch.compile(lambda x: x.sin() + 1, backend=BACKEND)
    with ftrain.random.keyed(ftrain.random.key(0)):
        function(BATCH)
    with torch.compiler.set_stance("fail_on_recompile"):
        with pytest.raises(RuntimeError, match="fail_on_recompile"):
            function(BATCH)
        with ftrain.random.keyed(ftrain.random.key(0)):
            function(BATCH)


def test_torch_cond_inside_keyed_has_the_right_gradient() -> None:
    w = torch.tensor(2.0, requires_grad=True)
    with ftrain.random.keyed(ftrain.random.key(0)):
        out = torch.cond(w.detach() > 0, lambda x: x * w, torch.sin, (torch.ones(3),))
    (grad,) = torch.autograd.grad(out.sum(), w)
    assert grad == 3.0


def test_torch_jit_trace_that_fails_inside_a_model_function_raises_with_a_remedy() -> None:
    def make() -> nn.Module:
        torch.jit.trace(nn.Dropout(0.5), torch.ones(3))
        return nn.Linear(3, 2)

    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace inside of `keyed`(?s:.*)Leave out"):
        ftrain.bind(make)
