"""What a WSGI application returned: as blocks to send, and with their size in all where that is known before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prefork.http.body import FilePart, FileWrapper
from prefork.http.response import ResponseError, kind

BLOCK_BYTES = 65536  # chunks of a list are joined up to this size


def read(result: Any, *, sendfile: bool) -> tuple[Iterator[bytes | FilePart], int | None]:
    """Return an iterator over what the application returned, and the number of bytes it will give, or None.

    A list or tuple is all there: its chunks are joined to blocks. Everything else is asked for one chunk at a time,
    because PEP 3333 allows no delay between two. Raises ResponseError if it is no iterable of bytes.
    """
    if type(result) in (list, tuple):
        for chunk in result:
            check(chunk, "the application's list has")
        return _blocks(result), sum(map(len, result))
    if type(result) is FileWrapper and sendfile and (part := result.part()) is not None:
        return iter((part,)), part.count
    if isinstance(result, (str, bytes)):
        raise ResponseError(f"the application returned {kind(result)}: it must be in a list, as [body]")
    if not isinstance(result, Iterable) and not hasattr(result, "__getitem__"):
        hint = ". Is a `return` missing?" if result is None else ""
        raise ResponseError(f"the application returned {kind(result)}, not an iterable of bytes{hint}")
    return iter(result), None


def check(chunk: object, where: str) -> None:
    """Raise ResponseError unless it is bytes."""
    if not isinstance(chunk, bytes):
        hint = ": encode it" if isinstance(chunk, str) else ""
        raise ResponseError(f"{where} {kind(chunk)}, not bytes{hint}")


def _blocks(chunks: Sequence[bytes]) -> Iterator[bytes]:
    first = size = 0
    for index, chunk in enumerate(chunks, 1):
        size += len(chunk)
        if size >= BLOCK_BYTES:
            yield b"".join(chunks[first:index])
            first, size = index, 0
    yield b"".join(chunks[first:])
