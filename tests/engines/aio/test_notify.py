"""Notify: `set` wakes all that wait, and cancelled waits are forgotten."""

from __future__ import annotations

import asyncio
import weakref

from prefork.engines.aio.waiting import Notify


def test_set_wakes_all_that_wait_and_only_them() -> None:
    async def scene() -> None:
        notify = Notify()
        notify.set()
        both = [asyncio.ensure_future(notify.wait()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(future.done() for future in both)
        notify.set()
        assert all(future.done() for future in both)
        assert not notify.wait().done()

    asyncio.run(scene())


def test_cancelled_waits_do_not_pile_up() -> None:
    """As an application does that asks between two pieces of a stream whether its client is still there."""

    async def scene() -> None:
        notify = Notify()
        patient = notify.wait()
        seen = []
        for _ in range(100):
            future = notify.wait()
            future.cancel()
            seen.append(weakref.ref(future))
        del future
        assert sum(ref() is not None for ref in seen) <= 1
        notify.set()
        assert patient.done()

    asyncio.run(scene())
