"""Who a process may become, and where it stands."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from prefork.core.privileges import WorkingDirectory, identity_of, move
from prefork.errors import ConfigError
from tests.support.users import as_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOURCES = {"user": "--user", "group": "--group", "chdir": "--chdir"}
SOMEBODY = next(entry for entry in pwd.getpwall() if entry.pw_uid not in (0, os.geteuid()))
THEIR_GROUP = grp.getgrgid(SOMEBODY.pw_gid)

TELL = """
import os, sys
from prefork.core.privileges import identity_of
identity = identity_of(sys.argv[1], sys.argv[2], {"user": "--user", "group": "--group"})
identity.assume()
identity.assume()  # once more is nothing
print(os.getresuid(), os.getresgid(), sorted(os.getgroups()), *map(os.environ.get, ("HOME", "USER", "LOGNAME")))
try:
    os.setresuid(0, 0, 0)
    print("root again")
except PermissionError:
    print("for good")
"""

# Give up root, after the imports: another user may not be let into the folder that they come from.
NOBODY = "os.geteuid() or (os.setresgid(54321, 54321, 54321), os.setresuid(54321, 54321, 54321))\n"


@pytest.fixture
def place() -> Iterator[WorkingDirectory]:
    """Where this process stands; put back afterwards."""
    place = WorkingDirectory.current()
    yield place
    place.restore()


def assumed(user: str, group: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", TELL, user, group], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout.splitlines()


def test_nothing_asked_is_nothing_to_do() -> None:
    assert identity_of("", "", SOURCES) is None


@as_root
@pytest.mark.parametrize("by_number", [False, True], ids=["name", "number"])
def test_the_user_brings_its_group_its_groups_and_its_home(by_number: bool) -> None:
    uid, gid = SOMEBODY.pw_uid, SOMEBODY.pw_gid
    groups = sorted(os.getgrouplist(SOMEBODY.pw_name, gid))
    said, lasting = assumed(str(uid) if by_number else SOMEBODY.pw_name, "")
    assert said == f"{(uid,) * 3} {(gid,) * 3} {groups} {SOMEBODY.pw_dir} {SOMEBODY.pw_name} {SOMEBODY.pw_name}"
    assert lasting == "for good"


@as_root
def test_a_group_that_is_given_wins() -> None:
    said, _ = assumed(SOMEBODY.pw_name, "4242")
    assert said.startswith(f"{(SOMEBODY.pw_uid,) * 3} {(4242,) * 3} ")


@as_root
def test_a_number_that_nobody_has_needs_a_group_and_has_no_home() -> None:
    with pytest.raises(
        ConfigError, match=r"^--user: user 54321 is not in the user database; say its group with --group$"
    ):
        identity_of("54321", "", SOURCES)
    said, _ = assumed("54321", THEIR_GROUP.gr_name)
    assert said == f"{(54321,) * 3} {(THEIR_GROUP.gr_gid,) * 3} [{THEIR_GROUP.gr_gid}] / 54321 54321"


@as_root
def test_a_group_alone_leaves_the_user_and_none_of_its_other_groups() -> None:
    identity = identity_of("", THEIR_GROUP.gr_name, SOURCES)
    assert identity is not None
    assert (identity.uid, identity.gid, identity.groups) == (0, THEIR_GROUP.gr_gid, (THEIR_GROUP.gr_gid,))
    assert identity.name == ""


@pytest.mark.parametrize(
    ("user", "group", "sentence"),
    [
        ("no-such-user", "", "--user: there is no user 'no-such-user'; give a name or a number"),
        ("", "no-such-group", "--group: there is no group 'no-such-group'; give a name or a number"),
        ("-1", "", "--user: there is no user '-1'"),
        ("4294967295", "0", "--user: there is no user '4294967295'"),
        ("\u00b2", "", "--user: there is no user '\u00b2'"),
        ("a\0b", "", "--user: there is no user "),
    ],
)  # fmt: skip
def test_who_does_not_exist_is_named(user: str, group: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        identity_of(user, group, SOURCES)
    assert str(caught.value).startswith(sentence)


def test_only_root_can_become_another() -> None:
    script = TELL.replace("identity = ", NOBODY + "identity = ")
    done = subprocess.run(
        [sys.executable, "-c", script, SOMEBODY.pw_name, ""], capture_output=True, text=True, timeout=20, check=False
    )
    assert f"ConfigError: --user: only root can become user {SOMEBODY.pw_name!r}" in done.stderr


def test_who_one_is_already_needs_no_right() -> None:
    call = """identity_of(str(os.getuid()), str(os.getgid()), {"user": "--user", "group": "--group"})"""
    script = f"import os\nfrom prefork.core.privileges import identity_of\n{NOBODY}print({call})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "None\n"


def test_move_changes_folder_and_mask_and_tells_where_one_was(tmp_path: Path, place: WorkingDirectory) -> None:
    assert move(str(tmp_path), 0o027, SOURCES) == place
    assert os.path.samefile(".", tmp_path)
    assert WorkingDirectory.current().umask == 0o027
    place.restore()
    assert WorkingDirectory.current() == place


def test_move_without_a_wish_changes_nothing(place: WorkingDirectory) -> None:
    assert move("", None, SOURCES) == place
    assert WorkingDirectory.current() == place


@pytest.mark.parametrize("folder", ["/no/such/folder", "/etc/passwd", "a\0b"])
def test_a_folder_that_cannot_be_entered_is_named(place: WorkingDirectory, folder: str) -> None:
    with pytest.raises(ConfigError, match=r"^--chdir: cannot change to "):
        move(folder, None, SOURCES)
    assert WorkingDirectory.current() == place


def test_a_folder_is_named_as_the_shell_names_it(
    tmp_path: Path, place: WorkingDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment moves the link `current`; whoever starts again from there wants the new target."""
    (tmp_path / "release").mkdir()
    (tmp_path / "current").symlink_to("release")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("PWD", f"{tmp_path}/current")
    assert WorkingDirectory.current().folder == f"{tmp_path}/current"
    monkeypatch.setenv("PWD", "/")
    assert WorkingDirectory.current().folder == f"{tmp_path}/release"


def test_a_folder_that_was_removed_has_no_name(
    tmp_path: Path, place: WorkingDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert WorkingDirectory.current().folder == ""
