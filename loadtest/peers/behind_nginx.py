"""Any server behind nginx, which keeps connections to it.

Usage: behind_nginx.py [--static FOLDER] HOST PORT KEPT COMMAND...

nginx listens at the address and keeps up to KEPT connections to the server; what is under /static/ it sends by itself,
from FOLDER. In the server's command, the words UPSTREAM, UPSTREAM_HOST and UPSTREAM_PORT stand for where it is to
listen. TERM ends both; so does the end of one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_STARTS_S = 60.0
_ENDS_S = 10.0
_CONFIGURATION = """
worker_processes 1;
daemon off;
error_log stderr error;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream server {{ server {upstream}; keepalive {kept}; keepalive_requests 1000000; }}
  server {{
    listen {host}:{port} backlog=2048;
    keepalive_requests 1000000;
    {static}
    location / {{ proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


_STATIC = """
    location /static/ { alias "%s/"; sendfile on; tcp_nopush on; types { text/javascript js; } }
"""


def free_address() -> str:
    """An address that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"127.0.0.1:{sock.getsockname()[1]}"


def wait_until_it_listens(address: str, server: subprocess.Popen[bytes]) -> None:
    """Raise TimeoutError, or ChildProcessError if the server has ended."""
    host, port = address.split(":")
    until_s = time.monotonic() + _STARTS_S
    while server.poll() is None:
        try:
            socket.create_connection((host, int(port))).close()
        except ConnectionRefusedError:
            if time.monotonic() > until_s:
                raise TimeoutError(f"nobody listens at {address} after {_STARTS_S:g} s") from None
            if signal.sigtimedwait([signal.SIGTERM, signal.SIGINT], 0.05):
                raise SystemExit(0) from None
        else:
            return
    raise ChildProcessError(f"the server has ended with {server.returncode}")


def main(*argv: str) -> int:
    """Run both until TERM, or until one of them ends; return 0 if that was because of TERM."""
    static = ""
    if argv[0] == "--static":
        static = _STATIC % Path(argv[1]).resolve()
        argv = argv[2:]
    host, port, kept, *command = argv
    if not shutil.which("nginx"):
        raise SystemExit("nginx is not installed")
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    upstream = free_address()
    up_host, _, up_port = upstream.partition(":")
    where = {"UPSTREAM": upstream, "UPSTREAM_HOST": up_host, "UPSTREAM_PORT": up_port}
    words = [where.get(word, word) for word in command]

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder, "nginx.conf")
        configuration.write_text(
            _CONFIGURATION.format(folder=folder, upstream=upstream, kept=kept, host=host, port=port, static=static)
        )
        server = subprocess.Popen(words, preexec_fn=unblock)  # noqa: PLW1509 - there are no threads here
        both = [server]
        try:
            wait_until_it_listens(upstream, server)
            both.insert(0, subprocess.Popen(["nginx", "-p", folder, "-c", str(configuration)], preexec_fn=unblock))  # noqa: PLW1509
            while all(each.poll() is None for each in both):
                if signal.sigwait(signals) != signal.SIGCHLD:
                    return 0
            return 1
        finally:
            for each in both:
                each.terminate()
            for each in both:
                try:
                    each.wait(_ENDS_S)
                except subprocess.TimeoutExpired:
                    each.kill()
                    each.wait()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    raise SystemExit(main(*sys.argv[1:]))
