"""Test that a step which runs out of memory is repeated in micro-batches, with reproducible bits."""

from __future__ import annotations

import functools
import pathlib
import warnings
from typing import Any

import pytest
import torch

import ftrain
from ftrain import tree
from ftrain.loop import BatchEnd, LoopWarning, Trainer
from ftrain.loop._out_of_memory import cut, is_out_of_memory, next_cut
from tests.campaign import sample
from tests.compile.test_failed_donation import FailsAt
from tests.loop.runs import STEPS, rows, steps, trainer

BATCHES = [{name: x[8 * i : 8 * i + 8] for name, x in rows().items()} for i in range(3)]


class Injected:
    """A compiled, donated step of which one call runs out of memory at its n-th allocation."""

    def __init__(self, step: Any, call: int, n: int) -> None:
        self.step, self.call, self.n = step, call, n
        self.__wrapped__ = step.__wrapped__
        self.calls = 0
        self.failed = False

    def __call__(self, state: Any, batch: Any) -> Any:
        self.calls += 1
        if self.calls != self.call:
            return self.step(state, batch)
        try:
            with FailsAt(self.n):
                return self.step(state, batch)
        except torch.OutOfMemoryError:
            self.failed = True
            raise


@functools.cache
def donated(accumulate: int) -> Any:
    step = ftrain.compile(steps(accumulate=accumulate).train_step, donate=True, backend="eager")
    step(copy(STEPS.init_state(9)), BATCHES[0])  # compiles now, so that no trace allocates later
    return step


def copy(state: Any) -> Any:
    return tree.map(torch.clone, state)


@functools.cache
def expected(call: int) -> str:
    """Return the digest of a run that uses two micro-batches from a given call on."""
    state = copy(STEPS.init_state(0))
    for i, batch in enumerate(BATCHES, 1):
        state, _ = donated(2 if i >= call else 1)(state, batch)
    return tree.digest(state)


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("n", sample(10, range(1, 51)))
def test_a_step_that_runs_out_of_memory_is_repeated_in_micro_batches(call: int, n: int) -> None:
    step = Injected(donated(1), call, n)
    with pytest.warns(LoopWarning, match=f"out of memory at step {call}: .* 2 micro-batches"):
        result = Trainer(step, compile=False).fit(copy(STEPS.init_state(0)), BATCHES, epochs=1)
    assert step.failed
    assert tree.digest(result.state) == expected(call)


@pytest.mark.parametrize(("accumulate", "parts"), [(1, 4), (2, 4), (4, 8)])
def test_a_batch_is_split_until_its_micro_batches_fit_into_memory(
    accumulate: int, parts: int
) -> None:
    """Splitting starts from the number of micro-batches that the step already uses."""

    def step(state: Any, batch: Any) -> Any:
        k = len(batch.batches) if isinstance(batch, ftrain.MicroBatches) else accumulate
        if k < parts:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made.train_step(state, batch)

    made = steps(accumulate=accumulate)
    step.accumulate = accumulate  # type: ignore[attr-defined]
    with pytest.warns(LoopWarning):
        result = Trainer(step, compile=False).fit(STEPS.init_state(0), BATCHES, epochs=1)
    whole = steps(accumulate=parts)
    there = Trainer(whole, compile=False).fit(STEPS.init_state(0), BATCHES, epochs=1)
    assert tree.digest(result.state) == tree.digest(there.state)


def test_a_single_row_that_does_not_fit_into_memory_raises_with_remedies() -> None:
    def step(state: Any, batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")

    with pytest.warns(LoopWarning), pytest.raises(torch.OutOfMemoryError) as found:
        Trainer(step, compile=False).fit(STEPS.init_state(0), BATCHES, epochs=1)
    message = str(found.value)
    assert "The batch of 8 rows is already cut into 8 parts" in message
    assert "The state takes" in message
    assert "bf16-mixed" in message
    result = found.value.fit_result  # type: ignore[attr-defined]
    assert result.status == "failed"
    assert tree.digest(result.state) == tree.digest(STEPS.init_state(0))


def test_an_evaluation_that_runs_out_of_memory_is_repeated_in_parts() -> None:
    def eval_step(state: Any, batch: Any) -> Any:
        if len(batch["x"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return STEPS.eval_step(state, batch)

    state = STEPS.init_state(0)
    found = trainer(steps=(STEPS.train_step, eval_step)).evaluate(state, BATCHES)
    whole = trainer().evaluate(state, BATCHES)
    assert found.samples == whole.samples == 24
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)  # sums in another order


def test_splitting_a_batch_returns_equal_parts_with_all_rows() -> None:
    batch = {"x": torch.arange(12).reshape(12, 1), "scale": torch.tensor(2.0)}
    assert next_cut(batch, 1) == 2
    assert next_cut(batch, 4) == 12  # 8 does not divide 12
    assert next_cut(batch, 12) is None
    parts = cut(batch, 3).batches
    assert torch.equal(torch.cat([part["x"] for part in parts]), batch["x"])
    assert all(part["scale"] == 2.0 for part in parts)
    assert len(cut(cut(batch, 3), 2).batches) == 6


def test_a_checkpoint_stores_the_number_of_micro_batches(tmp_path: Any) -> None:
    from ftrain import checkpoint
    from ftrain.loop import LoopState, Stop

    class Once:
        listens = (BatchEnd,)

        def init(self) -> Any:
            return None

        def __call__(self, state: Any, event: Any) -> Any:
            return state, [Stop("one")]

    step = Injected(donated(1), 1, 5)
    made = Trainer(step, [Once()], compile=False, store=tmp_path)
    with pytest.warns(LoopWarning):
        made.fit(copy(STEPS.init_state(0)), BATCHES, epochs=1)
    loaded = checkpoint.Store(tmp_path).load(like=STEPS.init_state(0))
    assert LoopState.from_metadata(*loaded).micro_batches == 2


def test_splitting_a_batch_of_any_size_keeps_every_row() -> None:
    """The last batch of the data may be shorter than the one that did not fit."""
    for n in range(1, 14):
        batch = {"x": torch.arange(n).reshape(n, 1)}
        for k in range(1, 9):
            whole = cut(batch, k)
            parts = whole.batches if k > 1 else (whole,)
            sizes = [len(part["x"]) for part in parts]
            assert torch.equal(torch.cat([part["x"] for part in parts]), batch["x"])
            assert len(sizes) == min(n, k)
            assert max(sizes) - min(sizes) <= 1


def test_every_row_of_a_short_last_batch_is_trained_on() -> None:
    """The step over its micro-batches equals the step of the whole batch."""
    data = [*BATCHES, {name: x[:5] for name, x in rows(seed=2).items()}]
    seen = []

    def step(state: Any, batch: Any) -> Any:
        parts = batch.batches if isinstance(batch, ftrain.MicroBatches) else (batch,)
        if max(len(part["x"]) for part in parts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append([len(part["x"]) for part in parts])
        return STEPS.train_step(state, batch)

    with pytest.warns(LoopWarning):
        result = Trainer(step, compile=False).fit(STEPS.init_state(0), data, epochs=1)
    assert seen == [[2, 2, 2, 2]] * 3 + [[1, 1, 1, 2]]
    assert result.train is not None
    assert result.train.samples == 29


def test_micro_batches_of_unequal_sizes_are_split_further() -> None:
    whole = ftrain.MicroBatches(
        ({"x": torch.arange(8)}, {"x": torch.arange(8, 16)}, {"x": torch.arange(16, 21)})
    )
    assert next_cut(whole, 1, multiple=3) == 2
    parts = [part["x"] for part in cut(whole, 2).batches]
    assert [len(part) for part in parts] == [4, 4, 4, 4, 2, 3]
    assert torch.equal(torch.cat(parts), torch.arange(21))


def test_number_of_parts_after_out_of_memory_is_a_multiple_of_accumulate() -> None:
    """10 rows give 5 equal parts, but 5 is not a multiple of 2."""
    assert next_cut({"x": torch.zeros(10, 2)}, 2, multiple=2) == 10
    made = steps(accumulate=2)

    def step(state: Any, batch: Any) -> Any:
        if not isinstance(batch, ftrain.MicroBatches):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made.train_step(state, batch)

    step.accumulate = 2  # type: ignore[attr-defined]
    data = [{name: x[:10] for name, x in rows().items()}]
    with pytest.warns(LoopWarning, match="10 micro-batches"):
        result = Trainer(step, compile=False).fit(STEPS.init_state(0), data, epochs=1)
    assert int(result.state.step) == 1


def test_an_evaluation_that_splits_batches_after_out_of_memory_has_the_same_average() -> None:
    """The metrics have no weight, and the last batch is short."""

    def plain(module: Any, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(module(batch["x"]), batch["y"])

    made = ftrain.make_steps(lambda: torch.nn.Linear(4, 3), plain, ftrain.optim.sgd(0.1))
    data = [
        {name: x[:4] for name, x in rows(seed=4).items()},
        {
            name: x[8:16] for name, x in rows(seed=4).items()
        },  # the longest batch is not the first one
        {name: x[16:20] for name, x in rows(seed=4).items()},
    ]

    def eval_step(state: Any, batch: Any) -> Any:
        if len(batch["x"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made.eval_step(state, batch)

    state = made.init_state(0)
    whole = Trainer(made, compile=False).evaluate(state, data)
    found = Trainer((made.train_step, eval_step), compile=False).evaluate(state, data)
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)  # sums in another order
    assert found.samples == whole.samples == 16


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_out_of_memory_errors_of_libraries_are_recognized(message):
    assert is_out_of_memory(RuntimeError(message))
    wrapped = ValueError("a step failed")
    wrapped.__cause__ = RuntimeError(message)
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(ValueError(message))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))


def exhausted(model: Any, batch: Any) -> torch.Tensor:
    """A loss that has memory for at most 4 rows."""
    if len(batch["x"]) > 4:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return (model(batch["x"]) - batch["y"]).square().mean()


def small(model: Any, batch: Any) -> torch.Tensor:
    return (model(batch["x"]) - batch["y"]).square().mean()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_out_of_memory_steps_of_several_tasks_or_players_are_repeated_in_micro_batches(
    accumulate: int,
) -> None:
    net = lambda: torch.nn.Linear(3, 1)  # noqa: E731
    batch = {"x": torch.randn(8, 3), "y": torch.randn(8, 1)}
    runs = {}
    for loss_fn in (exhausted, small):
        made = ftrain.make_steps(net, loss_fn, ftrain.optim.sgd(0.1))
        both = ftrain.transforms.interleave({"a": made.train_step, "b": made.train_step})
        players = ftrain.transforms.alternate({"a": made, "b": made})
        for step, init, data in (
            (both, made.init_state, {"a": batch, "b": batch}),
            (players.train_step, players.init_state, (batch, batch)),
        ):
            loop = Trainer(step, compile=False, progress=False, accumulate=accumulate)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LoopWarning)
                result = loop.fit(init(0), [data] * 4, epochs=1)
            runs.setdefault(type(data), []).append(result.state)
    for repeated, whole in runs.values():
        assert tree.structure(repeated) == tree.structure(whole)
        for a, b in zip(tree.leaves(repeated), tree.leaves(whole), strict=True):
            torch.testing.assert_close(a, b)


def test_step_that_takes_no_micro_batches_ends_the_run_with_the_out_of_memory_error(
    tmp_path: pathlib.Path,
) -> None:
    made = ftrain.make_steps(lambda: torch.nn.Linear(3, 1), exhausted, ftrain.optim.sgd(0.1))

    def step(state: Any, batch: Any) -> Any:
        return made.train_step(state, batch["inner"])

    def of(rows: int) -> Any:
        return {"inner": {"x": torch.ones(rows, 3), "y": torch.ones(rows, 1)}}

    loop = Trainer(step, compile=False, progress=False, store=tmp_path)
    with (
        pytest.warns(LoopWarning, match="2 micro-batches"),
        pytest.raises(
            torch.OutOfMemoryError, match="cannot be cut: the step raised TypeError"
        ) as e,
    ):
        loop.fit(made.init_state(0), [of(4), of(8)], epochs=1)
    assert isinstance(e.value.__cause__, TypeError)
    resumed = loop.fit(made.init_state(0), [of(4), of(4)], epochs=1, resume=True)
    assert (resumed.status, resumed.step) == ("completed", 2)  # whole batches again
