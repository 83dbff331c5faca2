"""TERM while clients connect as fast as they can: the stop ends, and it resets nobody who was let in.

The clients are another process and hold no copy of the listener: with one, the queue would outlive the server, and
nobody could be reset.
"""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Outcome
from tests.support.load import ClientGroup, Load

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

TERM = signal.SIGTERM
SOON_S = 15.0  # less than any timeout that would end it too
CLIENTS = 60


def stop_under(server: RunningServer, *, clients: int, signum: signal.Signals = TERM, group: bool = False) -> Counter:
    """Stop the server under clients that come until they are refused; return how their exchanges ended."""
    with Load(server.address, ClientGroup(clients=clients, leaves=True)) as load:
        load.wait_more(5 * clients)
        if group:
            server.signal_group(signum)
        else:
            server.signal(signum)
        assert server.wait_exit(within_s=SOON_S) == 0
        load.wait_left()
    counts = load.counts
    assert counts[Outcome.REFUSED] == clients, f"each leaves after one refusal: {dict(counts)}"
    return counts


def lost(counts: Counter[Outcome]) -> int:
    """Count those who were connected and not answered."""
    return sum(counts.values()) - counts[Outcome.OK] - counts[Outcome.REFUSED]


@pytest.mark.parametrize(
    ("bind", "args"),
    [
        ("127.0.0.1:0", ["talkback"]),
        ("127.0.0.1:0", ["nap", "--threads", "4"]),
        ("127.0.0.1:0", ["talkback", "--preload"]),
        ("[::1]:0", ["talkback"]),
        (":0", ["talkback"]),
        (["127.0.0.1:0", "127.0.0.1:0"], ["talkback"]),
    ],
    ids=["v4", "queue", "preload", "v6", "both", "two-listeners"],
)
def test_a_stop_under_constant_connections_loses_nobody(serve: Serve, bind: str | list[str], args: list[str]) -> None:
    server = serve(*args, "--workers", "2", bind=bind)
    assert lost(stop_under(server, clients=20)) == 0


def test_a_stop_of_a_unix_server_loses_nobody(serve: Serve, tmp_path: object) -> None:
    server = serve("talkback", "--workers", "2", bind=f"unix:{tmp_path}/s")
    assert lost(stop_under(server, clients=20)) == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_loses_nobody(serve: Serve, signum: signal.Signals) -> None:
    server = serve("talkback", "--workers", "2")
    assert lost(stop_under(server, clients=20, signum=signum, group=True)) == 0


@pytest.mark.parametrize(
    ("args", "stops"),
    [(["talkback"], 20), (["nap"], 10), (["talkback", "--threads", "4"], 10), (["talkback", "--preload"], 10)],
    ids=["talkback", "nap", "threads", "preload"],
)
def test_of_sixty_clients_in_each_of_many_stops_hardly_one_is_reset(serve: Serve, args: list[str], stops: int) -> None:
    """At most one in 500 of those who were there at the stop; not of all who ever came, which would forgive more."""
    total = Counter[Outcome]()
    for _ in range(stops):
        total += stop_under(serve(*args, "--workers", "4"), clients=CLIENTS)
    print(f"{stops} stops under {CLIENTS} clients, {' '.join(args)}: {dict(total)}")
    assert lost(total) <= stops * CLIENTS / 500, dict(total)


@pytest.mark.parametrize("how", [[], ["--preload"]], ids=["each-imports", "preload"])
@pytest.mark.parametrize(
    "moment", ["reloading", "spawned .*gen=2", "worker ready .*gen=2", "retiring", "worker retired"]
)
def test_a_stop_at_any_moment_of_a_reload_loses_nobody(serve: Serve, how: list[str], moment: str) -> None:
    """A successor may have begun to serve before the master knows of it."""
    for _ in range(6):
        server = serve("talkback", "--workers", "2", "--log-level", "debug", *how)
        with Load(server.address, ClientGroup(clients=20, leaves=True)) as load:
            load.wait_more(50)
            server.signal(signal.SIGHUP)
            server.wait_log(moment)
            assert server.stop(within_s=SOON_S) == 0
            load.wait_left()
        assert lost(load.counts) == 0, load.failed
