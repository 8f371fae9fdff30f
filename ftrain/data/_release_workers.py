"""Release of the workers of a `DataLoader` after an exception, without the garbage collector."""

from __future__ import annotations

import traceback

__all__ = ["release_workers"]


def release_workers(error: BaseException) -> None:
    """End the workers of a `DataLoader` by clearing the frames of an exception that refer to them.

    One frame of torch refers to the exception and so to itself, another to the iterator, which refers to
    the workers. If the garbage collector frees them, their queues close first, and each worker takes 5 s
    to end. The frames of a stream refer to the iterator as long as somebody keeps the exception. Frames
    of the user's code are kept for debuggers.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("torch.") or module == "ftrain.data.stream":
            try:
                frame.clear()
            except RuntimeError:  # the frame that handles the exception
                continue
