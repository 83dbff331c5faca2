"""Four books of the same requests agree while workers die: the clients', the status, the metrics, the access log."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.admin import ADMIN, address_of, figure, figures, status, workers_of
from tests.support.client import TIMEOUT_S, dial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

CLIENTS = 4
KILLS = 20


class Client(threading.Thread):
    """Sends requests, each with a number of its own, over connections that it keeps; never one of them twice."""

    def __init__(self, address: str, numbers: range) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._numbers = numbers
        self.whole: set[int] = set()  # answered to the last byte
        self.lost: set[int] = set()  # sent, as far as it goes, and not answered

    def run(self) -> None:
        sock: socket.socket | None = None
        for number in self._numbers:
            try:
                sock = sock or dial(self._address)
                sock.settimeout(TIMEOUT_S)
                sock.sendall(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
                answer = b""
                while not answer.endswith(b"\r\n\r\nhello from prefork\n"):
                    data = sock.recv(65536)
                    if not data:
                        raise ConnectionResetError
                    answer += data
                self.whole.add(number)
            except ConnectionError:
                self.lost.add(number)
                if sock is not None:
                    sock.close()
                sock = None
        if sock is not None:
            sock.close()


def kill_some(server: RunningServer, clients: list[Client], requests: int) -> None:
    """Kill a worker each time that the next part of the requests is done."""
    for kill in range(1, KILLS + 1):
        done = kill * requests // (KILLS + 1)
        eventually(
            lambda done=done: sum(len(each.whole) for each in clients) >= done, within_s=90, what=f"{done} requests"
        )
        victim = min(eventually(lambda: workers_of(server), within_s=30, what="a worker"))
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: victim not in workers_of(server), within_s=30, what="its end")  # noqa: B023


@pytest.mark.parametrize("app", ["hello", "ahello"])
@pytest.mark.parametrize(
    "requests",
    [10_000, pytest.param(100_000, marks=pytest.mark.soak)],
)
@pytest.mark.timeout(300)
def test_all_books_agree_after_many_requests_and_deaths(serve: Serve, tmp_path: Path, app: str, requests: int) -> None:
    """Each whole answer is counted and logged once. What a death has cut may be, but nothing else is."""
    log = tmp_path / "access"
    server = serve(app, "--workers", "4", "--keep-alive", "60", "--access-log", str(log), *ADMIN)
    admin = address_of(server)
    each = requests // CLIENTS
    clients = [Client(server.address, range(part * each, (part + 1) * each)) for part in range(CLIENTS)]
    for client in clients:
        client.start()
    kill_some(server, clients, requests)
    for client in clients:
        client.join(120)
    whole = set[int]().union(*(client.whole for client in clients))
    lost = set[int]().union(*(client.lost for client in clients))
    assert len(whole) + len(lost) == requests
    assert len(lost) <= KILLS * CLIENTS
    logged = [int(number) for number in re.findall(r'"GET /(\d+) HTTP', log.read_text())]
    assert len(set(logged)) == len(logged), "logged twice"
    assert whole <= set(logged) <= whole | lost
    # A worker counts, then logs, then sends: a death in between leaves one that only the count has.
    counted = eventually(
        lambda: n if len(logged) <= (n := status(admin)["totals"]["requests"]) <= len(logged) + KILLS else None,
        within_s=30,
        what=f"a count of {len(logged)} requests",
    )
    assert figure(figures(admin), "prefork_requests_total") == counted
    eventually(lambda: figure(figures(admin), "prefork_respawns_total", cause="SIGKILL") == KILLS, within_s=15)
    print(f"{len(whole)} whole, {len(lost)} lost, {len(logged)} logged, {counted} counted")
