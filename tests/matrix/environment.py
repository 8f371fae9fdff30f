"""Find interpreters of Python, and install ftrain with one torch for one of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.matrix.cells import ROOT, numbers


class Python(NamedTuple):
    """An interpreter.

    Attributes:
        path: its file.
        version: its full version, as `3.12.1`.
    """

    path: str
    version: str

    @property
    def minor(self) -> str:
        """Its minor version, as `3.12`."""
        return ".".join(self.version.split(".")[:2])


def find_python(name: str) -> Python | None:
    """Return the interpreter with a name, or `None` if there is none that starts.

    Args:
        name: a path, a name on PATH, or a minor version. `3.12` and `python3.12` are searched for on
            PATH, then among the versions that pyenv has installed.
    """
    for candidate in _candidates(name):
        path = shutil.which(os.path.expanduser(candidate))
        # pyenv puts a shim on PATH for each version; it fails for those that are not active.
        version = path and _output(
            [path, "-c", "import platform; print(platform.python_version())"]
        )
        if path and version:
            return Python(path, version)
    return None


def _candidates(name: str) -> Iterator[str]:
    match = re.fullmatch(r"(?:python)?(\d+\.\d+)", name)
    if match is None:
        yield name
        return
    yield f"python{match[1]}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    installed = sorted(pyenv.glob(f"{match[1]}.*"), key=lambda folder: numbers(folder.name))
    yield from (str(folder / "bin" / "python") for folder in reversed(installed))


def _output(command: Sequence[str]) -> str:
    """Return the output of a command, or an empty string if it fails."""
    try:
        done = _run(command)
    except OSError:  # not a program
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def constraints_without_torch() -> str:
    """Return the lines of `constraints.txt` but the one that pins torch."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("torch==")]
    if len(kept) != len(lines) - 1:
        raise ValueError(
            f"expected one line `torch==VERSION` in constraints.txt, got {len(lines) - len(kept)}; "
            "adapt tests/matrix/environment.py to the new form of the pin"
        )
    return "\n".join(kept) + "\n"


def requirement(torch: str) -> str:
    """Return the requirement for pip: `2.13` is any 2.13.x, `newest` any version that installs."""
    return "torch" if torch == "newest" else f"torch=={torch}.*"


def install(python: Python, torch: str, folder: Path) -> str:
    """Create a virtual environment with ftrain, the packages that its tests import, and one torch.

    Args:
        python: the interpreter.
        torch: a minor version, or `newest`.
        folder: where the environment goes. A complete one is used as it is, others are removed.

    Returns:
        The reason of a failure, or an empty string.
    """
    complete = folder / "complete"
    if complete.exists():
        return ""
    shutil.rmtree(folder, ignore_errors=True)
    done = _run([python.path, "-m", "venv", str(folder)])
    if done.returncode == 0:
        constraints = folder / "constraints.txt"
        constraints.write_text(constraints_without_torch(), encoding="utf-8")
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        options = ["--quiet", "--constraint", str(constraints)]
        packages = ["--editable", f"{ROOT}[dev,examples]", requirement(torch)]
        done = _run([*pip, "install", *options, *packages])
    if done.returncode == 0:
        complete.touch()
        return ""
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["the environment could not be created"])[-1].strip()


def torch_version(folder: Path) -> str:
    """Return the version of torch in an environment."""
    script = "import importlib.metadata as m; print(m.version('torch'))"
    return _output([str(folder / "bin" / "python"), "-c", script])


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
