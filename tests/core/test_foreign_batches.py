"""Batches and outputs of other libraries, tested where those are installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import data, optim, tree
from ftrain.loop import Trainer
from ftrain.testing import assert_same_bits

transformers = pytest.importorskip("transformers")
Output = pytest.importorskip("transformers.modeling_outputs").CausalLMOutput


@pytest.mark.parametrize("name", ["BatchEncoding", "BatchFeature"])
def test_tree_map_keeps_hugging_face_batch_class_and_attributes(name: str) -> None:
    cls = getattr(transformers, name)
    batch = cls({"input_ids": torch.arange(6).reshape(2, 3), "mask": torch.ones(2, 3)})
    assert tree.paths(batch) == ["['input_ids']", "['mask']"]
    again = tree.map(lambda x: x + 1, batch).to("cpu")
    assert type(again) is cls
    assert again.input_ids.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert list(again) == ["input_ids", "mask"]


def test_tree_map_keeps_items_and_fields_of_a_hugging_face_model_output_in_sync() -> None:
    out = Output(logits=torch.zeros(2), hidden_states=(torch.ones(1), torch.ones(1)))
    again = tree.map(lambda x: x + 1, out)
    assert type(again) is Output
    assert again.loss is None
    assert again.logits is again["logits"] is again[0]
    assert again.logits.tolist() == [1.0, 1.0]
    assert [x.item() for x in again.hidden_states] == [2.0, 2.0]


def test_compiled_functions_return_hugging_face_model_outputs_of_real_not_traced_tensors() -> None:
    compiled = ftrain.compile(lambda x: Output(logits=x * 2, hidden_states=(x,)), backend="eager")
    for x in (torch.arange(3.0), torch.ones(3)):
        found = compiled(x)
        assert_same_bits((found.logits, found["hidden_states"]), (x * 2, (x,)))


def test_trainer_evaluate_weights_hugging_face_batches_of_unequal_size() -> None:
    def loss_fn(model: Any, batch: Any) -> Any:
        return nn.functional.cross_entropy(model(batch.input_ids)[:, 0], batch["labels"])

    def encoded(n: int, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 7, (n, 4), generator=generator)
        return transformers.BatchEncoding({"input_ids": ids, "labels": ids[:, 1]})

    steps = ftrain.make_steps(lambda: nn.Embedding(7, 7), loss_fn, optim.sgd(0.1))
    state, batches = steps.init_state(0), [encoded(5, 0), encoded(2, 1)]
    whole = {
        name: torch.cat([batch[name] for batch in batches]) for name in ("input_ids", "labels")
    }
    whole_batch = transformers.BatchEncoding(whole)
    run = Trainer(steps, compile=False)
    found = run.evaluate(state, batches)
    assert (found.samples, found.tokens) == (7, 28)
    assert found.loss == pytest.approx(run.evaluate(state, [whole_batch]).loss, rel=4e-7)


def test_padded_loader_accepts_a_hugging_face_collate_function() -> None:
    def collate(samples: list[Any]) -> Any:
        return transformers.BatchEncoding({"x": torch.stack(samples)}, n_sequences=1)

    loader = data.Loader(
        list(torch.arange(5.0)), 2, shuffle=False, last_batch="pad", collate=collate
    )
    *_, last = loader
    assert type(last) is transformers.BatchEncoding
    assert last.n_sequences == 1
    assert last.weight.tolist() == [1.0, 0.0]


def test_tensordict_batches_work_with_micro_batches_and_compiled_steps() -> None:
    tensordict = pytest.importorskip("tensordict")
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(8, 3, generator=generator) for _ in range(2))

    def loss_fn(model: Any, batch: Any) -> Any:
        return (model(batch["x"]) - batch["y"]).square().mean()

    steps = ftrain.make_steps(lambda: nn.Linear(3, 3), loss_fn, optim.sgd(0.1), accumulate=2)
    state = steps.init_state(0)
    expected = steps.train_step(state, {"x": x, "y": y})
    batch = tensordict.TensorDict({"x": x, "y": y}, batch_size=[8])
    assert tree.paths(batch) == ["['x']", "['y']"]
    for step in (steps.train_step, ftrain.compile(steps.train_step, backend="eager")):
        assert_same_bits(step(state, batch), expected)
