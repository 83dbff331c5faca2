"""Who a process is and where it stands: user and group, working folder, umask.

The master opens what needs rights (listeners, pid file, log) as whoever started it, and stays that user. What runs the
application's code takes on --user and --group first, for good: supplementary groups, group, user, in this order, as
the last step gives up the right to the others. Everything is looked up before the fork; the child only makes the calls.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

from prefork.core.units import ID_MOST
from prefork.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """MASTER looks it up, WORKER assumes it. `name` and `home` are empty if only the group changes."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str = ""
    home: str = ""

    def assume(self) -> None:
        """WORKER. Become this user, irrevocably, and tell programs by HOME, USER and LOGNAME. Raises OSError.

        A change of uid clears PR_SET_PDEATHSIG, so it comes before process.die_with_parent. A process that is
        this user already, as a worker of a template is, stays as it is.
        """
        if (os.getresuid(), os.getresgid()) == ((self.uid,) * 3, (self.gid,) * 3):
            return
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        if self.name:
            os.environ.update(HOME=self.home, USER=self.name, LOGNAME=self.name)


def identity_of(user: str, group: str, sources: Mapping[str, str]) -> Identity | None:
    """Look up --user and --group (names or numbers); None if nothing is to change.

    Raises ConfigError, naming the source, if there is no such user or group, or if only root could become it.
    """
    if not user and not group:
        return None
    found = _user(user, sources["user"]) if user else None
    uid = os.geteuid() if not user else found.pw_uid if found else int(user)
    if group:
        gid = _gid(group, sources["group"])
    elif found:
        gid = found.pw_gid
    else:
        raise ConfigError(f"{sources['user']}: user {user} is not in the user database; say its group with --group")
    if (uid, gid) == (os.geteuid(), os.getegid()) and uid != 0:
        return None  # so it is already
    if os.geteuid() != 0:
        which, wanted = ("user", user) if user else ("group", group)
        raise ConfigError(f"{sources[which]}: only root can become {which} {wanted!r}; start as root, or leave it out")
    if not user:
        return Identity(uid=uid, gid=gid, groups=(gid,))
    groups = tuple(os.getgrouplist(found.pw_name, gid)) if found else (gid,)
    return Identity(
        uid=uid, gid=gid, groups=groups, name=found.pw_name if found else user, home=found.pw_dir if found else "/"
    )


def _user(user: str, source: str) -> pwd.struct_passwd | None:
    """The entry of the user database; None for a number without one."""
    try:
        return pwd.getpwnam(user)
    except (KeyError, ValueError):  # ValueError: a NUL in the name
        number = _number(user)
    if number is None:
        raise ConfigError(f"{source}: there is no user {user!r}; give a name or a number") from None
    try:
        return pwd.getpwuid(number)
    except KeyError:
        return None


def _gid(group: str, source: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        number = _number(group)
    if number is None:
        raise ConfigError(f"{source}: there is no group {group!r}; give a name or a number") from None
    return number


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= ID_MOST else None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingDirectory:
    """Where a process stands: working folder ("" if there is none any more) and umask."""

    folder: str
    umask: int

    @classmethod
    def current(cls) -> WorkingDirectory:
        """Where this process stands now. For a moment it has another umask, so call it with one thread.

        The folder is named as the shell names it, which may lead through a link that a deployment moves on.
        """
        umask = os.umask(0o077)
        os.umask(umask)
        named = os.environ.get("PWD", "")
        try:
            same = os.path.isabs(named) and os.path.samefile(named, ".")
        except OSError:
            same = False  # the variable is not of this process's making
        try:
            return cls(folder=named if same else os.getcwd(), umask=umask)
        except FileNotFoundError:
            return cls(folder="", umask=umask)

    def restore(self) -> None:
        """Go back there. Raises OSError if the folder is gone."""
        os.umask(self.umask)
        if self.folder:
            os.chdir(self.folder)


def move(folder: str, umask: int | None, sources: Mapping[str, str]) -> WorkingDirectory:
    """Change to the folder ("" = stay) and set the umask (None = keep); return where the process stood before.

    Raises ConfigError if it cannot be entered.
    """
    before = WorkingDirectory.current()
    if folder:
        try:
            os.chdir(folder)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{sources['chdir']}: cannot change to {folder!r}: {reason}") from None
    if umask is not None:
        os.umask(umask)
    return before
