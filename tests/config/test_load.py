"""Test loading configurations: defaults < file < command line, formats and messages."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrain.config import Config, ConfigError, load
from ftrain.config._json import parse_json
from ftrain.config._toml import parse_toml
from ftrain.config._yaml import parse_yaml, scalar
from ftrain.config.load import parse
from tests.config.formats import FORMATS, trees, write

PARSERS = {"yaml": parse_yaml, "json": parse_json, "toml": parse_toml}
MINIMAL = {"model": "mlp", "data": "digits", "epochs": 3}


def said(text: str, *overrides: str, form: str = "yaml") -> str:
    with pytest.raises(ConfigError) as error:
        parse(text, pathlib.Path(f"run.{form}"), overrides)
    return str(error.value)


def without_none(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: without_none(value) for key, value in tree.items() if value is not None}
    return [without_none(v) for v in tree if v is not None] if isinstance(tree, list) else tree


@pytest.mark.parametrize("form", FORMATS)
@given(tree=trees)
def test_each_configuration_format_reads_back_the_written_values(form: str, tree: Any) -> None:
    found, _ = PARSERS[form](write(tree, form), "a")
    assert (found or {}) == (without_none(tree) if form == "toml" else tree)


@pytest.mark.parametrize("form", ["yaml", "json"])  # tomllib keeps no lines
@given(tree=trees)
def test_yaml_and_json_parsers_return_the_line_of_each_key(form: str, tree: Any) -> None:
    text = write(tree, form)
    found, places = PARSERS[form](text, "a")
    lines = text.splitlines()

    def check(value: Any, path: tuple[Any, ...]) -> None:
        for key, child in value.items():
            here = (*path, key)
            line = lines[places.lines[here] - 1]
            spelled = {key, key.encode("unicode_escape").decode().replace("\\x", "\\u00")}
            assert any(one in line for one in spelled), (here, line)
            if isinstance(child, dict):
                check(child, here)

    check(found or {}, ())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("3E+4", 3e4),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -float("inf")),
        ("0x1F", 31),
        ("010", 10),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("~", None),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2026-11-21", "2026-11-21"),
        ("e5", "e5"),
        ("-", "-"),
        ("+3", 3),
    ],
)
def test_unquoted_scalars_are_read_by_the_rules_of_yaml_1_2(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_yaml_reads_every_float_that_python_prints(number: float) -> None:
    assert scalar(repr(number)) == number
    assert isinstance(scalar(repr(number)), float)


@pytest.mark.parametrize("form", FORMATS)
def test_command_line_overrides_file_and_file_overrides_defaults(
    form: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / f"run.{form}"
    path.write_text(write({**MINIMAL, "seed": 5, "batch_size": 16}, form))
    config = load(path, ["seed=6", "optimizer.name=sgd", "optimizer.momentum=0.9"])
    assert (config.seed, config.batch_size, config.log_every) == (
        6,
        16,
        Config.model_fields["log_every"].default,
    )
    assert config.optimizer.arguments == {"momentum": 0.9}
    assert config.places.of(("seed",)) == "the command line (seed=6)"
    assert config.places.of(("batch_size",)).startswith(str(path))


def test_later_override_of_a_key_wins_and_an_index_may_extend_a_list() -> None:
    config = load(
        MINIMAL, ["seed=1", "seed=2", "callbacks.0=a", "callbacks.1.name=b", "callbacks.1.every=3"]
    )
    assert config.seed == 2
    assert [one.name for one in config.callbacks] == ["a", "b"]
    assert config.callbacks[1].arguments == {"every": 3}


def test_override_adds_an_argument_to_a_component_given_by_name() -> None:
    config = load(MINIMAL, ["model.width=3"])
    assert (config.model.name, config.model.arguments) == ("mlp", {"width": 3})
    replaced = load({**MINIMAL, "optimizer": {"name": "sgd", "momentum": 0.9}}, ["optimizer=adamw"])
    assert replaced.optimizer.arguments == {}


def test_configuration_is_frozen() -> None:
    config = load(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


GOOD = "model: mlp\ndata: digits\nepochs: 3\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "epoch: 3", "run.yaml:4: epoch: unknown key. Did you mean epochs?"),
        (
            GOOD + "lr: 3",
            "run.yaml:4: lr: unknown key. Write optimizer.learning_rate instead",
        ),
        (GOOD + "learning_rat: 3", "Did you mean optimizer.learning_rate?"),
        (GOOD + "keep_last: 3", "Did you mean checkpoint.keep_last?"),
        (GOOD + "gradient_clip_val: 3", "Write max_grad_norm instead"),
        (
            GOOD + "checkpoint.every: 3",
            "Write the key as a section: `checkpoint:`, and below it `every:`",
        ),
        (
            GOOD + "checkpoint: {evry: 3}",
            "run.yaml:4: checkpoint.evry: unknown key. Did you mean checkpoint.every?",
        ),
        (GOOD + "zzz: 3", "Choose one of model, data, loss"),
        (
            GOOD + "seed: 1\nseed: 2",
            "run.yaml:5: seed: expected one value for this key, got two, the first on line 4",
        ),
        (GOOD + "seed: one", "run.yaml:4: seed: expected a whole number, got 'one'"),
        (GOOD + "seed: 1.0", "seed: expected a whole number, got 1.0"),
        (GOOD + "seed: true", "seed: expected a whole number, got true"),
        (GOOD + "seed: -1", "seed: expected at least 0, got -1"),
        (GOOD + "compile: yes", "compile: expected true or false, got 'yes'"),
        (GOOD + "max_grad_norm: 0", "expected greater than 0, got 0"),
        (GOOD + "max_grad_norm: .nan", "expected a finite number, got nan"),
        (
            GOOD + "precision: bf16",
            "expected 32-true, bf16-mixed, 16-mixed or bf16-true, got 'bf16'",
        ),
        (GOOD + "early_stopping: true", "expected a mapping such as {patience: 3}, got true"),
        (
            GOOD + "early_stopping: {}",
            "early_stopping.patience: missing key. Write the number of evaluations",
        ),
        (
            GOOD + "batch_size: 10\naccumulate: 3",
            "run.yaml:5: accumulate: expected a divisor of batch_size 10, got 3",
        ),
        (GOOD + "callbacks: progress", "callbacks: expected a list, got 'progress'"),
        (GOOD + "callbacks: [{every: 3}]", "callbacks.0.name: missing key. Write"),
        (
            GOOD + "schedule: 3",
            "schedule: expected a name, or a mapping with a name and arguments, got 3",
        ),
        ("data: digits\nepochs: 3", "run.yaml: model: missing key. Write a registered name"),
        ("model: mlp\ndata: digits", "run.yaml: epochs: expected epochs or max_steps, got neither"),
        ("model: mlp\n\tdata: digits", "run.yaml:2:1: invalid YAML: "),
        ("", "run.yaml: expected a configuration, got an empty file. Write one with `ftrain init`"),
        ("- 3", "expected keys with values, such as `epochs: 10`, got a list"),
        ("model: [", "run.yaml:1:9: invalid YAML"),
    ],
)
def test_error_for_an_invalid_file_contains_line_key_and_remedy(text: str, expected: str) -> None:
    assert expected in said(text)


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("json", '{\n\t"model": "mlp",\n\t"epoch": 3}', "run.json:3: epoch: "),
        ("json", '{"model": "\\ud83d\\ude00", "epoch": 3}', "run.json:1: epoch: "),
        ("json", '{"model": "\x7f",\n "epoch": 3}', "run.json: epoch: "),  # YAML prints no DEL
        (
            "json",
            '{"seed": 1,\n "seed": 2}',
            "run.json: seed: expected one value for this key, got two",
        ),
        ("json", '{"model": }', "run.json:1:11: invalid JSON: "),
        ("toml", "epoch = 3", "run.toml: epoch: "),
        ("toml", "\nepochs = @", "run.toml:2:10: invalid TOML: "),
        ("json", '{"a": ' + 500 * "[" + 500 * "]" + ', "epoch": 3}', "in 60 levels"),
        (
            "toml",
            "[model]\nday = 1979-05-27",
            "run.toml: model.day: expected a text or number",
        ),
    ],
)
def test_error_in_json_or_toml_contains_the_line_or_key_from_the_parser(
    form: str, text: str, expected: str
) -> None:
    assert expected in said(text, form=form)


def test_config_error_lists_all_problems_at_once() -> None:
    lines = said("model: mlp\ndata: digits\nepoch: 3\nseed: x\nlr: 3").splitlines()
    assert [line.split(":")[1] for line in lines] == ["4", "3", "5"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "the command line (seed): expected key=value"),
        ("=3", "expected key=value"),
        ("seed=x", "the command line (seed=x): seed: expected a whole number, got 'x'"),
        (
            "epohs=3",
            "the command line (epohs=3): epohs: unknown key. Did you mean epochs?",
        ),
        ("seed.deeper=3", "seed.deeper: expected seed to be a section of keys, got 1"),
        (
            "callbacks.3=x",
            "callbacks.3: expected an index of the list callbacks, from 0 to 0, got 3",
        ),
        ("model=[", "model: invalid YAML"),
    ],
)
def test_error_for_an_invalid_override_contains_argument_key_and_remedy(
    override: str, expected: str
) -> None:
    assert expected in said(GOOD + "seed: 1\ncallbacks: []", override)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "file not found. Write one with `ftrain init`"),
        (lambda path: path.mkdir(), "expected a file, got a directory"),
        (
            lambda path: path.write_bytes(b"a: \xff"),
            "expected text in UTF-8, got an invalid byte at 3",
        ),
    ],
)
def test_unreadable_configuration_file_raises_with_the_reason(
    tmp_path: pathlib.Path, make: Any, expected: str
) -> None:
    path = tmp_path / "run.yaml"
    make(path)
    with pytest.raises(ConfigError, match=expected) as error:
        load(path)
    assert error.value.place == str(path)


def test_configuration_file_with_an_unknown_suffix_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run.ini").write_text("a=3")
    with pytest.raises(ConfigError, match=r"ends in \.yaml, \.yml, \.json, \.toml, got 'run\.ini'"):
        load(tmp_path / "run.ini")


def test_byte_order_mark_of_a_configuration_file_is_skipped(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load(tmp_path / "run.yaml").epochs == 3
