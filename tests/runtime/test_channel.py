"""Messages from a worker to its master over a real pipe, in whatever pieces they arrive."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.runtime.master_link import Receiver, Sender

if TYPE_CHECKING:
    from collections.abc import Iterator

FIELDS = st.dictionaries(
    st.text(max_size=5).filter(lambda key: key != "kind"), st.integers() | st.text(max_size=20) | st.none(), max_size=3
)
MESSAGES = st.builds(lambda kind, fields: {"kind": kind, **fields}, st.text(max_size=8), FIELDS)
TEXTS = st.text(st.characters(exclude_characters="{\n", exclude_categories=["Cs"]), min_size=1, max_size=20)
LINES = st.one_of(
    MESSAGES.map(json.dumps),
    TEXTS,  # what faulthandler writes
    st.sampled_from(["{", "{}", '{"kind"', '["kind"]', '{"text": 1}', "", 'Fatal Python error: "kind"']),
)


class Pipe:
    """A channel whose two ends are in this process. Every write must fit into the pipe."""

    def __init__(self) -> None:
        read_end, self.write_end = os.pipe()
        self.receiver = Receiver(read_end)
        self.sender = Sender(self.write_end)

    def read(self) -> list[dict[str, object]]:
        return list(self.receiver.read())

    def end(self) -> None:
        """Close the worker's end."""
        os.close(self.write_end)
        self.write_end = -1

    def close(self) -> None:
        if self.write_end >= 0:
            self.end()
        self.receiver.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def received(pieces: list[bytes]) -> tuple[list[dict[str, object]], str]:
    """What comes out when the master reads after each piece."""
    pipe = Pipe()
    try:
        messages = []
        for piece in pieces:
            os.write(pipe.write_end, piece)
            messages += pipe.read()
        pipe.end()
        messages += pipe.read()
        assert pipe.receiver.closed
        return messages, pipe.receiver.text
    finally:
        pipe.close()


@given(message=MESSAGES)
def test_a_message_arrives_as_it_was_sent(message: dict[str, object]) -> None:
    pipe = Pipe()
    kind = str(message["kind"])
    pipe.sender.send(kind, **{key: value for key, value in message.items() if key not in ("kind", "self")})
    assert pipe.read() == [{key: value for key, value in message.items() if key != "self"}]
    assert (pipe.receiver.text, pipe.receiver.closed) == ("", False)
    pipe.close()


@given(lines=st.lists(LINES, max_size=8), last=LINES, data=st.data())
def test_any_split_of_the_stream_gives_the_same(lines: list[str], last: str, data: st.DataObject) -> None:
    """The last line has no end: the worker died while it wrote."""
    stream = "\n".join([*lines, last]).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8), label="cuts"))
    borders = [0, *cuts, len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(borders)]
    whole = received([stream])
    assert received(pieces) == whole
    messages, text = whole
    expected = [line for line in (parsed(line) for line in [*lines, last]) if line is not None]
    assert messages == expected
    assert text == "".join(f"{line}\n" for line in [*lines, last] if line and parsed(line) is None)


def parsed(line: str) -> dict[str, object] | None:
    """The message that a line is, or None for text."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and "kind" in message else None


@given(junk=st.binary(max_size=200))
def test_no_bytes_can_trouble_the_master(junk: bytes) -> None:
    messages, _text = received([junk, b'\n{"kind": "ready"}\n'])
    assert messages[-1] == {"kind": "ready"}


def test_reading_never_blocks(pipe: Pipe) -> None:
    assert pipe.read() == []
    assert not pipe.receiver.closed


def test_the_workers_end_is_seen_once_and_stays(pipe: Pipe) -> None:
    pipe.sender.send("failed", code=4)
    pipe.end()
    assert pipe.read() == [{"kind": "failed", "code": 4}]
    assert pipe.receiver.closed
    assert pipe.read() == []


def test_text_that_is_not_utf8_is_kept_readable(pipe: Pipe) -> None:
    os.write(pipe.write_end, b"File \xff.py\n")
    assert pipe.read() == []
    assert pipe.receiver.text == "File \ufffd.py\n"


def fill(fd: int, *, leave: int) -> int:
    """Fill a pipe with lines of text but for `leave` bytes, a multiple of a page; return how much that was."""
    written = 0
    try:
        while True:
            written += os.write(fd, b"." * 4095 + b"\n")
    except BlockingIOError:
        pass
    assert written > leave
    return written


def drain(fd: int, size: int) -> None:
    while size:
        size -= len(os.read(fd, min(size, 65536)))


def test_a_worker_never_waits_for_a_master_that_does_not_read(pipe: Pipe) -> None:
    size = fill(pipe.write_end, leave=0)
    pipe.sender.send("stacks", text="x" * 30_000)
    drain(pipe.receiver.fd, size)
    assert pipe.read() == []  # dropped
    pipe.sender.send("ready")
    assert pipe.read() == [{"kind": "ready"}]


def test_a_message_that_fits_only_in_part_does_not_spoil_the_next(pipe: Pipe) -> None:
    size = fill(pipe.write_end, leave=8192)
    drain(pipe.receiver.fd, 8192)
    pipe.sender.send("stacks", text="x" * 30_000)  # 8192 bytes of it fit
    drain(pipe.receiver.fd, size - 8192)
    assert pipe.read() == []
    pipe.sender.send("ready")
    assert pipe.read() == [{"kind": "ready"}]


def test_a_dead_master_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    sender = Sender(write_end)
    sender.send("ready", engine="blocking")
    os.close(write_end)


def test_an_endless_line_is_bounded(pipe: Pipe) -> None:
    size = 0
    while size < 5 << 20:
        try:
            size += os.write(pipe.write_end, b"." * 65536)
        except BlockingIOError:
            assert pipe.read() == []
    assert pipe.read() == []
    os.write(pipe.write_end, b"\n")
    assert pipe.read() == []
    assert len(pipe.receiver.text) <= 1 << 20
    pipe.sender.send("ready")
    assert pipe.read() == [{"kind": "ready"}]
