"""The options of the http and websocket scenarios on locust's command line, and what the users make of them. Its import
adds them.

None is on the web page: the requests are made when the users are.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from locust import events
from locust.exception import StopTest

from ..generator.dialer import tls_context
from ..generator.http import Expectation
from ..generator.websocket import OPCODES, Opening
from ..plan import request
from ..plan.request import Request
from .options import whole

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from locust.argument_parser import LocustArgumentParser


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # locust ships no types
def add_web_options(parser: LocustArgumentParser) -> None:
    """Add the options, with defaults that are not None, as workers get them in a message."""

    def add(flag: str, *, help: str, of: str = "http", **keywords: Any) -> None:  # noqa: A002 # argparse's word
        parser.add_argument(flag, include_in_web_ui=False, help=f"{of}: {help}", **keywords)

    both = "http, websocket"

    add("--method", type=_parsed(request.method), default="GET", help="of the requests (default %(default)s).")
    add(
        "--path",
        of=both,
        type=_parsed(request.path),
        default="/",
        help="of the requests, with a query (default %(default)s).",
    )
    add(
        "--header",
        of=both,
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
    add(
        "--no-keep-alive",
        dest="keep_alive",
        action="store_false",
        help="make a connection for each request, instead of keeping it as long as --exchanges or the server allow.",
    )
    add("--status", type=_parsed(request.status), default="2xx", help="of a good response (default %(default)s).")
    add("--length", type=whole(0), default=-1, metavar="<bytes>", help="of a good response's body (default: any).")
    add("--insecure", of=both, action="store_true", help="take any certificate of an https:// or wss:// server.")
    add(
        "--ca",
        of=both,
        type=_parsed(_certificates),
        default="",
        metavar="<file>",
        help="certificates to trust (default: the system's).",
    )
    add("--message", of="websocket", choices=OPCODES, default="text", help="their kind (default %(default)s).")


def request_of(options: argparse.Namespace) -> Request:
    """What to send."""
    return Request.made(
        method=options.method,
        path=options.path,
        headers=tuple(options.header),
        body=options.body,
        payload=options.payload,
        keep_alive=options.keep_alive,
    )


def expectation_of(options: argparse.Namespace) -> Expectation:
    """What has to come back."""
    length = options.length if options.length >= 0 else None
    return Expectation(statuses=request.statuses(options.status), length=length, bodiless=options.method == "HEAD")


def opening_of(options: argparse.Namespace, host: str) -> Opening:
    """How a client asks for a WebSocket. Raises ValueError for a header that it may not set."""
    return Opening.made(path=options.path, headers=options.header, host=host)


def tls_of(options: argparse.Namespace) -> ssl.SSLContext:
    """How a server with TLS is verified. Raises StopTest, as a worker may lack the file that its master has."""
    try:
        return tls_context(insecure=options.insecure, ca=options.ca)
    except ValueError as error:
        raise StopTest(f"--ca {error}") from None


def _certificates(file: str) -> str:
    if file:
        tls_context(insecure=False, ca=file)
    return file


def _parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type that tells the parser's reason."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
