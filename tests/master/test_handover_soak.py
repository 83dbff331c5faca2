"""A thousand idle clients and a load beside them, through a hundred changes of each kind: nobody loses anything."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.master.test_handover import each_way, recycle, reload, scale, totals, upgrade
from tests.master.test_upgrade import Line
from tests.support.kept import KeptClients, after_the_first, some

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Serve
    from tests.support.control import Place

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]

IDLE = 1000
BUSY = 8
MOST_IDLE_S = 70.0


@each_way
@pytest.mark.parametrize(
    ("change", "times"),
    [(reload, 100), (upgrade, 30), (scale, 100), (recycle, 100)],
    ids=lambda it: getattr(it, "__name__", ""),
)
def test_a_thousand_idle_clients_lose_nothing(
    serve: Serve, place: Place, way: tuple[str, ...], change: Callable[[Line, Place], None], times: int
) -> None:
    line = Line(serve(*way, "--workers", "2", "--max-connections", "2000", env=place.env))
    with ExitStack() as stack:
        stack.callback(line.stop)
        idle = stack.enter_context(KeptClients(line.server.address, IDLE, pause_s=after_the_first(0.0, MOST_IDLE_S)))
        busy = stack.enter_context(KeptClients(line.server.address, BUSY, pause_s=some(0.0, 0.02)))
        idle.wait_more(IDLE - idle.asked)
        began_s, done = time.monotonic(), 0
        while done < times or time.monotonic() - began_s < MOST_IDLE_S:  # so that each client asks meanwhile
            change(line, place)
            busy.wait_more(20)
            done += 1
        idle.wait_more(IDLE // 10)
        assert idle.losses + busy.losses == []
        found = totals(place)
        assert (found["accepted"], found["cut"], found["connections"]) == (IDLE + BUSY, 0, IDLE + BUSY), found
        idle.stop()
        busy.stop()
        assert idle.losses + busy.losses == []
        assert idle.told_to_close + busy.told_to_close == 0
    print(f"{done} x {change.__name__}: {idle.asked} requests of idle clients, {busy.asked} of the load, none failed")
