"""Test `ftrain bench`: its targets, files, messages and exit codes."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest

from ftrain.bench import BenchmarkFileError
from ftrain.bench.report import BenchmarkReport
from ftrain.cli import main
from tests.bench import steps as of_tests

Captured = pytest.CaptureFixture[str]
QUICK = ["--rounds", "2", "--seconds", "0", "--backend", "eager"]
BY_HAND = ["steps.py:by_hand", "--variants", "eager"]


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Return the current directory of the command, which contains `steps.py`."""
    shutil.copy(of_tests.__file__, tmp_path / "steps.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(*arguments: str) -> int:
    return main(["bench", *arguments, *QUICK])


def test_bench_measures_a_function_of_a_file_and_writes_json_and_a_picture(
    folder: pathlib.Path, capsys: Captured
) -> None:
    assert bench("steps.py:pure", "--out", "a.json", "--out", "a.png") == 0
    said = capsys.readouterr().out
    assert "eager" in said
    assert "donated" in said
    assert BenchmarkReport.load("a.json")["donated"].samples == 8
    assert (folder / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_bench_passes_arguments_precisions_accumulations_and_swept_values_to_the_function(
    capsys: Captured,
) -> None:
    code = bench(
        *("steps.py:pure", "batch_size=4", "--precision", "32-true,bf16-mixed"),
        *("--accumulate", "1,2", "--variants", "eager", "--json"),
    )
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["samples"], row["settings"]) for row in found["measurements"]] == [
        (4, {"precision": precision, "accumulate": k})
        for precision in ("32-true", "bf16-mixed")
        for k in (1, 2)
    ]
    assert bench("steps.py:plain", "--sweep", "batch_size=4,8", "--variants", "eager") == 0
    assert "eager, batch_size=8, against batch_size=4" in capsys.readouterr().out


def test_bench_sweeps_the_number_of_models_and_the_batch_size_of_a_configuration(
    folder: pathlib.Path, capsys: Captured
) -> None:
    assert main(["init"]) == 0
    capsys.readouterr()
    sweep = ["--sweep", "models=1,2", "--sweep", "batch_size=8,16"]
    assert bench("config.yaml", "ema=0.9", *sweep, "--variants", "eager", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["measurements"]
    assert [row["samples"] for row in rows] == [8, 16, 16, 32]
    flops = [sum(row["flops"].values()) for row in rows]
    assert flops[1:] == [2 * flops[0], 2 * flops[0], 4 * flops[0]]
    assert not (folder / "runs").exists()


def test_bench_option_latency_measures_first_calls_in_fresh_processes(capsys: Captured) -> None:
    assert bench("steps.py:pure", "--variants", "eager,donated", "--latency", "--json") == 0
    eager, donated = json.loads(capsys.readouterr().out)["measurements"]
    assert eager["cold_call"] is None
    assert donated["cold_call"] > 0
    assert donated["warm_call"] > 0


def test_bench_exits_with_1_if_a_step_is_worse_than_in_the_earlier_report(capsys: Captured) -> None:
    assert bench(*BY_HAND, "--out", "a.json") == 0
    # Two turns are too few for a decision.
    assert bench(*BY_HAND, "--against", "a.json") == 0
    content = json.loads(pathlib.Path("a.json").read_text())
    for row in content["measurements"]:
        row["peak_bytes"] //= 2
    pathlib.Path("b.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert bench(*BY_HAND, "--against", "b.json") == 1
    said = capsys.readouterr().out
    assert "WORSE eager: time" in said
    assert "peak memory 2.00 times" in said
    assert bench(*BY_HAND, "--against", "b.json", "--limit", "2.1") == 0


def test_bench_refuses_a_report_of_another_machine_before_it_measures(
    capsys: Captured,
) -> None:
    assert bench(*BY_HAND, "--out", "a.json") == 0
    content = json.loads(pathlib.Path("a.json").read_text())
    content["machine"]["cpu"] = "Z80"
    pathlib.Path("a.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert bench(*BY_HAND, "--against", "a.json") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (
        "expected an earlier report of this machine, got a report of another one: cpu 'Z80'"
        in captured.err
    )
    assert bench(*BY_HAND, "--against", "a.json", "--any-machine") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.yaml"], "none.yaml: file not found"),
        (
            ["steps.py"],
            "expected the name of a function in the file, got none. Write steps.py:NAME",
        ),
        (["steps.py:prue"], "steps.py does not define 'prue'. Did you mean pure?"),
        (["steps.py:not_a_function"], "expected a function or class, got 3"),
        (["steps.py:pure", "--no-code"], "expected a configuration with --no-code, got a function"),
        (["steps.py:pure", "--against", "/dev/null"], "expected a regular file, got a device"),
        (["steps.py:pure", "8"], "expected an argument of steps.py:pure, got '8'. Write KEY=VALUE"),
        (["steps.py:pure", "size=8"], "expected a parameter of steps.py:pure, got 'size'"),
        (["steps.py:fails", "--accumulate", "2"], "got 'accumulate'. Leave this argument out"),
        (["steps.py:pure", "--sweep", "batch_size"], "--sweep: expected a key with values, got"),
        (["steps.py:pure", "--variants", "eager,fast"], "expected some of eager,compiled,donated"),
        (["steps.py:pure", "--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["steps.py:pure", "--out", "a.txt"], "--out a.txt: expected one of the suffixes .json, "),
        (["steps.py:pure", "--out", "no/a.json"], "expected a file in an existing directory"),
        (["steps.py:pure", "--against", "no.json"], "no.json cannot be read: No such file"),
        (["steps.py:pure", "--against", "steps.py"], "expected a report of a benchmark"),
        (
            ["steps.py:pure", "--against", "steps.py", "--limit", "0.9"],
            "--limit: expected at least 1, got",
        ),
    ],
)
def test_invalid_bench_command_exits_with_2_and_a_message(
    arguments: list[str], said: str, capsys: Captured
) -> None:
    assert main(["bench", "--seconds", "0", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_bench_refuses_to_sweep_a_process_wide_setting(capsys: Captured) -> None:
    assert main(["init"]) == 0
    assert bench("config.yaml", "--sweep", "threads=1,2") == 2
    assert "--sweep: threads: expected a key of which several values" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"), [("fails", "the step is broken"), ("wrong", "expected (")]
)
def test_error_in_a_measured_step_exits_with_1_and_shows_only_user_code(
    name: str, said: str, capsys: Captured
) -> None:
    assert bench(f"steps.py:{name}") == 1
    assert said in capsys.readouterr().err


def damaged(change: Any) -> str:
    report = {"format": "ftrain benchmark 1", "machine": {}, "versions": {}, "measurements": []}
    return json.dumps({**report, "notes": [], **change})


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", damaged({"format": "2"}), damaged({"measurements": [{"variant": "eager"}]})],
)
def test_bench_refuses_a_damaged_report(text: str) -> None:
    pathlib.Path("a.json").write_text(text)
    with pytest.raises(BenchmarkFileError, match=r"a\.json: expected a report of a benchmark"):
        BenchmarkReport.load("a.json")
