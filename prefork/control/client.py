"""CLIENT. Finds the control socket of a running server and sends it commands; protocol.py has the other side.

Every wait has an end: a master that serves a command sends a line at least every HEARTBEAT_S, so one that sends none
for ANSWER_S is stopped or overloaded.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from prefork.control.path import AUTO, NONE, candidates, is_alive
from prefork.control.protocol import HEARTBEAT_S
from prefork.core.listener import timeval
from prefork.errors import PreforkError

ANSWER_S = 3 * HEARTBEAT_S
_IDENTIFY_S = 2.0  # when several servers run: how long each may take to answer
_EXIT_S = 1.0  # from the last answer of a server that stops to the end of its process
_LINE_MOST = 1 << 26  # bytes


class NoServerError(PreforkError):
    """No server is running there."""

    exit_code = 6


class ManyServersError(PreforkError):
    """Several servers are running, and none was named."""

    exit_code = 2


class DeniedError(PreforkError):
    """The server refused or abandoned the command, or gives no answer."""


def find(place: str) -> str:
    """The path of the control socket of the server. Raises NoServerError and ManyServersError."""
    if place == NONE:
        raise NoServerError("no server to talk to: --control is none")
    if place != AUTO:
        return place
    alive = [path for path in candidates(os.environ, os.geteuid()) if is_alive(path)]
    if not alive:
        raise NoServerError("no server of yours is running with a control socket; --control PATH names one elsewhere")
    if len(alive) > 1:
        listed = "\n".join(f"  --control {path}  {_describe(path)}" for path in alive)
        raise ManyServersError(f"{len(alive)} servers are running; say which one by --control:", listed)
    return alive[0]


def ask(path: str, request: dict[str, Any], *, progress: Callable[[str], None], answer_s: float = ANSWER_S) -> Any:
    """Send one command and wait for its answer; `progress` is called with each report on the way.

    `answer_s` is the longest silence. Raises NoServerError and DeniedError.
    """
    try:
        with _connect(path, answer_s) as sock:
            try:
                sock.sendall(json.dumps(request).encode() + b"\n")
            except BrokenPipeError:
                pass  # it has refused us already, and the reason can be read
            return _answer(sock, path, progress, answer_s)
    except (TimeoutError, BlockingIOError):
        raise DeniedError(
            f"{path} does not answer within {answer_s:g} s: its master is stopped or overloaded"
        ) from None
    except (FileNotFoundError, ConnectionRefusedError) as error:
        reason = "there is no such socket" if isinstance(error, FileNotFoundError) else "its server has gone"
        raise NoServerError(f"no server at {path}: {reason}") from None
    except PermissionError:
        owner = os.stat(path).st_uid if os.path.exists(path) else "another user"
        raise DeniedError(f"{path} belongs to uid {owner}: only that user and root control the server") from None
    except OSError as error:
        raise DeniedError(f"{path}: {error.strerror or error}") from None


def _answer(sock: socket.socket, path: str, progress: Callable[[str], None], answer_s: float) -> Any:
    for line in _lines(sock, answer_s):
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        match message:
            case {"progress": str(text)}:
                progress(text)
            case {"ok": True, "answer": answer}:
                return answer
            case {"ok": False, "error": str(reason)}:
                raise DeniedError(printable(reason))
            case _:
                raise DeniedError(f"{path} is not the control socket of a prefork server")
    raise DeniedError(f"{path} closed the connection before it answered: its server has ended")


def _lines(sock: socket.socket, answer_s: float) -> Iterator[bytes]:
    """Whole lines, each within `answer_s`. Raises TimeoutError."""
    buffer = b""
    while True:
        until_s = time.monotonic() + answer_s
        while b"\n" not in buffer:
            sock.settimeout(max(0.001, until_s - time.monotonic()))
            chunk = sock.recv(65536)
            if not chunk or len(buffer) > _LINE_MOST:
                return
            buffer += chunk
        line, _, buffer = buffer.partition(b"\n")
        yield line


def _connect(path: str, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A blocking connect waits where the queue is full; a timeout of Python's would make it fail at once.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(timeout_s))
        sock.connect(path)
        sock.settimeout(timeout_s)
    except BaseException:
        sock.close()
        raise
    return sock


def wait_gone(pid: int) -> None:
    """Wait a moment for the exit of a server that has stopped; a program that serves from Python may live on."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return  # gone, or in another pid namespace
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(_EXIT_S * 1000)
    finally:
        os.close(fd)


def printable(text: str) -> str:
    """Text of a server or its application, safe for a terminal: control characters but newlines are escaped."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _describe(path: str) -> str:
    try:
        status = ask(path, {"command": "status"}, progress=lambda _text: None, answer_s=_IDENTIFY_S)
    except PreforkError as error:
        return f"({error})"
    addresses = ", ".join(listener["address"] for listener in status["listeners"])
    return f"pid {status['server']['pid']}  {status['server']['app']}  {addresses}"
