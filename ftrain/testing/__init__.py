"""Checks that training steps, ftrain's or your own, are pure, deterministic and resumable.

`strategies` and `machine` need Hypothesis (`pip install 'ftrain[testing]'`). All names are imported
when they are first accessed, because pytest imports this package for its plugin in every run.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftrain.testing import machine as machine
    from ftrain.testing import strategies as strategies
    from ftrain.testing._public import *  # noqa: F403
    from ftrain.testing._public import __all__ as __all__
else:
    import importlib

    def __getattr__(name: str) -> Any:
        """Import a public name on first access, so that the pytest plugin does not import torch."""
        if name in ("machine", "strategies"):
            return importlib.import_module(f"{__name__}.{name}")
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = importlib.import_module(f"{__name__}._public")
        globals().update({each: getattr(public, each) for each in public.__all__})
        globals()["__all__"] = public.__all__
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), "machine", "strategies", *__getattr__("__all__")})
