"""What the control group of this process says: how many CPUs it may use, and whether the kernel killed for memory."""

from __future__ import annotations

import math
import os
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """The count behind `--workers auto`, at least 1. A quota of 1.5 processors counts as 2."""
    affinity = len(os.sched_getaffinity(0))
    quota = cgroup_quota()
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def cgroup_quota(root: Path = _ROOT, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processors that the control group allows (cgroup v2 cpu.max, v1 cpu.cfs_*); the tightest of all ancestors.

    None if there is no limit or it cannot be read.
    """
    quotas = [quota for folder in _folders(root, membership) if (quota := _folder_quota(folder)) is not None]
    return min(quotas, default=None)


def _folders(root: Path, membership: Path) -> list[Path]:
    """The folders of this process's group and of its ancestors; in a container the root itself is the group."""
    folders = [root, root / "cpu"]
    try:
        lines = os.fsdecode(membership.read_bytes()).split("\n")  # a group's name may hold anything but a line feed
    except OSError:
        return folders
    for line in lines:
        _id, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = (root / "cpu" if controllers else root) / path.lstrip("/")
        folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return folders


def _folder_quota(folder: Path) -> float | None:
    for read in (_v2, _v1):
        try:
            return read(folder)
        except (OSError, ValueError):
            continue  # not this version, or no such controller here
    return None


def _v2(folder: Path) -> float | None:
    quota, period = (folder / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _v1(folder: Path) -> float | None:
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    return None if quota <= 0 else quota / int((folder / "cpu.cfs_period_us").read_text())


# --- Did the kernel kill for want of memory? It counts such kills, and does not say whom it killed.
#
# A SIGKILL that this server did not send is laid at the OOM killer's door if the count of the own control group has
# moved and no other death explains that. The count is raised before the process dies, so it is never too late; `tick`
# forgets what is older than EVERY_S to 2 * EVERY_S, as it belonged to a process that is no worker. Where the group has
# no count (it is the root of the hierarchy) that of the whole machine is taken.


EVERY_S = 10.0


class OomKills:
    """MASTER. Workers are forked into the group that the master is in, so its group is asked, as found at the start."""

    def __init__(
        self,
        root: Path = _ROOT,
        membership: Path = Path("/proc/self/cgroup"),
        machine: Path = Path("/proc/vmstat"),
    ) -> None:
        sources = [*_sources(root, membership), machine]
        self._source = next((path for path in sources if _count(path) is not None), machine)
        self._explained = self._seen = self._now()  # so many kills are accounted for; the count at the last tick
        self._tick_s = 0.0

    def claim(self) -> bool | None:
        """Somebody was killed: True if it was for want of memory, None if that cannot be known. Once for each."""
        now = self._now()
        if now is None or self._explained is None:
            return None
        if now <= self._explained:
            return False
        self._explained += 1
        return True

    def tick(self, now_s: float) -> float:
        """Forget kills of long ago, when it is time to; return when to come again (monotonic seconds)."""
        if now_s >= self._tick_s:
            self._tick_s = now_s + EVERY_S
            if self._seen is not None and self._explained is not None:
                self._explained = max(self._explained, self._seen)
            self._seen = self._now()
        return self._tick_s

    def _now(self) -> int | None:
        return _count(self._source)


def _sources(root: Path, membership: Path) -> list[Path]:
    """Where the group's count may be, of cgroup v1 and v2; in a container the root itself is the group."""
    v1, v2 = [root / "memory"], [root]
    try:
        lines = os.fsdecode(membership.read_bytes()).split("\n")  # a group's name may hold anything but a line feed
    except OSError:
        lines = []
    for line in lines:
        _id, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            v1.insert(0, root / "memory" / path.lstrip("/"))
        elif rest and not controllers:
            v2.insert(0, root / path.lstrip("/"))
    return [*(folder / "memory.oom_control" for folder in v1), *(folder / "memory.events" for folder in v2)]


def _count(path: Path) -> int | None:
    """The value of `oom_kill`; None if there is none."""
    try:
        words = path.read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError, IndexError):
        return None  # no such file, or a kernel that does not count
