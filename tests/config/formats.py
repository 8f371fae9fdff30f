"""Write a tree as YAML, JSON or TOML, and generate trees that all three formats can express."""

from __future__ import annotations

import json
from typing import Any

import yaml
from hypothesis import strategies as st

__all__ = ["FORMATS", "configs", "trees", "write"]

FORMATS = ("yaml", "json", "toml")


def write(data: dict[str, Any], form: str) -> str:
    if form == "yaml":
        return yaml.safe_dump(data, allow_unicode=True, sort_keys=False)
    if form == "json":
        return json.dumps(data, indent=1)
    return "\n".join(_toml(data))


def _toml(data: dict[str, Any], path: tuple[str, ...] = ()) -> list[str]:
    """Return scalars and lists, then a table for each dict; `None` is left out, as TOML has no null."""
    lines, tables = [], []
    for key, value in data.items():
        if isinstance(value, dict):
            header = ".".join(json.dumps(part) for part in (*path, key))
            tables += ["", f"[{header}]", *_toml(value, (*path, key))]
        elif value is not None:
            lines.append(f"{json.dumps(key)} = {_inline(value)}")
    return lines + tables


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{json.dumps(k)} = {_inline(v)}" for k, v in value.items() if v is not None
            )
            + "}"
        )
    if isinstance(value, list):
        return "[\n" + ",\n".join(_inline(item) for item in value if item is not None) + "\n]"
    if isinstance(value, float) and value == int(value):
        return f"{value:.1f}"
    return json.dumps(value)


names = st.text("abcdefgh_", min_size=1, max_size=5) | st.sampled_from(
    ["on", "1", "a b", "é", "null"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
    | st.text("abc 01:#-é'\"", max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
trees = st.dictionaries(names, values, max_size=5)


def configs() -> list[dict[str, Any]]:
    """Return valid configurations; `project.py` is in their directory."""
    return [
        {"model": "project.py:Net", "data": "project.py:data", "epochs": 2, "batch_size": 8},
        {
            "model": {"name": "project.py:Net", "width": 8, "dropout": 0.1, "shape": [1, 2]},
            "data": {"name": "project.py:data", "n": 32, "held_out": 0.25},
            "loss": {"name": "project.py:loss_fn", "scale": 2.0},
            "epochs": 3,
            "max_steps": 5,
            "seed": 7,
            "batch_size": 8,
            "accumulate": 2,
            "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
            "schedule": {"name": "warmup_cosine", "warmup_steps": 0.1},
            "max_grad_norm": 1.0,
            "precision": "bf16-mixed",
            "compile": False,
            "log_every": 2,
            "checkpoint": {"every": 2, "keep_last": 2, "monitor": "eval/loss"},
            "early_stopping": {"patience": 3, "min_delta": 0.01},
            "callbacks": [],
            "output_dir": "runs/x",
        },
        {
            "imports": ["project.py"],
            "model": {"name": "test-net", "width": 2},
            "data": "project.py:pair",
            "loss": "cross_entropy",
            "optimizer": "adamw",
            "batch_size": 4,
            "max_steps": 3,
        },
    ]
