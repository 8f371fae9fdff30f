"""Tests on torch's own test databases of modules, operators and optimizers.

`torch.testing._internal` is torch's test suite. Importing it loads a Hypothesis profile, forbids
assignments to flags such as `torch.backends.mkldnn.enabled`, filters warnings and extends the import
path, in the process and so for other tests: nothing of this is left in place.
"""

import sys
import warnings
from unittest import mock

from hypothesis import settings

from tests.databases.process import state

_profile, _before = settings.get_current_profile_name(), state()
with (
    mock.patch("torch.backends.disable_global_flags"),
    mock.patch.object(sys, "path", list(sys.path)),
    warnings.catch_warnings(),
):
    import torch.testing._internal.common_methods_invocations
    import torch.testing._internal.common_modules
    import torch.testing._internal.common_optimizers  # noqa: F401
settings.load_profile(_profile)

#: What the import changed in the process, by name: the state before and after.
CHANGED = {
    name: (before, after)
    for (name, before), after in zip(_before.items(), state().values(), strict=True)
    if before != after
}
