"""Registry of components by name, with the values that each needs from a run.

    @register("schedule", "sawtooth", Needs(total_steps="updates"))
    def sawtooth(peak: float, updates: int) -> optim.Schedule: ...

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
from typing import Any, NamedTuple, TypeVar

from ftrain.config._aliases import component_alias
from ftrain.config.errors import ConfigError, did_you_mean
from ftrain.config.needs import KINDS, Kind, Needs

__all__ = [
    "KINDS",
    "Kind",
    "Needs",
    "find",
    "imported",
    "is_file",
    "load_module",
    "names",
    "needs_of",
    "register",
]

T = TypeVar("T", bound=Callable[..., Any])


class _Registered(NamedTuple):
    component: Any  # or an import path, so that the component is imported only when used
    needs: Needs = Needs()


#: Needs of components that were registered without any, by kind.
_DEFAULT: dict[Kind, Needs] = {"schedule": Needs(total_steps="total_steps")}

_MONITORED = "ftrain.loop.callbacks:monitored_steps"
_TENSORBOARD = "${run}/tensorboard"
_TARGET_SCALE = Needs(facts={"target_scale": "target_scale"})

_REGISTERED: dict[Kind, dict[str, _Registered]] = {
    "model": {
        name: _Registered(f"ftrain.tasks.models:{attribute}")
        for name, attribute in (
            ("gpt", "GPT"),
            ("lenet5", "LeNet5"),
            ("mlp", "mlp"),
            ("resnet", "ResNet"),
            ("text_cnn", "TextCNN"),
            ("unet", "UNet"),
        )
    },
    "data": {
        "digits": _Registered("ftrain.data.sources:digits"),
        **{
            name: _Registered(
                f"ftrain.data.sources:{name}", Needs(inputs=f"ftrain.data.sources:{name}_inputs")
            )
            for name in ("arrays", "csv", "images", "text")
        },
    },
    "loss": {
        "binary_cross_entropy": _Registered(
            "ftrain.tasks:binary_cross_entropy", Needs(max_classes=2)
        ),
        "cross_entropy": _Registered(
            "ftrain.tasks:cross_entropy", Needs(facts={"classes": "classes"})
        ),
        **{
            name: _Registered(f"ftrain.tasks:{name}", needs)
            for needs, names in (
                (_TARGET_SCALE, ("mse", "mae", "huber", "gaussian_nll")),
                (Needs(), ("causal_lm", "masked_lm", "next_token", "dpo", "ctc")),
                (Needs(), ("multi_label", "dice", "focal", "lovasz", "tversky")),
                (Needs(builds=True), ("cached_info_nce",)),
                (Needs(), ("info_nce", "supervised_contrastive", "triplet")),
                (Needs(teacher="teacher"), ("distillation", "feature_distillation")),
                (Needs(self_teacher="teacher"), ("byol",)),
            )
            for name in names
        },
    },
    "task": {
        "image_classification": _Registered(
            "ftrain.tasks:image_classification", Needs(facts={"classes": "classes"})
        ),
        **{
            name: _Registered(f"ftrain.tasks:{name}")
            for name in ("language_modeling", "retrieval", "segmentation", "text_classification")
        },
    },
    "optimizer": {},
    "schedule": {
        name: _Registered(f"ftrain.optim:{name}", needs)
        for needs, names in (
            (Needs(), ("constant", "cosine_restarts", "exponential", "inverse_sqrt")),
            (Needs(), ("linear_warmup", "piecewise_constant", "step")),
            (Needs(total_steps="steps"), ("cosine", "linear", "one_cycle", "polynomial")),
            (Needs(total_steps="total_steps"), ("warmup_cosine", "warmup_linear")),
            (Needs(remaining_steps="stable_steps"), ("warmup_stable_decay",)),
            (Needs(chained=True), ("reduce_on_plateau",)),
        )
        for name in names
    },
    "callback": {
        name: _Registered(f"ftrain.loop.callbacks:{name}", needs)
        for name, needs in (
            ("GradientMonitor", Needs(make_steps=_MONITORED)),
            ("GradientHistograms", Needs(make_steps=_MONITORED, in_run={"folder": _TENSORBOARD})),
            ("MLflowLogger", Needs(config="hyperparameters", in_run={"experiment": "${name}"})),
            ("Profiler", Needs(in_run={"folder": "${run}/profile"})),
            ("TensorBoardLogger", Needs(config="hyperparameters", in_run={"folder": _TENSORBOARD})),
            ("WandbLogger", Needs(config="config", in_run={"project": "${name}", "dir": "${run}"})),
        )
    },
}


def register(kind: Kind, name: str, needs: Needs | None = None) -> Callable[[T], T]:
    """Register the decorated component under a name for configurations.

    Args:
        kind: the kind of component: a function or class that builds a model, a data set, a task, an
            optimizer (from the learning rate), a schedule (from the peak) or a callback; or a loss
            function.
        name: its name in configurations. List the file that registers it under `imports`.
        needs: what it needs from the run. Default: nothing; for a schedule, the number of updates in the
            run as its argument `total_steps`, if it has one.

    Raises:
        ValueError: the name is taken; a component of this kind cannot have these needs.

    Example:
        >>> @register("schedule", "sawtooth", Needs(total_steps="updates"))
        ... def sawtooth(peak, updates, teeth=4):
        ...     return lambda count: peak * (1 - teeth * count / updates % 1)
        >>> "sawtooth" in names("schedule")
        True
    """
    if kind not in KINDS:
        raise ValueError(
            f"kind: expected {', '.join(KINDS)}, got {kind!r}. {did_you_mean(kind, KINDS)}"
        )

    def decorate(found: T) -> T:
        there = _REGISTERED[kind].get(name)
        again = there and getattr(there.component, "__qualname__", None) == found.__qualname__
        if name in names(kind) and not again:
            raise ValueError(
                f"name: expected an unused {kind} name, got {name!r}. Choose another name."
            )
        declared = _DEFAULT.get(kind, Needs()) if needs is None else needs
        if needs is not None:
            needs.check(kind, found)
        _REGISTERED[kind][name] = _Registered(found, declared)
        return found

    return decorate


def needs_of(kind: Kind, component: Any) -> Needs:
    """Return the `Needs` with which a component was registered, even if it is given by import path."""
    registered = _REGISTERED[kind].values()
    declared = (one.needs for one in registered if imported(one.component) is component)
    return next(declared, _DEFAULT.get(kind, Needs()))


def imported(component: Any) -> Any:
    """Return a component; import it if it is given as an import path."""
    if not isinstance(component, str):
        return component
    module, _, attribute = component.partition(":")
    return getattr(importlib.import_module(module), attribute)


def names(kind: Kind) -> list[str]:
    """Return the registered names of one kind of component, such as "optimizer"."""
    return sorted({*_REGISTERED[kind], *_from_library(kind)})


def find(kind: Kind, name: str, base: pathlib.Path, key: str, place: str) -> Any:
    """Return the component of a name or import path; raise `ConfigError` if there is none."""
    module, colon, attribute = name.rpartition(":")
    if colon:
        return _attribute(load_module(module, base, key, place), module, attribute, key, place)
    library = _from_library(kind)
    if name in _REGISTERED[kind]:
        return imported(_REGISTERED[kind][name].component)
    found = library.get(name)
    if found is None:
        near = component_alias(kind, name, names(kind))
        advice = f"Did you mean {near}?" if near else f"Choose one of {', '.join(names(kind))}."
        if name.endswith(".py"):
            advice = f"Write a name in the file: {name}:NAME."
        raise ConfigError.at(
            key,
            place,
            f"unknown {kind} {name!r}. {advice} Write your own as file.py:NAME or package.module:NAME.",
        )
    return found


def _from_library(kind: Kind) -> dict[str, Any]:
    """Return `{name: component}` for the optimizers or callbacks that ftrain itself exports."""
    if kind == "callback":
        from ftrain.loop import callbacks  # noqa: PLC0415

        found = {name: getattr(callbacks, name) for name in callbacks.__all__}
        return {name: one for name, one in found.items() if inspect.isclass(one)}
    if kind != "optimizer":
        return {}
    from ftrain import optim  # noqa: PLC0415  # imports torch: an error about a key would wait a second

    found = {name: getattr(optim, name) for name in optim.__all__ if "scale_by_" not in name}
    functions = {name: one for name, one in found.items() if inspect.isfunction(one)}
    return {name: one for name, one in functions.items() if _first(one) == "learning_rate"}


def _first(function: Any) -> str:
    return next(iter(inspect.signature(function).parameters), "")


def is_file(module: str) -> bool:
    """Return True if the part of `MODULE:NAME` before the colon names a Python file, not a module."""
    return module.endswith(".py")


def load_module(module: str, base: pathlib.Path, key: str, place: str) -> ModuleType:
    """Import a module or file; if that fails, raise `ConfigError` with the line that raised."""
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
            hint = "Write a file with its suffix: model.py:NAME."
            raise ConfigError.at(key, place, f"module not found: {module!r}. {hint}") from None
        raise ConfigError.at(key, place, _broken(module, error)) from error
    except BaseException as error:  # the file may run any code, even exit
        raise ConfigError.at(key, place, _broken(module, error)) from error


def _from_file(path: pathlib.Path, written: str, key: str, place: str) -> ModuleType:
    path = pathlib.Path(os.path.abspath(path))
    if not path.is_file():
        raise ConfigError.at(
            key,
            place,
            f"file not found: {path} (written as {written}). A relative path is searched beside the "
            "configuration, or in the current directory if it is given on the command line. "
            "Correct the path.",
        )
    _visible(path.parent)
    spec = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
    if spec is not None and spec.origin == str(path):
        return importlib.import_module(
            path.stem
        )  # under its own name, by which worker processes find it too
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError.at(key, place, f"expected a Python file, got {path}. Write file.py:NAME.")
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    try:
        spec.loader.exec_module(found)
    except BaseException:
        del sys.modules[name]
        raise
    return found


def _visible(folder: pathlib.Path) -> None:
    """Append a directory to `sys.path`, so that the files in it can import each other."""
    path = os.path.abspath(folder)
    if path not in sys.path:
        sys.path.append(path)  # last, so that a file called json.py does not shadow Python's


def _broken(module: str, error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return (
            f"{module} exits when it is imported. Put the code that it runs under "
            '`if __name__ == "__main__":`.'
        )
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}"
        return f"{module} is not valid Python: {where}: {error.msg}. Correct the line."
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
            raise ConfigError.at(key, place, f"{module} does not define {attribute!r}. {advice}")
        holder = getattr(holder, part)
    if not callable(holder):
        raise ConfigError.at(
            key,
            place,
            f"expected a function or class, got {holder!r:.40}. Write the name of one.",
        )
    return holder
