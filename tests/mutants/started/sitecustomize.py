"""Put a mutant into a process that starts with this folder on its import path.

Python imports `sitecustomize` at its start. `trial.passed_on` puts the folder into the environment, so
that tests in fresh processes judge a mutant too.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from typing import Any

VARIABLE = "FTRAIN_MUTANT"  # a file with the name of the module, its path and its source


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Importer that gives one module another source."""

    def __init__(self, module: str, path: str, source: str) -> None:
        self._module, self._path, self._source = module, path, source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._module:
            return None
        where = self._path
        folder = [os.path.dirname(where)] if where.endswith("__init__.py") else None
        return importlib.util.spec_from_file_location(
            name, where, loader=self, submodule_search_locations=folder
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(compile(self._source, self._path, "exec"), module.__dict__)


if VARIABLE in os.environ:
    with open(os.environ[VARIABLE], encoding="utf-8") as file:
        sys.meta_path.insert(0, Finder(*json.load(file)))
