"""Attributes whose items cannot be replaced are refused if they hold a parameter, however nested."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ftrain.core import _python_objects, _tensor_slots

P, OTHER = torch.zeros(2), torch.ones(2)
NAMES = {id(P): "weight"}


@pytest.mark.parametrize(
    "value", [[P], {"a": P}, [[P]], {"a": [P]}, (1, "x"), ([1],), (OTHER,), ([OTHER],), ({},), P]
)
def test_module_attribute_that_holds_parameters_in_replaceable_places_is_accepted(
    value: Any,
) -> None:
    _tensor_slots._refuse_fixed(value, NAMES, "held")


@pytest.mark.parametrize("value", [(P,), (OTHER, P), [(P,)], {"a": (P,)}, {P}, frozenset({P})])
def test_parameter_in_a_tuple_or_set_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"attribute 'held': .* got 'weight' in a (tuple|.*set),"):
        _tensor_slots._refuse_fixed(value, NAMES, "held")


@pytest.mark.parametrize(
    "value", [([P],), ({"a": P},), ((P,),), ([1, OTHER, {"a": (2, [P])}],), [([[P]],)]]
)
def test_parameter_in_a_container_within_a_tuple_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="attribute 'held': .* got them nested in a tuple,"):
        _tensor_slots._refuse_fixed(value, NAMES, "held")


class _Base:
    __slots__ = ("__both__", "__private", "seen")


class _Derived(_Base):
    __slots__ = ("__private",)


def test_slots_with_private_names_are_found_under_the_names_that_python_gives_them() -> None:
    found = set(_python_objects.slot_names(_Derived))
    assert found == {"_Base__private", "_Derived__private", "__both__", "seen"}
    derived = _Derived()
    for name in found:
        setattr(derived, name, name)
        assert getattr(derived, name) == name
