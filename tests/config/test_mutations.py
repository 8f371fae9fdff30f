"""Test that any configuration is valid or raises one `ConfigError` with key and place."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from ftrain.config.errors import ConfigError
from ftrain.config.keys import keys
from ftrain.config.load import parse
from ftrain.config.resolve import resolve
from tests.campaign import examples
from tests.config.formats import FORMATS, configs, names, trees, values, write

HERE = pathlib.Path(__file__).parent
KNOWN = [key for key, _ in keys()]
PLAUSIBLE = [
    1,
    2,
    16,
    0.1,
    1.0,
    1e-8,
    True,
    False,
    None,
    "sgd",
    "lion",
    "cosine",
    "mse",
    "cpu",
    [],
    {},
]
WORDS = [
    *KNOWN,
    "name",
    "learning_rat",
    "lr",
    "warmup_steps",
    "epoch",
    "project.py:Net",
    "adamw",
    "sgd",
]


def check(text: str, form: str, overrides: list[str]) -> bool:
    """Return True if a text is valid; check that its error has a message, a location and a key."""
    path = HERE / f"config.{form}"
    try:
        resolve(parse(text, path, overrides))
    except ConfigError as error:
        found = error
    else:
        return True
    assert found.problems
    for problem in found.problems:
        assert problem.message
        assert str(path) in problem.place or "the command line" in problem.place, problem
        assert problem.key or any(said in problem.message for said in WHOLE), problem
    return False


#: Messages about a whole file or argument; all other messages are about a key.
WHOLE = (
    "invalid YAML", "invalid JSON", "invalid TOML", "an empty file", "expected keys",
    "expected a file name", "expected key=value", "expected a key with a name",
)  # fmt: skip


def paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [path, *(deeper for key, child in children for deeper in paths(child, (*path, key)))]


@st.composite
def mutated_trees(draw: st.DrawFn) -> dict[str, Any]:
    tree: Any = copy.deepcopy(draw(st.sampled_from(configs())))
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(paths(tree)[1:] or [()]))
        if not path:
            continue
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        what = draw(st.sampled_from(["replace", "replace", "delete", "add", "rename"]))
        if what == "replace":
            parent[path[-1]] = draw(st.sampled_from(PLAUSIBLE) | st.sampled_from(WORDS) | values)
        elif what == "delete":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            name = draw(names | st.sampled_from(WORDS))
            parent[name] = parent.pop(path[-1]) if what == "rename" else draw(values)
        else:
            parent.append(draw(values))
    return dict(tree)


@st.composite
def mutated_texts(draw: st.DrawFn, form: str) -> str:
    text = write(draw(st.sampled_from(configs())), form)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 6)))
        new = draw(st.text(max_size=4) | st.text("{}[]:,-\n\t\"'#&*!|>=. 0", max_size=4))
        text = text[:start] + new + text[end:]
    return text


def overrides() -> st.SearchStrategy[list[str]]:
    keyed = st.builds(
        "{}={}".format,
        st.sampled_from(
            [*WORDS, "callbacks.0", "callbacks.0.name", "model.width", "optimizer.x.y"]
        ),
        st.text("abc01.e-{}[]:, '\"&*!", max_size=8)
        | st.sampled_from(["3", "1e-3", "null", "sgd", "{}"]),
    )
    return st.lists(keyed | st.text("a.=0", max_size=6), max_size=2)


# A campaign runs 2,000 mutations: of trees, of texts, of the command line, and of arbitrary values.


@given(mutated_trees(), st.sampled_from(FORMATS))
@settings(max_examples=examples(200, 800), deadline=None)
def test_mutated_configuration_tree_is_valid_or_raises_config_error(
    tree: dict[str, Any], form: str
) -> None:
    event("valid" if check(write(tree, form), form, []) else "refused")


@pytest.mark.parametrize("form", FORMATS)
@given(data=st.data())
@settings(max_examples=examples(50, 200), deadline=None)
def test_mutated_configuration_text_is_valid_or_raises_config_error(
    form: str, data: st.DataObject
) -> None:
    event("valid" if check(data.draw(mutated_texts(form)), form, []) else "refused")


@given(st.sampled_from(configs()), overrides())
@settings(max_examples=examples(100, 400), deadline=None)
@example(configs()[0], ["model.=3"])
@example(configs()[0], ["callbacks.1.name=x"])
@example(configs()[0], ["seed.x=1"])
def test_mutated_overrides_are_valid_or_raise_config_error(
    config: dict[str, Any], given_keys: list[str]
) -> None:
    event("valid" if check(write(config, "yaml"), "yaml", given_keys) else "refused")


@example(tree={"": 1}, form="toml")
@given(trees | values, st.sampled_from(FORMATS))
@settings(max_examples=examples(50, 200), deadline=None)
def test_configuration_of_arbitrary_values_raises_config_error(tree: Any, form: str) -> None:
    text = write(tree, form) if isinstance(tree, dict) or form != "toml" else str(tree)
    assert not check(text, form, [])


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("yaml", "a: &x [*x]"),
        ("yaml", "a: &a [1,1]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: &d [*c,*c,*c,*c]"),
        ("yaml", "? [a]\n: 3"),
        ("yaml", "a: 1\n--- \nb: 2"),
        ("yaml", "<<: {epochs: 3}"),
        ("yaml", "a: " + "[" * 3000),
        ("yaml", "epochs: " + "9" * 5000),
        ("yaml", "\x00"),
        ("yaml", "epochs: !!python/object/apply:os.system [ls]"),
        ("json", "[" * 100_000),
        ("json", '{"a": NaN}'),
        ("json", '{"a": 1' + "0" * 5000 + "}"),
        ("toml", "a = " + "[" * 3000),
        ("toml", "a = 1979-05-27\nb = 07:32:00"),
        ("toml", "epochs = 1" + "0" * 5000),
    ],
)
def test_hostile_configuration_text_raises_config_error(form: str, text: str) -> None:
    assert not check(text, form, [])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("config", configs())
def test_configurations_of_this_file_are_valid_before_mutation(
    form: str, config: dict[str, Any]
) -> None:
    assert check(write(config, form), form, [])
