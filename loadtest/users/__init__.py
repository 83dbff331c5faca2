"""The locust users of the lab, for `loadtest/locustfile.py` and for locustfiles of your own.

Importing this package adds our options to locust's command line and, with `--result`, records to a file. It imports
locust, which monkey-patches the process: nothing but a locustfile may import it.
"""

from __future__ import annotations

from loadtest.users import adapter, options, web
from loadtest.users.fast import FastUser
from loadtest.users.stream import EchoUser, TalkbackUser, WebSocketUser
from loadtest.users.web import WebUser

__all__ = [
    "EchoUser",
    "FastUser",
    "TalkbackUser",
    "WebSocketUser",
    "WebUser",
    "adapter",
    "options",
    "web",
]
