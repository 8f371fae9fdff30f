"""Compilation ahead of the first call: `step.lower(state, batch).compile()`, as in JAX."""

from __future__ import annotations

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

    def __init__(self, name: str, run: Callable[[tuple[Any, ...], dict[str, Any]], R]) -> None:
        self._name = name
        self._run = run

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the program.

        Raises:
            TypeError: the arguments differ from those that it was compiled for in structure, shape,
                dtype, device, strides, or in a value that is not a tensor.
        """
        return self._run(args, kwargs)

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
