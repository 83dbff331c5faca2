"""What the lab hears from a server about itself, and what it does when it hears nothing of use."""

from __future__ import annotations

import json
import platform
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

import loadtest.measure.probe
from loadtest.measure import procfs
from loadtest.measure.probe import StatusError, StatusProbe, ask
from tests.support.client import exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Serve

DEADLINE_S = 20


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[bytes]], str]]:
    """Start a control socket that gives these answers in turns, then hangs: `answering([b"..."])` is its path."""
    monkeypatch.setattr(
        loadtest.measure.probe, "ANSWER_S", DEADLINE_S
    )  # of the lab it is short, for the sake of the watch
    ended = threading.Event()
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def serve(listener: socket.socket, answers: list[bytes]) -> None:
        for answer in answers:
            client, _ = listener.accept()
            with client:
                client.makefile("rb").readline()
                client.sendall(answer)
        ended.wait(DEADLINE_S)

    def start(answers: list[bytes]) -> str:
        listener = socket.socket(socket.AF_UNIX)
        path = str(tmp_path / "control")
        listener.bind(path)
        listener.listen(8)
        listener.settimeout(DEADLINE_S)
        listeners.append(listener)
        threads.append(threading.Thread(target=serve, args=(listener, answers)))
        threads[-1].start()
        return path

    yield start
    ended.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    for listener in listeners:
        listener.close()


def status(*workers: tuple[int, int, int, int, int]) -> bytes:
    names = ("slot", "pid", "accepted", "requests", "connections")
    answer = {"workers": [dict(zip(names, worker, strict=True)) for worker in workers], "server": {"more": "keys"}}
    return json.dumps({"ok": True, "answer": answer}).encode() + b"\n"


def probed(path: str, looks: int) -> tuple[StatusProbe, int, int]:
    """A probe that has asked so often, and the window around it."""
    probe = StatusProbe(path, window_s=0.0)  # so short that it asks whenever it may
    start_ns = time.monotonic_ns()
    for _ in range(looks):
        probe.sample()
    return probe, start_ns, time.monotonic_ns()


def test_counts_are_those_of_the_window_and_connections_a_mean(answering: Callable[[list[bytes]], str]) -> None:
    path = answering([status((0, 10, 5, 4, 1), (1, 11, 100, 99, 0)), status((0, 10, 8, 8, 0), (1, 11, 107, 106, 1))])
    probe, start_ns, end_ns = probed(path, 2)
    workers = probe.workers(start_ns, end_ns, {10: 1000, 11: 2000}, {})
    assert workers is not None
    assert [(w.slot, w.cpu_ns, w.accepted, w.requests, w.connections) for w in workers] == [
        (0, 1000, 3, 4, 0.5),
        (1, 2000, 7, 7, 0.5),
    ]
    assert probe.notes == []


def test_who_tells_his_threads_is_known_by_them_and_who_does_not_is_not(
    answering: Callable[[list[bytes]], str],
) -> None:
    """`threads` of null is an event loop; where the key is missing, nothing is known."""
    known = {"accepted": 1, "requests": 1, "connections": 1}
    told = [{"threads": 4, "busy": 3}, {"threads": None, "busy": None}, {}]
    workers = [{"slot": slot, "pid": 10 + slot, **known, **more} for slot, more in enumerate(told)]
    answer = json.dumps({"answer": {"workers": workers}}).encode() + b"\n"
    later = json.dumps({"answer": {"workers": [{**workers[0], "busy": 4}, *workers[1:]]}}).encode() + b"\n"
    probe, start_ns, end_ns = probed(answering([answer, later]), 2)
    sleeping = max(procfs._OTHERS.get(platform.machine(), [0]))
    found = probe.workers(start_ns, end_ns, {}, {11: [-1, sleeping], 12: [sleeping]})
    assert found is not None
    assert [(worker.threads, worker.busy, worker.loop) for worker in found] == [
        (4, 3.5, False), (None, None, True), (None, None, None),
    ]  # fmt: skip
    assert [worker.blocked for worker in found] == [None, 0.5, 0.0]


def test_a_worker_and_its_successor_are_one_slot(answering: Callable[[list[bytes]], str]) -> None:
    path = answering([status((0, 10, 5, 5, 1)), status((0, 10, 9, 8, 1), (0, 12, 3, 2, 1)), status((0, 12, 6, 6, 0))])
    probe, start_ns, end_ns = probed(path, 3)
    workers = probe.workers(start_ns, end_ns, {12: 1000}, {})
    assert workers is not None
    (only,) = workers
    assert (only.accepted, only.requests, only.connections) == (4 + 6, 3 + 6, pytest.approx(1.0))
    assert only.cpu_ns is None  # the former's was not seen to its end


def test_looks_outside_the_window_do_not_count(answering: Callable[[list[bytes]], str]) -> None:
    probe, _, end_ns = probed(answering([status((0, 10, 5, 4, 1))] * 2), 2)
    assert probe.workers(end_ns, end_ns + 1, {}, {}) is None


@pytest.mark.parametrize(
    "answer",
    [b"", b"\n", b"no json\n", b"[]\n", b'{"ok": false, "error": "not you"}\n', b'{"answer": {"workers": [{}]}}\n'],
)
def test_an_answer_of_another_shape_is_said_and_used_for_nothing(
    answering: Callable[[list[bytes]], str], answer: bytes
) -> None:
    path = answering([answer, answer])
    with pytest.raises(StatusError, match="no status"):
        ask(path, DEADLINE_S)
    probe, start_ns, end_ns = probed(path, 1)
    assert probe.workers(start_ns, end_ns, {}, {}) is None
    assert probe.notes == ["the server's status is not known at all times: what it answers at {control} is no status"]


def test_nobody_at_the_socket_and_one_who_says_nothing(answering: Callable[[list[bytes]], str], tmp_path: Path) -> None:
    with pytest.raises(StatusError, match="No such file"):
        ask(str(tmp_path / "nobody"), DEADLINE_S)
    began = time.monotonic()
    with pytest.raises(StatusError, match="no answer within"):
        ask(answering([]), 0.05)
    assert time.monotonic() - began < DEADLINE_S


def test_a_server_without_a_socket_is_not_asked() -> None:
    probe = StatusProbe(None, 1.0)
    probe.sample()
    assert probe.workers(0, time.monotonic_ns(), {}, {}) is None
    assert probe.notes == []


@pytest.mark.slow
def test_prefork_answers_as_the_lab_reads(serve: Serve, tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    server = serve("talkback", "--workers", "2", "--control", path)
    before = ask(path, DEADLINE_S)
    for _ in range(6):
        exchange(server.address)
    after = ask(path, DEADLINE_S)
    assert sorted(after) == sorted(before) == sorted(server.worker_pids())
    assert sorted(count.slot for count in after.values()) == [0, 1]
    assert sum(count.accepted for count in after.values()) == 6
    assert sum(count.requests for count in after.values()) >= 5  # the last may be counted a moment later
    assert all(procfs.stat(pid) for pid in after)
