"""To give and to take costs nothing that grows with the connections of a worker, as long as none changes hands."""

from __future__ import annotations

from contextlib import closing
from time import monotonic_ns

from prefork.engines.handover import HandOver, LongestIdle
from tests.support.handover import NOW_NS, Kept, Server, Worker


class Looks:
    """The connections of a worker, and how often somebody has looked at all of them."""

    def __init__(self, count: int) -> None:
        self.every = [Kept(since) for since in range(count)]
        self.count = 0

    def __call__(self) -> list[Kept]:
        self.count += 1
        return self.every


def test_who_has_nothing_to_give_does_not_look_at_its_connections() -> None:
    """With each heartbeat, and after each 50 ms in the application, whatever their number."""
    now_ns = monotonic_ns()
    looks = [Looks(10_000), Looks(9_000)]
    with closing(Server()) as server:
        hosts = [Worker(server, group, most=20_000) for group in range(2)]
        pair = [
            HandOver(host.context, connections=each, adopt=host.adopt) for host, each in zip(hosts, looks, strict=True)
        ]
        for _ in range(100):
            for handover, each in zip(pair, looks, strict=True):
                handover.publish(len(each.every), serves=True)
                handover.even_out(len(each.every), now_ns)
        assert [each.count for each in looks] == [0, 0]
        pair[1].publish(5_000, serves=True)
        pair[0].even_out(10_000, now_ns)
        assert [each.count for each in looks] == [1, 0], "now it has"


def test_who_is_full_looks_once_for_many_that_make_room_and_rarely_if_all_are_busy() -> None:
    looks = Looks(1000)
    found = LongestIdle(looks)
    for number in range(64):
        each = found.take(NOW_NS)
        assert each is looks.every[number]
        each.idle = False
    assert looks.count == 1
    for kept in looks.every:
        kept.idle = False
    for after_ms in range(100):
        assert found.take(NOW_NS + after_ms * 1_000_000) is None
    assert looks.count == 3, "once each 50 ms"
