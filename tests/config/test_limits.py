"""Test limits of configurations: giant numbers, depth, number of values, length, worker processes."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import pytest
import torch

from ftrain.config import ConfigError, load
from ftrain.data import Loader

BASE = {
    ".yaml": "model: a\ndata: digits\nepochs: 1\n",
    ".toml": "model = 'a'\ndata = 'digits'\nepochs = 1\n",
}
DEEP = ".".join("a" * 2000)
HEX = "0x" + "F" * 3990


def refused(text: str, suffix: str, tmp_path: pathlib.Path, *overrides: str) -> str:
    """Return the message of the error; check that it was raised fast, is short and can be printed."""
    path = tmp_path / f"c{suffix}"
    path.write_text(BASE[suffix] + text)
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    assert time.process_time() - began < 20
    assert len(str(caught.value)) < 30_000
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".yaml", ".toml"])
@pytest.mark.parametrize(
    "digits", [HEX, HEX + "F" * 5000, "0o" + "7" * 3990, "9" * 3999, "9" * 9999]
)
def test_integer_of_thousands_of_digits_is_refused(
    suffix: str, digits: str, tmp_path: pathlib.Path
) -> None:
    separator = ": " if suffix == ".yaml" else " = "
    says = refused(f"seed{separator}{digits}\n", suffix, tmp_path)
    assert "seed" in says or "TOML" in says
    refused("", suffix, tmp_path, f"seed={digits}")
    with pytest.raises(ConfigError, match="seed"):
        load({"model": "a", "data": "digits", "epochs": 1, "seed": 10**5000})


@pytest.mark.parametrize(
    ("text", "suffix", "overrides"),
    [
        (f"{DEEP} = 1\n", ".toml", []),
        (f"[{DEEP}]\nb = 1\n", ".toml", []),
        ("x: " + "{a: " * 900 + "1" + "}" * 900 + "\n", ".yaml", []),
        ("x: " + "{a: " * 70 + "1" + "}" * 70 + "\n", ".yaml", []),
        ("", ".yaml", [f"{DEEP}=1"]),
        ("", ".yaml", [f"model.{DEEP}=1"]),
        ("", ".yaml", ["model=" + "{a: " * 70 + "1" + "}" * 70]),
    ],
)
def test_override_with_a_key_of_thousands_of_levels_is_refused(
    text: str, suffix: str, overrides: list[str], tmp_path: pathlib.Path
) -> None:
    says = refused(text, suffix, tmp_path, *overrides)
    assert "levels" in says or "nested too deeply" in says


def test_override_that_is_not_utf_8_is_refused() -> None:
    for override in ("output_dir=caf\udce9", "caf\udce9=1", "caf\udce9"):
        with pytest.raises(
            ConfigError, match=r"command line: expected text in UTF-8, got '.*udce9"
        ):
            load({"model": "a", "data": "digits", "epochs": 1}, [override])


def test_configuration_dict_that_contains_itself_is_refused() -> None:
    cycle: dict[str, Any] = {}
    cycle["again"] = cycle
    with pytest.raises(ConfigError, match="in 60 levels"):
        load({"model": {"name": "a", "b": cycle}, "data": "digits", "epochs": 1})


@pytest.mark.parametrize(
    ("text", "suffix", "says"),
    [
        ("imports = [" + "1, " * 200_000 + "]\n", ".toml", "at most 100,000 values"),
        ("imports: [" + "1, " * 110_000 + "]\n", ".yaml", "more than 100,000 values"),
        ("x = '" + "a" * 1_000_000 + "'\n", ".toml", "at most 1,000,000 characters"),
        ("x: '" + "a" * 1_000_000 + "'\n", ".yaml", "at most 1,000,000 characters"),
        ("".join(f"key{i} = 1\n" for i in range(20_000)), ".toml", "and 19,950 more problems"),
    ],
)
def test_long_configuration_is_refused_within_a_second(
    text: str, suffix: str, says: str, tmp_path: pathlib.Path
) -> None:
    assert says in refused(text, suffix, tmp_path)


def test_more_workers_than_the_limit_are_refused(tmp_path: pathlib.Path) -> None:
    assert "workers: expected less than or equal to 1024, got 100000" in refused(
        "workers: 100000\n", ".yaml", tmp_path
    )
    with pytest.raises(ValueError, match="workers: expected at most 1024 processes, got 100000"):
        Loader(torch.arange(4), 2, workers=100_000)
