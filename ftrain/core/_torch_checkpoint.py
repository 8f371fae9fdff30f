"""Private torch APIs: recomputation of checkpointed regions in the contexts of their forward pass.

`torch.utils.checkpoint.checkpoint` runs a region under saved-tensor hooks, and stores the function with
which a backward pass recomputes the region in a `_CheckpointFrame`. Inside of `around_regions`:

- The function that recomputes a region runs in the contexts that were active when the region started.
- Under `torch.vmap` and torch.func transforms, which do not allow saved-tensor hooks, and inside of
  `torch.autograd.forward_ad.dual_level`, whose tangents a recomputation would lack, a region runs
  without checkpointing: the values are the same, but no memory is saved.
- `use_reentrant=True`, which needs `.backward()`, runs as `use_reentrant=False`, with the same gradients
  to the bit.

Like `_torch.py`, this file names the versions that have each API, and the behaviour without it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch.utils import checkpoint as torch_checkpoint

from ftrain.core import _torch
from ftrain.core._recomputation import start_recomputation
from ftrain.core._torch_levels import place

__all__ = [
    "Again", "around_regions", "contexts_now", "is_foreign_thread", "without_saved_tensor_hooks",
]  # fmt: skip

#: Function that is called when a region starts, and returns a function that makes the context for its
#: recomputation.
Again = Callable[[], Callable[[], AbstractContextManager[Any]]]


def is_foreign_thread() -> bool:
    """Return True in a thread that Python did not start, as those of autograd for devices."""
    return isinstance(threading.current_thread(), threading._DummyThread)


class _Active(threading.local):
    """Active `around_regions` contexts of this thread, and its recomputation in progress.

    Attributes:
        again: the functions that `around_regions` has been called with.
        around: the transforms around the recomputation in progress, inside of which the forward pass of
            its region need not have run.
    """

    def __init__(self) -> None:
        self.again: list[Again] = []
        self.around = (0, False)


_active = _Active()


class around_regions:
    """Context manager that lets checkpointed regions be recomputed in the context of their first run.

    `again()` is called when a region starts; it returns a function that makes such a context. Contexts
    of nested calls are entered in the order of the calls, from the outermost.
    """

    def __init__(self, again: Again) -> None:
        self._again = again

    def __enter__(self) -> None:
        _install()
        _active.again.append(self._again)

    def __exit__(self, *_: object) -> None:
        _active.again.pop()


def contexts_now() -> Callable[[], AbstractContextManager[None]]:
    """Record the contexts around a checkpointed region; return a function that makes them again.

    Call this at the start of the region, and recompute the region in a context that the function makes.
    """
    contexts = [again() for again in _active.again]
    return lambda: _entered(contexts)


@contextlib.contextmanager
def _entered(contexts: list[Callable[[], AbstractContextManager[Any]]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context())
        yield


class _Recompute:
    """Function that recomputes a checkpointed region in the contexts of the region's forward pass."""

    def __init__(
        self,
        function: Callable[..., Any],
        contexts: list[Callable[[], AbstractContextManager[Any]]],
    ) -> None:
        self._function = function
        self._contexts = contexts

    def __call__(self, *inputs: Any) -> Any:
        if any(isinstance(x, FakeTensor) for x in inputs):
            # A tensor that occurs twice is copied once, because `nn.MultiheadAttention` tests if query
            # and key are the same object.
            tensors = {id(x): x for x in inputs if isinstance(x, torch.Tensor)}
            started = {place: start_recomputation(x, []) for place, x in tensors.items()}
            inputs = tuple(started.get(id(x), x) for x in inputs)
        outer, _active.around = _active.around, _transforms()
        try:
            with _entered(self._contexts):
                return self._function(*inputs)
        finally:
            _active.around = outer


@functools.cache
def _install() -> None:
    """Patch torch's checkpointing classes once; outside of `around_regions` they behave as before.

    (`_checkpoint_hook(frame)` with `frame.recompute_fn`: 2.1 and later. Without it, torch's own errors
    are raised, and a draw in a recomputation raises.)
    """
    hook: Any = getattr(torch_checkpoint, "_checkpoint_hook", None)
    reentrant: Any = torch_checkpoint.CheckpointFunction
    if hook is None:
        return
    init, enter, leave, apply = hook.__init__, hook.__enter__, hook.__exit__, reentrant.apply

    def remember_frame(self: Any, frame: Any) -> None:
        init(self, frame)
        self.frame = frame

    def enter_if_allowed(self: Any) -> Any:
        self.is_plain = _is_plain()
        if self.is_plain:
            return None
        if _active.again:
            contexts = [again() for again in _active.again]
            self.frame.recompute_fn = _Recompute(self.frame.recompute_fn, contexts)
        return enter(self)

    def leave_if_entered(self: Any, *error: Any) -> Any:
        return None if self.is_plain else leave(self, *error)

    def apply_without_reentry(function: Any, preserve_rng_state: bool, *inputs: Any) -> Any:
        if not _active.again:
            return apply(function, preserve_rng_state, *inputs)
        return torch_checkpoint.checkpoint(
            function, *inputs, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )

    hook.__init__, hook.__enter__, hook.__exit__ = (
        remember_frame,
        enter_if_allowed,
        leave_if_entered,
    )
    reentrant.apply = staticmethod(apply_without_reentry)
    _install_before_2_13()


def _is_plain() -> bool:
    """Return True if a region that starts now must run without checkpointing."""
    # `torch.vmap` allows hooks, but a backward pass after the end of the vmap could not recompute its
    # rows.
    (depth, dual), (depth_around, dual_around) = _transforms(), _active.around
    in_transform = depth > depth_around or dual > dual_around
    refusal = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()
    return bool(_active.again) and (in_transform or refusal is not None)


def _transforms() -> tuple[int, bool]:
    """Return the number of running transforms of torch.func, and True if forward mode is on."""
    return place()[0], _torch.is_forward_mode()


@contextlib.contextmanager
def without_saved_tensor_hooks() -> Iterator[None]:
    """Disable the saved-tensor hooks of a checkpointed region inside the context.

    The body of a loop or branch is traced on its own. If a region recomputed what the body has saved, it
    would do so in the trace of another body, whose tensors do not exist outside of it.
    (`_top_saved_tensors_default_hooks`: torch 2.5 and later; without it, hooks stay.)
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)
    if top(True) is None:
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(_same, _same):
        yield


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _install_before_2_13() -> None:
    """Patch torch 2.11 so that checkpointed regions can start under the transforms of torch.func.

    Before it enters the hook, `_checkpoint_without_reentrant_generator` creates a tensor that requires
    gradients (with `_NoopSaveInputs`), which the transforms refuse.
    """
    if not hasattr(torch_checkpoint, "_NoopSaveInputs"):
        return
    module: Any = torch_checkpoint
    generator = module._checkpoint_without_reentrant_generator

    def generator_or_plain(
        function: Any, preserve_rng_state: bool, context_fn: Any, *rest: Any, **kwargs: Any
    ) -> Iterator[None]:
        if not _is_plain():
            yield from generator(function, preserve_rng_state, context_fn, *rest, **kwargs)
            return
        forward_context, _ = context_fn()
        with forward_context:
            yield

    module._checkpoint_without_reentrant_generator = generator_or_plain
