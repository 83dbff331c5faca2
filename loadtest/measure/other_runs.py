"""Which other runs of the lab are on this machine, as they take CPU from each other.

A run binds an abstract Unix socket whose name has its pid, and reads the names of the others in /proc/net/unix. The
kernel removes the name with the process, however that ends. Runs of all users are seen, but none in another network
namespace, such as a container's.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Self

_NAME = "prefork-loadtest-"
_OTHERS = re.compile(rf" @{_NAME}([0-9]{{1,10}})$", re.MULTILINE)


class OtherRuns:
    """Tells other runs of this one, within its context, and this one of the others."""

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.bind(f"\0{_NAME}{os.getpid()}")
        except OSError:
            pass  # of a process with our pid in a container: we can still look at others
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def notes(self) -> list[str]:
        """Say that another run was here, if one is now. Its pid means nothing to a later reader."""
        return ["another loadtest run was on this machine"] if self.others() else []

    @staticmethod
    def others() -> list[int]:
        """Return the pids of the other runs that are on this machine now."""
        try:
            names = Path("/proc/net/unix").read_text("utf-8", "replace")
        except OSError:
            return []  # hidden: nothing is known
        return sorted({int(pid) for pid in _OTHERS.findall(names)} - {os.getpid()})
