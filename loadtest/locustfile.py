"""Load for a prefork server: `locust -f loadtest/locustfile.py`, with no other flag, against a default `prefork serve`.

`--scenario talkback|echo|nap|http` or the name of a user class says what the users do, `--host` where the server is;
the other options are locust's own. The users are in `users/`, one connection each, in plain locust style. A second
engine, which drives many connections from one user, has its place there too, chosen like any other user class.

locust runs every user class that it finds in this file, so the listener below leaves those that were asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from locust import events
from locust.runners import WorkerRunner

if TYPE_CHECKING:
    from locust.env import Environment
    from locust.runners import Runner

# locust imports this file by its path, with this folder and the current one on sys.path, and afterwards removes the
# first entry. The packages `loadtest` and `prefork` beside this file shall win over installed ones.
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

from loadtest.users import EchoUser, TalkbackUser, WebUser
from loadtest.users.address import AddressError, parse
from loadtest.users.options import SCENARIOS

__all__ = ["EchoUser", "TalkbackUser", "WebUser"]


@events.init.add_listener  # type: ignore[untyped-decorator]  # locust ships no types
def choose_users(environment: Environment, runner: Runner, **_: object) -> None:
    """Keep the classes of the command line, else that of `--scenario`; end with exit code 2 on what cannot work."""
    if isinstance(runner, WorkerRunner):
        return  # its master says how many users of which class
    options = environment.parsed_options
    if not options.user_classes:
        wanted = SCENARIOS[options.scenario]
        environment.user_classes[:] = [found for found in environment.user_classes if found.__name__ == wanted]
    try:
        for user_class in environment.user_classes:
            parse(environment.host, user_class.protocol)
    except AddressError as error:
        _usage(str(error))
    if options.result and not Path(options.result).parent.is_dir():
        _usage(f"--result {options.result!r}: the folder {str(Path(options.result).parent)!r} does not exist")


def _usage(message: str) -> None:
    sys.stderr.write(f"locust: error: {message}\n")
    sys.exit(2)
