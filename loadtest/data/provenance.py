"""Where and with what a round was measured: what a reader needs to judge whether two rounds may be compared."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

_SYSCTL = {
    "somaxconn": "net/core/somaxconn",
    "tcp_max_syn_backlog": "net/ipv4/tcp_max_syn_backlog",
    "tcp_abort_on_overflow": "net/ipv4/tcp_abort_on_overflow",
    "tcp_tw_reuse": "net/ipv4/tcp_tw_reuse",
    "ip_local_port_range": "net/ipv4/ip_local_port_range",
}
_SOURCE = Path(__file__).parent


def collect() -> dict[str, Any]:
    """Collect the machine, the software and the kernel's limits now; None means "cannot be seen here"."""
    return {
        "host": platform.node(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("prefork", "locust", "gevent")},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
        "limits": {"open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0]},
        "sysctl": {name: _line(Path("/proc/sys") / path) for name, path in _SYSCTL.items()},
        "argv": sys.argv[1:],
    }


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))), None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Run git on the lab's own source; None outside a repository or without git."""
    command = ["git", "-C", str(_SOURCE), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _line(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip().replace("\t", " ")
    except OSError:
        return None
