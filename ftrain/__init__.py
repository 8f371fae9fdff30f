"""ftrain: a functional, stateless training core for PyTorch.

Training is three pure functions over one immutable state:

    init_state(seed) -> state
    train_step(state, batch) -> (state, metrics)
    eval_step(state, batch) -> metrics

Start at `make_steps`; the pieces under it are in `ftrain.core`, the optimizers in `ftrain.optim`. The
packages (`bench`, `checkpoint`, `config`, `data`, `distributed`, `loop`, `optim`, `tasks`, `testing`,
`transforms`) are imported at first use.
"""

from typing import TYPE_CHECKING, Any

__version__: str

if TYPE_CHECKING:
    from ftrain import bench as bench
    from ftrain import checkpoint as checkpoint
    from ftrain import config as config
    from ftrain import data as data
    from ftrain import distributed as distributed
    from ftrain import loop as loop
    from ftrain import optim as optim
    from ftrain import tasks as tasks
    from ftrain import testing as testing
    from ftrain import transforms as transforms
    from ftrain._public import *  # noqa: F403
    from ftrain._public import __all__ as __all__
else:
    _PACKAGES = (
        "bench",
        "checkpoint",
        "config",
        "data",
        "distributed",
        "loop",
        "optim",
        "tasks",
        "testing",
        "transforms",
    )

    def __getattr__(name: str) -> Any:
        """Import a public name on first access, so that `ftrain --help` does not import torch."""
        if name in _PACKAGES:
            return _imported(f"{__name__}.{name}")
        if name == "__version__":
            from importlib.metadata import version  # noqa: PLC0415  # 0.02 s

            return version("ftrain")
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = _imported("ftrain._public")  # it imports torch: a second
        globals().update({each: getattr(public, each) for each in public.__all__})
        globals()["__all__"] = public.__all__
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def _imported(name: str) -> Any:
        """Import a module, in a new thread if a torch.func transform is active in this thread.

        Modules make tensors while they are imported, which a transform would wrap.
        """
        import importlib  # noqa: PLC0415
        import sys  # noqa: PLC0415

        torch = sys.modules.get("torch")
        if torch is None or torch._C._functorch.peek_interpreter_stack() is None:
            return importlib.import_module(name)
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

        with ThreadPoolExecutor(1) as threads:
            return threads.submit(importlib.import_module, name).result()

    def __dir__() -> list[str]:
        return sorted({*globals(), *_PACKAGES, *__getattr__("__all__")})
