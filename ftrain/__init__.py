"""ftrain: a functional, stateless training core for PyTorch.

Training is three pure functions over one immutable state:

    init_state(seed) -> state
    train_step(state, batch) -> (state, metrics)
    eval_step(state, batch) -> metrics

Start at `make_steps`; the pieces under it are in `ftrain.core`, the optimizers in `ftrain.optim`.
"""

from typing import TYPE_CHECKING, Any

__version__: str

if TYPE_CHECKING:
    from ftrain._public import *  # noqa: F403
    from ftrain._public import __all__ as __all__
else:

    def __getattr__(name: str) -> Any:
        """Import every public name on first access: `ftrain --help` does not wait for torch."""
        if name == "__version__":
            import importlib.metadata  # noqa: PLC0415  # 0.02 s

            return importlib.metadata.version("ftrain")
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import ftrain._public as public  # noqa: PLC0415  # it imports torch: a second

        globals().update({each: getattr(public, each) for each in public.__all__})
        globals()["__all__"] = public.__all__
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
