"""Two hundred reloads of an application that forks, starts threads and jobs, and takes the signals."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.owner import KINDS, Kind, ask
from tests.support.processes import open_fds, session_members
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve
    from tests.support.server import RunningServer

RELOADS = 200
HOW = pytest.mark.parametrize("how", [(), ("--preload",)], ids=["each-imports", "preload"])
SOAKED = {name: KINDS[name] for name in ("stream", "wsgi-threads", "asgi")}

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]


class Clients:
    """Two clients in a closed loop, each request on a connection of its own. `outcomes` counts the answers."""

    def __init__(self, server: RunningServer, kind: Kind) -> None:
        self.outcomes: Counter[str] = Counter()
        self._ask = server, kind
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._loop) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def _loop(self) -> None:
        while not self._over.is_set():
            try:
                answer = ask(*self._ask, "slow 0.001")
            except OSError as error:
                answer = repr(error)
            self.outcomes[answer] += 1

    def stop(self) -> None:
        """End after the present request of each."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)


@HOW
@pytest.mark.parametrize("kind", SOAKED.values(), ids=SOAKED)
def test_reloads_lose_no_request_and_leave_neither_orphan_nor_descriptor(
    serve: Serve, tmp_path: Path, kind: Kind, how: tuple[str, ...]
) -> None:
    diary = tmp_path / "diary"
    server = serve(*kind, "--workers", "2", *how, env={"SETUP": "handlers", "DIARY": str(diary)})
    clients = Clients(server, kind)
    try:
        for generation in range(2, RELOADS + 2):
            ask(server, kind, "compute")
            ask(server, kind, "submit")
            server.signal(signal.SIGHUP)
            server.wait_log(rf"reloaded generation={generation}\b", within_s=60)
            if generation == 3:
                before = len(open_fds(server.pid))
    finally:
        clients.stop()
    assert set(clients.outcomes) == {"ok"}, clients.outcomes
    most = 3 + len(how)  # the master, its workers, the template
    eventually(lambda: len(session_members(server.pid)) <= most, within_s=20, what="no orphan left")
    eventually(lambda: len(open_fds(server.pid)) <= before, within_s=20, what="as many descriptors as at the start")
    assert server.stop() == 0
    said = Counter(line.split()[0] for line in diary.read_text().splitlines())
    assert (said["job"], said["signal"]) == (RELOADS, 0)
    assert "killing worker" not in server.log
    assert "application cut" not in server.log
