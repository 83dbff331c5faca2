"""Kills for want of memory, counted by files as the kernel writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from prefork.core.cgroup import EVERY_S, OomKills

if TYPE_CHECKING:
    from pathlib import Path

V1, V2 = "memory/app/memory.oom_control", "app/memory.events"
TEXT = {
    V1: "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n",
    V2: "low 0\nhigh 0\nmax 12\noom 3\noom_kill {}\noom_group_kill 0\n",
    "vmstat": "nr_free_pages 77\noom_kill {}\n",
}
MEMBER = {V1: "4:memory:/app\n2:cpuacct,cpu:/x\n0::/\n", V2: "0::/app\n", "vmstat": "0::/\n"}


class Machine:
    """TEST. A folder with the files that the kernel would have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kills(0, "vmstat")

    def kills(self, count: int, where: str) -> None:
        path = self.folder / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEXT[where].format(count))

    def watch(self, membership: str) -> OomKills:
        (self.folder / "membership").write_text(membership)
        return OomKills(self.folder, self.folder / "membership", self.folder / "vmstat")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("where", TEXT)
def test_a_kill_is_explained_if_the_count_has_moved_and_each_count_explains_one(machine: Machine, where: str) -> None:
    machine.kills(5, where)
    oom = machine.watch(MEMBER[where])
    assert oom.claim() is False
    machine.kills(7, where)
    assert [oom.claim() for _ in range(3)] == [True, True, False]


def test_in_a_container_of_cgroup_v1_the_root_is_the_group(machine: Machine) -> None:
    (machine.folder / "memory").mkdir()
    source = machine.folder / "memory" / "memory.oom_control"
    source.write_text(TEXT[V1].format(1))
    oom = machine.watch("4:memory:/docker/of-the-host\n")
    source.write_text(TEXT[V1].format(2))
    assert oom.claim() is True


def test_a_group_whose_name_is_no_utf_8_is_found(machine: Machine) -> None:
    source = machine.folder / "memory" / "a\udcff" / "memory.oom_control"
    source.parent.mkdir(parents=True)
    source.write_text(TEXT[V1].format(0))
    (machine.folder / "membership").write_bytes(b"4:memory:/a\xff\n")
    oom = OomKills(machine.folder, machine.folder / "membership", machine.folder / "vmstat")
    source.write_text(TEXT[V1].format(1))
    assert oom.claim() is True


@pytest.mark.parametrize("text", ["", "oom_kill_disable 0\n", "oom_kill\n", "oom_kill many\n"])
def test_nothing_is_known_where_nobody_counts(machine: Machine, text: str) -> None:
    (machine.folder / "vmstat").write_text(text)
    oom = machine.watch("")
    assert oom.claim() is None
    assert oom.tick(0.0) == EVERY_S


def test_a_file_that_goes_away_makes_it_unknown(machine: Machine) -> None:
    oom = machine.watch("")
    (machine.folder / "vmstat").unlink()
    assert oom.claim() is None


def test_an_old_kill_of_a_stranger_explains_nothing(machine: Machine) -> None:
    oom = machine.watch("")
    assert oom.tick(100.0) == 100.0 + EVERY_S
    machine.kills(1, "vmstat")
    oom.tick(100.0 + EVERY_S)
    assert oom.tick(101.0 + EVERY_S) == 100.0 + 2 * EVERY_S
    oom.tick(100.0 + 2 * EVERY_S)
    assert oom.claim() is False


def test_a_kill_just_before_a_tick_still_explains_the_death_after_it(machine: Machine) -> None:
    oom = machine.watch("")
    oom.tick(100.0)
    machine.kills(1, "vmstat")
    oom.tick(100.0 + EVERY_S)
    assert oom.claim() is True
    oom.tick(100.0 + 2 * EVERY_S)
    assert oom.claim() is False


def test_this_machine_counts() -> None:
    assert OomKills().claim() in (True, False)
