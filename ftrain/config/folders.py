"""Run directories, and the configurations in them, read without importing torch."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import yaml

from ftrain.config.errors import ConfigError
from ftrain.config.load import load
from ftrain.config.schema import Config
from ftrain.core._terminal import printable

__all__ = ["run_config", "run_folder"]


def run_folder(name: str | os.PathLike[str]) -> pathlib.Path:
    """Return the directory of a run; if it is missing, raise a `ConfigError` that lists the runs."""
    folder = pathlib.Path(name)
    if (folder / "config.yaml").is_file():
        return folder
    if folder.name == "config.yaml" and folder.is_file():
        return folder.parent
    inside, beside = (sorted(each.glob("*/config.yaml")) for each in (folder, folder.parent))
    around = list(dict.fromkeys([*inside, *beside]))
    there = ", ".join(printable(path.parent, one_line=True) for path in around[:10])
    advice = f"Choose one of {there}." if there else "Make one with `ftrain train CONFIG`."
    what = "expected a run, got no config.yaml" if folder.is_dir() else "directory not found"
    raise ConfigError.at("", str(folder), f"{what}. {advice}")


def run_config(folder: pathlib.Path, overrides: Sequence[str] = (), *, code: bool = True) -> Config:
    """Return the configuration in a run's directory, even if the directory was moved.

    Args:
        folder: the run's directory.
        overrides: see `load`.
        code: see `load`.

    Raises:
        ConfigError: the configuration is invalid, the name of the directory is not UTF-8, or the
            overrides name another directory.
    """
    for override in overrides:
        key, _, other = override.partition("=")
        if key.strip() == "output_dir" and pathlib.Path(other.strip()) != folder:
            raise ConfigError.at(
                "output_dir",
                f"the command line ({override})",
                f"expected no other directory than that of the run, {folder}, got {other}. Copy the run "
                "to the other directory, and name the copy instead of the run.",
            )
    try:
        str(folder).encode()
    except UnicodeEncodeError:  # a configuration cannot hold this name as its `output_dir`
        says = "expected a directory whose name is UTF-8, got other bytes. Rename the directory."
        raise ConfigError.at("", str(folder), says) from None
    # Not `json.dumps`, which writes an emoji as two escapes that YAML does not join.
    quoted = yaml.safe_dump(str(folder), default_style='"', width=1 << 20).strip()
    here = f"output_dir={quoted}"
    found = load(folder / "config.yaml", [*overrides, here], code=code)
    found._of_run = True
    return found
