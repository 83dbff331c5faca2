"""Whatever an application answers in good faith, two independent clients read the same out of it."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h11
from hypothesis import given
from hypothesis import strategies as st

from tests.http.calls import Answer, Stream, compose, run

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "trailers",
    "transfer-encoding", "upgrade", "content-length", "date", "server",
}  # fmt: skip
TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
TEXT = [*(chr(code) for code in range(0x21, 0x7F)), *(chr(code) for code in range(0xA1, 0x100))]
NAMES = st.text(TOKEN, min_size=1, max_size=12).filter(lambda name: name.lower() not in OWN)
WORDS = st.lists(st.text(TEXT, min_size=1, max_size=8), max_size=4)
VALUES = WORDS.map(" ".join)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
STATUSES = st.tuples(st.integers(200, 599), VALUES)
CHUNKS = st.lists(
    st.one_of(st.binary(max_size=20), st.sampled_from([b"x" * 70_000, b"\r\n\r\n", b"0\r\n\r\n"])), max_size=5
)


class Iterable:
    """Nothing but an iterable."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.chunks)


SHAPES = {"list": list, "tuple": tuple, "iterator": iter, "iterable": Iterable, "generator": lambda c: (b for b in c)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A request, and what the application answers it."""

    method: str
    minor: int
    persistent: bool
    status: tuple[int, str]
    headers: list[tuple[str, str]]
    chunks: list[bytes]
    shape: str
    written: int  # how many of the chunks go through write()
    sized: bool

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def bodiless(self) -> bool:
        return self.method == "HEAD" or self.status[0] in (204, 205, 304)

    def app(self, _environ: Any, start_response: Any) -> Any:
        length = [("Content-Length", str(len(self.body)))] if self.sized else []
        code, phrase = self.status
        write = start_response(f"{code} {phrase}", self.headers + length)
        for chunk in self.chunks[: self.written]:
            write(chunk)
        return SHAPES[self.shape](self.chunks[self.written :])

    def answer(self) -> Answer:
        field = "Connection: " + ("keep-alive" if self.persistent else "close")
        return run(self.app, compose(self.method, "/", field, minor=self.minor))


CASES = st.builds(
    Case,
    method=st.sampled_from(["GET", "HEAD", "POST", "DELETE"]),
    minor=st.sampled_from([1, 1, 0]),
    persistent=st.booleans(),
    status=st.one_of(STATUSES, st.tuples(st.sampled_from([200, 204, 205, 304]), st.just("OK"))),
    headers=HEADERS,
    chunks=CHUNKS,
    shape=st.sampled_from(sorted(SHAPES)),
    written=st.sampled_from([0, 0, 0, 1, 2]),
    sized=st.booleans(),
)


@given(CASES)
def test_h11_reads_what_the_application_meant(case: Case) -> None:
    answer = case.answer()
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    client.send(h11.Request(method=case.method, target="/", headers=[("Host", "example.org")]))
    client.send(h11.EndOfMessage())
    client.receive_data(answer.raw)
    if not answer.call.keep_alive:
        client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response), response
    body = bytearray()
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage), event
    assert bytes(body) == (b"" if case.bodiless else case.body)
    assert (response.status_code, response.reason) == (case.status[0], case.status[1].encode("latin1"))
    own = [b"date", b"server", b"content-length", b"transfer-encoding", b"connection"]
    given = [(name.lower().encode(), value.encode("latin1")) for name, value in case.headers]
    assert [(name, value) for name, value in response.headers if name not in own] == given
    # The connection is in step: free for the next request exactly if the server says so.
    assert client.trailing_data[0] == b""
    assert client.their_state is (h11.DONE if answer.call.keep_alive else h11.CLOSED) or (
        not answer.call.keep_alive and client.their_state is h11.MUST_CLOSE
    )


@given(CASES)
def test_the_standard_library_reads_what_the_application_meant(case: Case) -> None:
    answer = case.answer()
    following = b"HTTP/1.1 299 Next\r\n\r\n" if answer.call.keep_alive else b""
    response = http.client.HTTPResponse(Stream(answer.raw + following), method=case.method)  # type: ignore[arg-type]
    response.begin()
    assert response.status == case.status[0]
    assert response.read() == (b"" if case.bodiless else case.body)
    if not case.minor:
        assert not response.chunked
        assert answer.call.keep_alive == (answer.fields("Connection") == ["keep-alive"])
    else:
        assert response.will_close != answer.call.keep_alive


@given(CASES)
def test_the_server_keeps_the_connection_whenever_it_can(case: Case) -> None:
    answer = case.answer()
    assert answer.call.error is None
    assert answer.call.sent == (0 if case.bodiless else len(case.body))
    delimited = case.bodiless or case.minor == 1 or bool(answer.fields("Content-Length"))
    assert answer.call.keep_alive == (case.persistent and delimited)
    assert not (answer.fields("Content-Length") and answer.fields("Transfer-Encoding"))
    assert len(answer.fields("Date")) == len(answer.fields("Server")) == 1
