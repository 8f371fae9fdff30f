"""The wheel contains the whole package, installs, and works without the repository."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", target],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    return next(target.glob("*.whl"))


def test_wheel_contains_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "ftrain/py.typed" in names
    kernels = {str(p.relative_to(ROOT)) for p in (ROOT / "ftrain").rglob("threefry.*")}
    assert {Path(name).suffix for name in kernels} == {".c", ".cu", ".h"}
    assert kernels <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(name.startswith("ftrain") for name in names)
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "ftrain").rglob("*.py")}
    assert sources <= set(names)


def test_installed_wheel_trains_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target",
         tmp_path, wheel],
        check=True,
    )  # fmt: skip
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import ftrain, torch\n"
        "from ftrain import optim, testing\n"
        "assert ftrain.__file__.startswith(sys.argv[1])\n"
        "loss = lambda model, batch: model(batch).square().mean()\n"
        "init, step, _ = ftrain.make_steps(lambda: torch.nn.Linear(2, 1), loss, optim.sgd(0.1))\n"
        "state, metrics = step(init(0), torch.ones(3, 2))\n"
        "print(int(state.step))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(tmp_path)],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.strip() == "1"


def test_import_ftrain_makes_packages_available_as_lazy_attributes() -> None:
    """Packages are loaded at their first use; type checkers know them as well."""
    packages = {path.parent.name for path in (ROOT / "ftrain").glob("*/__init__.py")}
    packages -= {"core", "cli"}  # `ftrain` has the names of the one; the other is a command
    script = (
        "import sys, ftrain\n"
        f"packages = {sorted(packages)}\n"
        "assert 'torch' not in sys.modules\n"
        "assert {*packages, 'make_steps'} <= {*dir(ftrain)}\n"
        # `benchmark` of `bench` is a name of `ftrain`, and so it is loaded with those of `core`.
        "assert not [p for p in packages if p != 'bench' and f'ftrain.{p}' in sys.modules]\n"
        "for p in packages:\n"
        "    assert getattr(ftrain, p) is sys.modules[f'ftrain.{p}'], p\n"
        "assert not hasattr(ftrain, 'confg')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
    # Type checkers do not run `__getattr__`: they read the imports, written `name as name`.
    tree = ast.parse((ROOT / "ftrain" / "__init__.py").read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "ftrain"]
    assert {a.asname for n in imports for a in n.names if a.asname == a.name} == packages


def test_importing_ftrain_is_fast_and_loads_neither_inductor_nor_dynamo() -> None:
    """Time is measured beyond torch's own import; compilers are loaded at the first compile."""
    script = (
        "import time, torch, numpy, optree\n"
        "import torch.utils._pytree\n"
        "start = time.process_time()\n"
        "import ftrain, sys\n"
        "print(time.process_time() - start)\n"
        "print([m for m in ('torch._inductor', 'torch._dynamo', 'jax') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    seconds, loaded = done.stdout.splitlines()
    assert (
        float(seconds) < 5.0
    )  # of CPU time, which a busy machine does not lengthen; measured 0.35
    assert loaded == "[]"
