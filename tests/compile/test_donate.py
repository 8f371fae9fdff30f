"""Donation reuses memory without changing results; a donated state raises on further use."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from ftrain.core import tree
from ftrain.core.compile import compile
from ftrain.core.errors import DonatedStateError, DonationError
from ftrain.core.state import TrainState
from tests.campaign import choice, long
from tests.compile.cases import Pair, addresses, apart, same_bytes, tensors

F64 = torch.float64

# Each writes into one leaf what another leaf still has to be read for.
STEPS = {
    "swap": lambda s, x: (Pair(s.b, s.a), {}),
    "swap and add": lambda s, x: (Pair(s.b + x, s.a), {"sum": s.a.sum()}),
    "old values as metrics": lambda s, x: (Pair(s.a + 1, s.b * 2), {"old": s.a, "part": s.b[:1]}),
    "new values as metrics": lambda s, x: (lambda n: (Pair(n, n * 2), {"new": n, "part": n[:1]}))(
        s.a + x
    ),
    "one value twice": lambda s, x: (lambda n: (Pair(n, n), {"n": n}))(s.a + x),
    "equal expressions": lambda s, x: (Pair(s.a + x, s.a + x), {"p": s.a + x, "q": s.a + x}),
    "nothing changes": lambda s, x: (s, {"x": x}),
    "one passes": lambda s, x: (Pair(s.a, s.b + 1), {}),
    "the batch becomes state": lambda s, x: (Pair(x, s.a), {"x": x}),
    "a target network": lambda s, x: (Pair(s.a - x * s.b.sum(), s.a.clone()), {}),
    "reversed in place": lambda s, x: (Pair(s.a.flip(0), s.b.roll(1)), {"a": s.a}),
    "permuted in place": lambda s, x: (
        Pair(s.a.view(2, -1).t().reshape(-1), s.b.view(-1, 2).t().reshape(-1)),
        {},
    ),
    "halves trade places": lambda s, x: (
        Pair(torch.cat([s.b[:2], s.a[2:]]), torch.cat([s.a[:2], s.b[2:]])),
        {},
    ),
    "expanded": lambda s, x: (Pair(x.sum().expand_as(s.a), s.a), {"s": x.sum().expand(3)}),
    "zeros": lambda s, x: (
        Pair(torch.zeros_like(s.a), torch.zeros_like(s.b)),
        {"z": torch.zeros(3)},
    ),
    "views of products": lambda s, x: (
        Pair((s.a.view(2, -1) @ s.b.view(-1, 2)).view(-1).repeat(s.a.numel() // 4), s.a),
        {},
    ),
    "selected": lambda s, x: (Pair(torch.where(x.sum() > 0, s.b, s.a), s.b - x), {}),
}


def run_both_ways(step, backend, state, x):
    """Assert law 9: a donated program returns what the same program returns without donation.

    The eager step is no reference for machine code: a product may sum in another order.
    """
    expected = compile(step, backend=backend)(state, x)
    donated = compile(step, donate=True, backend=backend)
    for _ in range(2):
        given = tree.map(torch.clone, state)
        memory = addresses(given)
        found, metrics = donated(given, x)
        assert same_bytes((found, metrics), expected)
        assert apart(found, metrics, x)
        assert addresses(found) == memory
    assert donated.n_compiles == 1


@pytest.mark.parametrize("name", STEPS)
@given(st.data())
@settings(max_examples=4)
def test_donated_step_equals_undonated_step_on_the_eager_backend(name, data):
    n = 2 * data.draw(st.integers(2, 4))
    n = 4 if name == "views of products" else n
    state = Pair(data.draw(tensors((n,), F64)), data.draw(tensors((n,), F64)))
    run_both_ways(STEPS[name], "eager", state, data.draw(tensors((n,), F64)))


def pair_of(n):
    return Pair(torch.arange(n) / 8 + 1.0, torch.arange(n) * 2.0)


@pytest.mark.inductor
@pytest.mark.parametrize("n", choice([1024], [4, 1024]))  # one vector, and many
def test_many_donated_steps_in_one_inductor_program_equal_undonated_ones(n):
    """All steps are in one program, so that inductor fuses loops across them."""

    def all_of_them(state, x):
        found = {name: step(state.a[name], x) for name, step in STEPS.items()}
        metrics = [metrics for _, metrics in found.values()]
        return Pair({name: new for name, (new, _) in found.items()}, state.b), metrics

    states = Pair({name: pair_of(n) for name in STEPS}, torch.ones(3))
    run_both_ways(all_of_them, "inductor", states, torch.arange(n) - n / 4)


@pytest.mark.inductor
@long
@pytest.mark.parametrize("name", ["swap", "a target network", "permuted in place", "expanded"])
def test_each_donated_step_in_its_own_inductor_program_equals_undonated(name):
    run_both_ways(STEPS[name], "inductor", pair_of(1024), torch.arange(1024) - 256.0)


def step(state, batch):
    return state.replace(step=state.step + 1, params={"w": state.params["w"] * batch}), {
        "b": batch + 1
    }


def make_state():
    return TrainState(torch.tensor(0), {"w": torch.ones(3)}, {}, (), (), torch.zeros(2), {})


def donated_step(step=step):
    return compile(step, donate=True, backend="eager")


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.params,
        lambda s: s.replace(step=1),
        repr,
        str,
        hash,
        lambda s: s == s,
        tree.leaves,
        tree.paths,
        tree.digest,
        lambda s: tree.map(torch.clone, s),
        lambda s: donated_step()(s, torch.ones(3)),
        lambda s: compile(step, backend="eager")(s, torch.ones(3)),
        lambda s: step(s, torch.ones(3)),
        torch.utils._pytree.tree_leaves,
        lambda s: torch.func.vmap(lambda s: s)(s),
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
    ],
)
def test_every_use_of_a_donated_state_raises(use):
    state = make_state()
    new, _ = donated_step()(state, torch.ones(3))  # the line that the message shows
    with pytest.raises(DonatedStateError) as error:
        use(state)
    message = str(error.value)
    assert f"{__file__}:" in message
    assert "the line that the message shows" in message
    assert "state, metrics = step(state, batch)" in message
    assert "ftrain.tree.map(torch.clone, state)" in message
    assert isinstance(state, TrainState)
    assert new.step.item() == 1


def test_donated_steps_reuse_the_memory_of_the_state():
    compiled, state = donated_step(), make_state()
    memory = addresses(state)
    for i in range(5):
        state, _ = compiled(state, torch.full((3,), 2.0))
        assert state.step.item() == i + 1
        assert addresses(state) == memory
    assert state.params["w"].tolist() == [32.0] * 3
    assert compiled.n_compiles == 1


def test_donated_step_may_return_the_state_without_metrics():
    compiled = donated_step(lambda s: Pair(s.a + 1, s.b))
    state = compiled(compiled(Pair(torch.zeros(1), torch.ones(1))))
    assert state.a.item() == 2.0


def test_donated_step_reads_the_new_value_of_a_field_replaced_between_steps():
    compiled, state = donated_step(), make_state()
    state, _ = compiled(state, torch.ones(3))
    state = state.replace(params={"w": torch.full((3,), 7.0)})
    state, _ = compiled(state, torch.ones(3))
    assert state.params["w"].tolist() == [7.0] * 3
    assert compiled.n_compiles == 1


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (
            lambda s: s.replace(params={"w": s.params["w"].double()}),
            "state.params['w']` was float32[3] and becomes float64[3]",
        ),
        (lambda s: s.replace(params={"w": s.params["w"][:2]}), "becomes float32[2]"),
        (lambda s: s.replace(params={}), "['w'] is missing"),
        (lambda s: dataclasses.replace(s, step=1), "`state.step` was int64[] and becomes 1"),
        (lambda s: s.params, "differs in structure from the state"),
    ],
)
def test_donated_step_that_changes_the_state_structure_raises_and_keeps_the_old_state_usable(
    new, said
):
    def bad(state):
        return new(state), {}

    state = make_state()
    with pytest.raises(DonationError) as error:
        donated_step(bad)(state)
    assert said in str(error.value)
    assert same_bytes(state, make_state())


def test_donating_a_state_with_tensors_that_share_memory_raises_with_both_names():
    x = torch.ones(3)
    with pytest.raises(DonationError, match=r"`state.a` and `state.b\['v'\]` share memory"):
        donated_step(lambda state: Pair(state.a, state.b))(Pair(x, {"v": x[1:]}))
    state = make_state()
    with pytest.raises(DonationError, match=r"`state.params\['w'\]` and `batch` share memory"):
        donated_step()(state, state.params["w"])
    compiled = donated_step()
    state, _ = compiled(state, torch.ones(3))
    with pytest.raises(DonationError, match="share memory"):
        compiled(state, state.params["w"])
    assert state.params["w"].tolist() == [1.0] * 3
    captured = state.params["w"]
    with pytest.raises(DonationError, match="a captured"):
        donated_step(lambda state: state.replace(step=state.step + captured.sum().long()))(state)


def test_donation_detects_tensors_that_share_memory_only_since_the_previous_step():
    compiled = donated_step(lambda s: Pair(*tree.map(lambda x: x + 1, (s.a, s.b))))
    start = Pair(
        {"v": torch.zeros(3), "w": torch.zeros(3)}, {"v": torch.ones(3), "w": torch.ones(3)}
    )
    state = compiled(compiled(start))
    state.b["v"] = state.b["v"] * 2  # memory of its own
    state = compiled(state)
    assert state.b["v"].tolist() == [7.0] * 3
    state.b["v"], state.b["w"] = state.b["w"], state.b["v"]
    state = compiled(state)
    state.b["v"].data = state.a["v"].data
    with pytest.raises(DonationError, match=r"`s.a\['v'\]` and `s.b\['v'\]` share memory"):
        compiled(state)
    state.b["v"] = torch.ones(3)
    state = compiled(state)
    for name in state.a:
        state.b[name] = state.a[name]
    with pytest.raises(DonationError, match=r"`s.a\['v'\]` and `s.b\['v'\]` share memory"):
        compiled(state)
    assert state.a["w"].tolist() == [5.0] * 3
    assert compiled.n_compiles == 1


def test_donation_refuses_expanded_and_inference_tensors():
    with pytest.raises(DonationError, match="`state.a` .* is expanded"):
        donated_step(lambda state: state)(Pair(torch.zeros(()).expand(3), torch.ones(1)))
    with torch.inference_mode():
        x = torch.ones(3)
    with pytest.raises(DonationError, match="inference_mode"):
        donated_step(lambda state: state)(Pair(x, torch.ones(1)))


@pytest.mark.parametrize("first", [{"a": torch.ones(1)}, torch.ones(1), 3, None])
def test_only_frozen_dataclasses_can_be_donated(first):
    with pytest.raises(TypeError, match="register_dataclass"):
        donated_step(lambda state: state)(first)


def test_donated_step_refuses_a_state_passed_as_a_keyword_argument():
    with pytest.raises(TypeError, match="first positional argument"):
        donated_step(lambda state: state)(state=make_state())


def test_error_while_tracing_a_donated_step_keeps_the_old_state_usable():
    def bad(state):
        raise KeyError("mine")

    state = make_state()
    with pytest.raises(KeyError, match="mine"):
        donated_step(bad)(state)
    assert same_bytes(state, make_state())


def test_using_a_state_whose_donated_program_failed_raises(monkeypatch):
    compiled, state = donated_step(), make_state()
    state, _ = compiled(state, torch.ones(3))

    def fail(_):
        raise MemoryError

    monkeypatch.setattr(compiled._programs[0], "_call", fail)
    with pytest.raises(MemoryError):
        compiled(state, torch.ones(3))
    with pytest.raises(DonatedStateError, match="half of the next state"):
        state.step  # noqa: B018
