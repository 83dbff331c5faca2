"""Our own options on locust's command line, and the defaults that differ from locust's. Its import adds them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from locust import events

from .address import DEFAULT

if TYPE_CHECKING:
    from locust.argument_parser import LocustArgumentParser

SCENARIOS = {"talkback": "TalkbackUser", "echo": "EchoUser", "nap": "TalkbackUser", "http": "WebUser"}
"""Scenario -> the class of its user."""

STOP_TIMEOUT_S = 10.0


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # locust ships no types
def add_options(parser: LocustArgumentParser) -> None:
    """Add the options. All are typed and have a default that is not None, or the web page could not change them."""
    # A user that is killed in mid-exchange leaves no sample, so without a stop timeout the slowest would be missing.
    parser.set_defaults(host=DEFAULT, stop_timeout=STOP_TIMEOUT_S)
    parser.add_argument(
        "--scenario",
        choices=SCENARIOS,
        default="talkback",
        help="What to talk to: the built-in app that the server runs, or http (default %(default)s). "
        "User classes named on the command line win.",
        include_in_web_ui=False,  # the classes are chosen at the start
    )
    parser.add_argument(
        "--payload",
        type=_whole(0),
        default=64,
        metavar="<bytes>",
        help="Length of each line without its newline (default %(default)s).",
    )
    parser.add_argument(
        "--exchanges",
        type=_whole(1),
        default=10,
        metavar="<int>",
        help="Lines that the echo scenario sends on a connection before it makes a new one (default %(default)s).",
    )
    parser.add_argument(
        "--warmup",
        type=_seconds,
        default=0.0,
        metavar="<seconds>",
        help="Leave exchanges that start this soon after the first spawn out of the result file (default %(default)g).",
    )
    parser.add_argument(
        "--result",
        default="",
        metavar="<file>",
        help="Write what was measured, with full latency histograms, to this JSON file.",
        include_in_web_ui=False,
    )


def scenario_of(user_class: type, options: argparse.Namespace) -> str:
    """The scenario that a user class plays: `--scenario` if it can play that, else its first."""
    played = [name for name, class_name in SCENARIOS.items() if class_name == user_class.__name__]
    if options.scenario in played:
        return str(options.scenario)
    return played[0] if played else user_class.__name__


class _whole:  # noqa: N801 # reads as a function: argparse shows its name in no message
    """An argparse type: a whole number from `least` up."""

    def __init__(self, least: int) -> None:
        self.least = least

    def __call__(self, text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = self.least - 1
        if number < self.least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {self.least} up")
        return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 up")
    return seconds
