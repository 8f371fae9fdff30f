"""The Python snippets of the README and of the page on runs work in one namespace."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import ftrain
from ftrain.cli import main
from ftrain.core import _torch_inductor
from tests import preloaded
from tests.campaign import CAMPAIGN, COMPILED
from tests.examples.test_photos import take_photos

README = Path(__file__).parent.parent / "README.md"
RUNS = README.parent / "docs" / "runs.md"


def blocks(language: str, *, first: str = "") -> list[str]:
    """Return the code blocks of a language on both pages whose first line starts with `first`."""
    return [
        block
        for page in (README, RUNS)
        for block in re.findall(
            rf"^```{language}\n({re.escape(first)}.*?)^```",
            page.read_text(),
            re.DOTALL | re.MULTILINE,
        )
    ]


@pytest.mark.inductor
def test_python_snippets_of_the_readme_and_of_docs_runs_md_execute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A campaign compiles machine code, half a minute for the first step of the README."""
    monkeypatch.setattr(ftrain, "compile", functools.partial(ftrain.compile, backend=COMPILED))
    snippets = blocks("python")
    assert len(snippets) >= 6
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, snippet in enumerate(snippets):
        whole = snippet.startswith("# train.py")  # a script, which stands alone
        names = {"__name__": "__main__"} if whole else namespace
        exec(compile(snippet, f"snippet {number}", "exec"), names)
        if number == 0:
            (shown,) = blocks("text")
            printed = capsys.readouterr().out
            assert re.sub(r"[\d.e-]+", "_", printed) == re.sub(r"[\d.e-]+", "_", shown)


def test_killed_and_resumed_loop_ends_with_the_result_of_an_uninterrupted_loop(
    tmp_path: Path,
) -> None:
    """Run `train.py` of the page on runs, once killed and once not."""
    (snippet,) = blocks("python", first="# train.py")
    script = tmp_path / "train.py"
    script.write_text(snippet)
    last = "step-000000000084"
    ends = []

    def killed(folder: Path, at: tuple[int, ...]) -> bool:
        """Run the script and kill it at the given steps; return False if it finished first."""
        folder.mkdir()
        for step in at:
            process = preloaded.start(str(script), cwd=folder)
            wanted = folder / "run" / f"step-{step:012d}"
            while not wanted.exists() and process.poll() is None:
                time.sleep(0.001)
            process.kill()
            if process.wait() == 0:
                shutil.rmtree(folder)
                return False
        return True

    for name, kill_at in (("undisturbed", ()), ("killed", (31,))):
        folder = tmp_path / name
        assert any(killed(folder, kill_at) for _ in range(10))
        preloaded.run(str(script), cwd=folder)
        leaves = (folder / "run" / last).glob("*.safetensors")
        ends.append([leaf.read_bytes() for leaf in sorted(leaves)])
    assert ends[0]
    assert ends[0] == ends[1]


def test_documented_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands; in a campaign in machine code and at full length, which takes a minute."""
    shorter = {"sweep": ["epochs=2"], "bench": ["--rounds", "2", "--seconds", "0"]}
    if CAMPAIGN:
        shorter = {}
    else:
        monkeypatch.setattr(_torch_inductor, "inductor_compile", lambda graph, *_: graph.forward)
    monkeypatch.chdir(tmp_path)
    of_readme, of_runs = blocks("sh", first="ftrain init")
    assert set(of_readme.splitlines()) <= set(of_runs.splitlines())
    for line in of_runs.splitlines():
        command, *arguments = shlex.split(line, comments=True)[1:]
        assert main([command, *arguments, *shorter.get(command, [])]) == 0, line
    assert (tmp_path / "runs" / "config" / "curves.png").exists()


def test_documented_configurations_train_and_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run a few uncompiled steps, with the data files that the configurations name."""
    monkeypatch.chdir(tmp_path)
    take_photos(tmp_path / "photos", count=24)
    np.savez(
        tmp_path / "points.npz",
        x=np.random.default_rng(0).normal(size=(90, 3)),
        y=np.arange(90) % 3,
    )
    (tmp_path / "book.txt").write_text("To be, or not to be, that is the question. " * 40)
    rows = "".join(f"{i % 7},{i % 5},{'setosa' if i % 2 else 'virginica'}\n" for i in range(100))
    (tmp_path / "irises.csv").write_text("length,width,species\n" + rows)
    numbers = "".join(f"{i % 7},{i % 5},{i % 3 + 4}\n" for i in range(100))
    (tmp_path / "wines.csv").write_text("length,width,grade\n" + numbers)
    (tmp_path / "houses.csv").write_text("length,width,price\n" + numbers)
    named = [(content.split(":")[0].removeprefix("# "), content) for content in blocks("yaml")]
    of_runs = [
        "irises.yaml",
        "wines.yaml",
        "houses.yaml",
        "photos.yaml",
        "points.yaml",
        "book.yaml",
    ]
    assert [name for name, _ in named] == ["irises.yaml", *of_runs]
    for name, content in named:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        (tmp_path / name).write_text(content)
        other = ["data.context=96"] if name == "book.yaml" else []  # the model's follows
        assert main(["train", name, "compile=false", "max_steps=3", *other]) == 0
        stem = Path(name).stem
        assert main(["eval", f"runs/{stem}"]) == 0
        if (tmp_path / f"{stem}.csv").exists():
            assert main(["predict", f"runs/{stem}", f"data.path={stem}.csv"]) == 0


def test_documented_commands_and_files_exist() -> None:
    """Every `make` target and every script that the README or the site names exists."""
    pages = [README, README.parent / "CONTRIBUTING.md", *README.parent.glob("docs/*.md")]
    text = "\n".join(page.read_text() for page in pages)
    targets = re.findall(r"^(\w+):", (README.parent / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:`|^    )make ([a-z]+)", text, re.MULTILINE):
        assert target in targets, target
    for path in re.findall(r"(?:examples|benchmarks|tests)/[\w/]+\.py", text):
        assert (README.parent / path).exists(), path
    for path in re.findall(r"\]\((docs/[\w.]+)\)|(examples/configs/[\w.]+\.yaml)", text):
        assert (README.parent / "".join(path)).exists(), path
    for module in re.findall(r"python -m (benchmarks[\w.]*)", text):
        path = README.parent / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
