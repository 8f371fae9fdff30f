"""Run commands on hostile run directories: they must end in time and change no other files.

python -m tests.cli.hostile --cases 2000 --seed 1      # the long form: several changes at a time
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator

from ftrain.cli import main

#: Seconds after which a command counts as hanging.
LIMIT = 30

#: Escapes that set a window's title, clear the screen, type a reply, and reverse the order of letters.
ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b6n\r\x1b[A\u202egnp.exe\n\tcompleted"

CONFIG = """
model: {name: mlp, inputs: "${data.features}", outputs: "${data.classes}", hidden: [4]}
data: {name: csv, path: pets.csv, target: kind, held_out: 0.25}
epochs: 1
batch_size: 8
compile: false
progress: false
log_every: 1
"""

FILES = (
    "config.yaml",
    "metrics.jsonl",
    "result.json",
    "data.json",
    "train.log",
    "metrics.csv",
    "curves.png",
    ".lock",
    "checkpoints",
    "checkpoints/{step}",
    "checkpoints/{step}/manifest.json",
    "checkpoints/{step}/SHA256SUMS",
    "checkpoints/{step}/{tensors}",
)

Change = Callable[[pathlib.Path, pathlib.Path, random.Random], None]


def pipe(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    os.mkfifo(path)


def device(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    path.symlink_to(draws.choice(["/dev/urandom", "/dev/zero", "/dev/full", "/dev/tty"]))


def bound_socket(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(path.name)
    os.chdir(here)


def sparse(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    with path.open("wb") as file:
        file.truncate(draws.choice([8 << 40, 1 << 33]))


def folder(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    path.mkdir()
    (path / "file").write_text("content")


def dangling(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    path.symlink_to(secret / "new")


def loop(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    path.symlink_to(path.name)


def link(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    path.symlink_to(secret / "file")


def link_to_folder(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    path.symlink_to(secret)


def hard_link(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    os.link(secret / "file", path)


def damage(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    content = draws.choice(
        [b"", b"\xff\xfe\x00", b"[" * 100_000, b"{a: " * 2000, b"1" * 50_000, b"\x00" * 100_000]
    )
    path.write_bytes(content)


def aliases(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    names = "abcdefghijklmnopqrstuvwxyz"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{new}: &{new} [{', '.join(9 * ['*' + old])}]" for old, new in itertools.pairwise(names)
    ]
    path.write_text("\n".join(lines))


def escapes(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    quoted = json.dumps(ESCAPES)
    path.write_text(
        draws.choice(
            [
                f"{quoted}: {quoted}\n",
                f'{{"status": {quoted}, "step": 1, "reason": {quoted}}}',
                f'{{"step": 1, "split": {quoted}, {quoted}: 1.5, "loss": 1}}\n' * 3,
                f'{{"source": {quoted}, "fitted": {{{quoted}: {quoted}}}, "facts": {{}}}}',
                ESCAPES,
            ]
        )
    )


def escapes_within(path: pathlib.Path, secret: pathlib.Path, draws: random.Random) -> None:
    """Write the original file with one to three of its words replaced by escapes."""
    text = path.with_name(path.name + ".original").read_text(errors="replace")
    places = [found.span() for found in re.finditer(r"(?<=[\"' ])[a-z_]{3,}(?=[\"':,\n])", text)]
    for begin, end in reversed(draws.sample(places, min(len(places), draws.randint(1, 3)))):
        inside = json.dumps(ESCAPES)
        if text[begin - 1 : begin] == '"':
            inside = inside[1:-1]
        text = text[:begin] + inside + text[end:]
    path.write_text(text)


CHANGES: dict[str, Change] = {
    change.__name__: change
    for change in (
        pipe,
        device,
        bound_socket,
        sparse,
        folder,
        dangling,
        loop,
        link,
        link_to_folder,
        hard_link,
        damage,
        aliases,
        escapes,
        escapes_within,
    )
}

COMMANDS: dict[str, list[str]] = {
    "runs": ["runs", "{parent}"],
    "plot": ["plot", "{run}"],
    "page": ["plot", "{run}", "{other}", "--out", "page.html"],
    "eval": ["eval", "{run}"],
    "predict": ["predict", "{run}", "data.path=pets.csv"],
    "sample": ["sample", "{run}"],
    "resume": ["resume", "{run}", "epochs=2"],
    "config": ["config", "{run}/config.yaml"],
    "dry-run": ["train", "{run}/config.yaml", "--dry-run"],
    "diff": ["diff", "{run}", "{other}", "--html", "diff.html"],
}

NAMES = [
    "run",
    "\x1b]0;title\x07",
    b"\xff\xfe".decode(errors="surrogateescape"),
    "a\nb\u202ec",
    "$\\a^",
]


def trained(folder: pathlib.Path) -> pathlib.Path:
    """Train a small run in `folder / "runs" / "run"`; return the folder."""
    draws = random.Random(0)
    rows = [f"{draws.random()},{draws.choice(['ant', 'bee'])}" for _ in range(40)]
    (folder / "pets.csv").write_text("\n".join(["size,kind", *rows]) + "\n")
    (folder / "pets.yaml").write_text(CONFIG)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(folder):
        assert main(["train", "pets.yaml", "output_dir=runs/run"]) == 0
        assert main(["train", "pets.yaml", "output_dir=other", "seed=1"]) == 0
    return folder


class Case:
    """Copy of a trained run under a given name, beside a folder that no command may change."""

    def __init__(self, trained: pathlib.Path, root: pathlib.Path, name: str = "run") -> None:
        self.root = root
        shutil.copytree(trained, root / "work", symlinks=True)
        self.run = root / "work" / "runs" / name
        os.rename(root / "work/runs/run", self.run)
        self.secret = root / "secret"
        self.secret.mkdir()
        (self.secret / "file").write_text("secret")
        (self.secret / "step-000000000003").mkdir()

    def change(self, kind: str, file: str, draws: random.Random) -> None:
        """Replace a file of the run by a hostile file of some kind."""
        step = next((self.run / "checkpoints").glob("step-*"), self.run / "none")
        tensors = next(step.glob("*.safetensors"), step / "none")
        path = self.run / file.format(step=step.name, tensors=tensors.name)
        if not path.parent.is_dir():  # an earlier change has replaced it
            return
        if path.is_symlink() or path.exists():
            original = path.with_name(path.name + ".original")
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                os.replace(path, original)
        if (
            CHANGES[kind] is escapes_within
            and not path.with_name(path.name + ".original").is_file()
        ):
            return
        CHANGES[kind](path, self.secret, draws)

    def call(self, command: str) -> tuple[int, str, str]:
        """Run a command on the directory; return exit code, standard output and standard error."""
        names = {"run": self.run, "parent": self.run.parent, "other": "other"}
        arguments = [part.format(**names) for part in COMMANDS[command]]
        before = self._outside()
        with _captured() as (out, err), contextlib.chdir(self.root / "work"), _limited():
            code = main(arguments)
        said = out.getvalue().decode(), err.getvalue().decode()
        check(code, *said)
        assert self._outside() == before, f"{arguments} wrote outside of the run"
        return code, *said

    def _outside(self) -> dict[str, object]:
        return {
            str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
            for path in [self.secret, *self.secret.rglob("*")]
        }


def check(code: int, out: str, err: str) -> None:
    """Raise if a command has printed control characters or a traceback."""
    assert code in (0, 1, 2), (code, err)
    for character in out + err:
        assert character == "\n" or unicodedata.category(character) not in ("Cc", "Cs"), (out, err)
        assert character != "\u202e", (out, err)
    assert "Traceback" not in err, err
    assert "--traceback" not in err, err


class HangingError(BaseException):
    """Raised in a command that takes too long; `except Exception` does not catch this error."""


class _Terminal(io.TextIOWrapper):
    """Output stream that reports to be a terminal, and accepts UTF-8 only."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def _captured() -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    out, err = io.BytesIO(), io.BytesIO()
    streams = [_Terminal(each, encoding="utf-8", write_through=True) for each in (out, err)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        yield out, err
        for stream in streams:
            stream.flush()
            stream.detach()


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Interrupt the code in a `with` block after `LIMIT` seconds, and each later wait, by an error."""

    def late(number: int, frame: object) -> None:
        raise HangingError(f"the command takes more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def campaign(cases: int, seed: int) -> None:
    """Draw run directories with up to three hostile changes, and run every command on each."""
    with tempfile.TemporaryDirectory() as place:
        base = pathlib.Path(place) / "base"
        base.mkdir()
        trained(base)
        slowest = (0.0, "")
        for number in range(cases):
            draws = random.Random(f"{seed} {number}")
            root = pathlib.Path(place) / "case"
            root.mkdir()
            case = Case(base, root, draws.choice(NAMES))
            changes = [
                (draws.choice(list(CHANGES)), draws.choice(FILES))
                for _ in range(draws.randint(1, 3))
            ]
            for kind, file in changes:
                case.change(kind, file, draws)
            for command in draws.sample(list(COMMANDS), len(COMMANDS)):
                began = time.monotonic()
                try:
                    case.call(command)
                except BaseException:
                    print(
                        f"case {number} of seed {seed}: {command} after {changes}", file=sys.stderr
                    )
                    raise
                slowest = max(slowest, (time.monotonic() - began, f"{command} {changes}"))
            shutil.rmtree(root)
        print(
            f"{cases} directories x {len(COMMANDS)} commands; slowest {slowest[0]:.1f} s {slowest[1]}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    campaign(options.cases, options.seed)
