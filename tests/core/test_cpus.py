"""Usable processors, read from trees of the same files that the kernel shows."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from prefork.core import cgroup
from prefork.core.cgroup import cgroup_quota, usable_cpus

if TYPE_CHECKING:
    from pathlib import Path


class Groups:
    """A control group file system in a folder."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.root.mkdir()
        self.membership = folder / "self"

    def v2(self, group: str, content: str) -> None:
        """`cpu.max` of one group."""
        self._write(f"{group}/cpu.max", content)

    def v1(self, group: str, quota: int, period: int = 100_000) -> None:
        """The two files of the cpu controller of version 1."""
        self._write(f"cpu/{group}/cpu.cfs_quota_us", f"{quota}\n")
        self._write(f"cpu/{group}/cpu.cfs_period_us", f"{period}\n")

    def _write(self, path: str, content: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)

    def quota(self, *membership: str) -> float | None:
        """What is found for a process whose /proc/self/cgroup has these lines."""
        self.membership.write_bytes(b"".join(os.fsencode(line) + b"\n" for line in membership))
        return cgroup_quota(self.root, self.membership)


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


def test_a_quota_of_version_2(groups: Groups) -> None:
    groups.v2("web/app", "150000 100000\n")
    assert groups.quota("0::/web/app") == 1.5


def test_no_limit_is_none(groups: Groups) -> None:
    groups.v2("", "max 100000\n")
    groups.v2("web", "max 100000\n")
    assert groups.quota("0::/web") is None
    assert groups.quota("0::/elsewhere") is None


def test_the_tightest_ancestor_counts(groups: Groups) -> None:
    groups.v2("web", "50000 100000\n")
    groups.v2("web/app", "max 100000\n")
    groups.v2("web/app/one", "400000 100000\n")
    assert groups.quota("0::/web/app/one") == 0.5
    groups.v2("", "20000 100000\n")
    assert groups.quota("0::/web/app/one") == 0.2


def test_in_a_container_the_root_is_the_group(groups: Groups) -> None:
    groups.v2("", "200000 100000\n")
    assert groups.quota("0::/") == 2
    assert groups.quota("0::/../host/path") == 2


def test_a_quota_of_version_1(groups: Groups) -> None:
    groups.v1("docker/abc", 250_000)
    assert groups.quota("5:cpuset:/", "4:cpu,cpuacct:/docker/abc", "1:name=systemd:/") == 2.5


def test_version_1_without_limit(groups: Groups) -> None:
    groups.v1("docker/abc", -1)
    assert groups.quota("4:cpu,cpuacct:/docker/abc") is None


def test_other_controllers_are_not_asked(groups: Groups) -> None:
    groups.v1("docker/abc", 100_000)
    assert groups.quota("5:cpuset:/docker/abc", "6:memory:/docker/abc") is None


def test_version_1_and_2_side_by_side(groups: Groups) -> None:
    groups.v1("a", 300_000)
    groups.v2("b", "100000 100000\n")
    assert groups.quota("4:cpu:/a", "0::/b") == 1


def test_what_cannot_be_read_is_no_limit(groups: Groups, tmp_path: Path) -> None:
    groups.v2("web", "garbage\n")
    assert groups.quota("0::/web") is None
    assert cgroup_quota(groups.root, tmp_path / "missing") is None
    assert cgroup_quota(tmp_path / "missing", tmp_path / "missing") is None


@pytest.mark.parametrize("name", ["caf\u00e9", "caf\udce9", "a\x0bb", "a\x1cb", "a\u2028b", "a:b:c"])
def test_a_group_may_have_any_name(groups: Groups, name: str) -> None:
    """Every byte but a slash and LF."""
    groups.v2(name, "100000 100000\n")
    assert groups.quota(f"0::/{name}") == 1


@pytest.mark.parametrize(("quota", "cpus_"), [(None, 3), (0.1, 1), (1.0, 1), (1.5, 2), (2.0, 2), (64.0, 3)])
def test_a_quota_is_rounded_up_and_bounded_by_the_affinity(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cpus_: int
) -> None:
    monkeypatch.setattr(cgroup, "cgroup_quota", lambda: quota)
    affinity = len(os.sched_getaffinity(0))
    assert usable_cpus() == min(cpus_ if quota else affinity, affinity)


def test_the_affinity_mask_counts() -> None:
    script = (
        "import os; from prefork.core.cgroup import usable_cpus\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "print(usable_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "1\n"
