"""Runs the users of a team's own locustfile in the lab: `locust -f loadtest/own_users.py,THEIRS.py Class`.

It has no user class itself, so that theirs may have any name. It adds the lab's options and its result file, takes no
option from a locust.conf or pyproject.toml, and runs as many users as the plan says: neither a LoadTestShape nor a
fixed_count of theirs counts.

As a program, `own_users.py THEIRS.py`, it prints what is in a locustfile as JSON: {"users": {class: "http" or "tcp"}},
or {"error": why it cannot be loaded}.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from locust import FastHttpUser, HttpUser, events
from locust.util.load_locustfile import load_locustfile

if TYPE_CHECKING:
    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment

# See locustfile.py; started as a program, the first entry is the folder of this file, whose names are not for others.
if __name__ == "__main__":
    sys.path[0] = os.getcwd()
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

from loadtest.users import adapter

__all__ = ["adapter"]


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # locust ships no types
def take_no_options_from_files(parser: LocustArgumentParser) -> None:
    """Leave the command line as the only source: nothing that lies about may change a plan."""
    parser._default_config_files = []


@events.init.add_listener  # type: ignore[untyped-decorator]
def obey_the_plan(environment: Environment, **_: object) -> None:
    """Run the users that were asked for, as many as were asked for."""
    environment.shape_class = None
    for user_class in environment.user_classes:
        user_class.fixed_count = 0
        user_class.weight = 1


def listed(file: str) -> dict[str, Any]:
    """Return what is in a locustfile, or why it cannot be loaded."""
    try:
        classes, _ = load_locustfile(file)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a file may raise
        here = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = f" (line {here[-1].lineno})" if here else ""
        return {"error": traceback.format_exception_only(error)[-1].strip() + line}
    over_http = (HttpUser, FastHttpUser)
    return {"users": {name: "http" if issubclass(found, over_http) else "tcp" for name, found in classes.items()}}


if __name__ == "__main__":
    answer = os.dup(1)
    os.dup2(2, 1)  # what the file prints is not the answer
    os.write(answer, json.dumps(listed(sys.argv[1])).encode())
    os._exit(0)  # whatever the file has started
