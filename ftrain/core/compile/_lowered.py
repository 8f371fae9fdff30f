"""Programs compiled ahead of the first call, and their files.

Read next: `_saved.py` (the files).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from torch import fx

__all__ = ["Executable", "Lowered"]

P = ParamSpec("P")
R = TypeVar("R")


class Executable(Generic[P, R]):
    """Program compiled for arguments of fixed structure, shapes and dtypes; made by `Lowered.compile`.

    It raises for arguments for which a compiled function would compile again.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[tuple[Any, ...], dict[str, Any]], R],
        write: Callable[[pathlib.Path], None],
    ) -> None:
        self._name = name
        self._run = run
        self._write = write

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the program.

        Raises:
            TypeError: the arguments differ from those that it was compiled for in structure, shape,
                dtype, device, strides, or in a value that is not a tensor.
        """
        return self._run(args, kwargs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the program to a file, which `load_executable` reads in another process.

        The file holds machine code, the structure of arguments and results, and the captured tensors
        with their values at this time: a loaded program does not see later changes of them. It is
        replaced atomically. The program must have run once, and must have been compiled with
        `cpp_wrapper=True`.

        Raises:
            RuntimeError: the program has not run, has no C++ wrapper, or does not fit the captured
                tensors any more.
            TypeError: the arguments or results contain an object that cannot be pickled, or that does
                not equal its copy.
            OSError: the file cannot be written.
        """
        self._write(pathlib.Path(path))

    def __repr__(self) -> str:
        return f"<program of {self._name}>"


class Lowered(Generic[P, R]):
    """Function traced for arguments of fixed shapes and dtypes; made by `lower` of a compiled function.

    It refers to its arguments until it is compiled; if a state among them is donated before that, its
    tensors are copied.
    """

    def __init__(
        self, name: str, graph: fx.GraphModule, finish: Callable[[], Executable[P, R]]
    ) -> None:
        self._name = name
        self._graph = graph
        self._finish: Callable[[], Executable[P, R]] | None = finish
        self._executable: Executable[P, R] | None = None

    @property
    def graph(self) -> fx.GraphModule:
        """Graph of the traced operators, before the compiler changes them."""
        return self._graph

    def compile(self) -> Executable[P, R]:
        """Compile the graph and return the program; later calls return the same program.

        The compiled function that was lowered uses the program as well: its first call with such
        arguments compiles nothing.
        """
        if self._executable is None:
            assert self._finish is not None
            self._executable = self._finish()
            self._finish = None  # drops the references to the arguments
        return self._executable

    def __repr__(self) -> str:
        return f"<{self._name}, traced>"
