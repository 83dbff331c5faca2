"""`wsgi.file_wrapper`: what goes by sendfile, what must not, and from where to where."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.http.body import FilePart, FileWrapper
from tests.http.calls import begin, compose, run

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = bytes(range(256)) * 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    return path


def sending(
    make: Callable[[], Any], *headers: tuple[str, str], status: str = "200 OK", block: int | None = None
) -> Any:
    def app(environ: Any, start_response: Any) -> Any:
        start_response(status, list(headers))
        wrap = environ["wsgi.file_wrapper"]
        return wrap(make()) if block is None else wrap(make(), block)

    return app


def reading(path: Path, offset: int = 0, buffering: int = -1) -> Callable[[], Any]:
    def make() -> Any:
        file = path.open("rb", buffering=buffering)
        file.read(offset)
        return file

    return make


@pytest.mark.parametrize("buffering", [-1, 0])
@pytest.mark.parametrize("offset", [0, 1, 70_000, len(DATA) - 1])
def test_a_plain_file_goes_by_itself_from_where_it_stands(path: Path, buffering: int, offset: int) -> None:
    call = begin(sending(reading(path, offset, buffering)))
    head, part = call.step(), call.step()
    assert isinstance(head, bytes)
    assert head.endswith(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % (len(DATA) - offset) in head
    assert isinstance(part, FilePart)
    assert (part.offset, part.count) == (offset, len(DATA) - offset)
    assert (call.done, part.file.closed) == (False, False)
    assert call.step() == b""
    assert (call.done, part.file.closed, call.sent, call.keep_alive) == (True, True, len(DATA) - offset, True)


@pytest.mark.parametrize("data", [compose(), compose(minor=0), compose("GET", "/", "Connection: close")])
@pytest.mark.parametrize("sendfile", [True, False])
def test_the_client_gets_the_same_bytes_either_way(path: Path, data: bytes, sendfile: bool) -> None:
    answer = run(sending(reading(path, 5)), data, sendfile=sendfile)
    assert answer.body == DATA[5:]
    assert answer.call.error is None


def test_no_more_than_the_content_length(path: Path) -> None:
    answer = run(sending(reading(path, 10), ("Content-Length", "1000")))
    assert answer.payload == DATA[10:1010]
    assert answer.fields("Connection") == ["close"]
    assert "was cut" in str(answer.call.error)


def test_a_range_is_sent_by_a_file_that_ends_there(path: Path) -> None:
    """What Flask and others do for 206: a file that knows its end."""

    class Range:
        def __init__(self) -> None:
            self.left = 1000
            self.file = path.open("rb")

        def read(self, size: int) -> bytes:
            data = self.file.read(min(size, self.left))
            self.left -= len(data)
            return data

        def close(self) -> None:
            self.file.close()

    made: list[Range] = []

    def make() -> Range:
        made.append(Range())
        return made[0]

    answer = run(sending(make, ("Content-Length", "1000"), status="206 Partial Content"))
    assert answer.body == DATA[:1000]
    assert answer.call.error is None
    assert made[0].file.closed


def test_a_file_that_is_shorter_than_promised(path: Path) -> None:
    answer = run(sending(reading(path), ("Content-Length", str(len(DATA) + 1))))
    assert "only 256000 bytes" in str(answer.call.error)
    assert answer.fields("Connection") == ["close"]
    assert len(answer.payload) == len(DATA)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_where_no_body_is_sent_no_file_is(path: Path, method: str) -> None:
    made = []

    def make() -> Any:
        made.append(path.open("rb"))
        return made[0]

    status = "200 OK" if method == "HEAD" else "304 Not Modified"
    answer = run(sending(make, status=status), compose(method))
    assert len(answer.steps) == 1
    assert answer.payload == b""
    assert answer.fields("Content-Length") == ([str(len(DATA))] if method == "HEAD" else [])
    assert made[0].closed


@pytest.mark.parametrize("offset", [len(DATA), len(DATA) + 5])
def test_at_the_end_of_a_file_there_is_nothing_to_send(path: Path, offset: int) -> None:
    def make() -> Any:
        file = path.open("rb")
        file.seek(offset)
        return file

    answer = run(sending(make))
    assert (answer.payload, answer.fields("Content-Length")) == (b"", ["0"])


def odd_files(path: Path) -> dict[str, Callable[[], Any]]:
    """Files with a descriptor whose bytes are not the ones to send, or that has none."""
    packed = path.with_suffix(".gz")
    packed.write_bytes(gzip.compress(DATA))

    def pipe() -> Any:
        reader, writer = os.pipe()
        os.write(writer, DATA[:4096])
        os.close(writer)
        return os.fdopen(reader, "rb")

    class Raw(io.RawIOBase):
        """A decompressing reader that shows the descriptor of what it reads from."""

        def __init__(self) -> None:
            self.inner = gzip.open(packed)  # noqa: SIM115 - closed by close()

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            data = self.inner.read(len(buffer))
            buffer[: len(data)] = data
            return len(data)

        def fileno(self) -> int:
            return self.inner.fileno()

        def close(self) -> None:
            self.inner.close()
            super().close()

    class Plain:
        """The least that is a file."""

        def __init__(self) -> None:
            self.file = io.BytesIO(DATA)

        def read(self, size: int) -> bytes:
            return self.file.read(size)

    return {
        "in memory": lambda: io.BytesIO(DATA),
        "compressed": lambda: gzip.open(packed),
        "buffered over compressed": lambda: io.BufferedReader(Raw()),
        "read and write": lambda: path.open("r+b"),
        "pipe": pipe,
        "no close": Plain,
        "proc": lambda: Path("/proc/self/stat").open("rb"),
    }


@pytest.mark.parametrize(
    "name", ["in memory", "compressed", "buffered over compressed", "read and write", "pipe", "no close", "proc"]
)
def test_everything_else_is_read(path: Path, name: str) -> None:
    make = odd_files(path)[name]
    call = begin(sending(make))
    while not call.done:
        assert isinstance(call.step(), bytes)
    assert call.error is None
    body = run(sending(make)).body
    if name == "proc":
        assert body.startswith(b"%d " % os.getpid())
    else:
        assert body == (DATA[:4096] if name == "pipe" else DATA)


def test_the_block_size_is_the_applications_choice(path: Path) -> None:
    answer = run(sending(reading(path), block=1000), sendfile=False)
    assert len(answer.steps) == 257
    assert answer.body == DATA


def test_the_wrapper_has_a_close_only_if_the_file_has_one() -> None:
    class Plain:
        def read(self, _size: int) -> bytes:
            return b""

    assert not hasattr(FileWrapper(Plain()), "close")
    file = io.BytesIO()
    FileWrapper(file).close()
    assert file.closed


def test_middleware_may_put_something_around_it(path: Path) -> None:
    inner = sending(reading(path))

    def app(environ: Any, start_response: Any) -> Any:
        with contextlib.closing(inner(environ, start_response)) as blocks:
            for block in blocks:
                yield block.replace(b"\0", b"\1")

    assert run(app).body == DATA.replace(b"\0", b"\1")


def test_a_file_that_cannot_be_read_is_an_error_in_time(path: Path) -> None:
    answer = run(sending(lambda: path.open("ab", buffering=0)))
    assert answer.call.status == 500
    assert isinstance(answer.call.error, io.UnsupportedOperation)


@pytest.mark.parametrize("sendfile", [True, False])
def test_a_file_that_is_closed_already_is_an_error_in_time(path: Path, sendfile: bool) -> None:
    def make() -> Any:
        file = path.open("rb")
        file.close()
        return file

    answer = run(sending(make), sendfile=sendfile)
    assert answer.call.status == 500
    assert isinstance(answer.call.error, ValueError)
