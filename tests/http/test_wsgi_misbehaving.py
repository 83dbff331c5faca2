"""Applications that break the rules: what the log is told, and what the client can rely on all the same."""

from __future__ import annotations

import contextlib
import http.client
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from prefork.http.response import ResponseError
from tests.http.calls import begin, compose, run

PLAIN = [("Content-Type", "text/plain")]
App = Callable[[Any, Any], Any]


def starting(result: Any = (), status: Any = "200 OK", headers: Any = PLAIN, times: int = 1) -> App:
    def app(_environ: Any, start_response: Any) -> Any:
        for _ in range(times):
            start_response(status, headers)
        return result

    return app


def writing(*data: Any, headers: Any = PLAIN) -> App:
    def app(_environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", headers)
        for block in data:
            write(block)
        return []

    return app


def raising(error: BaseException, *, started: bool) -> App:
    def app(_environ: Any, start_response: Any) -> Any:
        if started:
            start_response("200 OK", PLAIN)
        raise error

    return app


def generating(*chunks: Any, error: BaseException | None = None, headers: Any = PLAIN) -> App:
    def app(_environ: Any, start_response: Any) -> Iterator[Any]:
        start_response("200 OK", headers)
        yield from chunks
        if error is not None:
            raise error

    return app


def swallowing(_environ: Any, start_response: Any) -> Iterable[bytes]:
    try:
        start_response("200 OK", [("A\r\n", "b")])
    except ResponseError:
        pass
    return [b"as if nothing had happened"]


def changing_its_mind_badly(_environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", PLAIN)
    try:
        {}["missing"]
    except KeyError:
        try:
            start_response("500 Oh\r\n", PLAIN, sys.exc_info())
        except ResponseError:
            pass
    return [b"as if nothing had happened"]


def changing_a_sized_head_badly(_environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    try:
        {}["missing"]
    except KeyError:
        with contextlib.suppress(ResponseError):
            start_response("500 Oh\r\n", PLAIN, sys.exc_info())
    return [b"hello"]


class Iterables:
    """Iterables with a fault of their own."""

    class NoIterator:
        def __iter__(self) -> Any:
            return 5

    class Broken:
        def __iter__(self) -> Any:
            raise ZeroDivisionError("iter")

    class BrokenNext:
        def __iter__(self) -> Any:
            return self

        def __next__(self) -> bytes:
            raise ZeroDivisionError("next")


async def asynchronous(_environ: Any, _start_response: Any) -> None:
    """A callable of two parameters, but of the other world."""


BEFORE: dict[str, tuple[App, str]] = {
    "raises": (raising(ZeroDivisionError("mine"), started=False), "mine"),
    "raises when started": (raising(ZeroDivisionError("mine"), started=True), "mine"),
    "exits": (raising(SystemExit(3), started=True), "3"),
    "is interrupted": (raising(KeyboardInterrupt("now"), started=True), "now"),
    "raises no Exception": (raising(GeneratorExit("odd"), started=True), "odd"),
    "raises at once": (generating(error=ZeroDivisionError("mine")), "mine"),
    "raises before the first bytes": (generating(b"", b"", error=ZeroDivisionError("mine")), "mine"),
    "returns None": (starting(None), "returned a NoneType, not an iterable of bytes. Is a `return` missing?"),
    "returns a str": (starting("hello"), "returned a str: it must be in a list"),
    "returns bytes": (starting(b"hello"), "returned a bytes: it must be in a list"),
    "returns a number": (starting(5), "returned an int, not an iterable of bytes"),
    "returns a coroutine": (asynchronous, "returned a coroutine, not an iterable of bytes"),
    "returns a list of str": (starting(["hello"]), "the application's list has a str, not bytes: encode it"),
    "returns a mixed list": (starting([b"hello", "hello"]), "the application's list has a str"),
    "returns a list of None": (starting([None]), "the application's list has a NoneType, not bytes"),
    "returns a list of bytearray": (starting([bytearray(b"x")]), "the application's list has a bytearray, not bytes"),
    "returns a bytearray": (starting(bytearray(b"x")), "the application's iterable gave an int, not bytes"),
    "yields a str": (generating("hello"), "the application's iterable gave a str, not bytes: encode it"),
    "yields an empty str": (generating(""), "the application's iterable gave a str"),
    "yields None": (generating(None), "the application's iterable gave a NoneType, not bytes"),
    "has no iterator": (starting(Iterables.NoIterator()), "iter() returned non-iterator"),
    "has a broken iter": (starting(Iterables.Broken()), "iter"),
    "has a broken next": (starting(Iterables.BrokenNext()), "next"),
    "never starts": (lambda _environ, _start: [b"x"], "did not call start_response before its first output"),
    "never starts and is empty": (lambda _environ, _start: [], "did not call start_response"),
    "never starts and yields": (lambda _environ, _start: iter([b"x"]), "did not call start_response"),
    "starts with nothing": (lambda _environ, start: start(), "missing 2 required positional arguments"),
    "starts twice": (starting([b"x"], times=2), "start_response was called again, and without exc_info"),
    "goes on after a refusal": (swallowing, "start_response failed, and the application went on"),
    "goes on after a second refusal": (changing_its_mind_badly, "start_response failed, and the application went on"),
    "goes on with its length": (changing_a_sized_head_badly, "start_response failed, and the application went on"),
    "splits the head": (starting([b"x"], headers=[("A", "b\r\nSet-Cookie: c")]), "has a control character"),
    "splits by the name": (starting([b"x"], headers=[("A: b\r\nC", "d")]), "is not a token"),
    "splits by the status": (starting([b"x"], status="200 OK\r\nA: b"), "is not of the form '200 OK'"),
    "answers 100": (starting([b"x"], status="100 Continue"), "interim"),
    "answers 101": (starting([b"x"], status="101 Switching Protocols"), "interim"),
    "answers 1000": (starting([b"x"], status="1000 Much"), "is not of the form"),
    "has two lengths": (starting([b"x"], headers=[("Content-Length", "1")] * 2), "more than one Content-Length"),
    "has a negative length": (starting([b"x"], headers=[("Content-Length", "-1")]), "is not a number of bytes"),
    "has text beyond latin-1": (starting([b"x"], headers=[("A", "\u20ac")]), "not in latin-1"),
    "is called wrongly": (lambda _environ: [b"x"], "takes 1 positional argument but 2 were given"),  # type: ignore[dict-item,misc]
    "writes a str": (writing("x"), "write() was given a str, not bytes: encode it"),
    "writes None": (writing(None), "write() was given a NoneType, not bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_before_the_head_has_left_there_is_a_plain_500(name: str, method: str) -> None:
    app, said = BEFORE[name]
    answer = run(app, compose(method))
    assert answer.call.error is not None
    assert said in str(answer.call.error)
    assert (answer.call.status, answer.call.keep_alive, answer.call.aborted) == (500, False, False)
    assert answer.fields("Connection") == ["close"]
    assert len(answer.fields("Date")) == 1
    assert [step for step in answer.steps if step] == [answer.raw]
    page = b"500 Internal Server Error\n"
    assert answer.fields("Content-Length") == [str(len(page))]
    assert answer.payload == (page if method == "GET" else b"")
    assert answer.call.sent == len(answer.payload)


def test_an_error_after_a_write_leaves_the_body_without_an_end() -> None:
    for app in (writing(b"x", None), writing(b"x", "y")):
        answer = run(app)
        assert (answer.payload, answer.call.aborted) == (b"1\r\nx\r\n", True)
        assert isinstance(answer.call.error, ResponseError)


def test_more_than_the_content_length_is_not_written() -> None:
    for blocks in ((b"123", b"456"), (b"123456",)):
        answer = run(writing(*blocks, headers=[("Content-Length", "5")]))
        assert answer.payload == b"12345"
        assert not answer.call.keep_alive
        assert "Content-Length" in str(answer.call.error)


def test_the_page_is_html_for_those_who_read_it() -> None:
    for accept, kind in [("text/html,*/*;q=0.8", "text/html"), ("application/json", "text/plain"), ("", "text/plain")]:
        answer = run(raising(ZeroDivisionError("secret"), started=False), compose("GET", "/", f"Accept: {accept}"))
        assert answer.fields("Content-Type") == [f"{kind}; charset=utf-8"]
        assert b"secret" not in answer.raw
        assert b"Traceback" not in answer.raw


# --- behind the head

AFTER: dict[str, tuple[App, str]] = {
    "raises": (generating(b"begun", error=ZeroDivisionError("mine")), "mine"),
    "exits": (generating(b"begun", error=SystemExit(3)), "3"),
    "raises StopIteration": (generating(b"begun", error=StopIteration("odd")), "generator raised StopIteration"),
    "yields a str": (generating(b"begun", "x"), "gave a str, not bytes"),
    "yields None": (generating(b"begun", None), "gave a NoneType"),
}


@pytest.mark.parametrize("name", AFTER)
@pytest.mark.parametrize("minor", [0, 1])
def test_behind_the_head_the_response_just_stops(name: str, minor: int) -> None:
    app, said = AFTER[name]
    answer = run(app, compose(minor=minor))
    assert said in str(answer.call.error)
    assert (answer.call.status, answer.call.keep_alive, answer.call.aborted) == (200, False, True)
    assert answer.call.framed == bool(minor)
    if minor:
        assert answer.payload == b"5\r\nbegun\r\n"
        with pytest.raises(http.client.IncompleteRead):
            answer.read()
    else:
        assert answer.payload == b"begun"


def twice(_environ: Any, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", PLAIN)
    yield b"begun"
    start_response("200 OK", PLAIN)


def test_start_response_a_second_time_comes_too_late() -> None:
    answer = run(twice)
    assert "called again" in str(answer.call.error)
    assert answer.call.aborted
    assert answer.payload == b"5\r\nbegun\r\n"


# --- lengths that do not hold


def sized(*chunks: bytes, length: int) -> list[tuple[str, App]]:
    """The same body in every way to give one."""
    headers = [("Content-Length", str(length))]
    return [
        ("list", starting(list(chunks), headers=headers)),
        ("joined", starting([b"".join(chunks)], headers=headers)),
        ("tuple", starting(chunks, headers=headers)),
        ("generator", generating(*chunks, headers=headers)),
        ("late", generating(b"", *chunks, b"", headers=headers)),
    ]


SHORT = [(name, app) for size in (1, 10, 200_000) for name, app in sized(b"x" * size, b"y", length=size + 4)]
LONG = [(name, app) for size in (1, 10, 200_000) for name, app in sized(b"x" * size, b"yyyyy", length=size + 2)]
NONE = [(name, app) for name, app in sized(b"xyz", length=0)]
JUST = [(name, app) for name, app in sized(b"12345", b"6", b"7", length=5)]


@pytest.mark.parametrize(("name", "app"), SHORT)
def test_a_body_that_is_too_short_ends_the_connection(name: str, app: App) -> None:
    answer = run(app)
    assert "bytes: the Content-Length is" in str(answer.call.error)
    assert "only" in str(answer.call.error)
    assert not answer.call.keep_alive
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    if name in ("list", "joined", "tuple"):  # known before the head has left
        assert answer.fields("Connection") == ["close"]


@pytest.mark.parametrize(("name", "app"), [*LONG, *NONE, *JUST])
def test_a_body_that_is_too_long_is_cut(name: str, app: App) -> None:
    answer = run(app)
    assert "was cut: the Content-Length is" in str(answer.call.error)
    assert not answer.call.keep_alive
    (length,) = answer.fields("Content-Length")
    assert len(answer.payload) == answer.call.sent == int(length)


def test_an_endless_body_is_asked_for_no_more_than_fits() -> None:
    taken = []

    def app(_environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "10")])
        while True:
            taken.append(4)
            yield b"1234"

    answer = run(app)
    assert answer.body == b"1234123412"
    assert len(taken) == 3
    assert answer.call._result is None


def test_a_body_that_is_not_sent_cannot_be_wrong() -> None:
    for name, app in [*SHORT, *LONG]:
        answer = run(app, compose("HEAD"))
        assert (answer.call.error, answer.call.keep_alive, answer.payload) == (None, True, b""), name


# --- close()


class Closing:
    """An iterable whose close() raises, and whose chunks do if asked to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        yield b"begun"
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed += 1
        raise ArithmeticError("close")


def test_a_close_that_raises_spoils_nothing_but_is_told() -> None:
    result = Closing()
    answer = run(starting(result))
    assert answer.body == b"begun"
    assert (answer.call.keep_alive, answer.call.aborted, result.closed) == (True, False, 1)
    assert isinstance(answer.call.error, ArithmeticError)


def test_a_wrong_length_is_told_before_a_close_that_raises() -> None:
    answer = run(starting(Closing(), headers=[("Content-Length", "9")]))
    assert isinstance(answer.call.error, ResponseError)


def test_the_first_of_two_errors_is_told() -> None:
    result = Closing(ZeroDivisionError("mine"))
    answer = run(starting(result))
    assert isinstance(answer.call.error, ZeroDivisionError)
    assert (answer.call.aborted, result.closed) == (True, 1)


def test_leaving_closes_once_even_if_that_raises() -> None:
    result = Closing()
    call = begin(starting(result))
    call.step()
    call.close()
    call.close()
    assert result.closed == 1


@pytest.mark.parametrize("result", ["ab", 5, Iterables.Broken(), Iterables.NoIterator()])
def test_what_cannot_be_sent_is_closed_all_the_same(result: Any) -> None:
    closed = []

    class Result:
        def __init__(self) -> None:
            self.__class__ = type("Result", (Result,), {"close": lambda _self: closed.append(True)})

        def __iter__(self) -> Any:
            return iter(result)

    answer = run(starting(Result()))
    assert answer.call.status == 500
    assert closed == [True]


# --- in sum


@pytest.mark.parametrize("app", [app for app, _ in (*BEFORE.values(), *AFTER.values())], ids=[*BEFORE, *AFTER])
@pytest.mark.parametrize("data", [compose(), compose(minor=0), compose("POST", body=b"x" * 70_000)])
def test_no_application_breaks_a_promise(app: App, data: bytes) -> None:
    """One status line, one Date, no raise out of a step, no claim that the connection stays, the body let go of."""
    answer = run(app, data)
    assert answer.raw.count(b"HTTP/1.1 ") == 1
    assert len(answer.fields("Date")) == 1
    assert not answer.call.keep_alive
    assert answer.call._body is None or (answer.call._body._file is not None and answer.call._body._file.closed)


def test_the_error_keeps_its_traceback_for_the_log() -> None:
    def app(_environ: Any, _start_response: Any) -> Any:
        return {}["missing"]

    error = run(app).call.error
    assert error is not None
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert frames == ["step", "app"]


def test_a_step_leaves_no_exception_behind() -> None:
    run(raising(ZeroDivisionError(), started=True))
    assert sys.exc_info() == (None, None, None)
