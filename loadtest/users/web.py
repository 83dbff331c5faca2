"""The user of the http scenario, on locust's own FastHttpUser, and the options of the http and websocket scenarios.

Importing this module adds the options to locust's command line. None is on the web page: the requests are made when the
users are.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gevent import GreenletExit, Timeout
from geventhttpclient._parser import HTTPParseError
from geventhttpclient.response import HTTPConnectionClosed
from locust import FastHttpUser, constant, events, task
from locust.exception import StopTest

from loadtest.generator.dialer import tls_context
from loadtest.generator.failure import CLOSED_EARLY, RESET, WRONG_REPLY, ExchangeError, cause_of
from loadtest.generator.http import Expectation
from loadtest.generator.websocket import OPCODES, Handshake
from loadtest.plan import request
from loadtest.plan.plan import ORDERS
from loadtest.plan.request import Request
from loadtest.users.options import chance, target, whole

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Sequence

    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment

    from loadtest.generator.account import Share

T = TypeVar("T")


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # locust ships no types
def add_web_options(parser: LocustArgumentParser) -> None:
    """Add the options, with defaults that are not None, as workers get them in a message."""
    add = functools.partial(_add, parser)
    _add_request(add)
    _add_connection(add)
    add("--status", type=_parsed(request.status), default="2xx", help="of a good response (default %(default)s).")
    add("--length", type=whole(0), default=-1, metavar="<bytes>", help="of a good response's body (default: any).")
    add("--message", of="websocket", choices=OPCODES, default="text", help="their kind (default %(default)s).")


_BOTH = "http, websocket"


def _add(
    parser: LocustArgumentParser,
    flag: str,
    *,
    help: str,  # noqa: A002 # argparse's word
    of: str = "http",
    **keywords: Any,
) -> None:
    parser.add_argument(flag, include_in_web_ui=False, help=f"{of}: {help}", **keywords)


def _add_request(add: Callable[..., None]) -> None:
    """Add what the requests are."""
    add("--method", type=_parsed(request.method), default="GET", help="of the requests (default %(default)s).")
    add(
        "--path",
        of=_BOTH,
        action="append",
        type=_parsed(lambda text: list(request.paths(text, Path.cwd()))),
        default=[],
        metavar="PATH|@FILE",
        help="of the requests, with a query (default /). http: repeat it for more, or name a file with one path in "
        "each line.",
    )
    add(
        "--path-order",
        choices=ORDERS,
        default=ORDERS[0],
        help="in which several paths are asked for: one after the other by all clients of a process together, or by "
        "chance, see --seed (default %(default)s).",
    )
    add(
        "--header",
        of=_BOTH,
        action="append",
        type=_parsed(request.header),
        default=[],
        metavar="'NAME: VALUE'",
        help="a field of each request; repeat it for more.",
    )
    add(
        "--body",
        type=_parsed(lambda text: request.body(text, Path.cwd())),
        default=b"",
        metavar="TEXT|@FILE",
        help="of each request (default: --payload bytes for POST, PUT and PATCH, else none).",
    )


def _add_connection(add: Callable[..., None]) -> None:
    """Add what happens to their connections."""
    add(
        "--no-keep-alive",
        dest="keep_alive",
        action="store_false",
        help="make a connection for each request, instead of keeping it as long as --exchanges or the server allow.",
    )
    add(
        "--no-retry",
        dest="retry",
        action="store_false",
        help="count a request as failed if its kept connection ends before any byte of the answer. Without this option "
        "it is sent once more, on a new connection, if its method is idempotent (RFC 9112 section 9.3.1).",
    )
    add("--insecure", of=_BOTH, action="store_true", help="take any certificate of an https:// or wss:// server.")
    add(
        "--ca",
        of=_BOTH,
        type=_parsed(_certificates),
        default="",
        metavar="<file>",
        help="certificates to trust (default: the system's).",
    )


def paths_of(options: argparse.Namespace) -> list[str]:
    """Return the paths that the options name."""
    return [path for paths in options.path for path in paths] or ["/"]


def name_of(options: argparse.Namespace) -> str:
    """Return what locust's tables call the requests: by their path, or the number of paths."""
    paths = paths_of(options)
    return paths[0] if len(paths) == 1 else f"{len(paths)} paths"


def requests_of(options: argparse.Namespace) -> list[Request]:
    """Return the requests that the options describe. Raises ValueError when they are too long."""
    first = Request.made(
        method=options.method,
        headers=tuple(options.header),
        body=options.body,
        payload=options.payload,
        keep_alive=options.keep_alive,
    )
    return first.at(paths_of(options))


def in_turn(options: argparse.Namespace, share: Share, items: Sequence[T]) -> Iterator[T]:
    """Return the items without end, in the order that the options name."""
    if options.path_order == "random":
        draw = chance(options, share, "paths").random
        return (items[int(draw() * len(items))] for _ in itertools.count())
    return itertools.cycle(items)


def expectation_of(options: argparse.Namespace) -> Expectation:
    """Return what the options say about a good response."""
    length = options.length if options.length >= 0 else None
    return Expectation(statuses=request.statuses(options.status), length=length, bodiless=options.method == "HEAD")


def retries(options: argparse.Namespace) -> bool:
    """Return whether a request is sent once more if its kept connection ends before any byte of the answer."""
    return bool(options.retry) and options.method in request.IDEMPOTENT


def opening_of(options: argparse.Namespace, host: str) -> Handshake:
    """Return the opening handshake of a client. Raises ValueError for a header that it may not set, and two paths."""
    path, *more = paths_of(options)
    if more:
        raise ValueError("--path: a WebSocket is opened at one path; leave out the others")
    return Handshake.made(path=path, headers=options.header, host=host)


def tls_of(options: argparse.Namespace) -> ssl.SSLContext:
    """Return the context that verifies a server. Raises StopTest, as a worker may lack the file that its master has."""
    try:
        return tls_context(insecure=options.insecure, ca=options.ca)
    except ValueError as error:
        raise StopTest(f"--ca {error}") from None


def _certificates(file: str) -> str:
    if file:
        tls_context(insecure=False, ca=file)
    return file


def _parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make an argparse type whose error has the parser's reason."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


# How the messages of geventhttpclient and of its parser begin when the stream ended inside a response.
_CUT_SHORT = ("Incomplete response", "Invalid EOF state", "connection closed")
_PIECE = 65536  # bytes of a body to read at once; none of them is kept


class WebUser(FastHttpUser):  # type: ignore[misc]  # locust ships no types
    """Sends `--method --path`, reads the whole response, and checks its status and its length."""

    wait_time = constant(0)
    protocol = "http"
    unix = False
    host: str | None = None
    concurrency = 1  # one connection

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        options = environment.parsed_options
        address, _, _ = target(self)
        self.host = f"{'https' if address.tls else 'http'}://{address}"
        self.insecure = options.insecure
        if address.tls:
            verified = tls_of(options)
            self.ssl_context_factory = lambda **_: verified
        # Several clients share a process, and the order of the paths.
        if environment.paths_in_turn is None:
            environment.paths_in_turn = in_turn(options, environment.share, paths_of(options))
        self.paths = environment.paths_in_turn
        self.name = name_of(options)
        self.deadline_s = self.connection_timeout = self.network_timeout = options.timeout
        super().__init__(environment)
        self.asked = requests_of(options)[0]
        self.expected = expectation_of(options)
        self.fields: dict[str, list[str]] = {}
        for name, value in self.asked.fields(address.name):
            self.fields.setdefault(name, []).append(value)
        self.exchanges = options.exchanges if options.keep_alive else 1
        # Requests that the connection still takes (never 0 again if that is not limited), and that it has served.
        self.left = self.exchanges
        self.served = 0
        self.retries = retries(options)
        # Each request is like the one before, and `expected` says which responses are good.
        self.client.client.cookiejar = None
        self.client.client.valid_response_codes = range(1000)
        self.pool = self.client.client.clientpool.get_client(self.host)._connection_pool
        # geventhttpclient silently sends a request again, size + 1 times, if its connection ends, also if that is new.
        self.pool.size = -1
        self.pool.after_connect = self._connected

    @task  # type: ignore[untyped-decorator]
    def exchange(self) -> None:
        """Send one request and read its whole response."""
        start_ns = time.perf_counter_ns()
        try:
            path = next(self.paths)
            with Timeout(self.deadline_s, TimeoutError):
                response = self._ask(path)
                if self.retries and self.served and _unanswered(response):
                    self.environment.events.retried.fire(start_ns=start_ns)
                    response = self._ask(path)
                length, error = _read(response)
            with response:
                response.request_meta["response_time"] = (time.perf_counter_ns() - start_ns) / 1e6
                response.request_meta["response_length"] = length
                if cause := _cause(error) or self.expected.flaw(response.status_code, length):
                    response.failure(ExchangeError(cause))
                else:
                    response.success()
        except GreenletExit:  # the run is over and waits no longer
            self.environment.events.censored.fire(start_ns=start_ns)
            raise
        self.left -= 1
        self.served += 1
        if not self.left:
            self._hang_up()

    def _ask(self, path: str) -> Any:
        """Send the request, and read the head of its response: a context that reports to locust."""
        return self.client.request(
            self.asked.method,
            path,
            name=self.name,
            data=self.asked.body,
            headers=self.fields,
            allow_redirects=False,
            stream=True,
            catch_response=True,
        )

    def _connected(self, _: object) -> None:
        """Begin to count the requests of a new connection."""
        self.left = self.exchanges
        self.served = 0

    def _hang_up(self) -> None:
        while not self.pool._socket_queue.empty():
            self.pool._socket_queue.get(block=False).close()


def _read(response: Any) -> tuple[int, Exception | None]:
    """Read the body to its end; return its length, and the error that came before or now."""
    error = getattr(response, "error", None)
    length = 0
    try:
        while error is None and (piece := response.read(_PIECE)):
            length += len(piece)
    except (OSError, HTTPParseError) as raised:
        error = raised
    return length, error


def _unanswered(response: Any) -> bool:
    """Return whether the connection ended before any byte of the answer came."""
    return isinstance(_original(getattr(response, "error", None)), HTTPConnectionClosed)


def _original(error: Any) -> Any:
    return getattr(error, "original", None) or error  # of RetriesExceeded


def _cause(error: Any) -> str:
    """Return the cause that an error of geventhttpclient stands for; empty without an error."""
    error = _original(error)
    match error:
        case None:
            return ""
        case HTTPConnectionClosed():
            return RESET if isinstance(error.__context__, ConnectionResetError) else CLOSED_EARLY
        case HTTPParseError():
            return CLOSED_EARLY if str(error.args[0]).startswith(_CUT_SHORT) else WRONG_REPLY
        case _:
            return cause_of(error)
