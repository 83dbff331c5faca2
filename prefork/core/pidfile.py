"""MASTER. The pid file: who serves here, and proof that it still does.

The proof is an flock(2) on the file, held for the master's life. The kernel gives it back when the last process that
has the descriptor is gone, so a file without a lock is stale whatever number stands in it, and a pid that some other
process has by now misleads nobody. Children close their copy at once. An upgrade hands the descriptor, and with it the
lock, to the next master, which writes its own pid in place.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat

from prefork.errors import ConfigError, PreforkError

_TRIES = 20  # a file that is removed between open(2) and flock(2), by its last owner, is opened again
_MOST = 64  # bytes; more is not a pid file
_PID = re.compile(rb"\s*([0-9]{0,10})\s*", re.ASCII)


class AlreadyRunning(PreforkError):  # noqa: N818 - reads as what happened
    """Another master holds the pid file."""


class PidFile:
    """MASTER. Made by `claim`, or by `inherit` in an upgraded master; both leave the lock held."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = os.path.abspath(path)
        self.fd = fd

    @classmethod
    def claim(cls, path: str) -> PidFile:
        """Lock the file, take it over if it is stale, and write our pid.

        Raises AlreadyRunning with the other's pid, or ConfigError if the file cannot be made or is something else.
        """
        for _ in range(_TRIES):
            fd = _open(path)
            try:
                _lock(fd, path)
                if _same(fd, path):
                    _refuse_other_content(fd, path)
                    mine = cls(path, fd)
                    mine.write()
                    return mine
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        raise ConfigError(f"cannot lock the pid file {path!r}: it is replaced all the time")

    @classmethod
    def inherit(cls, path: str, fd: int) -> PidFile:
        """Take over the descriptor, and with it the lock, of the master before. `write` then says who serves."""
        os.set_inheritable(fd, False)
        return cls(path, fd)

    def write(self) -> None:
        """Write the pid of this process, in place."""
        text = b"%d\n" % os.getpid()
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, text, 0)

    def close(self) -> None:
        """CHILD. Give up this process's copy; the lock stays the master's."""
        os.close(self.fd)

    def release(self) -> None:
        """Remove the file, if it is still the one that was locked and names this process; give up the lock."""
        try:
            if _same(self.fd, self.path) and _pid_in(self.fd) == os.getpid():
                os.unlink(self.path)
        except OSError:
            pass  # its folder has gone, or is no longer ours to write to: what is left there is seen to be stale
        os.close(self.fd)


def _open(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot write the pid file {path!r}: {reason}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigError(f"cannot write the pid file {path!r}: it is not a regular file")
    return fd


def _lock(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = _pid_in(fd)
        who = f"pid {pid}" if pid else "another process"
        raise AlreadyRunning(f"{who} runs already and holds {path!r}; stop it, or choose another --pid") from None
    except OSError as error:
        raise ConfigError(f"cannot lock the pid file {path!r}: {error.strerror}") from None


def _same(fd: int, path: str) -> bool:
    """True if the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def _pid_in(fd: int) -> int | None:
    """The pid that the file names; None if it names none."""
    match = _PID.fullmatch(os.pread(fd, _MOST, 0))
    return int(match[1]) if match and match[1] else None


def _refuse_other_content(fd: int, path: str) -> None:
    """Raise ConfigError rather than overwrite what is not a pid."""
    if os.fstat(fd).st_size >= _MOST or not _PID.fullmatch(os.pread(fd, _MOST, 0)):
        raise ConfigError(f"cannot write the pid file {path!r}: it holds something else than a pid")
