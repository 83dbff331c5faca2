"""The bell: whoever waits hears the next ring, and who has given up is forgotten."""

from __future__ import annotations

import asyncio
import weakref

from prefork.engines.aio.waiting import Bell


def test_all_who_wait_hear_the_next_ring_and_only_that() -> None:
    async def scene() -> None:
        bell = Bell()
        bell.ring()
        both = [asyncio.ensure_future(bell.heard()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(future.done() for future in both)
        bell.ring()
        assert all(future.done() for future in both)
        assert not bell.heard().done()

    asyncio.run(scene())


def test_who_looks_in_again_and_again_is_not_remembered_each_time() -> None:
    """As an application does that asks between two pieces of a stream whether its client is still there."""

    async def scene() -> None:
        bell = Bell()
        patient = bell.heard()
        seen = []
        for _ in range(100):
            future = bell.heard()
            future.cancel()
            seen.append(weakref.ref(future))
        del future
        assert sum(ref() is not None for ref in seen) <= 1
        bell.ring()
        assert patient.done()

    asyncio.run(scene())
