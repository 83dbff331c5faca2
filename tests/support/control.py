"""The operator's side in tests: a private place for control sockets, `prefork` commands there, and raw clients."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from prefork.cli.main import main
from tests.support.server import ROOT, clean_environment

WITHIN_S = 60.0


class Place:
    """TEST. A private XDG_RUNTIME_DIR and temp dir, short as socket paths must be. `env` is for servers and clients."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))
        self.runtime = self.root / "run"
        self.runtime.mkdir(mode=0o700)
        self.env = {"XDG_RUNTIME_DIR": str(self.runtime), "TMPDIR": str(self.root)}

    @property
    def sockets(self) -> list[Path]:
        """Every socket in the default place."""
        return sorted((self.runtime / "prefork").glob("*.sock"))

    def socket_of(self, pid: int) -> Path:
        """Where the server of this pid has its socket by default."""
        return self.runtime / "prefork" / f"{pid}.sock"

    def start(self, *args: str, terminal: int | None = None, **env: str) -> subprocess.Popen[str]:
        """Start a `prefork` command; with `terminal`, that descriptor is its stderr."""
        return subprocess.Popen(
            [sys.executable, "-m", "prefork", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if terminal is None else terminal,
            text=True,
            cwd=ROOT,
            env=clean_environment(self.env | env),
        )

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a `prefork` command to its end, in this process: to start another takes more time than most commands."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            wanted = clean_environment(self.env | env)
            for name in os.environ.keys() - wanted.keys():
                patch.delenv(name)
            for name, value in wanted.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["prefork", *args])
            patch.setattr(sys, "stdin", io.StringIO())
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setattr(tempfile, "tempdir", None)  # what was found for this process
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0
        return subprocess.CompletedProcess(["prefork", *args], code, out.getvalue(), err.getvalue())

    def ok(self, *args: str, **env: str) -> str:
        """Run a `prefork` command that is to succeed, and return what it prints."""
        return succeeded(self.run(*args, **env))

    def shown(self, *args: str) -> dict[str, Any]:
        """Return the document of `prefork status --json`."""
        document: dict[str, Any] = json.loads(self.ok("status", "--json", *args))
        return document

    def status(self) -> dict[str, Any]:
        """Return the same of the only server, without the time that starting a command takes."""
        (path,) = self.sockets
        (line,) = converse(path, b'{"command": "status"}\n')
        document: dict[str, Any] = line["answer"]
        return document

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root)


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command has printed that was to succeed."""
    assert done.returncode == 0, f"{done.args}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a command that was started and return how it ended."""
    try:
        out, err = process.communicate(timeout=WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args} did not end within {WITHIN_S:g} s: {out}{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def dial_control(path: os.PathLike[str] | str) -> socket.socket:
    """Connect to a control socket."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        # A blocking connect waits where the queue is full; a timeout of Python's would make it fail at once.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(WITHIN_S), 0))
        sock.connect(os.fspath(path))
        sock.settimeout(WITHIN_S)
    except OSError:
        sock.close()
        raise
    return sock


def read_lines(sock: socket.socket) -> list[dict[str, Any]]:
    """Read what the server says, to the end."""
    data = b""
    try:
        while chunk := sock.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass  # it closed with some of our bytes unread; what it said has come before
    return [json.loads(line) for line in data.splitlines()]


def converse(path: os.PathLike[str] | str, request: bytes) -> list[dict[str, Any]]:
    """Send these bytes and return what the server says."""
    with dial_control(path) as sock:
        with suppress(BrokenPipeError):  # it has turned us away already, and said why
            sock.sendall(request)
        return read_lines(sock)
