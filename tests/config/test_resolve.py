"""Test names and import paths, arguments checked against signatures, and dumping."""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrain.config import ConfigError, load, register
from ftrain.config.dump import dump, relocated, to_yaml
from ftrain.config.load import parse
from ftrain.config.registry import names
from ftrain.config.resolve import resolve
from tests.config.formats import configs, scalars, trees, write

HERE = pathlib.Path(__file__).parent
GOOD: dict[str, Any] = {"model": "project.py:Net", "data": "project.py:data", "epochs": 3}


def said(*overrides: str, **changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        resolve(parse(write({**GOOD, **changes}, "yaml"), HERE / "run.yaml", overrides))
    return str(error.value)


def resolved(**changes: Any) -> Any:
    return resolve(parse(write({**GOOD, **changes}, "yaml"), HERE / "run.yaml"))


def test_component_is_resolved_by_name_or_import_path() -> None:
    found = resolved(loss="tests.config.project:loss_fn", optimizer="sgd", schedule="cosine")
    assert found.model.function.__name__ == "Net"
    assert found.loss.function.__name__ == "loss_fn"
    assert found.optimizer.function.__name__ == "sgd"
    assert found.schedule.function.__name__ == "cosine"


def test_user_file_named_by_two_components_is_imported_once() -> None:
    found = resolved(loss="project.py:loss_fn")
    assert (
        sys.modules[found.loss.function.__module__] is sys.modules[found.model.function.__module__]
    )


def test_user_file_does_not_shadow_a_standard_module_of_its_name(tmp_path: pathlib.Path) -> None:
    shutil.copy(HERE / "project.py", tmp_path / "json.py")
    (tmp_path / "run.yaml").write_text(
        write({**GOOD, "model": "json.py:Net", "data": "json.py:data"}, "yaml")
    )
    text = (tmp_path / "json.py").read_text().replace("test-net", "test-net-2")
    (tmp_path / "json.py").write_text(text)
    assert resolve(load(tmp_path / "run.yaml")).model.function.__name__ == "Net"
    assert hasattr(sys.modules["json"], "dumps")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"model": "mpl"},
            "run.yaml:1: model.name: unknown model 'mpl'. Did you mean mlp?",
        ),
        ({"optimizer": "adamm"}, "unknown optimizer 'adamm'. Did you mean adam?"),
        ({"optimizer": "chain"}, "unknown optimizer 'chain'"),
        ({"schedule": "join"}, "unknown schedule 'join'"),
        ({"model": "project.py"}, "Write a name in the file: project.py:NAME"),
        ({"model": "project.py:Nett"}, "project.py does not define 'Nett'. Did you mean Net?"),
        (
            {"model": "nowhere.py:Net"},
            f"file not found: {HERE / 'nowhere.py'} (written as nowhere.py)",
        ),
        (
            {"model": "nowhere:Net"},
            "module not found: 'nowhere'. Write a file with its suffix",
        ),
        ({"model": "tests.nowhere:Net"}, "module not found: 'tests.nowhere'"),
        (
            {"model": "project.py:not_callable"},
            "model.name: expected a function or class, got 3",
        ),
        (
            {"model": {"name": "project.py:Net", "widht": 3}},
            "model.widht: unknown argument of project.py:Net. Did you mean width?",
        ),
        (
            {"model": {"name": "project.py:Net", "width": "3"}},
            "model.width: expected a valid integer, got '3'",
        ),
        ({"model": {"name": "project.py:Net", "kind": "c"}}, "expected 'a' or 'b', got 'c'"),
        ({"model": "mlp"}, "model.inputs: missing required argument of mlp. Add this key"),
        ({"optimizer": {"name": "sgd", "params": 3}}, "optimizer.params: unknown argument of sgd"),
        (
            {"loss": {"name": "project.py:loss_fn", "batch": 3}},
            "the run passes batch to project.py:loss_fn. Remove batch",
        ),
        (
            {"schedule": {"name": "warmup_cosine", "peak": 3}},
            "the run passes peak to warmup_cosine",
        ),
        (
            {"schedule": "warmup_cosine"},
            "schedule.warmup_steps: missing required argument of warmup_cosine",
        ),
        ({"imports": ["nowhere"]}, "imports.0: module not found: 'nowhere'"),
    ],
)
def test_invalid_component_raises_with_key_and_remedy(
    changes: dict[str, Any], expected: str
) -> None:
    assert expected in said(**changes)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("def f(:", "broken.py is not valid Python: {file}:1: invalid syntax"),
        ("x = 3\nraise ValueError('no')", "importing broken.py raised ValueError: no ({file}:2)"),
        (
            "import nowhere_else",
            "raised ModuleNotFoundError: No module named 'nowhere_else' ({file}:1)",
        ),
        ("import sys\nsys.exit(3)", 'Put the code that it runs under `if __name__ == "__main__":`'),
    ],
)
def test_user_file_that_cannot_be_imported_raises_with_the_line(
    tmp_path: pathlib.Path, content: str, expected: str
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(content)
    (tmp_path / "run.yaml").write_text(write({**GOOD, "model": "broken.py:Net"}, "yaml"))
    with pytest.raises(ConfigError) as error:
        resolve(load(tmp_path / "run.yaml"))
    sys.modules.pop("broken", None)
    assert expected.format(file=file) in str(error.value)


def test_component_arguments_are_converted_to_the_annotated_types() -> None:
    found = resolved(
        model={"name": "project.py:Net", "shape": [1, 2]},
        data={"name": "project.py:data", "path": "x"},
    )
    assert found.model.arguments["shape"] == (1, 2)
    assert found.data.arguments["path"] == HERE / "x"
    assert resolved(model={"name": "project.py:any_of", "x": [1, "a"]}).model.arguments == {
        "x": [1, "a"]
    }


def test_learning_rate_defaults_to_that_of_the_optimizer() -> None:
    assert resolved(optimizer="prodigy").config.optimizer.learning_rate == 1.0
    assert resolved(optimizer="adamw").config.optimizer.learning_rate == 1e-3
    assert (
        resolved(optimizer={"name": "adamw", "learning_rate": 3}).config.optimizer.learning_rate
        == 3
    )


def test_register_adds_a_name_and_refuses_a_taken_one() -> None:
    @register("loss", "test-loss")
    def loss_fn(model: object, batch: object) -> object:
        return model

    assert "test-loss" in names("loss")
    with pytest.raises(ValueError, match="expected an unused loss name, got 'mse'"):
        register("loss", "mse")(loss_fn)
    with pytest.raises(ValueError, match="got 'modle'. Did you mean model"):
        register("modle", "x")  # type: ignore[arg-type]


# Dumping of a resolved configuration.


@given(trees)
def test_dumped_configuration_is_read_back_equal(tree: dict[str, Any]) -> None:
    text = to_yaml(tree)
    config = {"name": "x", **{f"_{key}": value for key, value in tree.items()}}
    component = parse(to_yaml({**GOOD, "model": config}), HERE / "run.yaml").model
    assert component.arguments == {f"_{key}": value for key, value in tree.items()}
    assert text == to_yaml(tree)


@given(scalars | st.floats(allow_nan=False) | st.text(max_size=12))
def test_dumped_value_is_read_back_with_its_type(value: Any) -> None:
    found = parse(
        to_yaml({**GOOD, "model": {"name": "x", "a": value}}), HERE / "run.yaml"
    ).model.arguments["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("config", configs())
def test_dumping_a_loaded_dump_returns_the_same_text_in_any_directory(
    config: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    found = resolve(parse(write(config, "yaml"), HERE / "run.yaml"))
    folder = tmp_path / "deeper" / "run"
    folder.mkdir(parents=True)
    text = dump(relocated(found, folder))
    (folder / "config.yaml").write_text(text)
    again = resolve(load(folder / "config.yaml"))
    assert dump(relocated(again, folder)) == text
    assert again.model.function is found.model.function
    assert again.data.arguments == found.data.arguments


def test_relocated_relative_paths_refer_to_the_same_files(tmp_path: pathlib.Path) -> None:
    found = resolved(data={"name": "project.py:data", "path": "project.py"}, imports=["project.py"])
    moved = relocated(found, tmp_path)
    there = os.path.relpath(HERE / "project.py", tmp_path)
    assert moved.model.name == f"{there}:Net"
    assert moved.data.arguments["path"] == there
    assert moved.imports == (there,)
    assert os.path.samefile(tmp_path / there, HERE / "project.py")
