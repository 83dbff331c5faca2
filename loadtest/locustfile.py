"""Load for a prefork server: `locust -f loadtest/locustfile.py`, with no other flag, against a default `prefork serve`.

`--scenario talkback|echo|nap|http|websocket` or the name of a user class says what the users do, `--host` where the
server is; most other options are locust's own. There are two engines (users/). The readable one is the default here,
because with it a user is one client, as everywhere in locust: numbers of users and ramps mean what they say. With
`--engine fast` the users, one in each process, are `--connections` clients together, at the rate of a load generator
written in C, and there is the open model (`--rate`).

locust runs every user class that it finds in this file, so the listener below leaves those that were asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from locust import events
from locust.runners import WorkerRunner

if TYPE_CHECKING:
    from locust.env import Environment
    from locust.runners import Runner

# locust imports this file by its path, with this folder and the current one on sys.path, and afterwards removes the
# first entry. The packages `loadtest` and `prefork` beside this file shall win over installed ones.
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

from loadtest.plan.addresses import parse
from loadtest.users import EchoUser, FastUser, TalkbackUser, WebSocketUser, WebUser
from loadtest.users.options import engine_of, protocol_of, user_class_of
from loadtest.users.web import opening_of, requests_of

_OURS = (EchoUser, FastUser, TalkbackUser, WebSocketUser, WebUser)
__all__ = ["EchoUser", "FastUser", "TalkbackUser", "WebSocketUser", "WebUser"]


@events.init.add_listener  # type: ignore[untyped-decorator]  # locust ships no types
def choose_users(environment: Environment, runner: Runner, **_: object) -> None:
    """Keep the classes of the command line, else that of the options; end with exit code 2 on what cannot work."""
    if isinstance(runner, WorkerRunner):
        return  # its master says how many users of which class
    options = environment.parsed_options
    if not options.user_classes:
        wanted = user_class_of(options)
        environment.user_classes[:] = [found for found in environment.user_classes if found.__name__ == wanted]
    try:
        for user_class in environment.user_classes:
            _check(user_class, environment)
    except ValueError as error:  # an AddressError is one
        _usage(str(error))
    engines = {engine_of(user_class) for user_class in environment.user_classes}
    if options.rate and engines != {"fast"}:
        _usage("--rate needs --engine fast: a readable user begins when its last exchange has ended")
    if engines == {"fast"}:
        if options.num_users is None:  # locust's default of one would leave all workers but one without anything to do
            options.num_users = options.expect_workers if options.master else 1
            options.spawn_rate = options.num_users
        if options.connections < options.num_users:
            _usage(f"--connections {options.connections} are fewer than the {options.num_users} users of the engine")
    if options.result and not Path(options.result).parent.is_dir():
        _usage(f"--result {options.result!r}: the folder {str(Path(options.result).parent)!r} does not exist")


def _check(user_class: Any, environment: Environment) -> None:
    """Raise ValueError if a user of this class could not begin."""
    if not issubclass(user_class, _OURS):
        return  # it is of a locustfile beside this one, which knows what its --host means
    protocol = protocol_of(user_class, environment.parsed_options)
    parse(environment.host, protocol, unix=user_class.unix)
    if protocol == "websocket":
        opening_of(environment.parsed_options, "")
    if protocol == "http":
        requests_of(environment.parsed_options)


def _usage(message: str) -> None:
    sys.stderr.write(f"locust: error: {message}\n")
    sys.exit(2)
