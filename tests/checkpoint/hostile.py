"""Load hostile checkpoints under an audit hook: `python -m tests.checkpoint.hostile`.

The hook watches for code that is compiled, executed, imported or unpickled, for processes, and for files
opened outside of the checkpoint or for writing.
"""

from __future__ import annotations

import os
import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ftrain import checkpoint
from ftrain.core._available_memory import LIMITS
from tests.checkpoint.forge import DATA, change_data, change_header, change_manifest, join, split
from tests.checkpoint.states import train_state

CRATER = Path(tempfile.gettempdir()) / "ftrain-was-here"
CASES: dict[str, Callable[[Path], Any]] = {}


class Bomb:
    """An object that runs a command when unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {CRATER}",)


def case(name: str) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    def register(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
        CASES[name] = make
        return make

    return register


def manifest(name: str, *keys: Any, value: Any) -> None:
    """Add a case whose manifest contains `value` at `keys`."""

    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    CASES[name] = lambda path: change_manifest(path, edit)


def header(name: str, *keys: Any, value: Any) -> None:
    """Add a case whose header entry of `.buffers['mean']` contains `value` at `keys`."""

    def edit(content: dict[str, Any]) -> None:
        content = content[".buffers['mean']"]
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    CASES[name] = lambda path: change_header(path, edit)


for label, file_name in {
    "parent": "../secret", "absolute": "/etc/passwd", "slash": "a/b", "empty": "", "hidden": ".lock",
    "manifest itself": "manifest.json", "nul": "a\0b", "long": "a" * 5000, "number": 7,
    "newline": "a\nb",
}.items():  # fmt: skip
    manifest(f"file name: {label}", "files", 0, "name", value=file_name)
for label, shape in {
    "huge": [2**40], "overflow": [2**62, 4], "negative": [-5, 3], "float": [5.0, 3], "bool": [True],
    "text": "53", "deep": [1] * 10_000, "many": [2**31, 2**31, 2**31], "null": None,
}.items():  # fmt: skip
    manifest(f"shape in the manifest: {label}", "leaves", 1, "shape", value=shape)
    header(f"shape in the header: {label}", "shape", value=shape)
for label, dtype in {"lie": "float64", "unknown": "object", "null": None, "list": []}.items():
    manifest(f"dtype in the manifest: {label}", "leaves", 1, "dtype", value=dtype)
for label, dtype in {"lie": "F16", "unknown": "PICKLE", "null": None, "list": []}.items():
    header(f"dtype in the header: {label}", "dtype", value=dtype)
for label, offsets in {
    "overlap": [0, 12], "beyond": [10**9, 10**9 + 12], "negative": [-12, 0], "backwards": [12, 0],
    "huge": [0, 2**63], "one": [0], "text": "ab", "float": [0.0, 12.0],
}.items():  # fmt: skip
    header(f"offsets: {label}", "data_offsets", value=offsets)
manifest("strides: huge", "leaves", 1, "strides", value=[2**62])
manifest("strides: wrong number", "leaves", 1, "strides", value=[1, 1, 1])
manifest("alias of itself", "leaves", 1, "alias", value=".params['b']")
manifest("alias of a later one", "leaves", 1, "alias", value=".params['w']")
manifest("alias of nothing", "leaves", 1, "alias", value="nothing")
manifest("alias: a list", "leaves", 1, "alias", value=[])
manifest("leaf: null", "leaves", 1, value=None)
manifest("leaves: null", "leaves", value=None)
manifest("leaf: twice", "leaves", 1, "path", value=".step")
manifest("leaf: in no file", "leaves", 1, "file", value="other.safetensors")
manifest("files: none", "files", value=[])
manifest("files: null", "files", value=None)
manifest("size: lie", "files", 0, "size", value=5)
manifest("size: huge", "files", 0, "size", value=2**62)
manifest("size: text", "files", 0, "size", value="many")
manifest("sha256: none", "files", 0, "sha256", value="")
manifest("sha256: other", "files", 0, "sha256", value="0" * 64)
manifest("structure: other", "structure", value=["dict", [["['a']", "*"]]])
manifest("structure: nonsense", "structure", value={"a": [[], 1]})
manifest("format: other", "format", value="other")
manifest("version: newer", "version", value=[2, 0])
manifest("version: text", "version", value="1.0")
manifest("version: bools", "version", value=[True, False])
manifest("version: older than the first", "version", value=[0, 9])
manifest("feature: unknown", "required_features", value=["encryption"])
manifest("feature: null", "required_features", value=None)
manifest("metrics: text", "metrics", value={"loss": "low"})
manifest("prng: other", "prng", value="mt19937")
manifest("determinism: null", "determinism", value=None)


@case("structure: deep")
def _(path: Path) -> None:
    deep: Any = "*"
    for _ in range(200):
        deep = ["list", [["[0]", deep]]]
    change_manifest(path, lambda content: content.update(structure=deep))


@case("manifest: deep JSON")
def _(path: Path) -> None:
    change_manifest(path, lambda content: b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


@case("manifest: a huge number")
def _(path: Path) -> None:
    change_manifest(path, lambda content: b'{\n "a": ' + b"9" * 100_000 + b"\n}\n")


@case("manifest: a field missing")
def _(path: Path) -> None:
    change_manifest(path, lambda content: content.pop("prng") and None)


@case("manifest: a key twice")
def _(path: Path) -> None:
    text = (path / "manifest.json").read_bytes()
    twice = text.replace(b' "step": null', b' "step": null,\n "step": null')
    assert twice != text
    change_manifest(path, lambda content: twice)


@case("manifest: infinity")
def _(path: Path) -> None:
    text = (path / "manifest.json").read_bytes()
    changed = text.replace(b'"step": null', b'"step": Infinity')
    change_manifest(path, lambda content: changed)


@case("manifest: a list")
def _(path: Path) -> None:
    change_manifest(path, lambda content: b"[]")


@case("manifest: no UTF-8")
def _(path: Path) -> None:
    change_manifest(path, lambda content: b'{"\xff": 1}')


@case("manifest: a pickle")
def _(path: Path) -> None:
    change_manifest(path, lambda content: pickle.dumps(Bomb()))


@case("data: a pickle")
def _(path: Path) -> None:
    change_data(path, lambda file: pickle.dumps(Bomb()))


@case("data: a pickle as torch saves it")
def _(path: Path) -> None:
    torch.save({"w": Bomb()}, path / "pickled")
    change_data(path, lambda file: (path / "pickled").read_bytes())


@case("data: a pickle in the header")
def _(path: Path) -> None:
    change_header(path, lambda content: pickle.dumps(Bomb()))


@case("data: nothing")
def _(path: Path) -> None:
    change_data(path, lambda file: b"")


@case("data: more at the end")
def _(path: Path) -> None:
    change_data(path, lambda file: file + b"\0" * 8)


@case("header: longer than the file")
def _(path: Path) -> None:
    change_data(path, lambda file: (2**63).to_bytes(8, "little") + file[8:])


@case("header: deep")
def _(path: Path) -> None:
    change_header(path, lambda content: b"[" * 100_000)


@case("header: a list")
def _(path: Path) -> None:
    change_header(path, lambda content: b"[]")


@case("header: a name twice")
def _(path: Path) -> None:
    def twice(file: bytes) -> bytes:
        length = int.from_bytes(file[:8], "little")
        text = file[8 : 8 + length].rstrip()
        again = text[:-1] + b"," + text[1:]
        return join(again, file[8 + length :])

    change_data(path, twice)


@case("header: a tensor more")
def _(path: Path) -> None:
    def more(file: bytes) -> bytes:
        content, data = split(file)
        content["more"] = {"dtype": "U8", "shape": [4], "data_offsets": [len(data), len(data) + 4]}
        return join(content, data + b"    ")

    change_data(path, more)


@case("header: a tensor less")
def _(path: Path) -> None:
    change_header(path, lambda content: content.pop(".buffers['mean']") and None)


@case("header: other names")
def _(path: Path) -> None:
    def swap(content: dict[str, Any]) -> None:
        content["mean"] = content.pop(".buffers['mean']")

    change_header(path, swap)


@case("sums: another form")
def _(path: Path) -> None:
    text = (path / "SHA256SUMS").read_text()
    (path / "SHA256SUMS").write_text(
        text + text.splitlines()[0].replace(DATA, "/etc/passwd") + "\n"
    )


for link in (DATA, "manifest.json", "SHA256SUMS"):

    @case(f"{link}: a link")
    def _(path: Path, link: str = link) -> None:
        os.rename(path / link, path / "elsewhere")
        os.symlink("elsewhere", path / link)

    @case(f"{link}: a pipe")
    def _(path: Path, link: str = link) -> None:
        (path / link).unlink()
        os.mkfifo(path / link)

    @case(f"{link}: a directory")
    def _(path: Path, link: str = link) -> None:
        (path / link).unlink()
        (path / link).mkdir()

    @case(f"{link}: a terabyte of nothing")
    def _(path: Path, link: str = link) -> None:
        os.truncate(path / link, 1 << 40)


def attack(path: Path) -> list[str]:
    """Read a checkpoint in every way and return all outcomes other than a `CheckpointError`."""
    like = train_state(0)
    complaints = []
    for what, read in {
        "verify": lambda: checkpoint.verify(path),
        "load": lambda: checkpoint.load(path, like=like, on_change="ignore"),
        "restore": lambda: checkpoint.restore(path, like=like),
        "import": lambda: checkpoint.read_state_dict(path / DATA),
    }.items():
        start = time.process_time()  # independent of other processes
        try:
            read()
            complaints.append(f"{what} accepted the file")
        except checkpoint.CheckpointError:
            pass
        except Exception as error:
            complaints.append(f"{what} raised {error!r}")
        took = time.process_time() - start
        if took > 1:
            complaints.append(f"{what} took {took:.1f} s")
    return complaints


# Cases that some readers may accept, because they do not use the forged value: only `load` compares
# structure, strides and generator with `like`; a file of weights has no manifest.
ALLOWED = {
    "verify accepted the file": ("structure: ", "strides: huge", "prng: other"),
    "restore accepted the file": ("structure: ", "strides: huge", "prng: other"),
    "import accepted the file": (
        "file name", "shape in the manifest", "dtype in the manifest", "manifest", "sums", "strides",
        "alias", "leaf", "leaves", "files", "size", "sha256", "structure", "format", "version",
        "feature", "metrics", "prng", "determinism", "header: a tensor more", "header: other names",
        "SHA256SUMS", f"{DATA}: a link",
    ),
}  # fmt: skip


def main() -> int:
    watched = (
        "exec", "compile", "import", "pickle.", "marshal.", "os.system", "os.exec", "os.posix_spawn",
        "os.fork", "subprocess.", "ctypes.", "code.", "socket.", "shutil.", "os.remove", "os.rename",
        "os.chmod", "os.mkdir",
    )  # fmt: skip
    seen: list[str] = []
    watching = False
    with tempfile.TemporaryDirectory(prefix="ftrain-hostile-") as name:
        base = Path(name)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if not watching:
                return
            if event.startswith(watched):
                seen.append(f"{event} {arguments!r}"[:200])
            if event == "open" and isinstance(arguments[0], (str, bytes)):
                path, flags = os.fsdecode(arguments[0]), arguments[2]
                inside = not os.path.isabs(path) or Path(path).is_relative_to(base)
                inside = inside or path in ("/proc/meminfo", *LIMITS)
                if not inside or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                    seen.append(f"open {path!r} with {flags:o}")

        failures = []
        sys.addaudithook(hook)
        for i, (case_name, make) in enumerate([("warm up", lambda path: None), *CASES.items()]):
            path = base / str(i)
            checkpoint.save(path, train_state(1))
            make(path)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            watching = case_name != "warm up"  # lazy imports happen in the warm-up
            complaints = attack(path)
            watching = False
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            if case_name == "warm up":
                continue
            complaints = [
                text for text in complaints
                if not case_name.startswith(ALLOWED.get(text, ("no case",)))
            ]  # fmt: skip
            if grown > 100_000:
                complaints.append(f"took {grown // 1000} MB")
            failures += [f"{case_name}: {text}" for text in complaints + seen]
            seen.clear()
    assert not CRATER.exists()
    print("\n".join(failures) or f"{len(CASES)} hostile checkpoints refused")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
