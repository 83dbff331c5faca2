"""A request's body between the network and the application, and the interface of its input."""

from __future__ import annotations

import io
import os
import random
import tempfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.body import IN_MEMORY_BYTES, BodyBuffer

if TYPE_CHECKING:
    from pathlib import Path

SIZES = [0, 1, IN_MEMORY_BYTES - 1, IN_MEMORY_BYTES, IN_MEMORY_BYTES + 1, 5 * IN_MEMORY_BYTES + 7]


def filled(data: bytes, block: int = 16384) -> BodyBuffer:
    buffer = BodyBuffer()
    for start in range(0, len(data), block):
        buffer.add(data[start : start + block])
    return buffer


def lines_of(size: int) -> bytes:
    """Bytes with line ends here and there, the same each time."""
    source = random.Random(size)
    return bytes(source.choice(b"abc\n\r\0\xff") for _ in range(size))


def spooled(buffer: BodyBuffer) -> bool:
    return not isinstance(buffer.input(), io.BytesIO)


@pytest.mark.parametrize("size", SIZES)
def test_what_went_in_comes_out(size: int) -> None:
    data = lines_of(size)
    buffer = filled(data)
    assert buffer.size == size
    assert buffer.input().read() == data
    buffer.close()


@pytest.mark.parametrize("size", SIZES)
def test_the_input_has_every_way_of_reading(size: int) -> None:
    data = lines_of(size)
    lines = io.BytesIO(data).readlines()
    for read in (list, lambda body: body.readlines(), lambda body: list(iter(body.readline, b""))):
        buffer = filled(data)
        assert read(buffer.input()) == lines
        buffer.close()
    buffer = filled(data)
    body = buffer.input()
    taken = [body.read(3), body.readline(), body.readline(2), body.read(0), *body.readlines(10), body.read(-1)]
    assert b"".join(taken) == data
    assert [body.read(), body.read(5), body.readline(), body.readline(5), body.readlines(), list(body)] == [
        b"", b"", b"", b"", [], [],
    ]  # fmt: skip
    buffer.close()


@given(st.lists(st.binary(max_size=200), max_size=8), st.lists(st.integers(0, 300), max_size=8))
def test_it_reads_as_a_plain_file_does(parts: list[bytes], sizes: list[int]) -> None:
    buffer = BodyBuffer()
    for part in parts:
        buffer.add(part)
    body, plain = buffer.input(), io.BytesIO(b"".join(parts))
    for number, size in enumerate(sizes):
        assert (body.readline(size) if number % 2 else body.read(size)) == (
            plain.readline(size) if number % 2 else plain.read(size)
        )
    assert body.read() == plain.read()


def test_a_large_body_is_not_held_in_memory() -> None:
    small, large = filled(bytes(IN_MEMORY_BYTES)), filled(bytes(IN_MEMORY_BYTES + 1))
    assert not spooled(small)
    assert spooled(large)
    assert not large._parts
    large.close()


def test_the_file_has_no_name_and_is_gone_after_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    buffer = filled(bytes(IN_MEMORY_BYTES + 1))
    descriptor = buffer.input().fileno()
    info = os.fstat(descriptor)
    assert (info.st_nlink, info.st_size) == (0, IN_MEMORY_BYTES + 1)
    assert not list(tmp_path.iterdir())
    buffer.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_closing_twice_is_no_fault() -> None:
    for size in (5, IN_MEMORY_BYTES + 1):
        buffer = filled(bytes(size))
        buffer.close()
        buffer.close()
