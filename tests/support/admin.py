"""Clients of --admin in tests: its address, its process, its answers, and its metrics as Prometheus reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import children
from tests.support.wait import eventually
from tests.support.web import fetch

if TYPE_CHECKING:
    from tests.support.server import RunningServer

ADMIN = ("--admin", "127.0.0.1:0")
TITLE = "prefork: admin"

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def address_of(server: RunningServer) -> str:
    """Where the admin listens."""
    return server.wait_log(r"admin listening address=(\S+)")[1]


def title(pid: int) -> str:
    """Read what a process calls itself; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0 ")
    except OSError:
        return ""


def admin_pid(server: RunningServer, *, master: int = 0, without: int = 0) -> int:
    """Wait for the admin process, for another one than `without`, and return its pid."""

    def look() -> int:
        return next((pid for pid in children(master or server.pid) - {without} if title(pid) == TITLE), 0)

    return eventually(look, within_s=10, what="an admin process")


def workers_of(server: RunningServer) -> set[int]:
    """The children of the master that are workers."""
    return {pid for pid in server.worker_pids() if title(pid).startswith("prefork: worker")}


def status(address: str) -> dict[str, Any]:
    """Return the document of /status.json."""
    answer = fetch(address, "/status.json")
    assert (answer.status, answer.fields["content-type"]) == (200, "application/json")
    document: dict[str, Any] = json.loads(answer.body)
    return document


def figures(address: str) -> Figures:
    """Return every sample of /metrics by its name and labels."""
    answer = fetch(address, "/metrics")
    assert (answer.status, answer.fields["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return parsed(answer.body.decode())


def parsed(text: str) -> Figures:
    """Return the samples of a text; one that comes twice is an error."""
    found: Figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"twice: {sample}"
            found[key] = sample.value
    return found


def figure(found: Figures, name: str, **labels: str) -> float:
    """Return one of them."""
    return found[name, frozenset(labels.items())]


def counters(found: Figures) -> Figures:
    """Return those that may never fall."""
    ends = ("_total", "_bucket", "_count", "_sum")
    return {key: value for key, value in found.items() if key[0].endswith(ends)}
