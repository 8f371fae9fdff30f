"""Test that files other than the training data are read with the preprocessing fitted to them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftrain import data
from ftrain.config import ConfigError, load
from ftrain.config._data_json import stored
from ftrain.config.build import build
from ftrain.core.errors import DataError
from ftrain.data import sources
from ftrain.testing import assert_same_bits
from tests.config.test_build import built, said, user_file

WORDS = ["ash", "beech", "Zelkova", "7up"]
# Rounded: float32 overflows for large values of a column with a tiny standard deviation.
CELLS = st.floats(-1e9, 1e9).map(lambda x: repr(round(x, 6)))

rows = st.lists(
    st.tuples(CELLS, st.sampled_from(WORDS), CELLS, st.sampled_from(["no", "yes", "maybe"])),
    min_size=6,
    max_size=20,
)


def write(path: pathlib.Path, names: list[str], cells: Any) -> pathlib.Path:
    path.write_text("\n".join(map(",".join, [names, *cells])) + "\n")
    return path


def as_json(fitted: Any) -> Any:
    return json.loads(json.dumps(fitted))


@given(
    rows=rows,
    target=st.sampled_from(["a", "b", "c", "d"]),
    standardize=st.booleans(),
    draw=st.randoms(use_true_random=False),
)
def test_fitted_preprocessing_gives_a_row_the_same_bits_in_any_file(
    rows: Any, target: str, standardize: bool, draw: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In the other file, rows and classes are missing, rows and columns reordered, columns added."""
    folder, names = tmp_path_factory.mktemp("csv"), ["a", "b", "c", "d"]
    whole = write(folder / "whole.csv", names, rows)
    options: dict[str, Any] = {"target": target, "standardize": standardize}
    first = sources.csv(whole, held_out=2, **options)
    fitted = as_json(first.fitted)
    again = sources.csv(whole, held_out=2, fitted=fitted, **options)
    assert_same_bits(first[:2], again[:2])
    assert first.facts == again.facts
    assert again.fitted == first.fitted

    train, held_out = data.split({"row": torch.arange(len(rows))}, 2)
    order = torch.cat([train["row"], held_out["row"]]).tolist()
    expected = {key: torch.cat([first.train[key], first.held_out[key]]) for key in first.train}
    kept = draw.sample(range(len(rows)), draw.randint(1, len(rows)))
    columns = draw.sample(range(4), 4)
    other = write(
        folder / "other.csv",
        ["new", *(names[c] for c in columns)],
        [["?", *(rows[r][c] for c in columns)] for r in kept],
    )
    found = sources.csv(other, held_out=other, fitted=fitted, **options)
    places = torch.tensor([order.index(r) for r in kept])
    assert_same_bits(found.held_out, {key: value[places] for key, value in expected.items()})
    apart = sources.csv(whole, held_out=other, fitted=fitted, **options)
    assert_same_bits(apart.held_out, found.held_out)


@given(rows=rows, draw=st.randoms(use_true_random=False))
def test_held_out_file_does_not_change_the_fitted_preprocessing(
    rows: Any, draw: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    train = write(folder / "train.csv", ["a", "b", "c", "d"], rows)
    some = [draw.choice(rows) for _ in range(3)]
    test = write(folder / "test.csv", ["a", "b", "c", "d"], [("1e12", *row[1:]) for row in some])
    alone, both = (sources.csv(train, target="d", held_out=one) for one in (train, test))
    assert alone.fitted == both.fitted
    assert_same_bits(alone.train, both.train)
    assert len(both.held_out["y"]) == 3
    shuffled = write(folder / "again.csv", ["a", "b", "c", "d"], draw.sample(rows, len(rows)))
    found = sources.csv(shuffled, target="d", held_out=shuffled).fitted
    both = sources.csv(train, target="d", held_out=test).fitted
    assert {**found, "sha256": ""} == {**both, "sha256": ""}


def test_standardize_scales_columns_and_target_by_the_training_rows(tmp_path: pathlib.Path) -> None:
    rows = [(f"{n}", "5.1", f"{1e5 * n + 3e5}") for n in range(11)]
    table = write(tmp_path / "t.csv", ["x", "same", "price"], rows)
    found = sources.csv(table, target="price", held_out=table)
    spread = 10**0.5  # the mean of squares from -5 to 5
    assert torch.allclose(found.train["x"][:, 0], (torch.arange(11.0) - 5) / spread)
    assert torch.equal(found.train["x"][:, 1], torch.zeros(11))
    assert torch.allclose(found.train["y"], (torch.arange(11.0) - 5) / spread)
    assert found.facts["target_mean"] == 8e5
    assert found.facts["target_scale"] == pytest.approx(1e5 * spread)
    assert found.train["x"].dtype == found.train["y"].dtype == torch.float32
    raw = sources.csv(table, target="price", held_out=table, standardize=False)
    assert raw.facts == {"features": 2, "columns": ["x", "same"]}
    assert raw.train["y"].tolist() == [1e5 * n + 3e5 for n in range(11)]


@given(
    words=st.lists(st.sampled_from(["ash", "elm", "Oak", "fig, ripe"]), min_size=3, max_size=12),
    standardize=st.booleans(),
)
def test_column_of_words_becomes_one_feature_for_each_word(
    words: list[str], standardize: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [(f"{n}", f'"{word}"', f"{-n}") for n, word in enumerate(words)]
    table = write(tmp_path_factory.mktemp("csv") / "t.csv", ["n", "tree", "y"], rows)
    found = sources.csv(table, target="y", held_out=table, standardize=standardize)
    there = sorted(set(words))
    assert found.facts["columns"] == ["n", *(f"tree={word}" for word in there)]
    assert found.facts["features"] == found.train["x"].shape[1] == 1 + len(there)
    assert found.train["x"][:, 1:].tolist() == [
        [float(word == one) for one in there] for word in words
    ]
    alone = sources.csv(table, "y", table, columns=["tree"], standardize=standardize)
    assert_same_bits(alone.train["x"], found.train["x"][:, 1:])
    labels = sources.csv(table, "n", table, True, ["tree"], standardize)
    for first, target in ((alone, "y"), (labels, "n")):  # nothing but words to standardize
        options = {"target": target, "standardize": standardize, "fitted": as_json(first.fitted)}
        assert_same_bits(sources.csv(table, held_out=table, **options)[:2], first[:2])


def test_column_of_more_than_100_words_is_refused(tmp_path: pathlib.Path) -> None:
    rows = [(f"name {n:03}", f"{n}", f"{n}") for n in range(101)]
    table = write(tmp_path / "t.csv", ["name", "a", "y"], rows)
    with pytest.raises(
        DataError,
        match=r"'name': .* 100 different words.*got 101.* `drop`",
    ):
        sources.csv(table, target="y", held_out=table)
    assert sources.csv(table, "y", table, columns=["a"]).facts["columns"] == ["a"]
    assert sources.csv(table, target="name", held_out=table).facts["classes"] == 101
    table = write(tmp_path / "t.csv", ["name", "a", "y"], rows[1:])
    assert sources.csv(table, target="y", held_out=table).facts["features"] == 101


def test_stored_preprocessing_that_encodes_words_as_numbers_is_refused(
    tmp_path: pathlib.Path,
) -> None:
    table = write(tmp_path / "t.csv", ["a", "y"], [("red", "1"), ("blue", "2")])
    former = {
        "columns": {"a": {"words": ["blue", "red"], "mean": 0.5, "scale": 0.5}},
        "target": {"name": "y", "mean": 1.5, "scale": 0.5},
    }
    with pytest.raises(
        ValueError, match="each word in column 'a', got .* an earlier version .* Begin a new run"
    ):
        sources.csv(table, target="y", held_out=table, fitted=former)


def test_standardization_keeps_float64_differences_of_large_values(tmp_path: pathlib.Path) -> None:
    """In float32, times in seconds since 1970 are equal within two minutes."""
    rows = [(f"{1_700_000_000 + n}", f"{n}") for n in range(5)]
    table = write(tmp_path / "t.csv", ["time", "y"], rows)
    found = sources.csv(table, target="y", held_out=table).train
    assert torch.equal(found["x"][:, 0], found["y"])


def test_target_with_large_values_is_learned_with_default_settings(tmp_path: pathlib.Path) -> None:
    draws = np.random.default_rng(0)
    x = draws.normal(size=400)
    y = 1e5 * x + 3e5 + 5e3 * draws.normal(size=400)
    write(
        tmp_path / "t.csv",
        ["x", "y"],
        [(f"{a:.4f}", f"{b:.1f}") for a, b in zip(x, y, strict=True)],
    )
    table = {"name": "csv", "path": "t.csv", "target": "y"}
    model = {"name": "mlp", "inputs": "${data.features}", "outputs": 1}
    parts = built(base=tmp_path, model=model, data=table, loss="mse", epochs=5)
    result = parts.trainer(compile=False).fit(
        parts.init_state(), parts.train, parts.held_out, epochs=5
    )
    assert result.eval is not None
    # The noise alone: 0.0025 of the variance, and a mean absolute error of 5e3 * 0.8. Seeds 0 to 3:
    # 0.0031 to 0.0036, and 4.5e3 to 4.8e3; of the target as it stands 1e11 and 3e5.
    assert result.eval.loss < 0.01
    assert 4e3 < result.eval.metrics["mae"] < 8e3
    plain = built(base=tmp_path, model=model, data=table, loss={"name": "mse", "target_scale": 1.0})
    assert plain.trainer(compile=False).evaluate(result.state, parts.held_out).metrics[
        "mae"
    ] * parts.facts["target_scale"] == pytest.approx(result.eval.metrics["mae"], rel=1e-5)


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        ("a,d\n1,yes\n", {}, "expected a column 'b', got the columns 'a', 'd'"),
        ("a,b\n1,ash\n", {}, "expected a column 'd', got the columns 'a', 'b'"),
        ("a:b:d\n1:ash:yes\n", {}, "expected a column 'a'.* `delimiter`"),
        ("a,b,d\n1,ash,yes\n2,oak,no\n", {}, "line 3, column 'b': expected one of .*, got 'oak'"),
        (
            "a,b,d\n1,ash,perhaps\n",
            {},
            r"line 2, column 'd': expected one of .*'no', 'yes'\], got 'perhaps'",
        ),
        ("a,b,d\none,ash,yes\n", {}, "line 2, column 'a': expected a number, got 'one'"),
        (
            "a,b,d\n,ash,yes\n",
            {},
            "line 2, column 'a': expected a number, got ''.* set `missing`",
        ),
        ("a,b,d\n1,,yes\n", {"missing": 0}, "line 2, column 'b': expected a word, got ''"),
        (
            "a,b,d\ninf,ash,yes\n",
            {"missing": 0},
            "line 2, column 'a': expected a finite number, got 'inf'",
        ),
        (
            "a,b,d\nN/A,ash,yes\n",
            {},
            "line 2, column 'a': expected a number, got 'N/A', which .*missing",
        ),
        (
            "a,b,d\nnan,ash,yes\n",
            {},
            "line 2, column 'a': expected a number, got 'nan', which .*missing",
        ),
        ('a,b,d\n"1,000",ash,yes\n', {}, "line 2, column 'a': expected a number, got '1,000'"),
        ("a,b,d\n1,ash,\n", {"missing": 0}, "column 'd': expected a word, got ''. Delete the row"),
        ("a,b,d\n1,ash,yes\n", {"target": "b"}, "target: expected 'd', as in the run .*, got 'b'"),
        (
            "a,b,d\n1,ash,yes\n",
            {"columns": ["a"]},
            r"columns: expected \['a', 'b'\], .*, got \['a'\]",
        ),
        ("a,b,d\n1,ash,yes\n", {"standardize": False}, "standardize: expected True, .*, got False"),
        ("a,b,d\n1,ash,yes\n", {"classes": False}, "classes: expected True, .*, got False"),
        ("a,b,d\n", {}, "expected rows below the header, got none"),
    ],
)
def test_table_that_does_not_match_the_fitted_preprocessing_is_refused(
    content: str, options: dict[str, Any], expected: str, tmp_path: pathlib.Path
) -> None:
    names = ["a", "b", "d"]
    whole = write(tmp_path / "t.csv", names, [("1", "ash", "no"), ("2", "elm", "yes")] * 3)
    fitted = sources.csv(whole, target="d", held_out=2).fitted
    other = tmp_path / "other.csv"
    other.write_text(content)
    with pytest.raises(ValueError, match=expected):
        sources.csv(other, **{"target": "d", "held_out": other, "fitted": fitted, **options})


def test_text_is_encoded_with_the_fitted_alphabet(tmp_path: pathlib.Path) -> None:
    (tmp_path / "t.txt").write_text("to be or\nnot to be " * 20)
    first = sources.text(tmp_path / "t.txt", context=8)
    (tmp_path / "new.txt").write_text("tree root " * 5)
    found = sources.text(
        tmp_path / "new.txt", 8, held_out=tmp_path / "new.txt", fitted=as_json(first.fitted)
    )
    assert found.facts == first.facts
    alphabet = first.facts["alphabet"]
    assert "".join(alphabet[n] for n in found.held_out.tokens) == "tree root " * 5
    predicted = 8 * len(found.held_out)
    assert predicted <= 49 < predicted + 8  # each character but the first, once
    (tmp_path / "odd.txt").write_text("to be\nor nöt to be")
    with pytest.raises(
        DataError, match=r"odd.txt, line 2, column 5: expected a character .*, got 'ö' \(U\+00F6\)"
    ):
        sources.text(tmp_path / "t.txt", 8, held_out=tmp_path / "odd.txt")


def test_images_are_read_with_the_fitted_classes_and_size(tmp_path: pathlib.Path) -> None:
    pillow = pytest.importorskip("PIL.Image")

    def draw(folder: str, *classes: str, size: tuple[int, int] = (6, 4)) -> pathlib.Path:
        for name in classes:
            (tmp_path / folder / name).mkdir(parents=True)
            for n in range(3):
                pillow.new("RGB", size).save(tmp_path / folder / name / f"{n}.png")
        return tmp_path / folder

    first = sources.images(draw("whole", "ant", "bee", "cat"))
    fitted = as_json(first.fitted)
    new = draw("new", "cat", "bee")
    found = sources.images(new, held_out=new, fitted=fitted)
    assert found.facts == first.facts
    assert [one["y"] for one in found.held_out] == [1, 1, 1, 2, 2, 2]
    with pytest.raises(
        DataError,
        match=r"dog: expected a folder named after one of the classes \['ant', 'bee', 'cat'\]",
    ):
        sources.images(tmp_path / "whole", held_out=draw("strange", "dog"))
    with pytest.raises(
        DataError,
        match="images of 4 x 6 pixels, as in training, got 8 x 8. Scale the images to 4 x 6 pixels",
    ):
        sources.images(tmp_path / "whole", held_out=draw("large", "ant", size=(8, 8)))


def test_arrays_are_checked_against_the_fitted_shapes(tmp_path: pathlib.Path) -> None:
    x, y = np.zeros((10, 3), np.float32), np.arange(10) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x=x[:2], y=y[:2], z=y)
    np.savez(tmp_path / "c.npz", x=x[:, :2], y=y)
    np.savez(tmp_path / "d.npz", x=x)
    found = sources.arrays(tmp_path / "a.npz", held_out=tmp_path / "b.npz")
    assert {name: len(array) for name, array in found.held_out.items()} == {"x": 2, "y": 2}
    with pytest.raises(
        DataError, match=r"'x' of dtype and sample shape float32 \(3,\), got float32 \(2,\)"
    ):
        sources.arrays(tmp_path / "a.npz", held_out=tmp_path / "c.npz")
    with pytest.raises(
        DataError, match="an array 'y' of dtype and sample shape int64 .*, got none"
    ):
        sources.arrays(tmp_path / "d.npz", held_out=2, fitted=as_json(found.fitted))


def test_data_function_results_that_json_cannot_store_are_refused(tmp_path: pathlib.Path) -> None:
    content = (
        "from ftrain.data.sources import Data\n"
        "def data(): return Data({'x': torch.ones(9, 3)}, fitted={'mean': torch.ones(3)})\n"
    )
    name = user_file(tmp_path, content)
    message = said(tmp_path, model="tests.config.project:Net", data=f"{name}:data")
    assert "to hold JSON values" in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda learnt: learnt.pop("target"),
        lambda learnt: learnt.pop("columns"),
        lambda learnt: learnt.update(columns=3),
        lambda learnt: learnt["columns"].update(a=3),
        lambda learnt: learnt["target"].pop("name"),
    ],
)
def test_fitted_values_edited_in_data_json_are_reported_as_damage(
    tmp_path: pathlib.Path, damage: Any
) -> None:
    """An edited `data.json` raises a `ConfigError` instead of a `KeyError`."""
    write(tmp_path / "t.csv", ["a", "y"], [(f"{n}", f"{2 * n}") for n in range(30)])
    table = {"name": "csv", "path": "t.csv", "target": "y"}
    options: dict[str, Any] = {"data": table, "loss": "mse", "base": tmp_path}
    model = {"name": "mlp", "inputs": 1, "outputs": 1}
    learnt = as_json(built(model=model, **options).fitted)
    damage(learnt)
    config = load({"model": model, "data": table, "loss": "mse", "epochs": 1})
    config._base = tmp_path
    with pytest.raises(ConfigError, match="data.json in the run's directory is damaged"):
        build(config, fitted=learnt)


@pytest.mark.parametrize("text", ['{"source": "csv", "fitted": {"mean": NaN}}', "[" * 100_000])
def test_damaged_data_json_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "data.json").write_text(text)
    config = load({"model": "mlp", "data": "csv", "epochs": 1})
    with pytest.raises(ConfigError, match="the file was changed after the run wrote it"):
        stored(config, tmp_path)
