"""Which program a call runs, what is checked before, and what is kept of its arguments."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from ftrain.core.compile import _compiled, compile
from ftrain.core.compile._trace import unrecorded
from ftrain.core.errors import DonationError, RecompileWarning
from tests.compile.cases import Pair, addresses


def eager(fn: Callable[..., Any], **options: Any) -> Any:
    return compile(fn, backend="eager", **options)


@pytest.mark.parametrize("ahead", [False, True])
def test_inner_program_without_arguments_is_traced_again_by_an_outer_function(ahead: bool) -> None:
    """Run instead, it would return a constant of the outer program."""
    weight = torch.ones(2)
    inner = eager(lambda: weight * 2)
    program = inner.lower().compile() if ahead else inner
    for _ in range(2):
        assert program().tolist() == [2.0, 2.0]
    outer = eager(lambda x: x + program())
    for value in (1.0, 3.0):
        weight.fill_(value)
        assert outer(torch.zeros(2)).tolist() == [2 * value] * 2
    assert inner.n_compiles == 1


@pytest.mark.parametrize("ahead", [False, True])
def test_argument_with_a_tangent_is_refused_by_a_program_that_fits_its_values(ahead: bool) -> None:
    compiled = eager(lambda x: x * 2)
    program = compiled.lower(torch.ones(2)).compile() if ahead else compiled
    program(torch.ones(2))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(2), torch.ones(2))
        with pytest.raises(RuntimeError, match="has a tangent"):
            program(dual)
        assert program(torch.ones(2)).tolist() == [2.0, 2.0]


def test_call_with_fake_tensors_returns_a_fake_tensor_and_compiles_nothing() -> None:
    compiled = eager(lambda x: x.sum(0))
    with FakeTensorMode() as mode:
        found = compiled(mode.from_tensor(torch.ones(2, 3)))
    assert isinstance(found, torch._subclasses.FakeTensor)
    assert found.shape == (3,)
    assert compiled.n_compiles == 0


def test_second_of_two_equal_calls_takes_no_slow_search_for_its_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The program of the last call is tried first, however many there are."""
    compiled = eager(lambda x: x * 2)
    for n in range(1, 8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RecompileWarning)
            compiled(torch.ones(n))
    searches: list[Any] = []
    usual = _compiled.Call
    monkeypatch.setattr(_compiled, "Call", lambda *args: searches.append(args) or usual(*args))
    for n in (1, 5, 2, 7):
        searches.clear()
        compiled(torch.ones(n))
        assert len(searches) <= 1
        searches.clear()
        assert compiled(torch.ones(n)).tolist() == [2.0] * n
        assert searches == []
    recent = [2, 7, 5, 1]
    for n in recent:
        compiled(torch.ones(n))
    assert searches == []


def test_call_under_earlier_settings_takes_no_slow_search_for_its_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled, x = eager(lambda x: x @ x), torch.ones(2, 2)
    compiled(x)
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(RecompileWarning):
        compiled(x)
    monkeypatch.setattr(_compiled, "Call", None)
    assert compiled(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(x).dtype == torch.bfloat16


def test_program_ahead_of_its_calls_takes_no_slow_search(monkeypatch: pytest.MonkeyPatch) -> None:
    program = eager(lambda x: x + 1).lower(torch.ones(2)).compile()
    monkeypatch.setattr(_compiled, "Call", None)
    assert program(torch.ones(2)).tolist() == [2.0, 2.0]


def test_warning_compares_with_the_nearest_program_after_calls_of_earlier_ones() -> None:
    compiled = eager(lambda batch: torch.ones(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecompileWarning)
        for batch in ([1, 1, 1], [2, 2, 2], [3, 3, 3]):
            compiled(batch)
    for batch in ([1, 1, 1], [2, 2, 2]):
        compiled(batch)
    for batch, said in (([3, 3, 4], "3 -> 4"), ([2, 2, 5], "2 -> 5"), ([1, 1, 6], "1 -> 6")):
        with pytest.warns(RecompileWarning, match=rf"\n  batch\[2\]: {said}\n[^ ]"):
            compiled(batch)


@pytest.mark.parametrize(
    ("changed", "more"), [(8, ""), (9, "... and 1 more"), (12, "... and 4 more")]
)
def test_warning_lists_eight_changes_and_the_number_of_the_others(changed: int, more: str) -> None:
    compiled = eager(lambda batch: torch.ones(2))
    compiled([0] * 12)
    with pytest.warns(RecompileWarning) as caught:
        compiled([1] * changed + [0] * (12 - changed))
    lines = [line for line in str(caught[0].message).splitlines() if line.startswith("  ")]
    assert lines[:8] == [f"  batch[{i}]: 0 -> 1" for i in range(8)]
    assert [line.strip() for line in lines[8:]] == ([more] if more else [])


def test_compiled_function_is_shown_with_its_name_and_number_of_programs() -> None:
    compiled = eager(torch.sin)
    assert repr(compiled) == "<compiled sin: 0 programs>"
    compiled(torch.ones(1))
    assert repr(compiled) == "<compiled sin: 1 programs>"


@pytest.mark.parametrize("method", ["lower", "graph", "traced"])
def test_arguments_are_checked_by_every_method_that_traces(method: str) -> None:
    take = getattr(eager(lambda x: x * 2), method)
    with pytest.raises(RuntimeError, match="`x` of `<lambda>` requires a gradient"):
        take(torch.ones(2, requires_grad=True))
    donated = getattr(eager(lambda state: state, donate=True), method)
    with pytest.raises(TypeError, match="expected a frozen dataclass"):
        donated(torch.ones(2))


def test_program_refuses_an_unsupported_argument_with_the_error_of_the_function() -> None:
    program = eager(lambda x: x * 2).lower(torch.ones(2, 2)).compile()
    with pytest.raises(TypeError, match="`x` of `<lambda>` has layout torch.sparse_coo"):
        program(torch.eye(2).to_sparse())


def test_program_is_compiled_again_ahead_of_a_call_once_a_captured_tensor_has_changed() -> None:
    weight = nn.Parameter(torch.ones(2), requires_grad=False)
    compiled = eager(lambda x: x * weight)
    compiled.lower(torch.ones(2)).compile()
    weight.data = torch.full((2,), 2.0, dtype=torch.float64)
    program = compiled.lower(torch.ones(2)).compile()
    assert program(torch.ones(2)).dtype == torch.float64
    assert compiled.n_compiles == 2


def doubled(state: Pair) -> Pair:
    return Pair(state.a * 2, state.b + 1)


def test_shared_memory_of_a_donated_state_is_found_before_its_program_is_compiled() -> None:
    x = torch.ones(3)
    compiled = eager(doubled, donate=True)
    for call in (compiled, lambda state: compiled.lower(state).compile()):
        with pytest.raises(DonationError, match="share memory"):
            call(Pair(x, x[1:]))
    assert compiled.n_compiles == 0


@pytest.mark.parametrize("ahead", [False, True])
def test_donated_state_is_not_copied_in_a_call_that_searches_for_its_program(ahead: bool) -> None:
    state = Pair(torch.ones(3), torch.ones(1))
    compiled = eager(doubled, donate=True)
    program = compiled.lower(state).compile() if ahead else compiled
    memory = addresses(state)
    for _ in range(3):
        with forward_ad.dual_level():  # guards do not see tangents, so they are not asked
            state = program(state)
        assert addresses(state) == memory


def test_memory_of_a_donated_state_is_free_once_the_last_new_state_is() -> None:
    compiled = eager(doubled, donate=True)
    states = [compiled(Pair(torch.ones(3), torch.ones(1)))]
    for _ in range(2):
        states.append(compiled(states[-1]))
    leaf = weakref.ref(states[-1].a)
    del states[-1]  # the old ones are still there
    gc.collect()
    assert leaf() is None


def test_index_out_of_range_in_a_donated_program_has_a_note() -> None:
    def looked_up(state: Pair, index: Tensor) -> tuple[Pair, Tensor]:
        return state, state.a[index]

    for donate in (False, True):
        compiled = eager(looked_up, donate=donate)
        compiled(Pair(torch.ones(3), torch.ones(1)), torch.tensor([2]))
        with pytest.raises((IndexError, RuntimeError), match="out of") as caught:
            compiled(Pair(torch.ones(3), torch.ones(1)), torch.tensor([3]))
        assert "Call `looked_up` itself" in "".join(caught.value.__notes__)


def test_cost_of_a_donating_function_keeps_its_state_and_its_static_leaves() -> None:
    def step(state: Pair, x: Tensor) -> tuple[Pair, Tensor]:
        return Pair(state.a * x, state.b), x

    state = Pair(torch.ones(3), 7)
    eager(step, donate=True).cost(state, torch.full((3,), 2.0))
    assert state.a.tolist() == [1.0] * 3
    assert state.b == 7


def test_operators_inside_unrecorded_stay_out_of_the_graph_and_run_outside_of_a_trace() -> None:
    def fn(x: Tensor) -> Tensor:
        with unrecorded():
            x.sin()
        return x * 2

    graph = eager(fn).graph(torch.ones(2))
    assert "aten.sin.default" not in [str(node.target) for node in graph.graph.nodes]
    assert fn(torch.ones(2)).tolist() == [2.0, 2.0]


def test_donated_state_that_passes_unchanged_leaves_no_operator_without_effect_in_the_graph() -> (
    None
):
    graph = eager(lambda state, x: (state, x + 1), donate=True).graph(
        Pair(torch.ones(3), torch.ones(1)), torch.ones(2)
    )
    found = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert found.count("aten.copy_.default") == 0
    unused = [node for node in graph.graph.nodes if node.op == "call_function" and not node.users]
    assert unused == []
