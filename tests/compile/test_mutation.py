"""Writes of a function to its own tensors are traced, including `tensor.data = ...`."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

import ftrain
from ftrain.core.compile import compile
from ftrain.core.errors import ImpureFunctionError, TraceError
from tests.campaign import examples
from tests.compile.cases import same_bytes

captured = torch.zeros(3)


def sets_data(x):
    y = x * 2
    y.data = x + 1
    return y * 3


def sets_data_of_a_viewed_tensor(x):
    y = x * 2
    v = y[1:]
    y.data = x + 1
    v.add_(1)
    return y * 3, v


def sets_data_then_writes_to_both(x):
    y, z = x * 2, x + 1
    y.data = z
    z.add_(1)
    y.mul_(2)
    return y * 3, z


def sets_data_twice(x):
    y, a, b = x * 2, x + 1, x + 2
    y.data = a
    first = y * 1
    y.data = b
    a.add_(100)
    return first, y


def sets_data_of_another_shape(x):
    y = x * 2
    y.data = (x + 1).reshape(1, -1).repeat(2, 1)
    return y * 3


def sets_data_to_the_argument(x):
    y = x * 2
    y.data = x
    return y + 1


def sets_data_of_a_leaf(x):
    y = x.clone().requires_grad_()
    y.data = y.data - 0.1
    return torch.autograd.grad((y**2).sum(), y)[0]


def sets_data_in_a_loop_body(x):
    def body(carry, _):
        y = carry * 2
        y.data = carry + 1
        return y * 1, y.sum()

    return ftrain.scan(body, x, length=3)


def fills_a_module(x):
    with ftrain.random.keyed(ftrain.random.key(0)):
        layer = nn.Linear(2, 3)
    nn.utils.vector_to_parameters(torch.arange(9.0) + x.sum(), layer.parameters())
    return layer(x[:2]).detach()


def loads_a_state_dict(x):
    with ftrain.random.keyed(ftrain.random.key(0)):
        layer = nn.Linear(3, 3, bias=False)
    layer.load_state_dict({"weight": torch.eye(3) * x})
    return layer(x).detach()


def updates_statistics_without_using_the_output(x):
    mean, var = torch.zeros(3), torch.ones(3)
    F.batch_norm(torch.stack([x, x + 1]), mean, var, training=True)
    return mean, var


def resizes(x):
    y = x * 2
    return y.resize_(2, 2).fill_(1) * 3


def writes_out(x):
    y = torch.zeros(0)
    torch.add(x, 1, out=y)
    return y


@pytest.mark.parametrize(
    "fn",
    [
        sets_data,
        sets_data_of_a_viewed_tensor,
        sets_data_then_writes_to_both,
        sets_data_twice,
        sets_data_of_another_shape,
        sets_data_to_the_argument,
        sets_data_of_a_leaf,
        sets_data_in_a_loop_body,
        fills_a_module,
        loads_a_state_dict,
        updates_statistics_without_using_the_output,
        resizes,
        writes_out,
    ],
)
def test_compiled_function_may_write_to_tensors_that_it_created(fn):
    x = torch.arange(1.0, 4.0)
    assert same_bytes(compile(fn, backend="eager")(x), fn(x.clone()))
    assert same_bytes(x, torch.arange(1.0, 4.0))


STEPS = {
    "new": lambda p, i, j: p.append(p[i] + p[j]),
    "view": lambda p, i, j: p.append(p[i].view(2, 2).t().reshape(4)),
    "half": lambda p, i, j: p[i][:2].mul_(p[j][2:]),
    "detached": lambda p, i, j: p.append(p[i].detach()),
    "add_": lambda p, i, j: p[i].add_(p[j]),
    "copy_": lambda p, i, j: p[i].copy_(p[j]),
    "data": lambda p, i, j: setattr(p[i], "data", p[j]),
    "data of data": lambda p, i, j: setattr(p[i], "data", p[j].data.view(4)),
    "into data": lambda p, i, j: p[i].data.sub_(p[j]),
    "set_": lambda p, i, j: p[i].set_(p[j]),
    "parameter": lambda p, i, j: p.append(nn.Parameter(p[i]).detach()),
}


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*sorted(STEPS), "data", "data"]), st.integers(0, 4), st.integers(0, 4)
        ),
        min_size=2,
        max_size=12,
    )
)
@settings(max_examples=examples(20, 40))
def test_compiled_sequence_of_writes_to_created_tensors_equals_eager(steps):
    def fn(x):
        pool = [x * 2, x + 1, x - 3]
        for name, i, j in steps:
            STEPS[name](pool, i % len(pool), j % len(pool))
        return pool

    x = torch.arange(1.0, 5.0)
    assert same_bytes(compile(fn, backend="eager")(x), fn(x.clone()))


@pytest.mark.parametrize("traced_with_rows", [False, True])
@pytest.mark.parametrize("index", [slice(None), 1])
def test_compiled_vmap_with_a_parameter_made_of_its_argument_accepts_arguments_at_any_storage_offset(
    index, traced_with_rows
):
    fn = torch.vmap(lambda x: x + nn.Parameter(x[index], requires_grad=False).sum())
    table = torch.arange(24.0).reshape(6, 4)
    arguments = [table[:2].clone(), table[3:5]]
    compiled = compile(fn, backend="eager")
    for x in reversed(arguments) if traced_with_rows else arguments:
        assert same_bytes(compiled(x), fn(x))


def sets_data_of_an_argument(x):
    x.data = x + 1  # here
    return x


def sets_data_of_a_captured_tensor(x):
    captured.data = x + 1  # here
    return x


@pytest.mark.parametrize("fn", [sets_data_of_an_argument, sets_data_of_a_captured_tensor])
def test_assigning_to_the_data_attribute_of_inputs_or_captured_tensors_raises(fn):
    x = torch.ones(3)
    with pytest.raises(ImpureFunctionError, match="sets `.data`") as error:
        compile(fn, backend="eager")(x)
    assert "# here" in str(error.value)
    with pytest.raises(Exception, match="sets `.data`|in-place|aliasing"):  # as torch.cond says it
        compile(lambda x: torch.cond(x.sum() < 99, fn, fn, (x,)), backend="eager")(x)
    assert x.tolist() == [1.0] * 3
    assert captured.tolist() == [0.0] * 3


def writes_the_storage(x):
    y = x * 2
    y.untyped_storage().fill_(0)  # here
    return y


def converts_a_module(x):
    with ftrain.random.keyed(ftrain.random.key(0)):
        layer = nn.Linear(3, 3)
    return layer.double()(x.double())  # here


@pytest.mark.parametrize(
    ("fn", "remedy"), [(writes_the_storage, "x.fill_(0)"), (converts_a_module, "dtype=")]
)
def test_untraceable_writes_through_storage_or_data_raise_with_a_remedy(fn, remedy):
    with pytest.raises(TraceError) as error:
        compile(fn, backend="eager")(torch.ones(3))
    assert "# here" in str(error.value)
    assert remedy in str(error.value)


@pytest.mark.inductor
def test_inductor_compiled_assignment_to_the_data_attribute_matches_eager():
    x = torch.arange(1.0, 4.0)

    def fn(x):
        return sets_data(x), sets_data_then_writes_to_both(x), sets_data_of_a_leaf(x)

    for a, b in zip(ftrain.tree.leaves(compile(fn)(x)), ftrain.tree.leaves(fn(x)), strict=True):
        torch.testing.assert_close(a, b)
