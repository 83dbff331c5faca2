"""The lab's options on locust's command line, the defaults that differ from locust's, and what users make of them.

Importing this module adds the options.
"""

from __future__ import annotations

import argparse
import random
from typing import TYPE_CHECKING, Any

from locust import events
from locust.exception import StopTest

from loadtest.plan import addresses
from loadtest.plan.addresses import DEFAULT

if TYPE_CHECKING:
    import socket

    from locust import User
    from locust.argument_parser import LocustArgumentParser

    from loadtest.generator.account import Share


SCENARIOS = {
    "talkback": "TalkbackUser",
    "echo": "EchoUser",
    "nap": "TalkbackUser",
    "http": "WebUser",
    "websocket": "WebSocketUser",
}
"""Scenario -> the class of its readable user."""

FAST = "FastUser"
"""The class that plays any scenario, in the fast engine."""

_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0

ECHOES = 10
"""Lines on a connection, if --exchanges says nothing."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # locust ships no types
def add_options(parser: LocustArgumentParser) -> None:
    """Add the options. All are typed and have a default that is not None, or the web page could not change them."""
    # A user that is killed in mid-exchange leaves no sample, so without a stop timeout the slowest would be missing.
    parser.set_defaults(host=DEFAULT, stop_timeout=_STOP_TIMEOUT_S)
    parser.add_argument(
        "--scenario",
        choices=SCENARIOS,
        default="talkback",
        help="What to talk to: the built-in app that the server runs, http or websocket (default %(default)s). "
        "User classes named on the command line win.",
        include_in_web_ui=False,  # the classes are chosen at the start
    )
    parser.add_argument(
        "--engine",
        choices=("readable", "fast"),
        default="readable",
        help="readable: a user is one client, in plain locust style. fast: the users, one in each process, are "
        "--connections clients together, at several times the rate (default %(default)s).",
        include_in_web_ui=False,
    )
    parser.add_argument(
        "--connections",
        type=whole(1),
        default=64,
        metavar="<int>",
        help="Clients of the fast engine, of all users together (default %(default)s).",
    )
    parser.add_argument(
        "--rate",
        type=_number,
        default=0.0,
        metavar="<per second>",
        help="Exchanges that come due each second, of all users together, however long the server takes; latency "
        "counts from then. 0: a client begins when its last has ended (default %(default)g). Fast engine only.",
    )
    parser.add_argument(
        "--arrivals",
        choices=("constant", "poisson"),
        default="constant",
        help="How --rate spreads them: at equal distances, or as if by chance (default %(default)s).",
    )
    parser.add_argument(
        "--max-in-flight",
        type=whole(1),
        default=10_000,
        metavar="<int>",
        help="With --rate: how many exchanges may be under way or wait for a connection, of all users together; more "
        "are missed (default %(default)s).",
    )
    parser.add_argument(
        "--payload",
        type=whole(0),
        default=64,
        metavar="<bytes>",
        help="Length of each line without its newline, or of each WebSocket message (default %(default)s).",
    )
    parser.add_argument(
        "--exchanges",
        type=whole(0),
        default=0,
        metavar="<int>",
        help="Exchanges on a connection before a new one is made (default: 10 lines for echo; for http and websocket "
        "as many as the server allows).",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=_TIMEOUT_S,
        metavar="<seconds>",
        help="How long an exchange may take in all, with the connect that it needs (default %(default)g). Without "
        "--stop-timeout, exchanges in flight at the end get as long, or 10 seconds if that is more.",
    )
    parser.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        metavar="<int>",
        help="What follows from chance (--arrivals poisson, --path-order random) is the same in each run with this "
        "number. 0: another each time (default %(default)s).",
    )
    parser.add_argument(
        "--warmup",
        type=_number,
        default=0.0,
        metavar="<seconds>",
        help="Leave exchanges that start this soon after the first spawn out of the result file (default %(default)g).",
    )
    parser.add_argument(
        "--window",
        type=_number,
        default=0.0,
        metavar="<seconds>",
        help="Leave exchanges that start later than this after the warm-up out of the result file, too. 0: until the "
        "run begins to stop (default %(default)g).",
    )
    parser.add_argument(
        "--result",
        default="",
        metavar="<file>",
        help="Write what was measured, with full latency histograms, to this JSON file.",
        include_in_web_ui=False,
    )
    parser.add_argument(
        "--live",
        default="",
        metavar="<file>",
        help="Write to this file, twice a second, the clock in ns and the exchanges that went well and that failed.",
        include_in_web_ui=False,
    )


def user_class_of(options: argparse.Namespace) -> str:
    """Return the name of the class that `--scenario` and `--engine` ask for."""
    return FAST if options.engine == "fast" else SCENARIOS[options.scenario]


def scenario_of(user_class: type, options: argparse.Namespace) -> str:
    """Return the scenario that a user class plays: `--scenario` if it can play that, else its first."""
    if engine_of(user_class) == "fast":
        return str(options.scenario)
    played = [name for name, class_name in SCENARIOS.items() if class_name == user_class.__name__]
    if options.scenario in played:
        return str(options.scenario)
    return played[0] if played else user_class.__name__


def engine_of(user_class: type) -> str:
    """Return the engine of a user class; a class that names none is a usual locust user."""
    return str(getattr(user_class, "engine", "readable"))


def protocol_of(user_class: Any, options: argparse.Namespace) -> str:
    """Return the protocol of a user class: tcp, http or websocket."""
    return str(user_class.protocol) or (options.scenario if options.scenario in ("http", "websocket") else "tcp")


class whole:  # noqa: N801 # reads as a function: argparse shows its name in no message
    """An argparse type: a whole number from `least` up."""

    def __init__(self, least: int) -> None:
        self.least = least

    def __call__(self, text: str) -> int:
        """Parse the number, or raise argparse's usage error."""
        try:
            number = int(text)
        except ValueError:
            number = self.least - 1
        if number < self.least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {self.least} up")
        return number


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return number


def _seconds(text: str) -> float:
    if not (seconds := _number(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no time in which anything can happen; write seconds above 0")
    return seconds


def stop_timeout_s(options: argparse.Namespace) -> float:
    """Return how long exchanges in flight may take at the end: as long as all may, unless --stop-timeout is given."""
    given = options.stop_timeout is not _STOP_TIMEOUT_S  # the very object; what is parsed is another
    return float(options.stop_timeout if given else max(_STOP_TIMEOUT_S, options.timeout))


def chance(options: argparse.Namespace, share: Share, purpose: str) -> random.Random:
    """Return the source of chance of one user for one purpose: by --seed, and independent of all others."""
    return random.Random(f"{options.seed} {share.index} {purpose}" if options.seed else None)  # noqa: S311 # no secret


def target(user: User) -> tuple[addresses.Address, socket.AddressFamily, Any]:
    """Return the address of a user's server, its family, and what connect() takes. Raises StopTest with the reason."""
    try:
        found = addresses.parse(
            user.host or addresses.DEFAULT, protocol_of(type(user), user.environment.parsed_options), unix=user.unix
        )
        return found, *found.resolve()
    except addresses.AddressError as error:
        raise StopTest(str(error)) from None
    except OSError as error:
        raise StopTest(f"--host {user.host!r}: {error.strerror}") from None
