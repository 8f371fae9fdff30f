"""Conversion of callback states to JSON and back; tuples, sets and integer keys keep their types.

JSON has neither tuples nor sets, and its keys are strings. Tuples, sets and integer keys are therefore
marked (`{"__tuple__": [1, 2]}`), and unsupported types are refused, because a resumed run must not
continue with values of other types. The order of a dict's keys is not kept: they are sorted, so that
equal states have equal bytes.
"""

from __future__ import annotations

from typing import Any

__all__ = ["state_from_json", "state_to_json"]

_PLAIN = (type(None), bool, int, float, str)
_SEQUENCES: dict[type, str] = {tuple: "__tuple__", set: "__set__", frozenset: "__frozenset__"}
_BUILT: dict[str, type] = {mark: kind for kind, mark in _SEQUENCES.items()}
_PAIRS = "__dict__"
_DEEPEST = 30  # a checkpoint's JSON may be nested 100 levels deep, and a mark takes two


def state_to_json(value: Any, where: str, depth: int = 0) -> Any:
    """Encode a callback state as JSON; `state_from_json` restores it with the same types.

    Args:
        value: None, a bool, int, float or str, or lists, tuples, sets and dicts of these.
        where: the name of the value in messages.
        depth: the current depth of nesting.

    Raises:
        TypeError: a value inside has another type; the message gives its path.

    Example:
        >>> state_to_json({"best": (1, 0.5)}, "state")
        {'best': {'__tuple__': [1, 0.5]}}
        >>> state_to_json({"seen": range(3)}, "state")
        Traceback (most recent call last):
        TypeError: state['seen']: expected None, bool, int, float, str, or a list, ... got a range. ...
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if depth == _DEEPEST:
        raise TypeError(
            f"{where[:200]}...: expected at most {_DEEPEST} levels of nesting, got more. Flatten the "
            "state; it must not contain itself."
        )
    if kind is list:
        return [state_to_json(each, f"{where}[{i}]", depth + 1) for i, each in enumerate(value)]
    if kind in _SEQUENCES:
        entries = list(value) if kind is tuple else sorted(value, key=repr)
        return {
            _SEQUENCES[kind]: [
                state_to_json(each, f"{where}[{i}]", depth + 1) for i, each in enumerate(entries)
            ]
        }
    if kind is dict:
        entries = [
            (key, state_to_json(x, f"{where}[{key!r}]", depth + 1)) for key, x in value.items()
        ]
        if all(type(key) is str and not key.startswith("__") for key in value):
            return dict(entries)
        return {
            _PAIRS: [
                [state_to_json(key, f"a key of {where}", depth + 1), entry]
                for key, entry in sorted(entries, key=lambda each: repr(each[0]))
            ]
        }
    raise TypeError(
        f"{where}: expected None, bool, int, float, str, or a list, tuple, set or dict of these, got a "
        f"{kind.__name__}. {_remedy(value)}"
    )


def state_from_json(content: Any) -> Any:
    """Decode a callback state from the output of `state_to_json`."""
    if isinstance(content, list):
        return [state_from_json(each) for each in content]
    if not isinstance(content, dict):
        return content
    if len(content) == 1:
        ((mark, entries),) = content.items()
        if mark in _BUILT:
            return _BUILT[mark](map(state_from_json, entries))
        if mark == _PAIRS:
            return {state_from_json(key): state_from_json(entry) for key, entry in entries}
    return {name: state_from_json(entry) for name, entry in content.items()}


def _remedy(value: Any) -> str:
    if hasattr(value, "_asdict"):
        return "Store x._asdict() or tuple(x) instead."
    if hasattr(value, "tolist"):
        return (
            "Store x.tolist() instead. A tensor that belongs to the run goes into state.extras: request "
            "Replace(event.state.replace(extras=...))."
        )
    for kind in (bool, int, float, str, list, tuple, dict):
        if isinstance(value, kind):
            return f"Store {kind.__name__}(x) instead."
    return "Store the values from which it can be built again."
