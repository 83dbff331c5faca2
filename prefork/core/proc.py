"""How many processors this process may use: the cgroup's CPU quota, else the affinity mask."""

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
