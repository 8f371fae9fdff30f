"""Reading and writing of low-rank adapters in the file format of the peft library.

    tasks.write_lora("adapters", state, model)      # peft.PeftModel.from_pretrained(module, "adapters")
    model = tasks.read_lora("adapters", module)     # a model of make_steps that starts from them

Writing raises for adapters that the format cannot express, or for which peft would compute another
result.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ftrain.core import _file_output, random
from ftrain.core._available_memory import available_memory
from ftrain.core._regular_files import read_json, read_regular
from ftrain.core._structure import named_tensors
from ftrain.core._words import a_or_an, did_you_mean
from ftrain.core.functional import Bound, bind
from ftrain.core.state import TrainState
from ftrain.tasks._lora_weights import Adapter, Settings
from ftrain.tasks.lora import LoraModel

__all__ = ["read_lora", "write_lora"]

_TENSORS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_MOST_TENSORS = 64 << 30
_PREFIX = "base_model.model."
#: Options of peft that change what a model computes; they are supported only if they are empty.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)


class _Entry(NamedTuple):
    """Name and shape of one tensor of an adapter file.

    Attributes:
        name: its name in `state.params`.
        shape: its shape in the file.
    """

    name: str
    shape: tuple[int, ...]


def write_lora(path: str | os.PathLike[str], state: TrainState, model: LoraModel) -> None:
    """Write the adapters of a state to a directory, in the format of the peft library.

    `peft.PeftModel.from_pretrained(module, path)` and `read_lora(path, module)` read it. Parameters
    selected by `unfrozen` are written as peft's `modules_to_save`, as whole modules.

    Args:
        path: the directory, which is created if it is missing. Existing files of the two names are
            replaced.
        state: a state of `model`; `state.replace(params=...)` writes an average.
        model: the model that `lora` or `read_lora` returned.

    Raises:
        ValueError: the state belongs to another model; a weight is tied, or peft cannot adapt it (a
            grouped or dilated convolution, a parameter of `nn.MultiheadAttention`); `unfrozen` selects a
            part of a module; training has changed a buffer of the base model that is not in a fully
            trained module, such as BatchNorm statistics.

    Example:
        >>> import tempfile
        >>> import ftrain
        >>> from ftrain import optim, tasks
        >>> model = tasks.lora(nn.Sequential(nn.Linear(3, 2)), rank=1)
        >>> steps = ftrain.make_steps(model, lambda model, batch: model(batch).sum(), optim.sgd(0.1))
        >>> folder = tempfile.mkdtemp()
        >>> write_lora(folder, steps.init_state(0), model)
        >>> sorted(os.listdir(folder))
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    if not isinstance(model, LoraModel):
        raise TypeError(
            f"model: expected the result of tasks.lora, got {a_or_an(type(model).__name__)}. Write a "
            "model without adapters with ftrain.export(state, model)."
        )
    model.merge(state.params, state.buffers)  # raises unless the tensors fit
    root = model.skeleton.module
    tensors = {}
    for adapter in model.adapters:
        for key, entry in _entries(adapter, model.settings).items():
            tensors[key] = state.params[entry.name].reshape(entry.shape)
    modules = _whole_modules(root, model.unfrozen)
    have = {**state.params, **state.buffers}
    whole = _contents(root, modules)
    _require_base(model, state, whole)
    for name in whole:
        tensors[_PREFIX + name] = have[name]
    settings = model.settings
    paths = [adapter.owners[0].path for adapter in model.adapters]
    config = {
        "base_model_name_or_path": getattr(root, "name_or_path", None) or None,
        "bias": "none",
        "fan_in_fan_out": any(a.transposed and not a.embedding for a in model.adapters),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        "lora_dropout": settings.dropout,
        "modules_to_save": modules or None,
        "peft_type": "LORA",
        "r": settings.rank,
        "target_modules": _targets(root, paths),
        "task_type": None,
        "use_dora": settings.dora,
        "use_rslora": settings.rank_stabilized,
    }
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    own = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
    _file_output.replace(folder / _TENSORS, safetensors.torch.save(own, {"format": "pt"}))
    _file_output.replace(folder / _CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def read_lora(
    path: str | os.PathLike[str],
    model: nn.Module | Callable[[], nn.Module] | Bound,
) -> LoraModel:
    """Read adapters from a directory in the format of the peft library; return a model with them.

    Its `init_state` starts from these adapters; rank, scale and targets are those of the files. A
    dropout of peft draws a mask for each token; here it draws one for each micro-batch, as `lora`
    describes.

    Args:
        path: the directory that `write_lora` or peft's `save_pretrained` wrote.
        model: the base model that the adapters were trained on.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is damaged, the adapters belong to another model, or they use an option of
            peft that is not supported; the message names it.
    """
    folder = pathlib.Path(path)
    config, tensors = _read_config(folder), _read_tensors(folder)
    settings = Settings(
        _number(config, "r", folder),
        _number(config, "lora_alpha", folder),
        bool(config.get("use_rslora")),
        bool(config.get("use_dora")),
        float(config.get("lora_dropout") or 0.0),
    )
    base = bind(model)
    root = base.skeleton.module
    first = {id(tensor): name for name, tensor in named_tensors(root).items()}
    modules = dict(root.named_modules(remove_duplicate=False))
    adapted, others = set(), {}
    for key, tensor in tensors.items():
        found = re.fullmatch(
            r"(.*)\.lora_(A\.weight|B\.weight|embedding_[AB]|magnitude_vector)", key
        )
        if not found:
            others[key] = tensor
            continue
        weight = getattr(modules.get(found[1]), "weight", None)
        if id(weight) not in first:
            raise ValueError(
                f"{folder / _TENSORS}: expected adapters of modules with a weight in "
                f"{type(root).__name__}, got one of {found[1]!r}.{did_you_mean(found[1], modules)} Pass "
                "the model that they were trained on."
            )
        adapted.add(first[id(weight)])
    if not adapted:
        raise ValueError(
            f"{folder / _TENSORS}: expected adapters, got none among its {len(tensors)} tensors. Give "
            "the directory that peft's save_pretrained wrote."
        )
    start = _base_values(folder, base, others)
    trained = [n for n in start if n in dict(root.named_parameters())]
    made = LoraModel(
        base,
        [rf"^{re.escape(name)}$" for name in sorted(adapted)],
        settings,
        "|".join(rf"^{re.escape(name)}$" for name in trained) or None,
        start,
    )
    for adapter in made.adapters:
        for key, entry in _entries(adapter, settings).items():
            value = tensors.get(key.removeprefix(_PREFIX))
            if value is None or tuple(value.shape) != entry.shape:
                got = "none" if value is None else str(tuple(value.shape))
                raise ValueError(
                    f"{folder / _TENSORS}: expected {key!r} of shape {entry.shape}, got {got}. Pass the "
                    "model that the adapters were trained on."
                )
            start[entry.name] = value.reshape(made.shapes[entry.name])
    return made


def _base_values(
    folder: pathlib.Path, base: Bound, others: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of unfrozen modules in an adapter file, by name in the base model."""
    known = {name: t.shape for name, t in named_tensors(base.skeleton.module).items()}
    found = {}
    for key, tensor in others.items():
        name = key.replace(".base_layer.", ".")
        if known.get(name) != tensor.shape:
            got = f"shape {tuple(tensor.shape)}" if name in known else "an unknown name"
            wanted = f"shape {tuple(known[name])}" if name in known else "a name in the model"
            raise ValueError(
                f"{folder / _TENSORS}: expected {wanted} for {key!r}, got {got}."
                f"{did_you_mean(name, known)} Pass the model that the adapters were trained on."
            )
        if name == key:
            found[name] = tensor
            continue
        # peft also stores the base weights of adapted embeddings of transformers in the file.
        params, buffers = base.init(random.key(0))
        if not torch.equal({**params, **buffers}[name].cpu(), tensor.to(params[name].dtype)):
            raise ValueError(
                f"{folder / _TENSORS}: expected the weight of the base model under {key!r}, got another "
                "one. Pass the model that the adapters were trained on."
            )
    return found


def _entries(adapter: Adapter, settings: Settings) -> dict[str, _Entry]:
    """Return `{key in the file: name and shape of the tensor}` for the tensors of an adapter."""
    owner = adapter.owners[0]
    reason = _refusal(adapter)
    if reason:
        raise ValueError(
            f"{adapter.name!r}: expected a weight whose adapter gives the same outputs in peft, "
            f"got {reason}. Exclude it from the targets, or store the whole state with "
            "ftrain.checkpoint."
        )
    names = list(adapter.shapes(settings))
    ones = (1,) * (len(adapter.shape) - 2)
    start = f"{_PREFIX}{owner.path}."
    if adapter.embedding:
        keys = [f"{start}lora_embedding_A", f"{start}lora_embedding_B"]
    else:
        keys = [f"{start}lora_A.weight", f"{start}lora_B.weight"]
    inputs = (adapter.inputs,) if adapter.transposed else adapter.shape[1:]
    shapes = [(settings.rank, *inputs), (adapter.outputs, settings.rank, *ones)]
    if settings.dora:
        keys.append(f"{start}lora_magnitude_vector")
        shapes.append((1, adapter.outputs, *ones) if ones else (adapter.outputs,))
    return {k: _Entry(n, shape) for k, n, shape in zip(keys, names, shapes, strict=True)}


def _refusal(adapter: Adapter) -> str | None:
    """Return the reason why peft would compute other outputs with an adapter; `None` if it would not."""
    owner = adapter.owners[0]
    module: Any = owner.module
    name = type(module).__name__
    if len(adapter.owners) > 1:
        places = ", ".join(f"{one.path}.{one.attribute}".lstrip(".") for one in adapter.owners)
        return f"one that is tied ({places})"
    if owner.attribute != "weight" or not owner.path:
        return f"the parameter {owner.attribute!r} of {a_or_an(name)}"
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        plain = (
            module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
        )
        return None if plain else "one of a grouped, dilated or not zero-padded convolution"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "the output layer of an nn.MultiheadAttention"
    if isinstance(module, (nn.Linear, nn.Embedding)) or adapter.transposed:
        return None
    return f"one of {a_or_an(name)}"


def _whole_modules(root: nn.Module, unfrozen: Iterable[str]) -> list[str]:
    """Return the paths of the modules that together contain exactly the unfrozen parameters."""
    names = set(unfrozen)
    paths = {name.rpartition(".")[0] for name in names}
    everywhere = [path for path, _ in root.named_modules(remove_duplicate=False)]
    shared = [name for name, _ in root.named_parameters(remove_duplicate=False)]
    for path in paths:
        inside = {name for name in shared if name.startswith(f"{path}.")}
        same = [each for each in everywhere if each == path or each.endswith(f".{path}")]
        if not path or inside - names or len(same) > 1:
            raise ValueError(
                "unfrozen: expected whole modules with unique names, because peft can store no other "
                f"parameters, got parameters of {path or 'the model'!r}. Select all parameters of such "
                "modules, or store the whole state with ftrain.checkpoint."
            )
    return sorted(p for p in paths if not any(p.startswith(f"{other}.") for other in paths))


def _require_base(model: LoraModel, state: TrainState, whole: list[str]) -> None:
    """Raise if training has changed a tensor of the base model that the files do not contain."""
    saved = model.skeleton.module.state_dict().keys()
    left = (state.buffers.keys() & saved) - {*whole, *model.constants}
    if not left:
        return
    _, start = model.base.init(random.key(0))
    for name in sorted(left):
        if not torch.equal(state.buffers[name].cpu(), start[name].cpu()):
            raise ValueError(
                f"{name!r}: expected the value of the base model, since the files contain only the "
                "adapters and whole modules of `unfrozen`, got one that training has changed. Select "
                "its module with `unfrozen`, or store the whole state with ftrain.checkpoint."
            )


def _contents(root: nn.Module, modules: Iterable[str]) -> list[str]:
    """Return the names of all tensors in the state dicts of the given modules."""
    return [f"{path}.{name}" for path in modules for name in root.get_submodule(path).state_dict()]


def _targets(root: nn.Module, paths: list[str]) -> list[str] | str:
    """Return the paths of the adapted modules; as a pattern if peft would match other modules too."""
    others = {path for path, _ in root.named_modules()}.difference(paths)
    if not any(other.endswith(f".{path}") for path in paths for other in others):
        return paths
    return "|".join(re.escape(path) for path in paths)


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / _CONFIG
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise _missing(folder, _CONFIG) from None
    except ValueError as error:
        raise ValueError(
            f"{file}: expected JSON, got {error}. Give the directory that peft's save_pretrained wrote."
        ) from error
    if not isinstance(config, dict) or str(config.get("peft_type")).upper() != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise ValueError(
            f"{file}: expected an object with peft_type 'LORA', got {kind!r}. Give the directory of a "
            "LoRA adapter; other adapters are not supported."
        )
    wrong = {name: config[name] for name in _UNSUPPORTED if config.get(name)}
    if config.get("bias", "none") != "none":
        wrong["bias"] = config["bias"]
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        # Other initializations may change the base weights.
        wrong["init_lora_weights"] = config["init_lora_weights"]
    for name, value in wrong.items():
        raise ValueError(
            f"{file}: expected adapters without the option {name!r}, which is not supported, got "
            f"{value!r}. Merge them with peft, model.merge_and_unload(), and use the merged module."
        )
    return config


def _read_tensors(folder: pathlib.Path) -> dict[str, Tensor]:
    file = folder / _TENSORS
    if not file.exists():
        raise _missing(folder, _TENSORS)
    try:
        # In memory twice, as the bytes of the file and as tensors.
        most = min(_MOST_TENSORS, available_memory() // 2)
        loaded = safetensors.torch.load(read_regular(file, most))
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{file}: expected a file in the safetensors format, got {error}. Restore it from a copy."
        ) from error
    return {key.removeprefix(_PREFIX): tensor for key, tensor in loaded.items()}


def _missing(folder: pathlib.Path, name: str) -> FileNotFoundError:
    there = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    return FileNotFoundError(
        f"{folder}: expected {_CONFIG} and {_TENSORS}, got no {name} (it has "
        f"{', '.join(there[:8]) or 'no files'}). Give the directory that peft's save_pretrained wrote."
    )


def _number(config: Mapping[str, Any], name: str, folder: pathlib.Path) -> Any:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f"{folder / _CONFIG}: expected a number for {name!r}, got {value!r}. Correct the file."
        )
    return value
