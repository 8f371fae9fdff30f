"""Calls of configured components, whose errors name the configuration key and its source location."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

from ftrain.config._source_locations import join
from ftrain.config.errors import ConfigError
from ftrain.config.resolve import Target
from ftrain.config.schema import Config
from ftrain.core.errors import DataError

__all__ = ["made"]


def made(config: Config, target: Target, make: Callable[[], Any]) -> Any:
    """Call `make`, which builds a component; convert errors to `ConfigError`s at the component's key."""
    key, place = join(target.path), config.places.of(target.path)
    try:
        return make()
    except ConfigError:
        raise
    except (DataError, FileNotFoundError) as error:
        typed = [(*target.path, name) for name in target.files]
        place = next((config.places.of(at) for at in typed if config.places.typed(at)), place)
        says = str(error) if str(error).endswith((".", "?")) else f"{error}."
        raise ConfigError.at(
            key, place, " ".join([says, *_missing_paths(config, target)])
        ) from None
    except Exception as error:
        name, kind = target.component.name, type(error).__name__
        if ":" not in name:
            raise ConfigError.at(key, place, f"{name}: {error}") from None
        says = f"{name} raised {kind}: {error}{_line(error)}"
        raise ConfigError.at(key, place, says) from error


def _missing_paths(config: Config, target: Target) -> list[str]:
    """Return, for each argument whose file is missing, a sentence on where the file was searched."""
    written = target.component.model_dump()
    return [
        f"{name} {str(written[name])!r} was searched {config.searched((*target.path, name))}."
        for name in target.files
        if name in written and not os.path.exists(target.arguments[name])
    ]


def _line(error: Exception) -> str:
    """Return ` (file:line)` of the innermost frame in the user's code; `""` if there is none."""
    house = os.path.dirname(os.path.dirname(__file__))
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if not f.filename.startswith((house, "<")) and "-packages" not in f.filename
    ]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
