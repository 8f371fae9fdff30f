"""Torch's own databases of modules, operators and optimizers as inputs.

`torch.testing._internal` is torch's test suite. Importing it loads a Hypothesis profile and forbids
assignments to flags such as `torch.backends.mkldnn.enabled`, in the process and so for other tests:
neither is left in place.
"""

from unittest import mock

from hypothesis import settings

_profile = settings.get_current_profile_name()
with mock.patch("torch.backends.disable_global_flags"):
    import torch.testing._internal.common_utils  # noqa: F401
settings.load_profile(_profile)
