"""Calls of configured components; errors name the component's key, its source location and the line
that raised."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

from ftrain.config._places import join
from ftrain.config.errors import ConfigError
from ftrain.config.resolve import Target
from ftrain.config.schema import Config
from ftrain.core.errors import DataError

__all__ = ["made"]


def made(config: Config, target: Target, make: Callable[[], Any]) -> Any:
    """Return `make()`; errors name the component, its source location and the line that raised."""
    key, place = join(target.path), config.places.of(target.path)
    try:
        return make()
    except ConfigError:
        raise
    except (DataError, FileNotFoundError) as error:
        sentences = [str(error), *_missing_paths(config, target)]
        raise ConfigError.at(key, place, ". ".join(sentences).replace("?. ", "? ")) from None
    except Exception as error:
        name, kind = target.component.name, type(error).__name__
        if ":" not in name:
            raise ConfigError.at(key, place, f"{name}: {error}") from None
        says = f"{name} raised {kind}: {error}{_line(error)}"
        raise ConfigError.at(key, place, says) from error


def _missing_paths(config: Config, target: Target) -> list[str]:
    """Return one sentence for each missing file, with the directory in which it was searched."""
    written = target.component.model_dump()
    return [
        f"{name} {str(written[name])!r} is searched {config.searched((*target.path, name))}"
        for name in target.files
        if name in written and not os.path.exists(target.arguments[name])
    ]


def _line(error: Exception) -> str:
    """Return ` (file:line)` of the last frame outside of ftrain and installed packages, if any."""
    house = os.path.dirname(os.path.dirname(__file__))
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if not f.filename.startswith((house, "<")) and "-packages" not in f.filename
    ]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
