"""Well-behaved applications, and each rule of PEP 3333 about start_response, write, iteration and close."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest

from prefork.http.body import FileWrapper
from prefork.http.response import ResponseError
from prefork.http.wsgi import MOST_COPIED
from tests.http.calls import STAMP, Written, begin, compose, run

PLAIN = [("Content-Type", "text/plain")]


class Chunks:
    """An iterable that notes when it was closed, and after how many chunks."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.taken = 0
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            self.taken += 1
            yield chunk

    def close(self) -> None:
        self.closed += 1


def answering(result: Any, *headers: tuple[str, str], status: str = "200 OK") -> Callable[..., Any]:
    def app(_environ: Any, start_response: Any) -> Any:
        start_response(status, [*PLAIN, *headers])
        return result

    return app


def written(
    *data: bytes, result: Iterable[bytes] = (), headers: tuple[tuple[str, str], ...] = ()
) -> Callable[..., Any]:
    def app(_environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", [*PLAIN, *headers])
        for block in data:
            write(block)
        return result

    return app


# --- framing


def test_a_list_of_one_is_one_piece() -> None:
    answer = run(answering([b"hello"], ("Content-Length", "5")))
    assert answer.steps == [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n" + STAMP + b"hello",
    ]
    assert (answer.call.status, answer.call.sent, answer.call.keep_alive, answer.call.error) == (200, 5, True, None)


@pytest.mark.parametrize("result", [[b"hello"], (b"hello",), [b"he", b"", b"llo"], (b"hel", b"lo")])
@pytest.mark.parametrize("minor", [0, 1])
def test_the_length_of_a_list_is_found_out(result: Any, minor: int) -> None:
    answer = run(answering(result), compose(minor=minor))
    assert answer.fields("Content-Length") == ["5"]
    assert not answer.fields("Transfer-Encoding")
    assert answer.body == b"hello"


@pytest.mark.parametrize("result", [[], (), [b""], [b"", b""], iter(()), Chunks(), Chunks(b"", b"")])
def test_an_empty_body_has_length_0(result: Any) -> None:
    answer = run(answering(result))
    assert answer.fields("Content-Length") == ["0"]
    assert answer.payload == b""
    assert answer.call.keep_alive


def test_an_iterable_is_chunked_for_http_1_1() -> None:
    answer = run(answering(Chunks(b"hel", b"", b"lo")))
    assert answer.fields("Transfer-Encoding") == ["chunked"]
    assert answer.payload == b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    assert answer.body == b"hello"
    assert answer.call.keep_alive


def test_an_iterable_ends_with_the_connection_for_http_1_0() -> None:
    answer = run(answering(Chunks(b"hel", b"lo")), compose("GET", "/", "Connection: keep-alive", minor=0))
    assert not answer.fields("Transfer-Encoding")
    assert answer.fields("Connection") == ["close"]
    assert answer.payload == b"hello"
    assert not answer.call.keep_alive
    assert not answer.call.framed


def test_an_iterable_with_a_length_is_not_chunked() -> None:
    answer = run(answering(Chunks(b"hel", b"lo"), ("Content-Length", "5")))
    assert not answer.fields("Transfer-Encoding")
    assert answer.payload == b"hello"


@pytest.mark.parametrize(
    ("fields", "minor", "allowed", "said", "kept"),
    [
        ((), 1, True, [], True),
        ((), 1, False, ["close"], False),
        (("Connection: close",), 1, True, ["close"], False),
        ((), 0, True, ["close"], False),
        (("Connection: keep-alive",), 0, True, ["keep-alive"], True),
        (("Connection: keep-alive",), 0, False, ["close"], False),
    ],
)
def test_whether_the_connection_stays(
    fields: tuple[str, ...], minor: int, allowed: bool, said: list[str], kept: bool
) -> None:
    length = ("Content-Length", "1")
    for app in (answering([b"x"]), answering([b"x"], length), answering(Chunks(b"x"), length)):
        answer = run(app, compose("GET", "/", *fields, minor=minor), keep_alive=allowed)
        assert (answer.fields("Connection"), answer.call.keep_alive) == (said, kept)


@pytest.mark.parametrize("make", [lambda: [b"hello"], lambda: Chunks(b"hel", b"lo"), list])
@pytest.mark.parametrize("length", [None, "5"])
@pytest.mark.parametrize("minor", [0, 1])
def test_head_gets_no_body(make: Callable[[], Any], length: str | None, minor: int) -> None:
    result = make()
    headers = [("Content-Length", length)] if length else []
    answer = run(answering(result, *headers), compose("HEAD", minor=minor))
    assert answer.payload == b""
    assert answer.call.sent == 0
    assert answer.call.keep_alive == bool(minor)
    assert answer.fields("Content-Length") == (["5"] if length or result == [b"hello"] else [])
    assert not isinstance(result, Chunks) or result.closed == 1


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "205 Reset Content"])
@pytest.mark.parametrize("make", [lambda: [b"hello"], lambda: Chunks(b"hel", b"lo"), list])
def test_statuses_without_a_body(status: str, make: Callable[[], Any]) -> None:
    for headers in ((), (("Content-Length", "5"),)):
        answer = run(answering(make(), *headers, status=status))
        assert answer.payload == b""
        assert not answer.fields("Transfer-Encoding")
        lengths = {"204": [], "205": ["0"], "304": ["5"] if headers else []}
        assert answer.fields("Content-Length") == lengths[status[:3]]
        assert (answer.call.keep_alive, answer.call.error) == (True, None)


def test_date_and_server_are_there_once() -> None:
    for headers, date, server in [
        ((), "Tue, 14 Nov 2023 22:13:20 GMT", "prefork"),
        ((("date", "then"),), "then", "prefork"),
        ((("SERVER", "mine"),), "Tue, 14 Nov 2023 22:13:20 GMT", "mine"),
        ((("Server", "mine"), ("Date", "then")), "then", "mine"),
    ]:
        answer = run(answering([b"x"], *headers))
        assert (answer.fields("Date"), answer.fields("Server")) == ([date], [server])
        assert answer.body == b"x"


def test_the_server_frames_whatever_the_application_says_of_it() -> None:
    for headers in ((("Transfer-Encoding", "chunked"),), (("transfer-encoding", "gzip, chunked"),)):
        answer = run(answering(Chunks(b"hel", b"lo"), *headers))
        assert answer.fields("Transfer-Encoding") == ["chunked"]
        assert (answer.body, answer.call.keep_alive, answer.call.error) == (b"hello", True, None)
        answer = run(answering([b"hello"], *headers))
        assert (answer.fields("Transfer-Encoding"), answer.fields("Content-Length")) == ([], ["5"])
        assert (answer.body, answer.call.keep_alive, answer.call.error) == (b"hello", True, None)


def test_426_says_what_to_upgrade_to() -> None:
    answer = run(answering([b"x"], ("Upgrade", "foo/1"), ("Connection", "Upgrade"), status="426 Upgrade Required"))
    assert (answer.fields("Upgrade"), answer.fields("Connection")) == (["foo/1"], ["Upgrade"])
    assert (answer.body, answer.call.keep_alive, answer.call.error) == (b"x", True, None)


# --- order and delay


def test_each_chunk_is_on_its_way_before_the_next_is_asked_for() -> None:
    chunks = Chunks(b"one", b"two")
    call = begin(answering(chunks))
    assert b"one" in call.step()  # type: ignore[operator]
    assert chunks.taken == 1
    assert call.step() == b"3\r\ntwo\r\n"
    assert (chunks.taken, call.done, chunks.closed) == (2, False, 0)
    assert call.step() == b"0\r\n\r\n"
    assert (call.done, chunks.closed) == (True, 1)


def test_the_code_behind_the_last_chunk_runs_once_that_is_on_its_way() -> None:
    ran = []

    def app(_environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        yield b"hello"
        ran.append("behind")

    call = begin(app)
    assert not call.complete
    assert call.step().endswith(b"\r\n\r\nhello")  # type: ignore[union-attr]
    assert (call.complete, call.done, ran) == (True, False, [])
    assert call.step() == b""
    assert (ran, call.done, call.error) == (["behind"], True, None)


def test_the_head_waits_for_the_first_bytes() -> None:
    """Up to there an application may change its mind."""

    def app(_environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b""
        try:
            raise ValueError("too late for 200")
        except ValueError:
            start_response("503 Service Unavailable", [("Retry-After", "1")], sys.exc_info())
        yield b"sorry"

    answer = run(app)
    response, body = answer.read()
    assert (response.status, response.reason, body) == (503, "Service Unavailable", b"sorry")
    assert not answer.fields("Content-Type")
    assert answer.call.error is None


def test_start_response_may_wait_for_the_first_chunk() -> None:
    def app(_environ: Any, start_response: Any) -> Iterator[bytes]:
        yield b""
        start_response("200 OK", PLAIN)
        yield b"late"

    assert run(app).body == b"late"


def test_headers_that_change_later_do_not_matter() -> None:
    headers = [("A", "b")]

    def app(_environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", headers)
        headers[0] = ("Transfer-Encoding", "chunked")
        return [b"x"]

    answer = run(app)
    assert answer.fields("A") == ["b"]
    assert not answer.fields("Transfer-Encoding")


def test_a_large_list_leaves_in_blocks() -> None:
    result = [b"%07d\n" % number for number in range(50_000)]
    answer = run(answering(result))
    assert answer.fields("Content-Length") == ["400000"]
    assert 3 < len(answer.steps) < 12
    assert answer.body == b"".join(result)


def test_a_large_chunk_is_not_copied() -> None:
    large = bytes(MOST_COPIED + 1)
    for result in ([large], Chunks(large)):
        call = begin(answering(result, ("Content-Length", str(len(large)))))
        assert call.step().endswith(b"\r\n\r\n")  # type: ignore[union-attr]
        assert not call.complete
        assert call.step() is large
        assert call.complete
        assert call.step() == b""
        assert (call.done, call.sent, call.keep_alive) == (True, len(large), True)


def test_anything_that_can_be_iterated_over_is_an_iterable() -> None:
    class Indexed:
        def __getitem__(self, index: int) -> bytes:
            return [b"a", b"b"][index]

    for result in (Indexed(), {b"a": 1, b"b": 2}, iter([b"a", b"b"]), map(bytes, [b"a", b"b"])):
        assert run(answering(result)).body == b"ab"


# --- write()


def test_what_is_written_is_sent_before_the_application_goes_on() -> None:
    seen = []

    def app(_environ: Any, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", PLAIN)
        for block in (b"one ", b"", b"two "):
            write(block)
            seen.append(b"".join(call.client.sent).partition(b"\r\n\r\n")[2])  # type: ignore[attr-defined]
        return [b"three"]

    call = begin(app)
    call.client = Written()
    end = call.step()
    assert seen == [b"4\r\none \r\n", b"4\r\none \r\n", b"4\r\none \r\n4\r\ntwo \r\n"]
    assert end == b"5\r\nthree\r\n0\r\n\r\n"
    assert call.done


def test_what_is_written_goes_before_what_is_returned() -> None:
    for data in (compose(), compose(minor=0)):
        answer = run(written(b"one ", b"", b"two ", result=Chunks(b"three ", b"four")), data)
        assert answer.body == b"one two three four"
    answer = run(written(b"one ", result=[b"two"], headers=(("Content-Length", "7"),)))
    assert answer.body == b"one two"
    assert answer.call.keep_alive


@pytest.mark.parametrize("first", [b"", b"x"])
def test_the_first_write_sends_the_head(first: bytes) -> None:
    answer = run(written(first, result=()))
    assert answer.steps[0].startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.body == first


def test_written_for_head_only_the_head_is_sent() -> None:
    for headers in ((), (("Content-Length", "7"),)):
        answer = run(written(b"one ", b"two", headers=headers), compose("HEAD"))
        assert answer.payload == b""
        assert answer.call.error is None
        assert answer.call.keep_alive


def test_written_from_within_an_iterable_it_keeps_its_place() -> None:
    def app(_environ: Any, start_response: Any) -> Iterator[bytes]:
        write = start_response("200 OK", PLAIN)
        yield b"one "
        write(b"two ")
        yield b"three"

    answer = run(app)
    assert answer.body == b"one two three"
    assert answer.call.error is None


def test_a_file_behind_what_was_written() -> None:
    for data, headers in ((compose(), ()), (compose(), (("Content-Length", "1004"),)), (compose(minor=0), ())):
        with tempfile.TemporaryFile() as file:
            file.write(b"f" * 1000)
            file.seek(0)
            answer = run(written(b"one ", result=FileWrapper(file), headers=headers), data)
        assert answer.body == b"one " + b"f" * 1000
        assert answer.call.error is None


def test_a_client_that_left_is_an_error_for_the_application_and_no_fault_of_it() -> None:
    def app(_environ: Any, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", PLAIN)
        write(b"begun")
        client.left = True
        while True:
            write(b"more")

    call = begin(app)
    client = call.client = Written()
    call.step()
    assert call.done
    assert call.gone
    assert call.error is None


def test_nothing_can_be_written_behind_the_end() -> None:
    kept = []

    def app(_environ: Any, start_response: Any) -> Iterable[bytes]:
        kept.append(start_response("200 OK", PLAIN))
        return [b"all"]

    run(app)
    with pytest.raises(ResponseError, match="after the response was complete"):
        kept[0](b"more")


def test_empty_output_gives_back_control() -> None:
    steps = []
    call = begin(answering(iter([b"", b"", b"x", b"", b"y"])))
    while not call.done:
        steps.append(call.step())
    assert steps[0] == steps[1] == steps[3] == b""
    assert steps[2].endswith(b"1\r\nx\r\n")


def test_an_empty_list_takes_one_step() -> None:
    for result in ([], [b""], [b"", b""], (), (b"",)):
        call = begin(answering(result))
        assert b"Content-Length: 0" in call.step()
        assert call.done


def test_written_after_a_head_nothing_replaces_it() -> None:
    def app(_environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)(b"begun")
        try:
            raise ValueError("mine")
        except ValueError:
            start_response("500 Oh", PLAIN, sys.exc_info())
        return []

    call = run(app).call
    assert isinstance(call.error, ValueError)
    assert str(call.error) == "mine"


# --- start_response


def test_exc_info_after_the_head_raises_it_again() -> None:
    def app(_environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"begun"
        try:
            raise KeyError("mine")
        except KeyError:
            start_response("500 Oh", PLAIN, sys.exc_info())
        yield b"never"

    answer = run(app)
    assert answer.payload == b"5\r\nbegun\r\n"
    assert answer.call.aborted
    assert isinstance(answer.call.error, KeyError)


def test_exc_info_with_the_first_call_is_no_fault() -> None:
    def app(_environ: Any, start_response: Any) -> Iterable[bytes]:
        try:
            raise ValueError
        except ValueError:
            start_response(status="400 Bad Request", headers=PLAIN, exc_info=sys.exc_info())
        return [b"no"]

    assert run(app).read()[0].status == 400


def test_an_error_page_may_follow_a_head_that_was_refused() -> None:
    def app(_environ: Any, start_response: Any) -> Iterable[bytes]:
        try:
            start_response("200 OK", [("A", "b\r\nC: d")])
        except Exception:  # noqa: BLE001 - as a framework does
            start_response("500 Oh", PLAIN, sys.exc_info())
        return [b"page"]

    answer = run(app)
    assert (answer.read()[0].status, answer.body, answer.call.error) == (500, b"page", None)


# --- the whole of PEP 3333, as its own checker sees it


def reads(environ: Any, start_response: Any) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(3) + environ["wsgi.input"].readline() + b"".join(environ["wsgi.input"])
    environ["wsgi.errors"].write("read\n")
    environ["wsgi.errors"].writelines(["and ", "said\n"])
    environ["wsgi.errors"].flush()
    start_response("200 OK", PLAIN)
    return [body]


def wraps(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [*PLAIN, ("Content-Length", "5")])
    return [b"hello"]


def streams(environ: Any, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", PLAIN)
    yield b"hel"
    yield b"lo"


def recovers(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", PLAIN)
    try:
        raise ValueError
    except ValueError:
        start_response("500 Oh", PLAIN, sys.exc_info())
    return [b"sorry"]


@pytest.mark.parametrize("app", [reads, wraps, streams, recovers, written(b"a", result=[b"b"]), answering([b"x"])])
@pytest.mark.parametrize(
    "data",
    [
        compose(),
        compose("HEAD"),
        compose(minor=0),
        compose("GET", "/a%20b?c=d", "Cookie: a=b", "Accept: text/html", "Proxy: x"),
        compose("POST", "/", "Content-Type: text/plain", body=b"one\ntwo\nthree"),
        compose("POST", "/", "Transfer-Encoding: chunked", body=b"5\r\none\nt\r\n2\r\nwo\r\n0\r\n\r\n"),
        compose("OPTIONS", "*"),
    ],
)
def test_the_validator_finds_nothing(app: Callable[..., Any], data: bytes) -> None:
    answer = run(validator(app), data)
    assert answer.call.error is None
    assert "AssertionError" not in answer.errors
    assert "garbage" not in answer.errors
    answer.read()


# --- close()


@pytest.mark.parametrize("stop_after", range(5))
def test_close_is_called_once_wherever_the_client_leaves(stop_after: int) -> None:
    chunks = Chunks(b"one", b"two")
    call = begin(answering(chunks), compose("POST", body=bytes(100_000)))
    for _ in range(stop_after):
        call.step()
    call.close()
    call.close()
    assert chunks.closed == min(stop_after, 1)
    assert (call.done, call.step()) == (True, b"")
    assert call._body is not None
    assert call._body._file is not None
    assert call._body._file.closed


@pytest.mark.parametrize("result", [[b"x"], (b"x",), Chunks(b"x")])
def test_the_body_of_the_request_is_let_go_of(result: Any) -> None:
    body = run(answering(result), compose("POST", body=bytes(100_000))).call._body
    assert body is not None
    assert body._file is not None
    assert body._file.closed


def test_a_generator_that_is_left_early_cleans_up() -> None:
    cleaned = []

    def app(_environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        try:
            while True:
                yield b"on and on"
        finally:
            cleaned.append(True)

    call = begin(app)
    call.step()
    call.step()
    call.close()
    assert cleaned == [True]
    assert call.error is None


def test_a_request_that_was_left_before_its_call_is_never_made() -> None:
    called = []
    call = begin(lambda _environ, _start: called.append(True))
    call.close()
    assert call.step() == b""
    assert not called
