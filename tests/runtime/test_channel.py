"""Messages from a worker to its master over a real pipe: in whatever pieces they arrive, and whatever they say."""

from __future__ import annotations

import json
import os
import re
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.runtime.master_link import FIELDS, OF_TEMPLATE, OF_WORKER, READ_MOST, Kind, Receiver, Sender

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
VALUES = {str: WORDS, int: st.integers(0, 255), float: st.floats(0, 1e6) | st.integers(0, 255)}
MESSAGES = st.sampled_from(sorted(OF_WORKER)).flatmap(
    lambda kind: st.fixed_dictionaries(
        {"kind": st.just(str(kind))}
        | {
            name: st.sampled_from(sorted(field.words)) if field.words else VALUES[field.type]
            for name, field in FIELDS[kind].items()
        }
    )
)
READY = {"kind": "ready", "app_kind": "stream", "engine": "blocking"}
STACKS = {"kind": "stacks", "current": ""}
TEXTS = WORDS.filter(lambda text: text and not text.startswith("{"))
LINES = st.one_of(
    MESSAGES.map(json.dumps),
    TEXTS,  # what faulthandler writes
    st.sampled_from(["{", '{"kind"', '["kind"]', "", 'Fatal Python error: "kind"']),
)


class Pipe:
    """A channel whose two ends are in this process. Every write must fit into the pipe."""

    def __init__(self) -> None:
        read_end, self.write_end = os.pipe()
        self.receiver = Receiver(read_end, OF_WORKER)
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


def send(pipe: Pipe, message: dict[str, object]) -> None:
    pipe.sender.send(Kind(message["kind"]), **{key: value for key, value in message.items() if key != "kind"})


@given(message=MESSAGES)
def test_a_message_arrives_as_it_was_sent(message: dict[str, object]) -> None:
    pipe = Pipe()
    send(pipe, message)
    assert pipe.read() == [message]
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


def is_object(line: bytes) -> bool:
    """Whether it is JSON that no worker sends: nothing more is read of who says such a thing."""
    try:
        return line.startswith(b"{") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


@given(junk=st.binary(max_size=200))
def test_no_bytes_can_trouble_the_master(junk: bytes) -> None:
    messages, _text = received([junk, b"\n" + json.dumps(READY).encode() + b"\n"])
    assert messages == ([] if any(map(is_object, junk.split(b"\n"))) else [READY])


def test_reading_never_blocks(pipe: Pipe) -> None:
    assert pipe.read() == []
    assert not pipe.receiver.closed


def test_the_workers_end_is_seen_once_and_stays(pipe: Pipe) -> None:
    failed = {"kind": "failed", "code": 4, "message": "no", "detail": ""}
    send(pipe, failed)
    pipe.end()
    assert pipe.read() == [failed]
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
    send(pipe, {**STACKS, "text": "x" * 30_000})
    drain(pipe.receiver.fd, size)
    assert pipe.read() == []  # dropped
    send(pipe, READY)
    assert pipe.read() == [READY]


def test_a_message_that_fits_only_in_part_does_not_spoil_the_next(pipe: Pipe) -> None:
    size = fill(pipe.write_end, leave=8192)
    drain(pipe.receiver.fd, 8192)
    send(pipe, {**STACKS, "text": "x" * 30_000})  # 8192 bytes of it fit
    drain(pipe.receiver.fd, size - 8192)
    assert pipe.read() == []
    send(pipe, READY)
    assert pipe.read() == [READY]


def test_a_dead_master_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    sender = Sender(write_end)
    sender.send(Kind.READY, app_kind="stream", engine="blocking")
    os.close(write_end)


def test_an_endless_line_is_bounded(pipe: Pipe) -> None:
    os.write(pipe.write_end, b"{")
    for _ in range(40):
        os.write(pipe.write_end, b"." * 65536)
        assert pipe.read() == []
    assert pipe.read() == []
    os.write(pipe.write_end, b"\n")
    assert pipe.read() == []
    assert len(pipe.receiver.text) <= 1 << 18
    send(pipe, READY)
    assert pipe.read() == [READY]


# --- what is no message costs the one that sent it


SLOW = {"kind": "slow", "serving": "", "elapsed_s": 1.0, "stack": "", "also": 0}
LIES = [
    ({}, "it has no kind"),
    ({"kind": 7}, "it has no kind"),
    ({"kind": "slowly"}, "its kind is 'slowly'"),
    ({"kind": "prepared"}, "its kind is 'prepared'"),
    ({"kind": "slow"}, "slow without serving"),
    ({**SLOW, "also": "z"}, "also of slow is no number"),
    ({**SLOW, "also": True}, "also of slow is no number"),
    ({**SLOW, "also": -1}, "also of slow is not from 0 to 1000000000"),
    ({**SLOW, "also": 10**300}, "also of slow is not from 0 to 1000000000"),
    ({**SLOW, "elapsed_s": float("nan")}, "elapsed_s of slow is no number"),
    ({**SLOW, "elapsed_s": float("inf")}, "elapsed_s of slow is no number"),
    ({**SLOW, "elapsed_s": 1e300}, "elapsed_s of slow is not from 0 to 1000000000"),
    ({**SLOW, "serving": "x" * 1000}, "serving of slow is longer than 768 characters"),
    ({"kind": "enough"}, "enough without reason"),
    ({"kind": "enough", "reason": "of it all"}, "reason of enough is none of SIGTERM, max-requests"),
    ({"kind": "ready", "app_kind": [], "engine": ""}, "app_kind of ready is no text"),
    ({"kind": "failed", "code": 4, "message": None, "detail": ""}, "message of failed is no text"),
    ({"kind": "failed", "code": 4, "message": "", "detail": "x" * 65_000}, "detail of failed is longer than"),
]


@pytest.mark.parametrize(("lie", "fault"), LIES, ids=[fault for _, fault in LIES])
def test_a_message_that_is_none_is_a_fault(pipe: Pipe, lie: dict[str, object], fault: str) -> None:
    send(pipe, READY)
    os.write(pipe.write_end, json.dumps(lie).encode() + b"\n")
    send(pipe, READY)
    messages = pipe.read()
    while not pipe.receiver.closed:
        messages += pipe.read()
    assert messages == [READY], "nothing after the lie is heard"
    assert pipe.receiver.fault.startswith(fault)


def test_a_message_that_is_too_deep_is_a_fault(pipe: Pipe) -> None:
    os.write(pipe.write_end, b'{"kind":' + b"[" * 50_000 + b"\n")
    assert pipe.read() == []
    assert pipe.receiver.fault


@pytest.mark.parametrize("line", [b"x\n", b"\n", b"x" * 9999 + b"\n", json.dumps(READY).encode() + b"\n"])
def test_a_flood_is_read_in_parts_and_is_a_fault(pipe: Pipe, line: bytes) -> None:
    """A second of it, at the pace at which the master reads; a turn takes milliseconds."""
    piece = line * (READ_MOST // len(line))
    turns, longest_s = 0, 0.0
    while not pipe.receiver.fault and turns < 1000:
        os.write(pipe.write_end, piece)
        began_s = time.process_time()
        pipe.read()
        longest_s = max(longest_s, time.process_time() - began_s)
        turns += 1
    assert re.fullmatch("more than (4 MB|1000 messages|100000 lines) in a second", pipe.receiver.fault)
    assert longest_s < 0.5


def test_only_so_many_messages_may_be_written_in_part(pipe: Pipe) -> None:
    for _ in range(3):
        os.write(pipe.write_end, b'{"kind": "re\n' * 100 + json.dumps(READY).encode() + b"\n")
        assert pipe.read() == [READY]
    os.write(pipe.write_end, b"{\n" * 101)
    assert pipe.read() == []
    assert pipe.receiver.fault == "more than 100 of which a part is missing"


def test_control_characters_are_escaped_and_lines_stay_lines(pipe: Pipe) -> None:
    send(pipe, {**STACKS, "text": "a\x1b[2J\n  b\r\ud800", "current": "c\nd"})
    (message,) = pipe.read()
    assert (message["text"], message["current"]) == ("a\\x1b[2J\n  b\\r\\ud800", "c\\nd")
    os.write(pipe.write_end, b"\x1b]0;title\x07\n")
    assert pipe.read() == []
    assert pipe.receiver.text == "\\x1b]0;title\\x07\n"


def test_what_is_too_long_is_cut_by_an_honest_sender(pipe: Pipe) -> None:
    send(pipe, {"kind": "failed", "code": 3, "message": "m" * 9000, "detail": "d"})
    assert [len(str(message["message"])) for message in pipe.read()] == [8000]


def test_each_process_has_its_own_kinds() -> None:
    read_end, write_end = os.pipe()
    receiver = Receiver(read_end, OF_TEMPLATE)
    os.write(write_end, b'{"kind": "prepared", "generation": 1}\n' + json.dumps(READY).encode() + b"\n")
    assert list(receiver.read()) == [{"kind": "prepared"}]
    assert receiver.fault == "its kind is 'ready'"
    os.close(write_end)
    receiver.close()
