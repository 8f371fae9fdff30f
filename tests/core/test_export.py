"""Trained weights out of a state and into one: modules, state dicts, torch.export, ONNX, refusals."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, tasks, testing, tree


class Net(nn.Module):
    """Tied weights, statistics, a buffer that is not saved, and a frozen parameter."""

    def __init__(self, words: int = 6, width: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.5)
        self.gain = nn.Parameter(torch.ones(width), requires_grad=False)
        self.register_buffer("scale", torch.full((), 2.0), persistent=False)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.norm(self.words(tokens))) * self.gain * self.scale)
        return out


TOKENS = torch.tensor([0, 3, 5, 1])


def loss_fn(model: Any, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(tokens), tokens.flip(0))


def steps_of(model: Any = Net, **options: Any) -> ftrain.Steps:
    optimizer = optim.ema(optim.adam(1e-1), 0.5)
    return ftrain.make_steps(model, loss_fn, optimizer, **options)


def trained(steps: ftrain.Steps, seed: int = 0) -> ftrain.TrainState:
    state = steps.init_state(seed)
    for _ in range(3):
        state, _ = steps.train_step(state, TOKENS)
    return state


@pytest.mark.parametrize("given", ["function", "module", "bound"])
def test_exported_module_computes_what_the_evaluation_step_computes(given: str) -> None:
    model: Any = {"function": Net, "module": Net(), "bound": ftrain.bind(Net)}[given]
    steps = steps_of(model)
    state = trained(steps)
    before = tree.digest(state)
    module = ftrain.export(state, model)
    assert type(module) is Net
    assert not any(m.training for m in module.modules())
    assert module.head.weight is module.words.weight
    assert [n for n, p in module.named_parameters() if not p.requires_grad] == ["gain"]
    wanted = steps.eval_step(state, TOKENS)["loss"]
    testing.assert_same_bits(wanted, loss_fn(module, TOKENS).detach())
    with torch.no_grad():
        module.words.weight.zero_()  # shares no memory
    assert tree.digest(state) == before


@pytest.mark.parametrize("form", ["module", "state_dict"])
def test_load_weights_restores_exported_weights_byte_for_byte(form: str) -> None:
    steps = steps_of()
    state = trained(steps)
    module = ftrain.export(state, Net)
    weights = module if form == "module" else module.state_dict()
    start = steps.init_state(1)
    back = ftrain.load_weights(start, Net, weights)
    testing.assert_same_bits((state.params, state.buffers), (back.params, back.buffers))
    testing.assert_same_bits((start.opt_state, start.rng), (back.opt_state, back.rng))
    assert ("scale" in module.state_dict()) == ("head.weight" not in module.state_dict())
    with torch.no_grad():
        module.words.weight.zero_()
    assert back.params["words.weight"].any()
    after, _ = steps.train_step(back, TOKENS)
    assert not torch.equal(after.params["words.weight"], back.params["words.weight"])


def test_averaged_params_are_exported_in_the_dtype_of_the_parameters() -> None:
    steps = steps_of(precision="bf16-true")
    state = trained(steps)
    average = optim.get(state.opt_state, "ema")
    assert average["words.weight"].dtype == torch.float32
    module: Any = ftrain.export(state, Net, params=average)
    assert module.words.weight.dtype == torch.bfloat16
    testing.assert_same_bits(average["words.weight"].bfloat16(), module.words.weight.detach())


def test_load_weights_converts_float64_weights_to_float32_and_refuses_integer_weights() -> None:
    state = steps_of().init_state(0)
    weights = Net().double().state_dict()
    assert ftrain.load_weights(state, Net, weights).params["words.weight"].dtype == torch.float32
    weights["words.weight"] = weights["head.weight"] = weights["words.weight"].long()
    with pytest.raises(ValueError, match=r"expected float32\[6, 4\] for 'words\.weight', .* int64"):
        ftrain.load_weights(state, Net, weights)


def test_exported_module_with_a_forward_function_works_with_torch_export() -> None:
    state = trained(steps_of())
    probabilities = ftrain.export(state, Net, forward=lambda model, x: model(x).softmax(-1))
    wanted = probabilities(TOKENS)
    program = torch.export.export(probabilities, (TOKENS,))
    assert torch.equal(program.module()(TOKENS), wanted)
    assert set(program.state_dict) == {f"model.{name}" for name in Net().state_dict()}


def test_exported_module_with_a_forward_function_works_with_onnx(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    reference = pytest.importorskip("onnx.reference", reason="onnx is not installed")
    state = trained(steps_of())
    model = ftrain.export(state, Net, forward=lambda model, x: model(x).softmax(-1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (TOKENS,), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "model.onnx")
    read = reference.ReferenceEvaluator(str(tmp_path / "model.onnx"))
    (got,) = read.run(None, {read.input_names[0]: TOKENS.numpy()})
    # Another order of sums in float32: measured 6e-8.
    assert abs(got - model(TOKENS).detach().numpy()).max() < 1e-6


def test_exported_hugging_face_model_can_be_saved_and_loaded(tmp_path: pathlib.Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    hf = transformers.GPT2LMHeadModel(config)

    def loss(model: Any, ids: Tensor) -> Tensor:
        out: Tensor = model(input_ids=ids, labels=ids).loss
        return out

    model = tasks.lora(hf, "c_attn", rank=2)
    steps = ftrain.make_steps(model, loss, optim.adam(1e-1))
    state, _ = steps.train_step(steps.init_state(0), TOKENS[None])
    wanted = steps.eval_step(state, TOKENS[None])["loss"]
    ftrain.export(state, model).save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    plain = ftrain.make_steps(hf, loss, optim.adam(1e-1))
    back = ftrain.load_weights(plain.init_state(0), hf, loaded)
    testing.assert_same_bits(wanted, plain.eval_step(back, TOKENS[None])["loss"])


class Wider(Net):
    def __init__(self) -> None:
        super().__init__(width=5)


def test_export_refuses_the_state_of_another_model_and_names_the_first_difference() -> None:
    state = steps_of().init_state(0)
    with pytest.raises(
        ValueError, match=r"state\.params\['bias'\]: expected the 2 tensors of bind"
    ):
        ftrain.export(state, nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"'gain': expected shape \(5,\), as in Wider, got \(4"):
        ftrain.export(state, Wider)
    with pytest.raises(
        ValueError, match=r"params\['norm\.bias'\]: expected the 3 tensors of bind\(Ne"
    ):
        ftrain.export(state, Net, params={})
    with pytest.raises(TypeError, match=r"expected an ftrain\.TrainState, got dict"):
        ftrain.export(state.params, Net)  # type: ignore[arg-type]
    arrays: Any = {name: p.numpy() for name, p in state.params.items()}
    with pytest.raises(TypeError, match=r"params\['.*'\]: expected a tensor, got an ndarray"):
        ftrain.export(state, Net, params=arrays)
    with pytest.raises(TypeError, match="forward: expected a function .* got 3"):
        ftrain.export(state, Net, forward=3)  # type: ignore[arg-type]
    adapted = tasks.lora(Net(), "words", rank=2)
    lora_state = steps_of(adapted).init_state(0)
    with pytest.raises(ValueError, match=r"state\.params\['norm\.bias'\]: .* got no such tensor"):
        ftrain.export(lora_state, Net)
    with pytest.raises(TypeError, match="model: expected a model without adapters, got lora"):
        ftrain.load_weights(lora_state, adapted, Net())


def test_load_weights_refuses_wrong_weights_and_names_the_first() -> None:
    state = steps_of().init_state(0)
    whole = Net().state_dict()
    one_less = {name: t for name, t in whole.items() if name != "norm.running_var"}
    cases: list[tuple[Any, str]] = [
        (one_less, r"expected every tensor of Net, got none for 'norm\.running_var'"),
        ({**whole, "nrom.bias": torch.ones(4)}, r"got 'nrom\.bias'\. Did you mean 'norm\.bias'\?"),
        (
            {**whole, "gain": torch.ones(5)},
            r"expected float32\[4\] for 'gain', .* got float32\[5\]",
        ),
        (
            {**whole, "gain": torch.ones(4, device="meta")},
            "dense tensor with values for 'gain', got one without values",
        ),
        (
            {**whole, "gain": torch.ones(4).to_sparse()},
            r"dense tensor with values for 'gain', got layout torch\.sparse_coo",
        ),
        ({**whole, "gain": 1.0}, r"expected float32\[4\] for 'gain', .* got float"),
        (
            {**whole, "head.weight": torch.ones(6, 4)},
            r"tied weights 'words\.weight' and 'head\.weight'",
        ),
    ]
    for weights, message in cases:
        with pytest.raises(ValueError, match=message):
            ftrain.load_weights(state, Net, weights)
    with pytest.raises(TypeError, match="weights: expected a module or a mapping .* got a list"):
        ftrain.load_weights(state, Net, [])  # type: ignore[arg-type]
