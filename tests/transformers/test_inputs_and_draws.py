"""Inputs, outputs and random draws of `transformers` models, each tested on one model."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from transformers import BatchEncoding

import ftrain
from ftrain import optim, testing
from ftrain.core.errors import TraceError, UnkeyedRandomError
from tests.transformers.architectures import ARCHITECTURES
from tests.transformers.tiny import build


def loss_fn(model: Any, batch: Any) -> Any:
    return model(**batch).loss


def steps_of(name: str, **own: Any) -> tuple[ftrain.Steps, Any]:
    """Return steps of a model with the given configuration values, and a batch."""
    of = ARCHITECTURES[name]
    of = of._replace(own={**of.own, **own})
    make = functools.partial(build, of, 0.1)
    return ftrain.make_steps(make, loss_fn, optim.sgd(0.1)), of.batch(0)


def test_wav2vec2_spectrum_mask_drawn_with_numpy_raises_with_the_line_of_the_draw() -> None:
    steps, batch = steps_of(
        "Wav2Vec2ForSequenceClassification", mask_time_prob=0.5, mask_time_length=2
    )
    state = steps.init_state(0)
    with pytest.raises(UnkeyedRandomError, match="NumPy's global generator(?s:.*)np.random"):
        steps.train_step(state, batch)


def test_wav2vec2_layerdrop_is_deterministic_in_eager_mode_and_raises_if_compiled() -> None:
    steps, batch = steps_of("Wav2Vec2ForSequenceClassification", layerdrop=0.5)
    state = steps.init_state(0)
    testing.assert_pure(steps.train_step, state, batch)
    testing.assert_deterministic(steps.train_step, state, batch)
    with pytest.raises(TraceError, match="skip_the_layer"):
        ftrain.compile(steps.train_step, backend="eager")(state, batch)


@pytest.mark.parametrize("backend", [None, "eager"])
def test_train_step_on_a_batch_encoding_equals_the_step_on_its_dict(backend: str | None) -> None:
    steps, batch = steps_of("BertForMaskedLM")
    step: Any = (
        steps.train_step if backend is None else ftrain.compile(steps.train_step, backend="eager")
    )
    state = steps.init_state(0)
    testing.assert_same_bits(step(state, BatchEncoding(batch)), steps.train_step(state, batch))


def test_compiled_function_returns_model_outputs_without_a_cache() -> None:
    of = ARCHITECTURES["LlamaForCausalLM"]
    apply = ftrain.bind(build(of, 0.0))
    params, buffers = apply.init(ftrain.random.key(0))
    batch = of.batch(0)

    def logits(params: Any, batch: Any) -> Any:
        return apply(params, buffers, ftrain.random.key(1), **batch, training=False)[0]

    found = ftrain.compile(logits, backend="eager")(params, batch)
    testing.assert_same_bits(dict(found), dict(logits(params, batch)))


def test_compiled_function_that_returns_a_dynamic_cache_raises() -> None:
    of = ARCHITECTURES["LlamaForCausalLM"]
    apply = ftrain.bind(build(of, 0.0))
    params, buffers = apply.init(ftrain.random.key(0))

    def cached(params: Any, batch: Any) -> Any:
        key = ftrain.random.key(1)
        return apply(params, buffers, key, **batch, training=False, use_cache=True)[0]

    with pytest.raises(TypeError, match="DynamicCache"):
        ftrain.compile(cached, backend="eager")(params, of.batch(0))


def test_compiled_llama_step_with_use_cache_equals_eager() -> None:
    steps, batch = steps_of("LlamaForCausalLM", use_cache=True)
    state = steps.init_state(0)
    compiled = ftrain.compile(steps.train_step, backend="eager")
    testing.assert_same_bits(compiled(state, batch), steps.train_step(state, batch))
    assert torch.isfinite(compiled(state, batch)[1]["loss"])
