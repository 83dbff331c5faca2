"""The server of a round: started on a free port, or run by somebody else (attach); waited for; stopped.

A server is ready when it has answered one whole exchange of the load over a plain socket.
"""

from __future__ import annotations

import os
import select
import shlex
import socket
import ssl
import sys
import threading
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Self

from loadtest.generator.dialer import tls_context
from loadtest.generator.failure import ExchangeError
from loadtest.generator.http import Expectation, Response
from loadtest.generator.lines import GREETING, PREFIX, numbered
from loadtest.generator.websocket import OPCODES, Handshake, WebSocketTalk
from loadtest.measure.child import Child, ChildError
from loadtest.plan import request
from loadtest.plan.addresses import Address, endpoint
from loadtest.plan.plan import OVER_HTTP, RAW, Load, PlanError
from loadtest.plan.request import Request
from loadtest.plan.values import span

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from loadtest.measure.child import Interrupt
    from loadtest.plan.plan import Plan, Server

    Waiting = Callable[[float, float], None]  # how long the wait has been, how long it may be; in s

INTERRUPTED_STOP_S = 1.0  # the round is lost anyway, and somebody waits
_PAUSE_S = 0.02  # between attempts
_LEAST_S = 0.1  # of an attempt, however little is left
_LOOK_S = 1.0  # at most, until somebody hears how long the wait has been
_PEERS = Path(__file__).parents[2] / ".venv-peers"  # `make peers` makes it, and .ready in it when it is done
_CANNOT_RUN_HERE = 77  # the exit status by which a command says that this machine lacks what it needs


class ServerError(Exception):
    """The server did not start, or ended before it was asked to; the message has the end of its log."""


class ServerMissingError(ServerError):
    """The command says that it cannot run on this machine at all."""


class RunningServer:
    """A server to put load on. Leaving the context stops it, unless somebody else runs it.

    `scratch` is a folder for its sockets: with a short path, as that of a socket has 107 bytes at most.
    """

    def __init__(
        self, server: Server, *, folder: Path, log: Path, scratch: str, interrupt: Interrupt, cpus: Sequence[int] = ()
    ) -> None:
        self.base = folder
        self.server = server
        self.address = _where(server, folder, scratch)
        self.notes: list[str] = []
        self.control = f"{scratch}/control" if "{control}" in server.command else None  # where to ask for its status
        self._interrupt = interrupt
        self.child: Child | None = None
        if not server.attach:
            cwd = folder / server.cwd if server.cwd else folder.cwd()
            # A prefork server without a --control of its own: `prefork status` shall not find it beside those in use.
            env = {**os.environ, "PREFORK_CONTROL": f"{scratch}/prefork", **server.env}
            try:
                self.child = Child(self._argv(server.command), log=log, cwd=cwd, env=env, cpus=cpus)
            except ChildError as error:
                raise ServerError(str(error)) from None

    def _argv(self, command: str) -> list[str]:
        where = self.address
        values = {"address": str(where), "host": where.host, "port": str(where.port), "unix": where.path}
        values["python"] = sys.executable
        values |= {"control": self.control or "", "peers": str(_PEERS / "bin" / "python")}
        if "{peers}" in command and not (_PEERS / ".ready").exists():
            raise ServerMissingError("the peers are not installed; in a clone of the repository: make peers")
        words = shlex.split(command)
        for name, value in values.items():
            words = [word.replace("{" + name + "}", value) for word in words]
        return words

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child is None:
            return
        grace_s = self.server.grace_s
        with self.child:
            stopped = self.child.stop(INTERRUPTED_STOP_S if self._interrupt.came else grace_s)
            if not stopped and not self._interrupt.came:
                more = f"if it needs longer: --grace {span(max(1, 3 * grace_s))}"
                self.notes.append(f"the server did not end within {grace_s:g} s of SIGTERM and was killed; {more}")

    def wait_ready(self, load: Load, waiting: Waiting | None = None) -> None:
        """Wait until one whole exchange was answered; tell `waiting` about every second how long that takes.

        Raises ServerError once it is clear that none will be, Interrupted.
        """
        ready_s = self.server.ready_s
        began = time.monotonic()
        while True:
            left_s = began + ready_s - time.monotonic()
            try:
                with _Attempt(load, self.address, self.base, min(load.timeout_s, max(left_s, _LEAST_S))) as attempt:
                    while not attempt.ended(self._interrupt, _LOOK_S):
                        self._interrupt.check()
                        if waiting:
                            waiting(_since(began), ready_s)
                attempt.result()
                return
            except WrongReplyError as error:
                raise ServerError(self._last_words(f"{self.address} {error}")) from None
            except TimeoutError as error:
                reason = f"no whole answer within {min(load.timeout_s, ready_s):g} s: {error}"
                hint = f"--timeout {span(3 * load.timeout_s)} for one answer, --ready {span(4 * ready_s)} for the start"
            except OSError as error:
                reason = error.strerror or str(error)
                hint = f"--ready {span(4 * ready_s)}"
            if self.child is None:
                if reason.startswith("no whole"):
                    raise ServerError(f"{self.address}: {reason}; try --timeout {span(3 * load.timeout_s)}")
                raise ServerError(f"nobody answers at {self.address}: {reason}; start that server first")
            if self.child.ended(_PAUSE_S):
                self._raise_ended("before it was ready")
            if _since(began) > ready_s:
                said = f"not ready after {ready_s:g} s: {self.address}: {reason}; if it needs longer, try {hint}"
                raise ServerError(self._last_words(said))

    def alone_ns(self, load: Load) -> int | None:
        """Return how long an exchange of this load takes a client that is alone; None if none was answered."""
        if load.locustfile or len(load.paths) > 1 or load.paths[0].startswith("@"):
            return (
                None  # what users exchange is known to them alone, and one of several paths says nothing of the others
            )
        return alone_ns(load, self.address, self.base, load.timeout_s)

    def local_port(self) -> int | None:
        """Return the port to ask the kernel about; None without one, or when the server is on another machine."""
        return self.address.port if self.address.port and (self.child or _is_here(self.address.host)) else None

    def check_alive(self) -> None:
        """Raise ServerError when the server has ended by itself."""
        if self.child is not None and self.child.ended():
            self._raise_ended("during the round")

    def _raise_ended(self, when: str) -> None:
        assert self.child is not None
        if self.child.exit_code == _CANNOT_RUN_HERE:
            raise ServerMissingError(self.child.tail(1) or "its command cannot run on this machine")
        raise ServerError(self._last_words(f"the server {self.child.status()} {when}"))

    def _last_words(self, message: str) -> str:
        tail = self.child.tail() if self.child else ""
        log = f"\n  it wrote nothing to {self.child.log}" if self.child else ""
        return message + ("\n  " + tail.replace("\n", "\n  ") if tail else log)


def _where(server: Server, folder: Path, scratch: str) -> Address:
    """Return where the server listens, or shall listen. Paths that a user wrote start in `folder`."""
    if not server.attach:
        unix = "{unix}" in server.command
        return Address(path=f"{scratch}/server") if unix else Address(host="127.0.0.1", port=free_port())
    address = endpoint(server.attach)
    return Address(path=str(folder.absolute() / address.path)) if address.path else address


def _is_here(host: str) -> bool:
    """Return whether the host is this machine: only its own addresses can be bound."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.bind(address)
    except OSError:
        return False
    return True


def free_port() -> int:
    """Return a port that is free now. If another process takes it before the server does, the round fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _since(began: float) -> float:
    return time.monotonic() - began


_WORD = b"ready\n"
ALONE = 5  # exchanges of a client that is alone
ALONE_S = 1.0  # and no further one after that


class WrongReplyError(Exception):
    """The server answered, but not as this load expects."""


def check_files(plan: Plan, folder: Path) -> None:
    """Read the files that the loads name; relative names start in `folder`. Raises PlanError."""
    for load in plan.loads:
        try:
            _request(load, folder).at([path for written in load.paths for path in request.paths(written, folder)])
            if load.scenario == "websocket":
                _opening(load, "")
            if load.tls:
                _tls(load, folder)
        except ValueError as error:
            raise PlanError(f"load {load.name!r}: {error}") from None


class _Attempt(threading.Thread):
    """One exchange in a thread, so that who waits for it can see to other things. Leaving the context ends it."""

    def __init__(self, load: Load, address: Address, folder: Path, timeout_s: float) -> None:
        super().__init__(daemon=True)
        self._error: Exception | None = None
        self._exchange = partial(exchange, load, address, folder, timeout_s, began=self._note)
        self._connection: socket.socket | None = None
        self._ended = os.eventfd(0, os.EFD_CLOEXEC)

    def _note(self, connection: socket.socket) -> None:
        self._connection = connection.dup()

    def run(self) -> None:
        """Perform the exchange."""
        try:
            self._exchange()
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits
            self._error = error
        finally:
            os.eventfd_write(self._ended, 1)

    def ended(self, interrupt: Interrupt, within_s: float) -> bool:
        """Wait until the exchange has ended, for the given time, or until a signal comes; return whether it has."""
        watched: list[int | Interrupt] = [self._ended, interrupt]
        return self._ended in select.select(watched, [], [], within_s)[0]

    def result(self) -> None:
        """Raise what the exchange that has ended has raised."""
        if self._error:
            raise self._error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        while self.is_alive():  # a shutdown wakes up who waits for a peer
            if self._connection is not None:
                with suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
            self.join(_PAUSE_S)
        if self._connection is not None:
            self._connection.close()
        os.close(self._ended)


def exchange(
    load: Load,
    address: Address,
    folder: Path,
    timeout_s: float,
    began: Callable[[socket.socket], None] | None = None,
) -> None:
    """Perform one whole exchange; relative names of the load's files start in `folder`; `began` gets the socket.

    Raises OSError while nobody answers, WrongReplyError when the answer is another.
    """
    family, where = address.resolve()
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        if began:
            began(connection)
        connection.settimeout(timeout_s)
        connection.connect(where)
        if load.scenario == RAW:
            return  # what its users say is known to them alone
        if load.scenario not in OVER_HTTP:
            _line(connection, load.scenario)
            return
        with _secured(connection, load, address, folder) if load.tls else connection as spoken:
            if load.scenario == "websocket":
                _message(spoken, load, address, timeout_s)
            else:
                _http(spoken, load, address, folder, timeout_s)


def alone_ns(load: Load, address: Address, folder: Path, timeout_s: float) -> int | None:
    """Return the median time of a few exchanges, one after the other, on a connection like those of the load.

    The server is ready. They end after ALONE_S, or when one of them fails; None if none was answered.
    """
    took: list[int] = []
    deadline = time.monotonic() + ALONE_S
    try:
        while len(took) < ALONE and (not took or time.monotonic() < deadline):
            with closing(_timed(load, address, folder, timeout_s)) as exchanges:
                for took_ns in exchanges:
                    took.append(took_ns)
                    if len(took) == ALONE or time.monotonic() > deadline:
                        break
    except (OSError, ExchangeError, WrongReplyError):
        pass
    return round(median(took)) if took else None


def _timed(load: Load, address: Address, folder: Path, timeout_s: float) -> Generator[int, None, None]:
    """Yield the time of each exchange on one connection, until that is closed; the load begins and ends them alike."""
    began_ns = time.monotonic_ns()
    family, where = address.resolve()
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(where)
        if load.scenario not in OVER_HTTP:
            repeats, once = load.scenario == "echo", partial(_line, connection, load.scenario)
            yield from _repeated(once, began_ns, repeats=repeats)
            return
        with _secured(connection, load, address, folder) if load.tls else connection as spoken:
            if load.scenario == "websocket":
                payload = numbered(0, load.payload)[:-1]
                talk = WebSocketTalk(
                    spoken, _opening(load, address.name), len(payload), time.monotonic() + ALONE_S + timeout_s
                )
                talk.open()
                yield from _repeated(partial(talk.echo, OPCODES[load.message], payload), time.monotonic_ns())
                return
            wanted = _request(load, folder, keep_alive=load.keep_alive).encode(address.name)
            keeps = True
            while keeps:
                spoken.sendall(wanted)
                keeps = _answered(spoken, load, timeout_s).keeps_alive and load.keep_alive
                yield time.monotonic_ns() - began_ns
                began_ns = time.monotonic_ns()


def _repeated(once: Callable[[], object], began_ns: int, *, repeats: bool = True) -> Generator[int, None, None]:
    """Yield the time of each call."""
    while True:
        once()
        yield time.monotonic_ns() - began_ns
        if not repeats:
            return
        began_ns = time.monotonic_ns()


def _answered(connection: socket.socket, load: Load, timeout_s: float) -> Response:
    """Receive one response. Raises OSError, ExchangeError."""
    response = Response(bodiless=load.method == "HEAD")
    deadline = time.monotonic() + timeout_s
    while not response.complete:
        if data := connection.recv(65536):
            response.feed(data)
        else:
            response.end()
        if time.monotonic() > deadline:
            raise TimeoutError("the answer does not end")
    return response


def _line(connection: socket.socket, scenario: str) -> None:
    deadline = time.monotonic() + (connection.gettimeout() or 0.0)
    connection.sendall(_WORD)  # before any greeting: a server of another protocol may wait for us to begin
    expected = _WORD if scenario == "echo" else GREETING + PREFIX + _WORD
    reply = b""
    try:
        while expected.startswith(reply) and (scenario != "echo" or reply != expected):
            if not (data := connection.recv(65536)):
                break
            reply += data
            if time.monotonic() > deadline:
                raise TimeoutError
    except TimeoutError:
        raise _unfinished(reply) from None
    if not reply:
        raise ConnectionError("the connection was closed without an answer")
    if reply != expected:
        question = f"is {scenario} its scenario?"
        raise WrongReplyError(f"answered {reply[:80]!r} where {expected!r} was expected; {question}")


def _http(connection: socket.socket, load: Load, address: Address, folder: Path, timeout_s: float) -> None:
    asked = _request(load, folder, keep_alive=False)
    connection.sendall(asked.encode(address.name))
    response = Response(bodiless=load.method == "HEAD")
    deadline = time.monotonic() + timeout_s
    came = b""
    try:
        while not response.complete:
            if not (data := connection.recv(65536)):
                response.end()
            came = came or data[:80]
            response.feed(data)
            if time.monotonic() > deadline:
                raise TimeoutError
    except TimeoutError:
        raise _unfinished(came) from None
    except ExchangeError as error:
        if not came:
            raise ConnectionError("the connection was closed without an answer") from None
        raise WrongReplyError(f"answered {came!r}: {error}; is http its scenario?") from None
    if load.locustfile and (load.status, load.length) == (Load(name="").status, None):
        return  # an answer is an answer: what its users ask for is known to them alone
    if flaw := Expectation(statuses=request.statuses(load.status), length=load.length).flaw(
        response.status, response.length
    ):
        expected = load.status if load.length is None else f"{load.status} and a body of {load.length} bytes"
        raise WrongReplyError(f"answered {load.method} {asked.path} with {flaw}, not with status {expected}")


def _unfinished(came: bytes) -> TimeoutError:
    """Make the error for an answer of which only this had come when the time was over."""
    return TimeoutError(f"the answer does not end; it begins with {came[:80]!r}" if came else "timed out")


def _message(connection: socket.socket, load: Load, address: Address, timeout_s: float) -> None:
    payload = numbered(0, load.payload)[:-1]
    talk = WebSocketTalk(connection, _opening(load, address.name), len(payload), time.monotonic() + timeout_s)
    try:
        talk.open()
        talk.echo(OPCODES[load.message], payload)
        talk.close()
    except TimeoutError:
        raise _unfinished(talk.began) from None
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
    """Return the load's request, of several the first."""
    return Request.made(
        method=load.method,
        path=next(request.paths(load.paths[0], folder)),
        headers=load.headers,
        body=request.body(load.body, folder),
        payload=load.payload,
        keep_alive=keep_alive,
    )


def _opening(load: Load, host: str) -> Handshake:
    return Handshake.made(path=load.paths[0], headers=load.headers, host=host)


def _tls(load: Load, folder: Path) -> ssl.SSLContext:
    return tls_context(insecure=load.insecure, ca=str(folder / load.ca) if load.ca else "")
