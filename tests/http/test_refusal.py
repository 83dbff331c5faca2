"""What a refused client sees: the status, and nothing else."""

from __future__ import annotations

import pytest

from prefork.http.chunked import LAST_CHUNK, chunk
from prefork.http.limits import PHRASES, page, phrase, quoted
from tests.http.outcome import outcome


@pytest.mark.parametrize("status", sorted(PHRASES))
def test_a_page_says_the_status_and_its_phrase(status: int) -> None:
    assert page(status, html=False) == f"{status} {PHRASES[status]}\n".encode()
    html = page(status, html=True).decode()
    assert html.startswith("<!DOCTYPE html>")
    assert html.count(f"{status} {PHRASES[status]}") == 2


def test_a_status_without_a_name_has_that_of_its_class() -> None:
    assert (phrase(299), phrase(499), phrase(599)) == ("OK", "Bad Request", "Internal Server Error")
    assert phrase(999) == "Unknown"


def test_a_quotation_is_short_and_printable() -> None:
    assert quoted(b"a'\n\xff") == r'''"a'\n\xff"'''
    assert quoted(b"x" * 61) == f"'{'x' * 60}'..."
    assert max(len(quoted(bytes([byte]) * 1000)) for byte in range(256)) < 250


@pytest.mark.parametrize("size", [1, 9, 10, 255, 256, 70000])
def test_what_is_written_as_chunks_can_be_read(size: int) -> None:
    body = bytes(range(256)) * 300
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    seen = outcome([head + chunk(body[:size]) + chunk(b"\r\n") + LAST_CHUNK])
    assert seen.requests[0].body == body[:size] + b"\r\n"
    assert seen.requests[0].finished
