"""Six `transformers` models compiled by inductor; `make transformers` runs them."""

from __future__ import annotations

import os

import pytest

import ftrain
from ftrain import testing
from tests.transformers.test_laws import STEPS, Subject

# Products and sums in another order, other approximations of exp and tanh.
BOUND = 1e-4

pytestmark = [
    pytest.mark.inductor,
    pytest.mark.skipif(
        not os.environ.get("FTRAIN_CAMPAIGN"), reason="FTRAIN_CAMPAIGN is not set: minutes"
    ),
]


@pytest.mark.parametrize(
    "name",
    [
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        "BertForMaskedLM",
        "T5ForConditionalGeneration",
        "ViTForImageClassification",
        "MambaForCausalLM",
    ],
)
def test_inductor_compiled_steps_match_eager_and_compile_once(name: str) -> None:
    subject = Subject(name)
    state = subject.built.init_state(0)
    compiled = ftrain.compile(subject.built.train_step)
    for i in range(STEPS):
        expected, metrics = subject.built.train_step(state, subject.of.batch(i))
        found, of_code = compiled(state, subject.of.batch(i))
        testing.assert_close_norm(found.params, expected.params, BOUND)
        testing.assert_close_norm(found.opt_state[1].mu, expected.opt_state[1].mu, BOUND)
        testing.assert_close_norm(of_code["loss"], metrics["loss"], BOUND)
        testing.assert_same_bits(found.rng, expected.rng)
        state = expected
    assert compiled.n_compiles == 1
