"""Test adapters in peft's file format, read and written by peft, and a peft model in `make_steps`."""

from __future__ import annotations

import copy
import json
import pathlib
import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ftrain
from ftrain import optim, random, tasks, testing, tree

KEY = random.key(0)
ROUNDING = 1e-13  # sums in float64 in another order: measured 5e-16


class Parts(nn.Module):
    """One module of each kind that peft adapts, and a head that is trained whole."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.mix = nn.Linear(6, 5)
        self.image = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.head = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.mix(self.words(tokens))))
        return out.square().sum() + self.image(image).square().sum()


def parts() -> nn.Module:
    torch.manual_seed(0)
    return Parts().double()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(7, (5,)), torch.randn(3, 2, 8, 8, dtype=torch.float64)


def steps_of(model: Any) -> ftrain.Steps:
    return ftrain.make_steps(model, lambda model, batch: model(*batch), optim.adam(1e-2))


def trained(model: Any) -> ftrain.TrainState:
    steps = steps_of(model)
    state = steps.init_state(0)
    for _ in range(3):
        state, _ = steps.train_step(state, batch())
    return state


@pytest.fixture
def peft() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("peft", reason="peft is not installed")


def adapted(module: nn.Module, **options: Any) -> tasks.LoraModel:
    targets = [nn.Embedding, nn.Conv2d, "mix"]
    return tasks.lora(module, targets, rank=2, alpha=3, unfrozen="^head", **options)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("stable", [False, True])
def test_peft_computes_outputs_and_gradients_of_written_adapters(
    peft: Any, tmp_path: pathlib.Path, dora: bool, stable: bool
) -> None:
    module = parts()
    model = adapted(module, dora=dora, rank_stabilized=stable)
    state = trained(model)
    tasks.write_lora(tmp_path, state, model)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(module), tmp_path, is_trainable=True)

    def loss(params: dict[str, Tensor]) -> Tensor:
        out: Tensor = model(params, state.buffers, KEY, *batch())[0]
        return out

    value, grads = ftrain.value_and_grad(loss)(state.params)
    wanted = theirs(*batch())
    wanted.backward()
    assert float((value - wanted).abs() / wanted.abs()) < ROUNDING
    found = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert len(found) == len(grads)
    for name, grad in grads.items():
        same = found[name_in_peft(name)]
        difference = (same.reshape(grad.shape) - grad).norm()
        # The gradient of a bias before BatchNorm is rounding alone, of terms like the loss.
        assert difference <= ROUNDING * (wanted.abs() + grad.norm()), name


def name_in_peft(name: str) -> str:
    module, _, part = name.rpartition(".")
    if part in ("lora_A", "lora_B", "magnitude"):
        module = module.removesuffix(".weight")
        part = "lora_magnitude_vector" if part == "magnitude" else part
        if module == "words" and part != "lora_magnitude_vector":
            return f"base_model.model.{module}.{part.replace('lora', 'lora_embedding')}.default"
        return f"base_model.model.{module}.{part}.default.weight"
    return f"base_model.model.{module}.modules_to_save.default.{part}"


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_saved_and_loaded_by_peft_keep_their_bytes(
    peft: Any, tmp_path: pathlib.Path, dora: bool
) -> None:
    module = parts()
    model = adapted(module, dora=dora, dropout=0.1)
    state = trained(model)
    tasks.write_lora(tmp_path / "ours", state, model)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(module), tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        again = tasks.read_lora(tmp_path / folder, module)
        start = steps_of(again).init_state(1)
        testing.assert_same_bits(state.params, start.params)
        testing.assert_same_bits(state.buffers, start.buffers)  # statistics of the head included
        assert again.settings == model.settings


def test_adapters_that_peft_trained_are_merged_as_peft_merges_them(
    peft: Any, tmp_path: pathlib.Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    base = gpt2(transformers)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn", "wte"], lora_dropout=0.1)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    steps = ftrain.make_steps(model, own_loss, optim.adam(1e-1))
    state, _ = steps.train_step(steps.init_state(0), tokens())
    model = ftrain.bind(model).module(state.params, state.buffers)
    with warnings.catch_warnings():  # that it writes the embedding's weights too
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
    ours = tasks.read_lora(tmp_path, untied(base))
    mine = ftrain.make_steps(ours, own_loss, optim.adam(1e-1))
    assert ours.settings.dropout == 0.1
    expected = own_loss(untied(model.merge_and_unload()).eval(), tokens())
    got = mine.eval_step(mine.init_state(0), tokens())["loss"]
    assert float((got - expected).abs() / expected) < 1e-6  # float32: measured 1e-7


def gpt2(transformers: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=30, n_positions=16, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=False
    )
    return transformers.GPT2LMHeadModel(config)


def untied(model: Any) -> Any:
    assert model.lm_head.weight is not model.transformer.wte.weight
    return model


def tokens() -> Tensor:
    return torch.randint(30, (2, 8), generator=torch.Generator().manual_seed(0))


def own_loss(model: Any, ids: Tensor) -> Tensor:
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def test_steps_of_a_peft_model_train_its_adapters_only(peft: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.1)
    model = peft.get_peft_model(gpt2(transformers), config)
    steps = ftrain.make_steps(model, own_loss, optim.adam(1e-2))
    state = steps.init_state(0)
    assert len(state.params) == 4
    assert all(".lora_" in name for name in state.params)
    assert state.params.keys() == optim.get(state.opt_state, "mu").keys()
    after, _ = steps.train_step(state, tokens())
    testing.assert_same_bits(state.buffers, after.buffers)
    assert all(not torch.equal(p, state.params[n]) for n, p in after.params.items() if "_B." in n)
    testing.check_pure(steps, [tokens()])
    testing.check_keyed(steps, [tokens()])


def test_module_names_that_peft_would_match_twice_become_a_pattern(tmp_path: pathlib.Path) -> None:
    module = nn.ModuleDict(
        {"mix": nn.Linear(3, 2), "deep": nn.ModuleDict({"mix": nn.Linear(2, 2)})}
    )
    model = tasks.lora(module, "^mix", rank=1)
    params, buffers = model.init(KEY)
    tasks.write_lora(tmp_path, state_of(params, buffers), model)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == "mix"
    assert [each.name for each in tasks.read_lora(tmp_path, module).adapters] == ["mix.weight"]


def state_of(params: Any, buffers: Any) -> ftrain.TrainState:
    return ftrain.TrainState(torch.tensor(0), params, buffers, (), (), KEY, {})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.head.weight = self.words.weight


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Tied, {"targets": "words"}, r"got one that is tied \(words\.weight, head\.weight\)"),
        (
            lambda: nn.Sequential(nn.Conv1d(4, 4, 3, groups=2)),
            {"targets": nn.Conv1d},
            "got one of a grouped, dilated or not zero-padded convolution",
        ),
        (
            lambda: nn.Sequential(nn.MultiheadAttention(4, 2)),
            {"targets": "in_proj"},
            "got the parameter 'in_proj_weight' of a MultiheadAttention",
        ),
        (
            lambda: nn.Sequential(nn.MultiheadAttention(4, 2)),
            {"targets": "out_proj"},
            "got the output layer of an nn.MultiheadAttention",
        ),
        (
            lambda: nn.Sequential(nn.ConvTranspose1d(4, 4, 3)),
            {"targets": nn.ConvTranspose1d},
            "got one of a ConvTranspose1d",
        ),
        (Parts, {"targets": "mix", "unfrozen": "bias"}, "unfrozen: expected whole modules"),
    ],
)
def test_adapters_that_peft_cannot_express_are_refused(
    tmp_path: pathlib.Path, module: Any, options: Any, message: str
) -> None:
    model = tasks.lora(module(), **options)
    with pytest.raises(ValueError, match=message):
        tasks.write_lora(tmp_path, state_of(*model.init(KEY)), model)
    assert not list(tmp_path.iterdir())


def test_write_lora_refuses_changed_running_statistics_unless_their_module_is_unfrozen(
    tmp_path: pathlib.Path,
) -> None:
    model = tasks.lora(parts(), "mix", rank=2)
    with pytest.raises(
        ValueError, match=r"'head\.1\.num_batches_tracked': expected the value of the b"
    ):
        tasks.write_lora(tmp_path, trained(model), model)
    assert not list(tmp_path.iterdir())
    tasks.write_lora(tmp_path, steps_of(model).init_state(0), model)
    module = parts()
    model = tasks.lora(module, "mix", rank=2, unfrozen="head")
    state = trained(model)
    tasks.write_lora(tmp_path, state, model)
    read = tasks.read_lora(tmp_path, module)
    testing.assert_same_bits(read.init(KEY), (state.params, state.buffers))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, r"expected an object with peft_type 'LORA', got 'IA3'"),
        (
            {"rank_pattern": {"mix": 4}},
            r"without the option 'rank_pattern', which is not supported",
        ),
        ({"bias": "all"}, "without the option 'bias'"),
        ({"init_lora_weights": "pissa"}, "without the option 'init_lora_weights'"),
        ({"r": "8"}, "expected a number for 'r', got '8'"),
        ({"r": 3}, r"image\.lora_A\.weight' of shape \(3, 2, 3, 3\), got \(2, "),
    ],
)
def test_adapter_file_of_an_unsupported_configuration_is_refused(
    tmp_path: pathlib.Path, change: Any, message: str
) -> None:
    module = parts()
    model = adapted(module)
    tasks.write_lora(tmp_path, state_of(*model.init(KEY)), model)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        tasks.read_lora(tmp_path, module)


def test_adapters_of_another_model_or_a_damaged_file_are_refused(tmp_path: pathlib.Path) -> None:
    module = parts()
    model = adapted(module)
    tasks.write_lora(tmp_path, state_of(*model.init(KEY)), model)
    other = nn.ModuleDict({"mixer": nn.Linear(6, 5)})
    with pytest.raises(ValueError, match=r"got one of '(image|mix|words)'"):
        tasks.read_lora(tmp_path, other)
    file = tmp_path / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({name: t for name, t in whole.items() if "mix.lora_B" not in name}, file)
    with pytest.raises(
        ValueError, match=r"'base_model\.model\.mix\.lora_B\.weight' of .*, got none"
    ):
        tasks.read_lora(tmp_path, module)
    save_file({**whole, "base_model.model.tail.weight": torch.ones(2)}, file)
    with pytest.raises(ValueError, match=r"for 'tail\.weight', got an unknown name"):
        tasks.read_lora(tmp_path, module)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="expected a file in the safetensors format"):
        tasks.read_lora(tmp_path, module)
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"got no adapter_model\.safetensors \(it has adapter_c"
    ):
        tasks.read_lora(tmp_path, module)


def test_write_lora_replaces_existing_files_and_read_lora_reads_the_new_ones(
    tmp_path: pathlib.Path,
) -> None:
    module = parts()
    model = adapted(module, dora=True)
    for state in (state_of(*model.init(KEY)), trained(model)):
        tasks.write_lora(tmp_path, state, model)
        again = steps_of(tasks.read_lora(tmp_path, module)).init_state(0)
        assert tree.digest(again.params) == tree.digest(state.params)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with pytest.raises(TypeError, match=r"expected the result of tasks\.lora, got a Parts"):
        tasks.write_lora(tmp_path, state, module)  # type: ignore[arg-type]
