"""Loss scales, saves, out of memory and a second device, where CUDA differs from the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ftrain
from ftrain import checkpoint, optim, testing, tree
from tests.cuda.test_laws import made, on_cuda
from tests.nullcuda.device import is_null
from tests.zoo import ZOO

values = pytest.mark.values


@values
def test_loss_scale_equals_that_of_grad_scaler_bit_for_bit():
    scaling = ftrain.LossScale(growth_interval=2, growth_factor=1.3)
    ours = scaling.init_state("cuda")
    theirs = torch.amp.GradScaler("cuda", growth_interval=2, growth_factor=1.3)
    theirs.scale(torch.ones((), device="cuda"))
    for i in range(40):
        parameter = nn.Parameter(torch.ones(1, device="cuda"))
        parameter.grad = torch.full((1,), float("inf") if i % 5 == 4 else 1.0, device="cuda")
        optimizer = torch.optim.SGD([parameter], 0.1)
        theirs.step(optimizer)
        theirs.update()
        ours = scaling.update(ours, torch.tensor(i % 5 != 4, device="cuda"))
        assert ours.scale.item() == theirs.get_scale(), i


@values
def test_asynchronous_save_on_a_side_stream_waits_until_the_values_are_computed(tmp_path):
    with (
        checkpoint.Store(tmp_path, asynchronous=True, copy=False) as store,
        torch.cuda.stream(torch.cuda.Stream()),
    ):
        w = torch.zeros(4, device="cuda")
        torch.cuda._sleep(int(2e9))
        w = w + 1
        store.save({"w": w}, step=1)
        store.wait()
        assert store.load(like={"w": w})[0]["w"].cpu().eq(1).all()


@values
@pytest.mark.parametrize("copy", [True, False])
def test_asynchronous_saves_keep_values_layouts_and_aliases(tmp_path, copy):
    base = torch.arange(24.0, device="cuda")
    state = {
        "plain": base,
        "again": base,
        "transposed": base.view(4, 6).T,
        "expanded": base[:1].expand(5),
        "part": base.view(4, 6)[:, ::2],
        "empty": base[:0],
        "scalar": torch.tensor(3, device="cuda"),
        "bool": base > 3,
        "host": torch.ones(3),
    }
    with checkpoint.Store(tmp_path, asynchronous=True, copy=copy) as store:
        for step in (1, 2):
            store.save(state, step=step)
            store.wait()
            loaded, _ = store.load(like=state, step=step)
            testing.assert_same_bits(loaded, state)
            assert loaded["again"] is loaded["plain"]


def test_donated_state_is_intact_or_raises_after_out_of_memory():
    """The bits must be those of a run that never ran out of memory, if the state is kept."""
    wide = ftrain.make_steps(
        lambda: nn.Sequential(nn.Linear(16, 2048), nn.GELU(), nn.Linear(2048, 3)),
        ZOO["mlp"].loss_fn,
        optim.adamw(1e-3),
    )
    step = ftrain.compile(wide.train_step, donate=True, backend="eager")
    small, large = (
        {
            "x": torch.ones(n, 16, device="cuda"),
            "y": torch.zeros(n, dtype=torch.long, device="cuda"),
        }
        for n in (8, 1 << 17)
    )
    state = on_cuda(wide.init_state(0))
    state, _ = step(state, small)
    kept = tree.map(torch.clone, state)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (256 << 20)) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            step(state, large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    try:
        found = step(state, small)
    except ftrain.DonatedStateError:
        return
    if is_null():
        return
    expected = wide.train_step(kept, small)
    testing.assert_close_norm(found[0].params, expected[0].params, 1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_steps_run_on_the_second_cuda_device():
    steps = made("mlp", "16-mixed")
    state, batch = (
        tree.map(lambda leaf: leaf.to("cuda:1"), x)
        for x in (steps.init_state(0), ZOO["mlp"].batch(0, 8))
    )
    before = torch.cuda.memory_allocated(0)
    step = ftrain.compile(steps.train_step, donate=True, backend="eager")
    for _ in range(2):
        state, metrics = step(state, batch)
    assert {leaf.device for leaf in tree.leaves((state, metrics))} == {torch.device("cuda:1")}
    assert torch.cuda.memory_allocated(0) == before
