"""Shorten the wait for workers after an error."""

from __future__ import annotations

import pytest
from torch.utils.data import _utils


@pytest.fixture(autouse=True, scope="package")
def _short_farewell():
    """Shorten the 5 s that torch 2.13 waits for a failed worker to exit, which it does not do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.3)
        yield
