"""Shorten the time to wait for workers that raised."""

from __future__ import annotations

import pytest
from torch.utils.data import _utils


@pytest.fixture(autouse=True, scope="package")
def _short_farewell():
    """Torch (2.13) gives one that raised five seconds to go by itself, which it does not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.3)
        yield
