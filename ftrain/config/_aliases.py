"""Tables that map keys, values and component names of other trainers to names in ftrain.

Error messages suggest ftrain's name. The other name is never accepted, because a configuration has one
spelling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ftrain.config._yaml import scalar
from ftrain.core._nearest import nearest

__all__ = ["KEYS", "component_alias", "unquoted", "value_alias", "with_point"]

#: ftrain's key for each key of another trainer.
KEYS = {
    "lr": "optimizer.learning_rate",
    "max_lr": "optimizer.learning_rate",
    "base_lr": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "betas": "optimizer.b1 and optimizer.b2",
    "momentum": "optimizer.momentum",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule.name",
    "warmup_steps": "schedule.warmup_steps",
    "warmup_ratio": "schedule.warmup_steps, as a share of the run such as 0.1",
    "max_epochs": "epochs",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "steps": "max_steps",
    "max_iters": "max_steps",
    "num_steps": "max_steps",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "num_workers": "workers",
    "gradient_accumulation_steps": "accumulate",
    "accumulate_grad_batches": "accumulate",
    "grad_accum": "accumulate",
    "gradient_clip_val": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "clip_grad_norm": "max_grad_norm",
    "max_norm": "max_grad_norm",
    "bf16": "precision: bf16-mixed",
    "fp16": "precision: 16-mixed",
    "dtype": "precision",
    "torch_compile": "compile",
    "log_every_n_steps": "log_every",
    "logging_steps": "log_every",
    "log_interval": "log_every",
    "eval_steps": "eval_every",
    "eval_interval": "eval_every",
    "val_check_interval": "eval_every",
    "save_steps": "checkpoint.every",
    "save_every": "checkpoint.every",
    "save_total_limit": "checkpoint.keep_last",
    "save_top_k": "checkpoint.keep_best",
    "monitor": "early_stopping.monitor or checkpoint.monitor",
    "patience": "early_stopping.patience",
    "min_delta": "early_stopping.min_delta",
    "out_dir": "output_dir",
    "save_dir": "output_dir",
    "dump_dir": "output_dir",
    "default_root_dir": "output_dir",
    "criterion": "loss",
    "dataset": "data",
    "train_data": "data",
    "accelerator": "device",
    "load_best_model_at_end": "checkpoint.keep_best",
    "metric_for_best_model": "checkpoint.monitor",
    "greater_is_better": "checkpoint.mode",
    "dataloader_num_workers": "workers",
    "report_to": "callbacks",
}

#: For each key, ftrain's value for each value of another trainer, which is in lower case and without
#: underscores and hyphens.
_VALUES = {
    "precision": {
        **dict.fromkeys(("16", "fp16", "fp16mixed", "float16", "half"), "16-mixed"),
        **dict.fromkeys(("bf16", "bfloat16", "bfloat16mixed"), "bf16-mixed"),
        **dict.fromkeys(("32", "fp32", "float32", "float", "single", "full", "no"), "32-true"),
        **dict.fromkeys(("mixed", "amp", "auto"), "bf16-mixed"),
        **dict.fromkeys(("bfloat16true", "purebf16"), "bf16-true"),
    },
    "device": {"gpu": "cuda", "nvidia": "cuda", "none": "auto"},
    "mode": {
        **dict.fromkeys(("minimize", "minimise", "lower", "low", "smaller", "less"), "min"),
        **dict.fromkeys(("maximize", "maximise", "higher", "high", "larger", "greater"), "max"),
    },
    "nonfinite": {"error": "raise", "stop": "raise", "apply": "ignore", "none": "ignore"},
}

#: For each kind of component, ftrain's name for each name of another trainer, which is in lower case and
#: without underscores and hyphens. A name that resembles ftrain's needs no entry.
_COMPONENTS = {
    "loss": {
        **dict.fromkeys(("ce", "crossentropyloss", "nll", "nllloss", "softmax"), "cross_entropy"),
        **dict.fromkeys(("bce", "bcewithlogitsloss", "logloss"), "binary_cross_entropy"),
        **dict.fromkeys(("l2", "mseloss", "meansquarederror", "squarederror"), "mse"),
        **dict.fromkeys(("l1", "l1loss", "meanabsoluteerror"), "mae"),
        **dict.fromkeys(("smoothl1", "smoothl1loss"), "huber"),
        **dict.fromkeys(("clm", "lm"), "causal_lm"),
        "mlm": "masked_lm",
        "ctcloss": "ctc",
    },
    "optimizer": {
        **dict.fromkeys(("adamwtorch", "adamwtorchfused", "adamwhf"), "adamw"),
        **dict.fromkeys(("momentum", "nesterov"), "sgd"),
    },
    "schedule": {
        "cosineannealinglr": "cosine",
        **dict.fromkeys(
            ("cosinewithwarmup", "cosinewarmup", "linearwarmupcosine"), "warmup_cosine"
        ),
        **dict.fromkeys(
            ("cosinewithrestarts", "cosineannealingwarmrestarts", "sgdr"), "cosine_restarts"
        ),
        **dict.fromkeys(("linearwithwarmup", "linearwarmupdecay"), "warmup_linear"),
        "constantwithwarmup": "linear_warmup",
        **dict.fromkeys(("steplr", "multisteplr"), "step"),
        **dict.fromkeys(("onecyclelr", "1cycle"), "one_cycle"),
        **dict.fromkeys(("reducelronplateau", "plateau"), "reduce_on_plateau"),
        "wsd": "warmup_stable_decay",
    },
    "data": {
        **dict.fromkeys(("folder", "imagefolder"), "images"),
        **dict.fromkeys(("table", "tsv", "dataframe", "pandas"), "csv"),
        **dict.fromkeys(("npz", "npy", "numpy", "tensors"), "arrays"),
        **dict.fromkeys(("txt", "textfile", "corpus"), "text"),
    },
    "model": {
        **dict.fromkeys(("cnn", "lenet", "convnet"), "lenet5"),
        **dict.fromkeys(("transformer", "nanogpt", "gpt2"), "gpt"),
        **dict.fromkeys(("linear", "dense", "feedforward", "mlpclassifier"), "mlp"),
        **dict.fromkeys(("resnet18", "resnet50"), "resnet"),
    },
    "callback": {
        "modelcheckpoint": "Checkpointing",
        "earlystoppingcallback": "EarlyStopping",
        "tensorboard": "TensorBoardLogger",
        "wandb": "WandbLogger",
        "tqdmprogressbar": "ProgressBar",
    },
}


def value_alias(key: str, value: object, choices: Iterable[str] = ()) -> str | None:
    """Return the valid value most similar to an invalid value of a key; `None` if none is similar.

    Args:
        key: the last part of the key, such as `precision`.
        value: the invalid value in the configuration.
        choices: the values that the key takes.

    Example:
        >>> value_alias("precision", "fp16"), value_alias("device", "gpu:1")
        ('16-mixed', 'cuda:1')
        >>> value_alias("mode", "mim", ["min", "max"])
        'min'
    """
    text = str(value)
    found = _VALUES.get(key, {}).get(_plain(text))
    if (
        found is None
        and key == "device"
        and (index := re.fullmatch(r"(?:gpu:?)?(\d+)", text.lower()))
    ):
        found = f"cuda:{index[1]}"
    return found or nearest(text, choices)


def component_alias(kind: str, name: str, names: Iterable[str]) -> str | None:
    """Return the registered component most similar to an unknown name; `None` if none is similar.

    Example:
        >>> component_alias("loss", "BCEWithLogitsLoss", ["binary_cross_entropy", "mse"])
        'binary_cross_entropy'
    """
    names = [*names]
    found = _COMPONENTS.get(kind, {}).get(_plain(name))
    return found if found in names else nearest(name, names)


def unquoted(value: object) -> str | None:
    """Return `value` if it is a string that YAML reads as a number or boolean; otherwise `None`.

    Example:
        >>> unquoted("1e-3"), unquoted("true"), unquoted("fast"), unquoted(3)
        ('1e-3', 'true', None, None)
    """
    if not isinstance(value, str):
        return None
    return value if isinstance(scalar(value.strip()), (bool, int, float)) else None


def with_point(value: object) -> str | None:
    """Replace the decimal comma of a number by a point; return `None` for any other value.

    Example:
        >>> with_point("0,01"), with_point("1e-3"), with_point(3)
        ('0.01', None, None)
    """
    found = isinstance(value, str) and re.fullmatch(r"[-+]?\d+,\d+([eE][-+]?\d+)?", value.strip())
    return str(value).strip().replace(",", ".") if found else None


def _plain(text: str) -> str:
    return re.sub(r"[-_ ]", "", text.lower())
