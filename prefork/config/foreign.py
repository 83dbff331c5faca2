"""The options of gunicorn, uvicorn, granian and hypercorn, each with what stands for it here.

Who types one of theirs is answered with ours, and docs/migrating.md is this table. An answer that begins with a name in
backticks says what to use; any other is a sentence. Taken from gunicorn 27.0, uvicorn 0.54, granian 2.8 and hypercorn
0.18.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final

SERVERS: Final = {"g": "gunicorn", "u": "uvicorn", "r": "granian", "h": "hypercorn"}


@dataclass(frozen=True, slots=True)
class Foreign:
    """Options of other servers that have one answer. `flags`: each with the letters of those that have it."""

    flags: Mapping[str, str]
    answer: str

    @classmethod
    def of(cls, spec: str, answer: str) -> Foreign:
        """Read `gh:-p,--pid r:--pid-file`."""
        groups = (group.split(":") for group in spec.split())
        return cls({flag: letters for letters, flags in groups for flag in flags.split(",")}, answer)

    @property
    def sentence(self) -> str:
        """`Use --bind HOST:PORT.`, or what the answer says."""
        text = self.answer.replace("`", "")
        return (f"Use {text}" if self.answer.startswith("`") else text[0].upper() + text[1:]).rstrip(".") + "."


_HTTP2 = "no HTTP/2 or 3: let a proxy speak them to clients"
_SMUGGLING = "no counterpart: a request that is not to the letter could be read otherwise by a proxy, and is refused"
_LOOP = "not needed: a worker has one loop, and `--threads` for WSGI"
_DIRTY = "no counterpart: use a task queue, such as Celery"
_SYSLOG = "no counterpart: systemd and containers take the log from standard error"
_METRICS = "`--admin ADDRESS`, which has /metrics for Prometheus"
_STATIC = "no counterpart: WhiteNoise, or a proxy, see serving.md"
_FILES = "not needed: the system tells of changes"

# By the groups of our own options: the flags, with letters that say whose they are, and our answer.
_ROWS: dict[str, tuple[tuple[str, str], ...]] = {
    "Listening": (
        ("gh:-b,--bind", "`--bind ADDRESS`"),
        ("ur:--host,--port", "`--bind HOST:PORT`"),
        ("ur:--uds", "`--bind unix:PATH`"),
        ("r:--uds-permissions", "`--bind unix:PATH,mode=660`"),
        ("u:--fd", "`--bind fd://N`"),
        ("h:--insecure-bind", "no counterpart: a second server without `--tls-cert`, or a proxy"),
        ("h:--quic-bind", _HTTP2),
        ("gurh:--backlog", "`--backlog N`"),
        ("g:--reuse-port", "`--accept per-worker`"),
    ),
    "Workers": (
        ("gh:-w gurh:--workers", "`--workers N`; by default one for each CPU"),
        ("gh:-k,--worker-class", "not needed: APP shows its kind (`--interface` says it), `--threads N` adds threads"),
        ("g:--threads r:--blocking-threads", "`--threads N`"),
        (("r:--blocking-threads-idle-timeout,--runtime-threads,--runtime-blocking-threads,--runtime-mode,"
         "--task-impl"), _LOOP),
        ("g:--worker-connections r:--backpressure",
         "`--max-connections N`, beyond which clients wait in the kernel; `--max-in-flight N` for a 503"),
        ("gh:--max-requests u:--limit-max-requests", "`--max-requests N`"),
        ("gh:--max-requests-jitter u:--limit-max-requests-jitter", "`--max-requests-jitter N`"),
        ("r:--workers-lifetime", "`--max-age DURATION`"),
        ("r:--workers-max-rss", "`--max-memory SIZE`"),
        ("r:--rss-sample-interval,--rss-samples", "not needed: `--max-memory` looks once a second"),
        ("r:--respawn-failed-workers,--no-respawn-failed-workers,--respawn-interval",
         "not needed: a worker that dies is replaced, with pauses if it dies again and again"),
        ("g:--worker-tmp-dir", "not needed: the heartbeat is in shared memory, not in a file"),
        ("g:--dirty-app,--dirty-workers,--dirty-timeout,--dirty-threads,--dirty-graceful-timeout", _DIRTY),
    ),
    "Application": (
        ("ur:--factory r:--no-factory", "`--factory`; with arguments `module:create('prod')`"),
        ("u:--app-dir g:--pythonpath", "`--chdir DIR`, or set PYTHONPATH"),
        ("g:--chdir r:--working-dir", "`--chdir DIR`"),
        ("g:-e,--env", "`--env-file FILE`, or `env NAME=VALUE prefork serve`"),
        ("u:--env-file r:--env-files", "`--env-file FILE`"),
        ("ur:--interface", "`--interface KIND`, where APP does not show it"),
        ("ur:--loop g:--asgi-loop", "`--loop LOOP`"),
        ("u:--lifespan g:--asgi-lifespan", "`--lifespan HOW`"),
        ("guh:--root-path r:--url-path-prefix", "`--root-path PATH`"),
        ("g:--preload", "`--preload`"),
        ("u:--reset-contextvars", "not needed: each request has a context of its own"),
        ("g:--asgi-disconnect-grace-period", "not needed: the application is told, and ends when it has ended"),
        ("g:--paste,--paster,--paste-global", "no counterpart: name a module that calls paste.deploy.loadapp()"),
        ("r:--static-path-route,--static-path-mount,--static-path-dir-to-file,--static-path-expires", _STATIC),
    ),
    "Timeouts": (
        ("g:-t,--timeout", "`--timeout DURATION`; here -t is `--threads`"),
        ("u:--timeout-worker-healthcheck", "`--timeout DURATION`"),
        ("gh:--graceful-timeout u:--timeout-graceful-shutdown r:--workers-kill-timeout",
         "`--graceful-timeout DURATION`"),
        ("gh:--keep-alive u:--timeout-keep-alive r:--http1-keep-alive,--no-http1-keep-alive",
         "`--keep-alive DURATION`"),
        ("r:--http1-header-read-timeout", "`--header-timeout DURATION`"),
        ("h:--read-timeout", "`--header-timeout DURATION`, `--idle-timeout DURATION`"),
    ),
    "HTTP and WebSocket": (
        ("u:--limit-concurrency", "`--max-in-flight N`; idle connections do not count"),
        ("g:--limit-request-line", "`--max-request-line SIZE`"),
        ("g:--limit-request-fields", "`--max-fields N`"),
        ("g:--limit-request-field_size u:--h11-max-incomplete-event-size r:--http1-buffer-size", "`--max-header SIZE`"),
        ("u:--http g:--http-parser", "not needed: there is one parser, in Python"),
        (("r:--http,--http2-adaptive-window,--no-http2-adaptive-window,"
         "--http2-initial-connection-window-size,--http2-initial-stream-window-size,"
         "--http2-keep-alive-interval,--http2-keep-alive-timeout,--http2-max-headers-size,"
         "--http2-max-send-buffer-size u:--http2 g:--http-protocols,--http2-cleartext,"
         "--http2-initial-window-size,--http2-max-header-list-size gr:--http2-max-concurrent-streams,"
         "--http2-max-frame-size"), _HTTP2),
        ("r:--http1-pipeline-flush,--no-http1-pipeline-flush", "not needed: pipelined requests are served in turn"),
        ("g:--protocol,--uwsgi-allow-from", "no counterpart: HTTP alone; nginx has proxy_pass for it"),
        ("ur:--ws r:--no-ws", "not needed: an ASGI application has WebSockets"),
        ("u:--ws-max-size g:--websocket-max-message-size", "`--ws-max-message SIZE`"),
        ("u:--ws-max-queue", "not needed: a client is read no faster than the application receives"),
        ("u:--ws-ping-interval,--ws-ping-timeout h:--websocket-ping-interval", "`--ws-ping DURATION`"),
        ("u:--ws-per-message-deflate", "not needed: messages are compressed if the client offers it"),
        ("u:--proxy-headers,--no-proxy-headers", "`--trusted-proxies NETWORK`; without it none is trusted"),
        ("gu:--forwarded-allow-ips", "`--trusted-proxies NETWORK`; none is trusted by default"),
        ("g:--forwarder-headers", "not needed: SCRIPT_NAME and PATH_INFO do not come from headers"),
        ("g:--proxy-protocol", "`--proxy-protocol`"),
        ("g:--proxy-allow-from", "`--trusted-proxies NETWORK`"),
        ("u:--header", "`--header 'NAME: VALUE'`"),
        ("u:--server-header,--no-server-header", "`--no-server-header`"),
        ("u:--date-header,--no-date-header", "not needed: a Date of the application's own takes its place"),
        ("g:--header-map", "`--underscores HOW`"),
        (("g:--permit-obsolete-folding,--strip-header-spaces,--permit-unconventional-http-method,"
         "--permit-unconventional-http-version,--casefold-http-method"), _SMUGGLING),
        ("g:--no-sendfile", "no counterpart: files that the application gives are sent by sendfile()"),
        ("h:--server-name", "no counterpart: applications check the host, as by ALLOWED_HOSTS of Django"),
    ),
    "TLS": (
        ("gh:--certfile u:--ssl-certfile r:--ssl-certificate", "`--tls-cert FILE`"),
        ("gh:--keyfile ur:--ssl-keyfile", "`--tls-key FILE`"),
        ("h:--keyfile-password ur:--ssl-keyfile-password",
         "`--tls-key-password-file FILE`, or PREFORK_TLS_KEY_PASSWORD: everybody sees a command line"),
        ("gh:--ca-certs u:--ssl-ca-certs r:--ssl-ca", "`--tls-ca FILE`"),
        ("gh:--cert-reqs h:--verify-mode u:--ssl-cert-reqs r:--ssl-client-verify,--no-ssl-client-verify",
         "`--tls-client-cert required|optional`, with `--tls-ca FILE`"),
        ("gu:--ssl-version r:--ssl-protocol-min", "`--tls-min-version VERSION`"),
        ("gh:--ciphers u:--ssl-ciphers", "`--tls-ciphers LIST`"),
        ("r:--ssl-crl", "no counterpart: a proxy can check revocations"),
        ("g:--suppress-ragged-eofs,--do-handshake-on-connect", "not needed: a handshake delays no other client"),
    ),
    "Logs": (
        ("gh:--access-logfile", "`--access-log PATH`, off by default; - is standard output"),
        ("urh:--access-log ur:--no-access-log", "`--access-log -`; it is off by default"),
        ("gh:--access-logformat r:--access-log-fmt", "`--access-log-format FORMAT`"),
        ("gh:--error-logfile,--log-file h:--error-log r:--log,--no-log", "`--log PATH`"),
        ("gurh:--log-level", "`--log-level LEVEL`"),
        ("gurh:--log-config g:--log-config-json", "`--log-config FILE`"),
        ("g:--logger-class", "no counterpart: the logger prefork takes handlers of logging"),
        ("g:--capture-output", "no counterpart: redirect standard output in the shell or in systemd"),
        ("g:-R,--enable-stdio-inheritance", "not needed: standard output and standard error are inherited"),
        (("g:--log-syslog,--log-syslog-to,--log-syslog-prefix,--log-syslog-facility,"
         "--disable-redirect-access-to-syslog"), _SYSLOG),
        ("u:--use-colors,--no-use-colors", "no counterpart: the log has no colours"),
        ("h:--debug", "`--log-level debug`"),
    ),
    "Process": (
        ("gh:-p", "`--pid FILE`; for a port `--bind HOST:PORT`"),
        ("gh:--pid r:--pid-file", "`--pid FILE`"),
        ("gh:-u,--user", "`--user USER`"),
        ("gh:-g,--group", "`--group GROUP`"),
        ("g:--initgroups", "not needed: workers have the groups of `--user`"),
        ("gh:-m,--umask", "`--umask OCTAL`"),
        ("gh:-D,--daemon", "not needed: systemd or a container runs it"),
        ("g:-n,--name r:--process-name", "no counterpart: the title of the master is `prefork: master APP`"),
        ("gh:-c,--config", "`--config FILE`, which is TOML, not Python"),
        ("g:--control-socket", "`--control PATH`"),
        ("g:--no-control-socket", "`--control none`"),
        ("g:--control-socket-mode", "not needed: only the user of the server and root may use it"),
        (("gh:--statsd-host,--statsd-prefix g:--dogstatsd-tags,--enable-backlog-metric r:--metrics,"
         "--no-metrics,--metrics-scrape-interval,--metrics-address,--metrics-port"), _METRICS),
        ("g:--check-config", "`prefork check APP`"),
        ("g:--print-config", "`prefork config APP`"),
        ("g:--spew", "`prefork stack`, or `--slow DURATION`"),
        ("g:-v gur:--version", "`prefork --version`"),
    ),
    "Development": (
        ("gurh:--reload r:--no-reload", "`--reload`"),
        ("u:--reload-dir r:--reload-paths", "`--reload-dir DIR`"),
        ("u:--reload-include g:--reload-extra-file", "`--reload-include GLOB`"),
        ("u:--reload-exclude r:--reload-ignore-dirs,--reload-ignore-patterns,--reload-ignore-paths",
         "`--reload-exclude GLOB`"),
        ("u:--reload-delay r:--reload-tick g:--reload-engine", _FILES),
        ("r:--reload-ignore-worker-failure,--no-reload-ignore-worker-failure",
         "not needed: after a start that fails it waits for the next change"),
    ),
}  # fmt: skip
FOREIGN: Final[Mapping[str, tuple[Foreign, ...]]] = {
    title: tuple(Foreign.of(spec, answer) for spec, answer in rows) for title, rows in _ROWS.items()
}


def names(letters: Iterable[str]) -> str:
    """`uvicorn, granian`, of those that have an option."""
    return ", ".join(name for letter, name in SERVERS.items() if letter in letters)


def answers(flags: Iterable[str]) -> list[str]:
    """One line for each answer to these options of other servers; options that nobody has are left out."""
    left = list(dict.fromkeys(flags))
    lines = []
    for row in chain.from_iterable(FOREIGN.values()):
        if found := [flag for flag in left if flag in row.flags]:
            left = [flag for flag in left if flag not in found]  # of two answers, as for --http, the first
            whose = names("".join(row.flags[flag] for flag in found))
            lines.append(f"No such option {', '.join(found)} ({whose}). {row.sentence}")
    return lines
