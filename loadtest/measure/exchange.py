"""One whole exchange of a load over a plain socket: the proof that a server is ready for it."""

from __future__ import annotations

import socket
import ssl
import time
from typing import TYPE_CHECKING

from ..generator import tls
from ..generator.failure import ExchangeError
from ..generator.lines import GREETING, PREFIX, numbered
from ..generator.response import Response
from ..generator.websocket import OPCODES, Opening
from ..generator.websocket_talk import WebSocketTalk
from ..plan import request
from ..plan.plan import OVER_HTTP, PlanError
from ..plan.request import Expectation, Request

if TYPE_CHECKING:
    from pathlib import Path

    from ..plan.addresses import Address
    from ..plan.plan import Load, Plan

_WORD = b"ready\n"


class WrongReplyError(Exception):
    """The server answered, but not what this load expects."""


def check_files(plan: Plan, folder: Path) -> None:
    """Read the files that the loads name, from that folder on. Raises PlanError."""
    for load in plan.loads:
        try:
            _request(load, folder)
            if load.scenario == "websocket":
                _opening(load, "")
            if load.tls:
                _tls(load, folder)
        except ValueError as error:
            raise PlanError(f"load {load.name!r}: {error}") from None


def exchange(load: Load, address: Address, folder: Path, timeout_s: float) -> None:
    """Go through one exchange; the names of the load's files begin in that folder.

    Raises OSError while nobody answers, WrongReplyError when the answer is another.
    """
    family, where = address.resolve()
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(where)
        if load.scenario not in OVER_HTTP:
            _line(connection, load.scenario)
            return
        with _secured(connection, load, address, folder) if load.tls else connection as spoken:
            if load.scenario == "websocket":
                _message(spoken, load, address, timeout_s)
            else:
                _http(spoken, load, address, folder, timeout_s)


def _line(connection: socket.socket, scenario: str) -> None:
    with connection.makefile("rb") as reader:
        connection.sendall(_WORD)  # before any greeting: a server of another protocol may wait for us to begin
        expected = _WORD if scenario == "echo" else GREETING + PREFIX + _WORD
        reply = reader.readline() if scenario == "echo" else reader.read()
    if not reply:
        raise ConnectionError("the connection was closed without an answer")
    if reply != expected:
        question = f"is {scenario} its scenario?"
        raise WrongReplyError(f"answered {reply[:80]!r} where {expected!r} was expected; {question}")


def _http(connection: socket.socket, load: Load, address: Address, folder: Path, timeout_s: float) -> None:
    connection.sendall(_request(load, folder, keep_alive=False).encode(address.name))
    response = Response(bodiless=load.method == "HEAD")
    deadline, came = time.monotonic() + timeout_s, b""
    try:
        while not response.complete:
            if not (data := connection.recv(65536)):
                response.end()
            came = came or data[:80]
            response.feed(data)
            if time.monotonic() > deadline:
                raise TimeoutError("the answer does not end")
    except ExchangeError as error:
        if not came:
            raise ConnectionError("the connection was closed without an answer") from None
        raise WrongReplyError(f"answered {came!r}: {error}; is http its scenario?") from None
    if flaw := Expectation(statuses=request.statuses(load.status), length=load.length).flaw(
        response.status, response.length
    ):
        expected = load.status if load.length is None else f"{load.status} and a body of {load.length} bytes"
        raise WrongReplyError(f"answered {load.method} {load.path} with {flaw}, not with status {expected}")


def _message(connection: socket.socket, load: Load, address: Address, timeout_s: float) -> None:
    payload = numbered(0, load.payload)[:-1]
    talk = WebSocketTalk(connection, _opening(load, address.name), len(payload), time.monotonic() + timeout_s)
    try:
        talk.open()
        talk.echo(OPCODES[load.message], payload)
        talk.close()
    except ExchangeError as error:
        if not talk.began:
            raise ConnectionError("the connection was closed without an answer") from None
        raise WrongReplyError(
            f"answered {talk.began!r}: {error}; does it echo WebSocket messages at {load.path}?"
        ) from None


def _secured(connection: socket.socket, load: Load, address: Address, folder: Path) -> ssl.SSLSocket:
    try:
        return _tls(load, folder).wrap_socket(connection, server_hostname=address.host)
    except ssl.SSLCertVerificationError as error:
        hint = "name a file of certificates to trust (--ca), or do not verify it (--insecure)"
        raise WrongReplyError(f"has a certificate that is not trusted: {error.verify_message}; {hint}") from None
    except ssl.SSLEOFError:
        raise ConnectionError("the connection was closed in the TLS handshake") from None
    except ssl.SSLError as error:
        raise WrongReplyError(f"does not speak TLS: {error.reason}") from None


def _request(load: Load, folder: Path, *, keep_alive: bool = True) -> Request:
    return Request.made(
        method=load.method,
        path=load.path,
        headers=load.headers,
        body=request.body(load.body, folder),
        payload=load.payload,
        keep_alive=keep_alive,
    )


def _opening(load: Load, host: str) -> Opening:
    return Opening.made(path=load.path, headers=load.headers, host=host)


def _tls(load: Load, folder: Path) -> ssl.SSLContext:
    return tls.context(insecure=load.insecure, ca=str(folder / load.ca) if load.ca else "")
