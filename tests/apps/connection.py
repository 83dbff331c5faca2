"""Stream handlers, each of which exercises one part of Connection."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from prefork.errors import LineTooLong


def lines(conn: Any) -> None:
    """Answer each line's repr until the client ends."""
    while line := conn.readline():
        conn.sendall(repr(line).encode() + b"\n")


def short_lines(conn: Any) -> None:
    """Read lines of at most 8 bytes; say by which error a longer one was reported."""
    try:
        while line := conn.readline(8):
            conn.sendall(repr(line).encode() + b"\n")
    except LineTooLong as error:
        conn.sendall(b"more than %d\n" % error.limit)


def unhandled_long_line(conn: Any) -> None:
    """Read a line of at most 8 bytes and let what comes escape."""
    conn.readline(8)
    conn.sendall(b"read\n")


def mixed(conn: Any) -> None:
    """Read a line, then raw bytes: what readline() has buffered must not be lost to recv()."""
    size = int(conn.readline())
    got = b""
    while len(got) < size and (chunk := conn.recv(size - len(got))):
        got += chunk
    conn.sendall(b"%d %s" % (len(got), got))


def counts_to_end(conn: Any) -> None:
    """Read to the client's end and answer how much came."""
    total = 0
    while chunk := conn.recv(65536):
        total += len(chunk)
    conn.sendall(b"%d\n" % total)


def ends_first(conn: Any) -> None:
    """Say all, half-close, then count what the client still sends, into the file that it names first."""
    path = conn.readline().decode().strip()
    conn.sendall(b"my last word\n")
    conn.shutdown_write()
    total = 0
    while chunk := conn.recv(65536):
        total += len(chunk)
    with open(path + ".part", "w") as file:
        file.write(str(total))
    os.rename(path + ".part", path)


def facts(conn: Any) -> None:
    """Answer what the connection knows about itself."""
    with socket.socket(fileno=os.dup(conn.fileno())) as sock:
        kernel_peer = sock.getpeername()
    deadline = conn.deadline
    conn.sendall(f"{conn.peer}|{kernel_peer}|{type(deadline).__name__}\n".encode())


def big_answer(conn: Any) -> None:
    """Answer 8 MiB in one call."""
    conn.sendall(b"x" * (8 << 20))


def waits(conn: Any) -> None:
    """Wait for a line that may never come and name the error that ends the wait."""
    started = time.monotonic()
    try:
        conn.readline()
    except TimeoutError:
        conn.sendall(f"TimeoutError after {time.monotonic() - started:.3f}\n".encode())


def keeps_reference(conn: Any) -> None:
    """Answer, and leave the connection referenced after the return: it must be closed all the same."""
    kept.append(conn)
    conn.sendall(b"kept\n")


kept: list[Any] = []


class Callable:
    """A handler that is an object."""

    def __call__(self, conn: Any) -> None:
        """Answer one line."""
        conn.sendall(b"from an object\n")


instance = Callable()
not_callable = 42
