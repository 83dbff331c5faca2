"""The log's file, with --log PATH: opened to append, and opened again when a rotation has moved it away (USR1).

Opening again puts the new file behind the same descriptor (dup2), so whoever writes needs to know nothing of it. The
master goes first and creates the file; workers, which may be another user by then, follow on its signal. So the file
belongs to --user from its creation on.
"""

from __future__ import annotations

import os

from prefork.core.privileges import Identity
from prefork.errors import ConfigError

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # a FIFO must not stop the server
_MODE = 0o640


class LogFile:
    """MASTER opens it, every process opens it again for itself. `fd` never changes."""

    def __init__(self, path: str, owner: Identity | None) -> None:
        """Open or create the file. Raises ConfigError."""
        self.path = os.path.abspath(path)
        self._owner = owner
        try:
            self.fd = self._open(create=True)
        except OSError as error:
            raise ConfigError(f"cannot open the log {path!r}: {error.strerror}") from None

    def reopen(self, *, create: bool) -> str | None:
        """Go on in the file that the path leads to now; return why not, if it stays with the old one."""
        try:
            fd = self._open(create=create)
        except OSError as error:
            return error.strerror or str(error)
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        return None

    def close(self) -> None:
        """At the end of the server."""
        os.close(self.fd)

    def _open(self, *, create: bool) -> int:
        # Where the user who owns the log could put a link in its place, root must not follow it.
        flags = _APPEND | (os.O_NOFOLLOW if self._owner and os.geteuid() == 0 else 0)
        try:
            return os.open(self.path, flags)
        except FileNotFoundError:
            if not create:
                raise
        if self._owner is None:
            return os.open(self.path, flags | os.O_CREAT, _MODE)
        fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, _MODE)  # what another one made is not given away
        os.fchown(fd, self._owner.uid, self._owner.gid)
        return fd
