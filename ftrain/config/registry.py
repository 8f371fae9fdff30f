"""Names of components: registered ones, and import paths.

    @register("model", "conv")
    def conv(width: int = 16) -> nn.Module: ...

Read next: `resolve.py`, which checks the arguments.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, TypeVar, get_args

from ftrain.config.errors import ConfigError, did_you_mean

__all__ = ["KINDS", "Kind", "find", "is_file", "load_module", "names", "register"]

Kind = Literal["model", "data", "loss", "optimizer", "schedule", "callback"]
KINDS: tuple[Kind, ...] = get_args(Kind)
T = TypeVar("T", bound=Callable[..., Any])

#: By kind and name: the component, or its import path, so that it is imported only when used.
_REGISTERED: dict[Kind, dict[str, Any]] = {
    "model": {"mlp": "ftrain.tasks:mlp"},
    "data": {
        name: f"ftrain.data.sources:{name}"
        for name in ("arrays", "csv", "digits", "images", "text")
    },
    "loss": {
        name: f"ftrain.tasks:{name}"
        for name in ("binary_cross_entropy", "cross_entropy", "mse", "next_token")
    },
    "optimizer": {},
    "schedule": {},
    "callback": {},
}


def register(kind: Kind, name: str) -> Callable[[T], T]:
    """Register the decorated component under a name for configurations.

    Args:
        kind: the kind of component: a function or class that builds a model, a data set, an optimizer
            (from the learning rate), a schedule (from the peak) or a callback; or a loss function.
        name: its name in configurations. List the file that registers it under `imports`.

    Raises:
        ValueError: the name is taken by something else.

    Example:
        >>> @register("model", "identity")
        ... def identity():
        ...     return torch.nn.Identity()
        >>> "identity" in names("model")
        True
    """
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r}. {did_you_mean(kind, KINDS)}")

    def decorate(found: T) -> T:
        there = _REGISTERED[kind].get(name)
        again = getattr(there, "__qualname__", None) == found.__qualname__
        if name in names(kind) and not again:
            raise ValueError(f"there is a {kind} called {name!r} already: choose another name")
        _REGISTERED[kind][name] = found
        return found

    return decorate


def names(kind: Kind) -> list[str]:
    """Return the registered names."""
    return sorted({*_REGISTERED[kind], *_from_library(kind)})


def find(kind: Kind, name: str, base: pathlib.Path, key: str, place: str) -> Any:
    """Return the component of a name; or raise `ConfigError` at this key and source location."""
    module, colon, attribute = name.rpartition(":")
    if colon:
        return _attribute(load_module(module, base, key, place), module, attribute, key, place)
    library = _from_library(kind)
    found = _REGISTERED[kind].get(name, library.get(name))
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        return getattr(importlib.import_module(module), attribute)
    if found is None:
        advice = did_you_mean(name, names(kind))
        if not advice.endswith("?"):
            advice += "."
        if name.endswith(".py"):
            advice = f"Write which part of the file is meant: {name}:NAME."
        raise ConfigError.at(
            key,
            place,
            f"there is no {kind} called {name!r}. {advice} One's own is written as file.py:NAME or "
            "package.module:NAME",
        )
    return found


def _from_library(kind: Kind) -> dict[str, Any]:
    """Return the components that other ftrain packages export, by name."""
    if kind == "callback":
        from ftrain.loop import callbacks  # noqa: PLC0415

        found = {name: getattr(callbacks, name) for name in callbacks.__all__}
        return {name: one for name, one in found.items() if inspect.isclass(one)}
    if kind not in ("optimizer", "schedule"):
        return {}
    from ftrain import optim  # noqa: PLC0415  # it imports torch, which a wrong key need not wait for
    from ftrain.optim import schedules  # noqa: PLC0415

    public = _public(optim)
    if kind == "optimizer":
        whole = (name for name in public if not name.startswith("scale_by_"))
        return {name: public[name] for name in whole if _first(public[name]) == "learning_rate"}
    simple = (name for name in schedules.__all__ if name not in ("join", "plot_schedule"))
    return {name: public[name] for name in (*simple, "reduce_on_plateau")}


def _public(module: ModuleType) -> dict[str, Any]:
    found = {name: getattr(module, name) for name in module.__all__}
    return {name: one for name, one in found.items() if inspect.isfunction(one)}


def _first(function: Any) -> str:
    return next(iter(inspect.signature(function).parameters), "")


def is_file(module: str) -> bool:
    """Return True if the part before the colon names a file."""
    return module.endswith(".py")


def load_module(module: str, base: pathlib.Path, key: str, place: str) -> ModuleType:
    """Import a module or file; or raise `ConfigError` with the line at fault."""
    try:
        if is_file(module):
            return _from_file(base / module, module, key, place)
        _visible(pathlib.Path.cwd())
        _visible(base)
        return importlib.import_module(module)
    except (ConfigError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            hint = ". A file is written with its ending: model.py:NAME"
            raise ConfigError.at(key, place, f"there is no module {module!r}{hint}") from None
        raise ConfigError.at(key, place, _broken(module, error)) from error
    except BaseException as error:  # the file may run any code, even exit
        raise ConfigError.at(key, place, _broken(module, error)) from error


def _from_file(path: pathlib.Path, written: str, key: str, place: str) -> ModuleType:
    path = pathlib.Path(os.path.abspath(path))
    if not path.is_file():
        raise ConfigError.at(
            key,
            place,
            f"there is no file {path} (written as {written}). A relative path is sought beside the "
            "configuration, or in the current directory where it is given on the command line",
        )
    _visible(path.parent)
    spec = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
    if spec is not None and spec.origin == str(path):
        return importlib.import_module(
            path.stem
        )  # under its own name: worker processes find it too
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError.at(key, place, f"{path} cannot be imported: it is no Python file")
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    try:
        spec.loader.exec_module(found)
    except BaseException:
        del sys.modules[name]
        raise
    return found


def _visible(folder: pathlib.Path) -> None:
    """Append a folder to the import path, as for a script in it."""
    path = os.path.abspath(folder)
    if path not in sys.path:
        sys.path.append(path)  # last: a file called json.py must not shadow Python's


def _broken(module: str, error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return (
            f"{module} ends the program when it is imported: put what it runs under "
            '`if __name__ == "__main__":`'
        )
    if isinstance(error, SyntaxError) and error.filename:
        return f"{module} is no Python: {error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "importlib" not in frame.filename]
    where = f" ({inside[-1].filename}:{inside[-1].lineno})" if inside else ""
    return f"importing {module} raised {type(error).__name__}: {error}{where}"


def _attribute(found: Any, module: str, attribute: str, key: str, place: str) -> Any:
    holder = found
    for part in attribute.split("."):
        if not hasattr(holder, part):
            known = [name for name in vars(holder) if not name.startswith("_")]
            advice = did_you_mean(part, known)
            raise ConfigError.at(key, place, f"{module} has no {attribute!r}. {advice}")
        holder = getattr(holder, part)
    if not callable(holder):
        raise ConfigError.at(
            key,
            place,
            f"{module}:{attribute} is {holder!r:.40}: name a function or class",
        )
    return holder
