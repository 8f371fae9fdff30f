"""Test text, bytes and tokens: encoding, decoding and windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftrain import data
from ftrain.core.errors import DataError
from ftrain.testing import assert_same_bits


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_text_decodes_to_the_encoded_characters(content):
    text = data.Text.of(content)
    assert text.decode(text.tokens) == content
    assert text.decode(text.encode(content)) == content
    assert text.vocabulary == len(set(content))
    assert text.tokens.dtype == (torch.uint8 if text.vocabulary <= 256 else torch.int32)


def test_text_accepts_more_than_256_different_characters():
    content = "".join(map(chr, range(1000, 1300)))
    assert data.Text.of(content).decode(data.Text.of(content).tokens) == content


def test_text_with_unit_bytes_reads_any_file(tmp_path):
    (tmp_path / "t").write_bytes("größe".encode() + b"\xff")
    text = data.text(tmp_path / "t", unit="bytes")
    assert (text.vocabulary, len(text)) == (256, 8)
    assert text.decode(text.tokens) == "größe\ufffd"
    assert text.encode("ö").tolist() == [0xC3, 0xB6]


@given(
    n=st.integers(1, 60),
    length=st.integers(1, 10),
    stride=st.integers(1, 12),
    dtype=st.sampled_from([np.uint8, np.uint16, np.uint32, np.int32, np.int64]),
)
def test_each_window_is_a_slice_of_the_tokens(n, length, stride, dtype):
    if n < length:
        return
    tokens = torch.from_numpy(np.arange(n).astype(dtype))
    windows = data.Windows(tokens, length, stride)
    expected = torch.arange(n).unfold(0, length, stride)
    assert_same_bits(windows.gather(torch.arange(len(windows))), expected.contiguous())
    assert_same_bits(windows[len(windows) - 1], expected[-1].contiguous())


def test_windows_with_a_stride_equal_to_the_context_length_cover_each_target_once():
    text = data.standard_library(1000)
    rest, held_out = text.split(0.1)
    assert (len(rest), len(held_out)) == (900, 100)
    targets = torch.cat(
        [w[:, 1:].flatten() for w in data.Loader(held_out.windows(12, 11), 2, shuffle=False)]
    )
    assert_same_bits(targets, held_out.tokens[1:].long())


def test_writes_to_tokens_do_not_change_the_file(tmp_path):
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "t.bin")
    np.save(tmp_path / "t.npy", np.arange(1000, dtype=np.uint16))
    for name in ("t.bin", "t.npy"):
        tokens = data.tokens(tmp_path / name)
        tokens[3] = 7
        assert data.tokens(tmp_path / name).tolist() == list(range(1000))


def test_text_and_tokens_refuse_empty_or_damaged_files(tmp_path):
    path = tmp_path / "t"
    path.write_bytes(b"")
    for read in (data.text, data.tokens):
        with pytest.raises(DataError, match="empty"):
            read(path)
    path.write_bytes(b"ab\xffc")
    with pytest.raises(DataError, match="byte 2.*iconv"):
        data.text(path)
    path.write_bytes(b"abc")
    with pytest.raises(DataError, match="expected a whole number of uint16 tokens"):
        data.tokens(path)
    with pytest.raises(ValueError, match="unit: expected"):
        data.text(path, unit="words")
    with pytest.raises(ValueError, match="got 'z'"):
        data.text(path).encode("az")
    with pytest.raises(ValueError, match="tokens: expected at least 9"):
        data.text(path).windows(9)
    with pytest.raises(ValueError, match="a fraction .*got 0.0"):
        data.text(path).split(0.0)
