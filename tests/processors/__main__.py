"""Run the suite with the kernels of other processors.

    python -m tests.processors [NAME ...] [-- PYTEST ARGUMENTS]

Without names, every entry of `PROCESSORS` in turn, which takes hours. Each computes with other kernels,
so a test that fails under one of them holds on some processors only; `tests/conftest.py` says which
results have equal bytes everywhere. Not emulated: float16 and matrix instructions (AVX512-FP16, AMX).
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent

PROCESSORS: dict[str, dict[str, str]] = {
    "two threads": {"FTRAIN_TEST_THREADS": "2"},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    },
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX",
    },
    "intel": {"LD_PRELOAD": "intel"},
    "order": {"LD_PRELOAD": "order"},
    "alignment": {"LD_PRELOAD": "order", "FTRAIN_TEST_ALIGNMENT": "1"},
}


def library(name: str, folder: str) -> str:
    """Compile `name`.c; return the shared library's path."""
    path = f"{folder}/{name}.so"
    compiler = os.environ.get("CC", "cc")
    source = str(HERE / f"{name}.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", source, "-o", path], check=True)
    return path


def main(arguments: list[str]) -> int:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    names, rest = arguments[:at] or list(PROCESSORS), arguments[at + 1 :]
    unknown = [name for name in names if name not in PROCESSORS]
    if unknown:
        print(f"expected names out of {list(PROCESSORS)}, got {unknown}")
        return 2
    found = {}
    with tempfile.TemporaryDirectory(prefix="ftrain-processors-") as folder:
        for name in names:
            changes = dict(PROCESSORS[name])
            if "LD_PRELOAD" in changes:
                if platform.system() != "Linux":
                    print(f"{name}: libraries are preloaded on Linux only")
                    continue
                changes["LD_PRELOAD"] = library(changes["LD_PRELOAD"], folder)
            command = [sys.executable, "-m", "pytest", "-q", *rest]
            done = subprocess.run(command, env={**os.environ, **changes}, check=False)
            found[name] = done.returncode
    for name, code in found.items():
        print(f"{name}: {'passed' if code == 0 else f'pytest ended with {code}'}")
    return max(found.values(), default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
