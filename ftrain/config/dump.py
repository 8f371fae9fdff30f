"""Writing of a configuration as YAML, with every default written out.

    dump(load(path)) == path.read_text()        # of a file that `dump` wrote

Read next: `load.py`, the inverse.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from ftrain.config._source_locations import Path
from ftrain.config.registry import is_file
from ftrain.config.resolve import Resolved
from ftrain.config.schema import Config
from ftrain.core._terminal import printable

__all__ = ["dump", "relocated"]


def dump(config: Config) -> str:
    """Return the configuration as YAML, from which `load` reads an equal configuration.

    Example:
        >>> from ftrain.config import load
        >>> text = dump(load({"model": "mlp", "data": "digits", "epochs": 3}))
        >>> text.splitlines()[:5]
        ['model:', '  name: mlp', 'data:', '  name: digits', '  held_out: null']
    """
    return to_yaml(config.model_dump(mode="json"))


def relocated(resolved: Resolved, folder: pathlib.Path) -> Config:
    """Return the configuration with its relative paths rewritten for a file in another folder."""
    config = resolved.config
    data = config.model_dump(mode="json")

    def moved(path: str, at: Path) -> str:
        if os.path.isabs(path):
            return path
        return relative(os.path.abspath(config.beside(at) / path))

    def relative(target: str) -> str:
        try:
            return pathlib.PurePath(os.path.relpath(target, folder)).as_posix()
        except ValueError:  # the target is on another drive
            return target

    def moved_name(name: str, at: Path) -> str:
        file, colon, attribute = name.rpartition(":")
        return moved(file, at) + colon + attribute if colon and is_file(file) else name

    data["imports"] = [
        moved(name, ("imports", index)) if is_file(name) else name
        for index, name in enumerate(data["imports"])
    ]
    single = (resolved.model, resolved.data, resolved.loss, resolved.task, resolved.optimizer)
    for target in (*single, resolved.schedule, *resolved.callbacks):
        if target is None:
            continue
        section: Any = data
        for key in target.path:
            section = section[key]
        section["name"] = moved_name(section["name"], (*target.path, "name"))
        for name in target.files:
            written = os.path.expanduser(section[name])
            section[name] = (
                written
                if os.path.isabs(written)
                else relative(os.path.abspath(target.arguments[name]))
            )
    found = Config.model_validate(data)
    found._base = folder
    found._places.name = os.fspath(folder / "config.yaml")
    return found


def to_yaml(data: Mapping[str, Any]) -> str:
    """Return plain values as YAML that has the same meaning in YAML 1.1 and 1.2."""
    text: str = yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    return printable(text)


class _Dumper(yaml.SafeDumper):
    """YAML dumper that quotes each text that YAML 1.1 or 1.2 would read as another type."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _sequence(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    flat = not any(isinstance(item, (dict, list)) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text:  # 1e-05 is a text in YAML 1.1
        text = text.replace("e", ".0e")
    return dumper.represent_scalar(
        "tag:yaml.org,2002:float", {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)
    )


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # PyYAML reads some of these characters as ends of lines, and writes others, which change the order
    # in which a text is shown, without an escape; `to_yaml` escapes them.
    style = '"' if printable(value, one_line=True) != value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _sequence)
_Dumper.add_representer(float, _float)
for kind, pattern in (
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
    ("int", r"0o[0-7]+|[-+]?[0-9]+"),
):
    _Dumper.add_implicit_resolver(
        f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$"), list("-+.0123456789")
    )
