"""MASTER and CLIENT. The path of the control socket, by the same rule on both sides.

`$XDG_RUNTIME_DIR/prefork/PID.sock` if that variable names a directory of the user's own, else
`$TMPDIR/prefork-UID/PID.sock`. The directory is private (0700, owned by the user): whoever else could write there
could pass a socket off as a server's. A client looks at both places, as a service manager may have started the
server without the variable.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping

AUTO, NONE = "auto", "none"  # values of --control that are not paths
SUFFIX = ".sock"


def directories(environ: Mapping[str, str], uid: int) -> list[str]:
    """The directories of the control sockets of this user's servers; the first is for new sockets."""
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    own = bool(runtime) and _owner(runtime) == uid  # under sudo -E it is another user's
    temporary = os.path.join(environ.get("TMPDIR") or "/tmp", f"prefork-{uid}")  # noqa: S108 - checked by `fault`
    return ([os.path.join(runtime, "prefork")] if own else []) + [temporary]


def fault(directory: str, uid: int) -> str | None:
    """Why the directory cannot be trusted; None if it is private to the user."""
    try:
        found = os.lstat(directory)
    except OSError as error:
        return f"{directory}: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{directory} is not a directory"
    if found.st_uid != uid:
        return f"{directory} belongs to uid {found.st_uid}, not {uid}"
    if stat.S_IMODE(found.st_mode) & 0o077:
        return f"{directory} is open to others: its mode is {stat.S_IMODE(found.st_mode):04o}, not 0700"
    return None


def new_path(environ: Mapping[str, str], uid: int, pid: int) -> str:
    """A path for the server's socket, its directory made if need be. Raises OSError with the reason."""
    reasons = []
    for directory in directories(environ, uid):
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass  # most of the time
        except OSError as error:
            reasons.append(f"cannot make {directory}: {error.strerror}")
            continue
        if (reason := fault(directory, uid)) is None and os.access(directory, os.W_OK | os.X_OK):
            return os.path.join(directory, f"{pid}{SUFFIX}")
        reasons.append(reason or f"{directory} is not writable")
    raise OSError("; ".join(reasons))


def candidates(environ: Mapping[str, str], uid: int) -> list[str]:
    """Every socket of the user's servers, alive or not."""
    paths = []
    for directory in directories(environ, uid):
        if fault(directory, uid) is None:
            names = sorted(name for name in os.listdir(directory) if name.endswith(SUFFIX))
            paths += [os.path.join(directory, name) for name in names]
    return paths


def is_alive(path: str) -> bool:
    """True if a server listens there; the socket of one that was killed is removed. Never blocks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            _remove_if_dead(path)
            return False
        except FileNotFoundError:
            return False  # it has just stopped
        except OSError:
            pass  # EAGAIN: its queue is full
        return True


def _remove_if_dead(path: str) -> None:
    """Remove a socket that refuses, unless the process it is named after lives: it may be about to listen."""
    number = os.path.basename(path).removesuffix(SUFFIX)
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        return
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        pass
    except OSError:
        return  # EPERM: it lives
    else:
        return
    try:
        os.unlink(path)
    except OSError:
        pass  # another was faster


def _owner(path: str) -> int | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_uid if stat.S_ISDIR(found.st_mode) else None
