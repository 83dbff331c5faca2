"""The options of `prefork serve`: their names, how they are parsed, their defaults, and their help.

The single source: the command line, the environment, the configuration file, the README's table and the defaults of
`prefork.serve` come from `OPTIONS`. A value is text until it is parsed, so every source gives the same errors.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Final

from prefork.core import log
from prefork.core.address import FORMS, Address
from prefork.core.cgroup import usable_cpus
from prefork.core.units import count, duration, network, positive_duration, size, switch, umask

KINDS = ("auto", "stream", "socketserver", "streams", "protocol", "wsgi", "asgi")
LOOPS = ("uvloop", "asyncio")
UNDERSCORES = ("drop", "refuse", "pass")
LIFESPANS = ("auto", "on", "off")
PASSWORD_VARIABLE = "PREFORK_TLS_KEY_PASSWORD"  # noqa: S105 - its name; no option, as a command line is no secret
WORKERS_MOST = 4096
THREADS_MOST = 1024
FIELDS_MOST = 10_000
# Of a request line or a head: they are kept whole, for each client, before anything is known of it.
HEAD_LEAST = 1 << 10
HEAD_MOST = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: its name on every source, how to parse it, and its help."""

    name: str
    field: str  # of Config; with its unit
    parse: Callable[[str], Any]
    default: str
    metavar: str
    help: str
    short: str = ""
    many: bool = False
    separator: str | None = None  # of several values in the environment; None: any blanks
    switch: bool = False  # given alone, without a value
    platform: str = ""  # a variable by which platforms set it, such as PORT: it yields to all but the default
    platform_form: str = "{}"  # what its value means

    @property
    def flag(self) -> str:
        """`--graceful-timeout`."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """`PREFORK_GRACEFUL_TIMEOUT`."""
        return "PREFORK_" + self.name.replace("-", "_").upper()

    @property
    def numeric(self) -> bool:
        """True if a file may have a bare number. False for a mask: 027 is octal, 27 is not."""
        return self.metavar in ("N", "N|auto", "DURATION", "SIZE", "USER", "GROUP")


def _choice(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return parse


def _workers(text: str) -> int:
    if text == "auto":
        return usable_cpus()
    try:
        return count(text, most=WORKERS_MOST)
    except ValueError as error:
        raise ValueError(f"{error}; give a number from 1 up, or auto") from None


def _age(text: str) -> float:
    if 0 < (seconds := duration(text)) < 1:
        raise ValueError(f"{text!r} is too short: at least 1s, or 0 for never")
    return seconds


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    return text


def _header(text: str) -> str:
    if text == "none":
        return text
    response = importlib.import_module("prefork.http.response")  # start-up time that only this option is worth
    return str(response.check_field(text))


def _access_format(text: str) -> str:
    if text in ("combined", "json"):
        return text
    access_log = importlib.import_module("prefork.http.access_log")  # 10 ms of start-up
    return str(access_log.check_format(text))


def _root_path(text: str) -> str:
    if text and (not text.startswith("/") or text.endswith("/")):
        raise ValueError(f"{text!r} is not a path such as /api, with a slash before it and none behind")
    return text


def _admin(text: str) -> Address | None:
    if text == "none":
        return None
    address = Address.parse(text)
    if address.fd >= 0:
        raise ValueError(f"{text!r} is not an address of the admin's own: give HOST:PORT, [V6]:PORT or unix:PATH")
    return address


def _app(text: str) -> str:
    if not text:
        raise ValueError("it is empty; give module:attribute, path.py:attribute or a built-in")
    return text


APP = Option(name="app", field="app", parse=_app, default="talkback", metavar="APP", help="What to serve.")
# By group, in the order of `--help` and of the README.
_LISTENING = (
    Option(name="bind", field="bind", short="-b", many=True, parse=Address.parse, default="127.0.0.1:1935",
           metavar="ADDRESS", platform="PORT", platform_form="0.0.0.0:{}",
           help=f"Where to listen: {FORMS}. Repeatable. unix:PATH,mode=660 sets the mode of a Unix socket."),
    Option(name="backlog", field="backlog", parse=count, default="2048", metavar="N",
           help="Connections that may wait in the accept queue (limited by net.core.somaxconn)."),
    Option(name="accept", field="accept", parse=_choice(("shared", "per-worker")), default="shared", metavar="HOW",
           help="shared: all workers accept on one socket. per-worker: one socket each; the kernel chooses by hash."),
)  # fmt: skip
_WORKERS = (
    Option(name="workers", field="workers", short="-w", parse=_workers, default="auto", metavar="N|auto",
           platform="WEB_CONCURRENCY",
           help="Worker processes. auto: one for each CPU that this process may use (cgroup quota, else affinity)."),
    Option(name="threads", field="threads", short="-t", parse=partial(count, most=THREADS_MOST), default="1",
           metavar="N", help="Threads per worker; each serves one connection (WSGI: one request) at a time. Asyncio "
                "applications have one."),
    Option(name="max-connections", field="max_connections", parse=count, default="1000", metavar="N",
           help="HTTP and asyncio: connections that a worker holds at once. An idle one of HTTP makes room for "
                "a further one; else that waits in the kernel."),
    Option(name="max-requests", field="max_requests", parse=partial(count, least=0), default="0", metavar="N",
           help="Replace a worker after it has completed N units of work; 0: never."),
    Option(name="max-requests-jitter", field="max_requests_jitter", parse=partial(count, least=0), default="0",
           metavar="N", help="Add a random number from 0 to N to each worker's --max-requests, so that not all "
                             "retire at once."),
    Option(name="max-memory", field="max_memory", parse=size, default="0", metavar="SIZE",
           help="Replace a worker whose memory (PSS) stays above SIZE; 0: never."),
    Option(name="max-age", field="max_age_s", parse=_age, default="0", metavar="DURATION",
           help="Replace a worker that has served for DURATION, less a random part of up to a tenth, so that not all "
                "retire at once; 0: never."),
)  # fmt: skip
_APPLICATION = (
    Option(name="interface", field="interface", parse=_choice(KINDS), default="auto", metavar="KIND",
           help=f"The kind of APP, if its parameters are ambiguous: {', '.join(KINDS)}."),
    Option(name="factory", field="factory", parse=switch, default="no", metavar="", switch=True,
           help="APP is a function that makes the application: call it without arguments. With arguments: "
                "module:create('prod')."),
    Option(name="root-path", field="root_path", parse=_root_path, default="", metavar="PATH",
           help="HTTP: the path at which a proxy has mounted the application, such as /api, which it may take away "
                "or leave; it becomes root_path (ASGI) or SCRIPT_NAME (WSGI)."),
    Option(name="lifespan", field="lifespan", parse=_choice(LIFESPANS), default="auto", metavar="HOW",
           help="ASGI: auto: an application that raises for the lifespan has none. on: then it cannot start, so that "
                "no failed start-up is taken for that. off: it is not asked."),
    Option(name="loop", field="loop", parse=_choice(LOOPS), default="uvloop", metavar="LOOP",
           help=f"Asyncio applications: the event loop, {' or '.join(LOOPS)}."),
    Option(name="preload", field="preload", parse=switch, default="no", metavar="", switch=True,
           help="Import APP once, in a template process that forks the workers: less memory, respawn in milliseconds."),
    Option(name="hooks", field="hooks", parse=str, default="", metavar="MODULE",
           help="Call these functions of MODULE (or path.py), if it has them: template_loaded(), "
                "worker_started(worker), "
                "worker_stopping(worker), worker_died(report)."),
    Option(name="env-file", field="env_file", parse=str, default="", metavar="FILE",
           help="Give APP the variables of FILE (KEY=VALUE a line) that the environment does not have; PREFORK_* are "
                "options. Read again by a reload, but for options."),
    Option(name="chdir", field="chdir", parse=str, default="", metavar="DIR",
           help="Change to DIR first: relative paths (FILE, MODULE, Unix sockets, logs) start there."),
)  # fmt: skip
_TIMEOUTS = (
    Option(name="timeout", field="timeout_s", parse=duration, default="30", metavar="DURATION",
           help="How long handler code may run without waiting for its client, or a worker's process stand still, busy "
                "or idle; then the worker is killed and replaced. 0: never."),
    Option(name="graceful-timeout", field="graceful_timeout_s", parse=duration, default="30", metavar="DURATION",
           help="How long a retiring worker waits for requests in flight; then connections are cut, logged and "
                "counted."),
    Option(name="lame-duck", field="lame_duck_s", parse=duration, default="0", metavar="DURATION",
           help="After TERM: serve for this time, but report not ready, before the stop begins. A second TERM "
                "ends it."),
    Option(name="boot-timeout", field="boot_timeout_s", parse=positive_duration, default="60", metavar="DURATION",
           help="How long a worker may take from its fork until it accepts."),
    Option(name="header-timeout", field="header_timeout_s", parse=positive_duration, default="10", metavar="DURATION",
           help="HTTP: how long the first byte of a new connection, or a request head from its first byte, may take."),
    Option(name="idle-timeout", field="idle_timeout_s", parse=positive_duration, default="60", metavar="DURATION",
           help="How long a stream handler waits for a silent client; then the connection is closed and counted. "
                "HTTP: the time for a body or a response, plus one second for each KiB."),
    Option(name="keep-alive", field="keep_alive_s", parse=duration, default="75", metavar="DURATION",
           help="HTTP: how long a connection stays open for the next request; it should be longer than a load balancer "
                "keeps it."),
)  # fmt: skip
_HTTP = (
    Option(name="max-in-flight", field="max_in_flight", parse=partial(count, least=0), default="0", metavar="N",
           help="HTTP: requests and WebSockets that the application of a worker may have at once; beyond it 503 with "
                "Retry-After. 0: no limit. WSGI: requests on --threads or waiting for one; without effect with "
                "--threads 1."),
    Option(name="max-body", field="max_body", parse=size, default="1g", metavar="SIZE",
           help="HTTP: the largest request body; a larger one gets status 413."),
    Option(name="max-request-line", field="max_request_line", parse=partial(size, least=HEAD_LEAST, most=HEAD_MOST),
           default="8k", metavar="SIZE", help="HTTP: the longest request line, for long targets; else 414."),
    Option(name="max-fields", field="max_fields", parse=partial(count, most=FIELDS_MOST), default="100", metavar="N",
           help="HTTP: the most header fields of a request; else 431."),
    Option(name="max-header", field="max_header", parse=partial(size, least=HEAD_LEAST, most=HEAD_MOST), default="64k",
           metavar="SIZE", help="HTTP: the most bytes of a request's header fields, for large cookies; else 431."),
    Option(name="underscores", field="underscores", parse=_choice(UNDERSCORES), default="drop", metavar="HOW",
           help="WSGI: x_y and x-y are one variable, so drop a header field x_y, refuse the request, or pass it where "
                "there is no x-y."),
    Option(name="header", field="header", parse=_header, many=True, separator="\n", default="none",
           metavar="NAME:VALUE", help="HTTP: give every response this header field, unless the application sets it. "
                                      "Repeatable."),
    Option(name="server-header", field="server_header", parse=switch, default="yes", metavar="", switch=True,
           help="HTTP: name the server in every response (Server: prefork); --no-server-header: do not."),
    Option(name="trusted-proxies", field="trusted_proxies", parse=network, many=True, default="none", metavar="NETWORK",
           help="HTTP: trust Forwarded and X-Forwarded-* from these: 10.0.0.0/8, ::1, unix:, or none. Repeatable."),
    Option(name="proxy-protocol", field="proxy_protocol", parse=switch, default="no", metavar="", switch=True,
           help="HTTP: every connection begins with a PROXY header (v1 or v2), which only --trusted-proxies may send."),
    Option(name="ws-ping", field="ws_ping_s", parse=duration, default="20", metavar="DURATION",
           help="WebSocket: ping a client after this time of silence; after the same time again, cut it. 0: never."),
    Option(name="ws-max-message", field="ws_max_message", parse=size, default="16m", metavar="SIZE",
           help="WebSocket: the largest message from a client; a larger one closes the connection with code 1009."),
)  # fmt: skip
_TLS = (
    Option(name="tls-cert", field="tls_cert", parse=str, default="", metavar="FILE",
           help="HTTP and asyncio: serve TLS with this certificate chain (PEM). A reload reads it again."),
    Option(name="tls-key", field="tls_key", parse=str, default="", metavar="FILE",
           help="The key of --tls-cert (PEM); by default in the same file."),
    Option(name="tls-key-password-file", field="tls_key_password_file", parse=str, default="", metavar="FILE",
           help=f"The first line of FILE is the password of --tls-key; or give it in {PASSWORD_VARIABLE}."),
    Option(name="tls-ca", field="tls_ca", parse=str, default="", metavar="FILE",
           help="Ask clients for a certificate that one of those in FILE (PEM) has signed. A reload reads it again."),
    Option(name="tls-client-cert", field="tls_client_cert", parse=_choice(("required", "optional")),
           default="required", metavar="HOW",
           help="With --tls-ca: required: clients without a certificate are refused. optional: the application decides "
                "what they may do."),
    Option(name="tls-min-version", field="tls_min_version", parse=_choice(("1.2", "1.3")), default="1.2",
           metavar="VERSION", help="The lowest version of TLS, 1.2 or 1.3, for rules that forbid 1.2."),
    Option(name="tls-ciphers", field="tls_ciphers", parse=str, default="", metavar="LIST",
           help="Ciphers of TLS 1.2, as `openssl ciphers` takes them, for rules that name them; those of 1.3 are "
                "OpenSSL's."),
)  # fmt: skip
_LOGS = (
    Option(name="log", field="log", parse=_path, default="-", metavar="PATH|-",
           help="Append the log to PATH (reopened on USR1); -: standard error."),
    Option(name="log-level", field="log_level", parse=_choice(log.LEVELS), default="info", metavar="LEVEL",
           help=f"The lowest level that is logged: {', '.join(log.LEVELS)}."),
    Option(name="log-format", field="log_format", parse=_choice(log.FORMATS), default="text", metavar="FORMAT",
           help="Log lines as text (key=value) or json (one object per line)."),
    Option(name="log-config", field="log_config", parse=str, default="", metavar="FILE",
           help="Configure the application's logging in each worker, before APP is imported, as logging.config does: "
                ".ini, .conf, .json, .toml or .yaml. prefork's own log stays as it is."),
    Option(name="access-log", field="access_log", parse=str, default="", metavar="PATH|-",
           help="HTTP: append a line for each request to PATH (reopened on USR1); -: standard output."),
    Option(name="access-log-format", field="access_log_format", parse=_access_format, default="combined",
           metavar="FORMAT",
           help="The lines of --access-log: combined, json (as with --log-format json), or a text with gunicorn's "
                "atoms, such as '%(h)s %(t)s \"%(r)s\" %(s)s %(L)s'."),
    Option(name="slow", field="slow_s", parse=duration, default="0", metavar="DURATION",
           help="Log the stack of a running request after DURATION, at most one a second; 0: never."),
)  # fmt: skip
_PROCESS = (
    Option(name="user", field="user", parse=str, default="", metavar="USER",
           help="Workers run as this user (name or number); sockets are bound before, and Unix sockets become "
                "its own."),
    Option(name="group", field="group", parse=str, default="", metavar="GROUP",
           help="Workers run as this group; by default the user's own."),
    Option(name="umask", field="umask", parse=umask, default="", metavar="OCTAL",
           help="File mode creation mask, also for Unix sockets; by default unchanged."),
    Option(name="pid", field="pid", parse=str, default="", metavar="FILE",
           help="Write the master's pid to FILE and keep FILE locked; it is removed at the end."),
    Option(name="control", field="control", parse=str, default="auto", metavar="PATH|none",
           help="The control socket; auto: in $XDG_RUNTIME_DIR, or a private directory in the temp dir."),
    Option(name="admin", field="admin", parse=_admin, default="none", metavar="ADDRESS|none",
           help="Serve the state of the server here, in a separate process: /metrics, /status.json, /healthz, /readyz, "
                "and a page at /."),
)  # fmt: skip
_DEVELOPMENT = (
    Option(name="reload", field="reload", parse=switch, default="no", metavar="", switch=True,
           help="For development: reload when an imported file of APP changes. One worker unless --workers is given."),
    Option(name="reload-dir", field="reload_dir", parse=_path, many=True, default="", metavar="DIR",
           help="With --reload: watch files in DIR, at any depth, as well: *.py and --reload-include. Repeatable."),
    Option(name="reload-include", field="reload_include", parse=_path, many=True, default="", metavar="GLOB",
           help="With --reload: watch files such as '*.html' in --reload-dir, or in the current folder. Repeatable."),
    Option(name="reload-exclude", field="reload_exclude", parse=_path, many=True, default="", metavar="GLOB",
           help="With --reload: do not reload for files or folders such as 'migrations' or 'tests/*.py'. Repeatable."),
)  # fmt: skip
GROUPS: Final[Mapping[str, tuple[Option, ...]]] = {
    "Listening": _LISTENING,
    "Workers": _WORKERS,
    "Application": _APPLICATION,
    "Timeouts": _TIMEOUTS,
    "HTTP and WebSocket": _HTTP,
    "TLS": _TLS,
    "Logs": _LOGS,
    "Process": _PROCESS,
    "Development": _DEVELOPMENT,
}
OPTIONS: Final = tuple(chain.from_iterable(GROUPS.values()))
PLATFORM: Final = frozenset(option.platform for option in OPTIONS if option.platform)
