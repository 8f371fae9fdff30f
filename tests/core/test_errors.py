"""Test that the exceptions of ftrain keep their attributes when they are copied or pickled."""

from __future__ import annotations

import copy
import pickle

import pytest

from ftrain import data
from ftrain.core.errors import ArgumentError


@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_copied_or_pickled_argument_error_keeps_its_attributes(duplicate) -> None:
    found = duplicate(ArgumentError("rate", "expected a number above 0, got -1", "Write rate=0.1."))
    assert type(found) is ArgumentError
    assert str(found) == "rate: expected a number above 0, got -1. Write rate=0.1."
    assert (found.argument, found.problem) == ("rate", "expected a number above 0, got -1")
    assert (found.remedy, found.advice) == ("Write rate=0.1.", f"{found.problem}. Write rate=0.1.")


def test_loader_error_names_the_argument_that_leaves_no_full_batch() -> None:
    with pytest.raises(ArgumentError) as caught:
        data.Loader([1, 2, 3], 4)
    assert caught.value.argument == "batch_size"
    assert str(caught.value).startswith("batch_size: expected at most 3, the number of samples")
