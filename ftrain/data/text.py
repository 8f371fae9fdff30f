"""Text as integer tokens (characters, bytes, or tokens from another program), cut into windows.

    text = data.text("book.txt")
    rest, held_out = text.split(0.1)
    loader = data.Loader(rest.windows(65), batch_size=12)       # int64 (12, 65): 64 predictions each

Read next: `loader.py`.
"""

from __future__ import annotations

import dataclasses
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ftrain.core.errors import DataError
from ftrain.data._files import PathLike, decoded, existing
from ftrain.data.arrays import npy
from ftrain.data.cursor import is_count

__all__ = ["Text", "Windows", "standard_library", "text", "tokens"]


class Windows:
    """Dataset of windows of equal length, cut from a long sequence of tokens.

    Args:
        tokens: integers `(n,)`: a tensor or array, in memory or memory-mapped.
        length: the number of tokens in a window; for next-token prediction, the context plus one.
        stride: the number of tokens from the start of one window to the next. Use 1 for all windows, in
            training, and `length - 1` to predict each token once, in evaluation.

    Raises:
        ValueError: there are fewer tokens than in one window.

    Example:
        >>> windows = Windows(torch.arange(7), length=3, stride=2)
        >>> len(windows), windows.gather(torch.tensor([0, 2])).tolist()
        (3, [[0, 1, 2], [4, 5, 6]])
    """

    def __init__(self, tokens: Tensor | Any, length: int, stride: int = 1) -> None:
        self.tokens = torch.as_tensor(tokens)
        self.length, self.stride = length, stride
        for name, value in (("length", length), ("stride", stride)):
            if not is_count(value, 1):
                raise ValueError(
                    f"{name}: expected an integer >= 1, got {value!r}. Write {name}=1 or more."
                )
        if self.tokens.ndim != 1 or self.tokens.is_floating_point():
            raise ValueError(
                f"tokens: expected integers of shape (n,), got {self.tokens.dtype} "
                f"{tuple(self.tokens.shape)}. Pass one sequence: tokens.flatten().long()."
            )
        if len(self.tokens) < length:
            raise ValueError(
                f"tokens: expected at least {length}, the length of a window, got {len(self.tokens)}. "
                "Pass more text, or a smaller length."
            )

    def __len__(self) -> int:
        return (len(self.tokens) - self.length) // self.stride + 1

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(
                f"index: expected a window from 0 to {len(self) - 1}, got {index}. Pass an index "
                "below len(windows)."
            )
        return self.gather(torch.tensor([index]))[0]

    def gather(self, indices: Tensor) -> Tensor:
        """Return the windows at these indices, int64 `(len(indices), length)`."""
        places = indices[:, None] * self.stride + torch.arange(self.length)
        if self.tokens.device.type == "cpu":  # numpy, unlike torch, can index unsigned types
            return torch.from_numpy(self.tokens.numpy()[places.numpy()].astype(np.int64))
        return self.tokens[places.to(self.tokens.device)].to(torch.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Text as integer tokens, with conversion to and from strings.

    Attributes:
        tokens: `(n,)`, in the smallest integer type that fits.
        alphabet: the sorted characters of the text; a token is an index into it. `None`: the tokens are
            bytes.

    Example:
        >>> greeting = Text.of("hello")
        >>> greeting.alphabet, greeting.tokens.tolist()
        ('ehlo', [1, 0, 2, 2, 3])
        >>> greeting.decode(greeting.encode("hole"))
        'hole'
    """

    tokens: Tensor
    alphabet: str | None = None

    @classmethod
    def of(cls, content: str, alphabet: str | None = None) -> Text:
        """Convert a string to tokens: indices into its distinct characters or a given alphabet.

        Raises:
            ValueError: a character is not in the alphabet.
        """
        points = _points(content)
        used = np.nonzero(np.bincount(points))[0] if alphabet is None else _points(alphabet)
        place = np.full(max(points.max(initial=0), used.max(initial=0)) + 1, -1, dtype=np.int32)
        place[used] = np.arange(len(used))
        tokens = place[points]
        if alphabet is not None and len(tokens) and tokens.min() < 0:
            strange = content[int(np.argmax(tokens < 0))]
            raise ValueError(
                f"content: expected only characters of the alphabet, got {strange!r}. Remove it, "
                "or extend the alphabet."
            )
        dtype = np.uint8 if len(used) <= 256 else np.int32
        return cls(torch.from_numpy(tokens.astype(dtype)), "".join(map(chr, used.tolist())))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def vocabulary(self) -> int:
        """Return the number of different tokens."""
        return 256 if self.alphabet is None else len(self.alphabet)

    def encode(self, content: str) -> Tensor:
        """Return the tokens of a string, int64 `(n,)`.

        Raises:
            ValueError: a character is not in the alphabet.
        """
        if self.alphabet is None:
            return torch.tensor(list(content.encode()), dtype=torch.int64)
        return Text.of(content, self.alphabet).tokens.to(torch.int64)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """Return the string of these tokens; bytes that are not UTF-8 become replacement characters.

        Raises:
            ValueError: a number is not a token.
        """
        numbers = tokens.flatten().tolist() if isinstance(tokens, Tensor) else tokens
        strange = next((n for n in numbers if not 0 <= n < self.vocabulary), None)
        if strange is not None:
            raise ValueError(
                f"tokens: expected integers in [0, {self.vocabulary}), got {strange}. Decode them "
                "with the `Text` object that encoded them."
            )
        if self.alphabet is None:
            return bytes(numbers).decode(errors="replace")
        return "".join(self.alphabet[number] for number in numbers)

    def split(self, held_out: float) -> tuple[Text, Text]:
        """Split off the share `held_out` of the tokens at the end; return both parts as `Text`."""
        cut = len(self) - round(held_out * len(self))
        if not 0 < cut < len(self):
            raise ValueError(
                f"held_out: expected a fraction that leaves at least one of {len(self)} tokens in each "
                f"part, got {held_out!r}. Write held_out=0.1."
            )
        return Text(self.tokens[:cut], self.alphabet), Text(self.tokens[cut:], self.alphabet)

    def windows(self, length: int, stride: int = 1) -> Windows:
        """Return a dataset of windows of `length` tokens, which start every `stride` tokens."""
        return Windows(self.tokens, length, stride)


def text(
    path: PathLike,
    unit: Literal["characters", "bytes"] = "characters",
    *,
    alphabet: str | None = None,
) -> Text:
    """Read a file as tokens, one per character or per byte.

    Args:
        path: the file.
        unit: `"characters"` (of a UTF-8 file, which is read whole), or `"bytes"` (of any file, which is
            memory-mapped, so it may be larger than memory).
        alphabet: the characters into which the tokens are indices, such as those of the text that a
            model was trained on; default: the characters of this text.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is empty or not UTF-8, or has a character that is not in the alphabet.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.txt").write_text("abba")
        >>> text(folder / "a.txt").tokens
        tensor([0, 1, 1, 0], dtype=torch.uint8)
        >>> text(folder / "a.txt", unit="bytes").tokens
        tensor([97, 98, 98, 97], dtype=torch.uint8)
        >>> text(folder / "a.txt", alphabet=" ab").tokens
        tensor([1, 2, 2, 1], dtype=torch.uint8)
    """
    if unit not in ("characters", "bytes"):
        raise ValueError(
            f'unit: expected "characters" or "bytes", got {unit!r}. Write one of these.'
        )
    path = existing(path)
    if not path.stat().st_size:
        raise DataError(f"{path}: expected text, got an empty file. Write text to it.")
    if unit == "bytes":
        return Text(tokens(path, "uint8"))
    content = decoded(path)
    strange = set() if alphabet is None else set(content) - set(alphabet)
    if strange:
        at = min(map(content.index, strange))
        line, column = content.count("\n", 0, at) + 1, at - content.rfind("\n", 0, at)
        others = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        sign = f"{content[at]!r} (U+{ord(content[at]):04X})"
        raise DataError(
            f"{path}, line {line}, column {column}: expected a character of the training text, got "
            f"{sign}{others}. Replace it in the file, or train on a text that contains it."
        )
    return Text.of(content, alphabet)


def _points(content: str) -> np.ndarray:
    return np.frombuffer(content.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def tokens(path: PathLike, dtype: str = "uint16") -> Tensor:
    """Return the memory-mapped tokens in a file of raw integers or an `.npy` file.

    Args:
        path: the file. Writes to the tensor do not change it.
        dtype: numpy's name for the dtype of the numbers in a raw file, in this machine's byte order.

    Returns:
        Integers `(n,)`, as `Windows` takes them.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is empty, or its size is not a multiple of a token's size.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> np.array([1, 2, 50256], dtype=np.uint16).tofile(folder / "train.bin")
        >>> Windows(tokens(folder / "train.bin"), length=2).gather(torch.tensor([1]))
        tensor([[    2, 50256]])
    """
    path = existing(path)
    if path.suffix == ".npy":
        return npy(path, mmap=True)
    kind, size = np.dtype(dtype), path.stat().st_size
    if kind.kind not in "iu":
        raise ValueError(f"dtype: expected an integer dtype, got {dtype!r}. Write 'uint16'.")
    if not size or size % kind.itemsize:
        got = f"{size:,} bytes" if size else "an empty file"
        raise DataError(
            f"{path}: expected a whole number of {kind.name} tokens, got {got}. Copy the file "
            "again, or pass the `dtype` of its tokens."
        )
    # Mapped copy-on-write, because torch has no read-only tensors.
    return torch.from_numpy(np.memmap(path, dtype=kind, mode="c"))


def standard_library(characters: int = 1_000_000) -> Text:
    """Return the first characters of the source code of Python's standard library, as an example text.

    It gives a long text on every machine without a network; its content depends on Python's version.

    Raises:
        FileNotFoundError: this Python was installed without its source files.

    Example:
        >>> len(standard_library(10_000))
        10000
    """
    if not is_count(characters, 1):
        raise ValueError(
            f"characters: expected an integer >= 1, got {characters!r}. Write characters=1_000_000."
        )
    folder = Path(sysconfig.get_path("stdlib"))
    modules = sorted(folder.glob("*.py"))
    content = ""
    for module in modules:
        if len(content) >= characters:
            break
        content += module.read_text(encoding="utf-8")
    if not content:
        raise FileNotFoundError(
            f"{folder}: expected the source files (*.py) of Python's standard library, got none. "
            "Read a file of your own with data.text(path)."
        )
    return Text.of(content[:characters])
