"""Test steps with a teacher: equality with plain torch loops, laws, precision, accumulation."""

from __future__ import annotations

import copy
import functools
import os
import pathlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import data, optim, tasks, testing
from ftrain.core import tree
from ftrain.testing import assert_same_bits
from tests.tasks.students import Net, batches, large, taught

# Sums of at most some hundred terms in another order, over four steps.
BOUND = 1e-10
CAMPAIGN = os.environ.get("FTRAIN_CAMPAIGN") == "1"


def hard_and_soft(student: nn.Module, teacher: nn.Module, batch: Any) -> Tensor:
    logits, counts = student(batch["x"]), batch["y"] >= 0
    with torch.no_grad():
        wanted = teacher(batch["x"])
    soft = F.kl_div(
        (logits[counts] / 2).log_softmax(1), (wanted[counts] / 2).softmax(1), reduction="batchmean"
    )
    return 0.3 * F.cross_entropy(logits, batch["y"]) + 0.7 * 4 * soft


def hint(student: Any, teacher: Any, batch: Any) -> Tensor:
    features, counts = student.body(batch["x"]), batch["y"] >= 0
    with torch.no_grad():
        wanted = teacher.body(batch["x"])
    near = F.mse_loss(student.projection(features)[counts], wanted[counts])
    return F.cross_entropy(student.head(features), batch["y"]) + 0.5 * near


OF_TEACHER: dict[str, Any] = {
    "distillation": (
        functools.partial(tasks.distillation, temperature=2.0, soft_weight=0.7),
        hard_and_soft,
    ),
    "feature_distillation": (
        functools.partial(
            tasks.feature_distillation, layer="body", projection="projection", feature_weight=0.5
        ),
        hint,
    ),
}


@pytest.mark.parametrize("name", OF_TEACHER)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_steps_with_a_teacher_equal_a_plain_torch_loop(name: str, seed: int) -> None:
    loss, oracle = OF_TEACHER[name]
    dtype = torch.float64
    teacher, student = large(dtype), Net().to(dtype)
    steps = taught(loss, module=teacher, student=student)
    state, plain = steps.init_state(0), copy.deepcopy(student)
    sgd, still = torch.optim.SGD(plain.parameters(), 0.1), copy.deepcopy(teacher).eval()
    for batch in batches(3, dtype=dtype, seed=seed):
        state, metrics = steps.train_step(state, batch)
        expected = oracle(plain, still, batch)
        sgd.zero_grad()
        expected.backward()
        sgd.step()
        assert torch.allclose(metrics["loss"], expected, rtol=BOUND)
    for key, value in plain.state_dict().items():
        found = {**state.params, **state.buffers}[key]
        assert torch.allclose(found, value, rtol=BOUND, atol=BOUND), key


def both_ways(loss: Any, mine: list[Tensor], theirs: list[Tensor]) -> tuple[Tensor, Tensor]:
    return loss(mine[0], theirs[1]), loss(mine[1], theirs[0])


@pytest.mark.parametrize("name", ["byol", "dino"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_self_distillation_steps_equal_a_plain_torch_loop(name: str, accumulate: int) -> None:
    """The plain loop keeps an average of its weights and, for DINO, a center, by their formulas."""
    dtype = torch.float64
    student = Net(norm=nn.LayerNorm).to(dtype)
    teacher = tasks.Teacher(student)
    loss_fn = functools.partial(getattr(tasks, name), teacher=teacher)
    optimizer = optim.ema(optim.sgd(0.1), 0.9, warmup=False)
    steps = ftrain.make_steps(student, loss_fn, optimizer, accumulate=accumulate)
    steps = tasks.self_taught(steps, teacher)
    if name == "dino":
        steps = tasks.with_running_mean(steps, "center", (3,), decay=0.75)
    state = steps.init_state(0)
    if name == "dino":
        state = state.replace(extras={"center": state.extras["center"].to(dtype)})
    plain, average = copy.deepcopy(student), copy.deepcopy(student).eval()
    sgd, center = torch.optim.SGD(plain.parameters(), 0.1), torch.zeros(3, dtype=dtype)
    for batch in batches(4, dtype=dtype):
        state, metrics = steps.train_step(state, batch)
        views = [batch["first"], batch["second"]]
        with torch.no_grad():
            theirs = [average(view) for view in views]
        mine = [plain(view) for view in views]
        if name == "byol":
            mine = [F.normalize(plain.predictor(x), dim=1) for x in mine]
            wanted = [F.normalize(x, dim=1) for x in theirs]
            one, two = both_ways(lambda q, z: (q - z).square().sum(1).mean(), mine, wanted)
            expected = one + two
        else:
            sharp = [((x - center) / 0.04).softmax(1) for x in theirs]
            one, two = both_ways(lambda s, p: F.cross_entropy(s / 0.1, p), mine, sharp)
            expected = (one + two) / 2
            center = 0.75 * center + 0.25 * torch.cat(theirs).mean(0)
        sgd.zero_grad()
        expected.backward()
        sgd.step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), plain.parameters(), strict=True):
                a.lerp_(p, 0.1)
        assert torch.allclose(metrics["loss"], expected, rtol=BOUND)
    for key, value in plain.named_parameters():
        assert torch.allclose(state.params[key], value, rtol=BOUND, atol=BOUND), key
    kept = optim.get(state.opt_state, "ema")
    for key, value in average.named_parameters():
        assert torch.allclose(kept[key], value, rtol=BOUND, atol=BOUND), key
    if name == "dino":
        assert torch.allclose(state.extras["center"], center, rtol=BOUND, atol=BOUND)
    assert state.extras.keys() == ({"center"} if name == "dino" else set())


@functools.cache
def subjects() -> dict[str, ftrain.Steps]:
    """Return steps of every kind, of a student with dropout."""
    student = functools.partial(Net, norm=nn.LayerNorm, dropout=0.2)
    adam = optim.adam(1e-2)
    found = {
        name: taught(OF_TEACHER[name][0], module=large(), student=student, optimizer=adam)
        for name in OF_TEACHER
    }
    for name in ("byol", "dino"):
        teacher = tasks.Teacher(student)
        loss_fn = functools.partial(getattr(tasks, name), teacher=teacher)
        steps = tasks.self_taught(
            ftrain.make_steps(student, loss_fn, optim.ema(adam, 0.9)), teacher
        )
        found[name] = steps
    found["dino"] = tasks.with_running_mean(found["dino"], "center", (3,))
    return found


@pytest.mark.parametrize("name", [*OF_TEACHER, "byol", "dino"])
def test_steps_with_a_teacher_obey_the_laws(name: str) -> None:
    """Checks all laws for the step with the most parts, and the fast ones for the others."""
    fast = name != "dino" and not CAMPAIGN
    found = testing.check_all(subjects()[name], batches(3), fast=fast)
    assert all(report.passed and report.applies for report in found)


@pytest.mark.parametrize("name", [*OF_TEACHER, "byol", "dino"])
def test_distillation_over_ragged_micro_batches_gives_the_gradients_of_the_whole_batch(
    name: str,
) -> None:
    steps = subjects()[name]
    plain = tree.map(lambda x: x.double() if x.is_floating_point() else x, steps.init_state(0))
    state = plain.replace(params=tree.map(lambda p: p + 0.1, plain.params))
    whole = batches(1, 9, torch.float64)[0]
    cuts = ((0, 1), (1, 6), (6, 9))  # the only row of the first has no label
    parts = tuple(tree.map(lambda x, a=a, b=b: x[a:b], whole) for a, b in cuts)
    gradients = steps.train_step.gradients
    with testing.deterministic():
        expected = without_dropout(gradients, state, whole)
        found = without_dropout(gradients, state, ftrain.MicroBatches(parts))
    testing.assert_close_norm(found.grads, expected.grads, 1e-12)
    assert torch.allclose(found.metrics["loss"], expected.metrics["loss"], rtol=1e-12)


def without_dropout(gradients: Any, state: Any, batch: Any) -> Any:
    """Return the gradients with dropout off, whose masks differ between one batch and its parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Dropout, "forward", lambda self, x: x)
        return gradients(state, batch)


def test_training_does_not_change_the_teachers_weights_and_statistics() -> None:
    steps = subjects()["distillation"]
    state = steps.init_state(0)
    before = tree.map(torch.clone, state.extras)
    for batch in batches(3):
        state, _ = steps.train_step(state, batch)
    assert_same_bits(state.extras, before)
    assert_same_bits(steps.init_state(5).extras, before)


def test_teacher_is_called_in_eval_mode_unless_set_to_train() -> None:
    module = large()
    x = batches(1)[0]["x"]
    wanted = copy.deepcopy(module).eval()(x)
    teacher = tasks.Teacher(module)
    extras = {"teacher": teacher.start()}
    assert_same_bits(teacher(extras, x), wanted)
    with ftrain.random.keyed(ftrain.random.key(0)):
        drawn = [tasks.Teacher(module, training=True)(extras, x) for _ in range(2)]
    assert not torch.equal(drawn[0], drawn[1])  # other dropout masks
    assert_same_bits(extras["teacher"], teacher.start())


def test_teacher_neither_draws_random_numbers_nor_changes_those_of_the_student() -> None:
    def losses(loss_fn: Any, extras: Any) -> Any:
        steps = ftrain.make_steps(functools.partial(Net, dropout=0.5), loss_fn, optim.sgd(0.1))
        state = steps.init_state(0).replace(extras=extras)
        return steps.train_step(state, batches(1)[0])[1]["loss"]

    teacher = tasks.Teacher(large())
    hard = functools.partial(tasks.distillation, teacher=teacher, soft_weight=0.0)
    expected = losses(tasks.cross_entropy, {})
    assert_same_bits(losses(hard, {"teacher": teacher.start()}), expected)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_teacher_computes_in_the_precision_of_the_policy(precision: str) -> None:
    seen: list[torch.dtype] = []
    teacher = tasks.Teacher(Net(norm=nn.LayerNorm))

    def loss_fn(model: nn.Module, batch: Any, extras: Any) -> Tensor:
        wanted = teacher(extras, batch["x"])
        seen.append(wanted.dtype)
        return (model(batch["x"]) - wanted).square().mean()

    steps = ftrain.make_steps(teacher.model, loss_fn, optim.sgd(0.1), precision=precision)
    steps = tasks.with_teacher(steps, teacher)
    state = steps.init_state(0)
    new, _ = steps.train_step(state, batches(1)[0])
    steps.eval_step(state, batches(1)[0])
    assert set(seen) == {torch.float32 if precision == "32-true" else torch.bfloat16}
    assert {x.dtype for x in tree.leaves(new.extras)} == {torch.float32}


def test_self_distillation_works_with_a_float32_average_of_a_bf16_student() -> None:
    teacher = tasks.Teacher(functools.partial(Net, norm=nn.LayerNorm))
    loss_fn = functools.partial(tasks.byol, teacher=teacher)
    optimizer = optim.ema(optim.sgd(0.1), 0.9)
    steps = ftrain.make_steps(teacher.model, loss_fn, optimizer, precision="bf16-true")
    steps = tasks.self_taught(steps, teacher)  # of the student's own bound model, too
    state, metrics = steps.train_step(steps.init_state(0), batches(1)[0])
    assert bool(metrics["loss"].isfinite())
    assert {x.dtype for x in tree.leaves(optim.get(state.opt_state, "ema"))} == {torch.float32}
    assert bool(steps.eval_step(state, batches(1)[0])["loss"].isfinite())


def test_skipped_step_does_not_change_the_averaged_weights_and_the_center_of_dino() -> None:
    steps = subjects()["dino"]
    state, _ = steps.train_step(steps.init_state(0), batches(1)[0])
    broken = {**batches(1)[0], "first": torch.full((8, 4), float("nan"))}
    new, metrics = steps.train_step(state, broken)
    assert int(metrics["skipped"]) == 1
    assert_same_bits((new.extras, new.opt_state), (state.extras, state.opt_state))
    weightless = {**batches(1)[0], "weight": torch.zeros(8)}
    assert_same_bits(steps.train_step(state, weightless)[0].extras, state.extras)


def test_running_mean_of_a_vector_accepts_its_length_as_shape() -> None:
    steps = taught(tasks.distillation, module=large())
    starts = (tasks.with_running_mean(steps, "m", shape).init_state(0) for shape in (3, (3,), [3]))
    assert [state.extras["m"].shape for state in starts] == [(3,)] * 3


def test_rows_of_weight_zero_do_not_change_the_center_of_dino() -> None:
    steps = subjects()["dino"]
    state, whole = steps.init_state(0), batches(1)[0]
    padded = {name: torch.cat([x, 9 * x[:3]]) for name, x in whole.items()}
    padded["weight"] = (torch.arange(11) < 8).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Dropout, "forward", lambda self, x: x)
        new, expected = (steps.train_step(state, one)[0] for one in (padded, whole))
    torch.testing.assert_close(new.extras["center"], expected.extras["center"])


def test_each_row_of_a_vmapped_byol_step_learns_from_its_own_average() -> None:
    steps, batch = subjects()["byol"], batches(1)[0]
    states = [steps.train_step(steps.init_state(seed), batch)[0] for seed in (0, 1)]
    rows = tree.map(lambda *x: torch.stack(x), *states)
    mapped, _ = torch.vmap(steps.train_step, (0, None))(rows, batch)
    for i, state in enumerate(states):
        expected = steps.train_step(state, batch)[0]
        for name, value in expected.params.items():
            torch.testing.assert_close(mapped.params[name][i], value, rtol=1e-4, atol=1e-6)


class Tokens(nn.Module):
    """A bigram model, which takes and returns what models of Hugging Face do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, width), nn.Linear(width, 7)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.out(self.embed(input_ids))}


class Activated(nn.Module):
    """Layer and ReLU, in place or not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.body, self.relu = nn.Linear(4, 3), nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x))  # type: ignore[no-any-return]


def test_distilled_features_are_those_before_an_in_place_activation() -> None:
    def trained(inplace: bool) -> Any:
        teacher = tasks.Teacher(functools.partial(Activated, inplace))
        loss_fn = functools.partial(tasks.feature_distillation, layer="body", teacher=teacher)
        steps = ftrain.make_steps(teacher.model, loss_fn, optim.sgd(0.1))
        steps = tasks.with_teacher(steps, teacher)
        return steps.train_step(steps.init_state(1), batches(1)[0])

    assert_same_bits(trained(inplace=True), trained(inplace=False))


def test_causal_distillation_uses_the_next_token_as_label() -> None:
    student, module = Tokens(3), Tokens(5)
    ids = torch.randint(0, 7, (2, 6))
    labels = ids.clone()
    labels[0, 3:] = -100
    teacher = tasks.Teacher(module)
    found, metrics = tasks.distillation(
        student,
        {"input_ids": ids, "labels": labels},
        {"teacher": teacher.start()},
        teacher=teacher,
        input=None,
        target="labels",
        causal=True,
        soft_weight=0.5,
        temperature=2.0,
    )
    counts = labels[:, 1:] >= 0
    logits, wanted = (m(ids)["logits"][:, :-1][counts] for m in (student, module))
    soft = F.kl_div((logits / 2).log_softmax(1), (wanted / 2).softmax(1), reduction="batchmean")
    expected = 0.5 * F.cross_entropy(logits, labels[:, 1:][counts]) + 0.5 * 4 * soft
    torch.testing.assert_close(found.value, expected)
    same = (logits.argmax(1) == wanted.argmax(1)).float().mean()
    torch.testing.assert_close(metrics["agreement"].value, same)


def test_run_with_cached_outputs_has_the_bits_of_one_that_calls_the_teacher(
    tmp_path: pathlib.Path,
) -> None:
    teacher, whole = tasks.Teacher(large().eval()), batches(1, 24)[0]
    extras = {"teacher": teacher.start()}
    joined = data.with_outputs(
        whole,
        lambda batch: teacher(extras, batch["x"]),
        tmp_path / "teacher.safetensors",
        source=extras,
        batch_size=8,
    )
    live = taught(tasks.distillation, module=large().eval())
    cached = ftrain.make_steps(Net, tasks.distillation, optim.sgd(0.1))
    ends = []
    for steps, dataset in ((live, whole), (cached, joined)):
        state = steps.init_state(0)
        for batch in data.Loader(dataset, 8, seed=1):
            state, metrics = steps.train_step(state, batch)
        ends.append((state.replace(extras={}), metrics))
    assert_same_bits(ends[1], ends[0])


def test_outputs_of_the_teacher_may_be_entries_of_the_batch() -> None:
    module, batch = large().eval(), batches(1)[0]
    state = (steps := taught(tasks.distillation, module=module)).init_state(0)
    cached = {**batch, "teacher": module(batch["x"]).detach()}
    expected = steps.train_step(state, batch)
    found = ftrain.make_steps(Net, tasks.distillation, optim.sgd(0.1)).train_step(state, cached)
    assert_same_bits(found, expected)
    unlabelled = {"x": batch["x"], "teacher": cached["teacher"]}
    soft, metrics = tasks.distillation(
        Net().eval(), unlabelled, soft_weight=1.0, target=None, temperature=1.0
    )
    assert float(soft.weight) == 8
    assert metrics.keys() == {"agreement"}


def test_one_hot_soft_labels_give_the_same_loss_as_classes() -> None:
    batch = {"x": torch.randn(6, 4), "y": torch.arange(6) % 3, "teacher": torch.randn(6, 3)}
    soft = {**batch, "y": F.one_hot(batch["y"], 3).float()}
    model = Net().eval()
    found, expected = (tasks.distillation(model, one) for one in (soft, batch))
    torch.testing.assert_close(found[0].value, expected[0].value)
    for name, metric in expected[1].items():
        torch.testing.assert_close(found[1][name].value, metric.value)
