"""Where the control socket is, and for whom."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.client import exchange, talkback_reply
from tests.support.control import Place
from tests.support.server import ROOT, clean_environment
from tests.support.users import as_root
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import Serve

pytestmark = pytest.mark.slow

NOBODY = 65534


def test_the_socket_and_its_folder_are_private(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "1", env=place.env)
    path = place.socket_of(server.pid)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_without_a_runtime_dir_it_is_in_the_temp_dir_and_found_by_a_client_that_has_one(
    serve: Serve, place: Place
) -> None:
    server = serve("talkback", "--workers", "1", env={"XDG_RUNTIME_DIR": "", "TMPDIR": str(place.root)})
    assert (place.root / f"prefork-{os.geteuid()}" / f"{server.pid}.sock").is_socket()
    assert place.shown()["server"]["pid"] == server.pid


def test_a_path_of_ones_own_is_used_and_removed_at_the_end(serve: Serve, place: Place) -> None:
    path = place.root / "mine.sock"
    server = serve("talkback", "--workers", "1", "--control", str(path), env=place.env)
    assert place.sockets == []
    assert place.run("status").returncode == 6
    assert place.shown("--control", str(path))["server"]["pid"] == server.pid
    place.ok("stop", "--control", str(path))
    assert not path.exists()


def test_a_server_without_a_control_socket_serves_all_the_same(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "1", "--control", "none", env=place.env)
    assert exchange(server.address) == talkback_reply(b"hello")
    assert place.sockets == []
    assert "control" not in server.log


@pytest.mark.parametrize("fault", ["open folder", "missing folder", "a file", "too long"])
def test_a_socket_that_cannot_be_made_is_one_line_in_the_log(serve: Serve, place: Place, fault: str) -> None:
    (place.root / "file").write_text("precious")
    long = place.root / ("x" * 100)
    args: list[str] = []
    env = place.env
    match fault:
        case "open folder":
            for folder in (place.runtime / "prefork", place.root / f"prefork-{os.geteuid()}"):
                folder.mkdir()
                folder.chmod(0o755)
        case "missing folder":
            args = ["--control", str(place.root / "no" / "such.sock")]
        case "a file":
            args = ["--control", str(place.root / "file")]
        case "too long":
            long.mkdir(mode=0o700)
            env = env | {"XDG_RUNTIME_DIR": str(long)}
    server = serve("talkback", "--workers", "1", *args, env=env)
    level = "WARNING" if args else "INFO"
    server.wait_log(rf'{level} \[master=\d+\] no control socket reason=".+"$')
    assert server.log.count("no control socket") == 1
    assert exchange(server.address) == talkback_reply(b"hello")
    assert (place.root / "file").read_text() == "precious"


def test_a_live_servers_socket_is_not_taken_from_it(serve: Serve, place: Place) -> None:
    path = str(place.root / "shared.sock")
    one = serve("talkback", "--workers", "1", "--control", path, env=place.env)
    two = serve("talkback", "--workers", "1", "--control", path, env=place.env)
    two.wait_log("WARNING .*no control socket")
    assert two.stop() == 0
    assert place.shown("--control", path)["server"]["pid"] == one.pid


IMPORT_ALL = (
    "import importlib, os, pkgutil, sys, prefork; [importlib.import_module(found.name)"
    " for found in pkgutil.walk_packages(prefork.__path__, 'prefork.') if found.name != 'prefork.__main__']\n"
    "from prefork.cli.main import main"
)
AS_NOBODY = """
{everything}
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
sys.argv = ["prefork", "status", "--control", {path!r}]
main()
"""


@as_root
def test_another_user_is_refused_by_the_mode_and_by_the_kernels_word(serve: Serve, place: Place) -> None:
    path = place.root / "open.sock"
    server = serve("talkback", "--workers", "1", "--control", str(path), env=place.env)
    place.root.chmod(0o755)

    def as_nobody() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", AS_NOBODY.format(everything=IMPORT_ALL, uid=NOBODY, path=str(path))],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            cwd=ROOT,
            env=clean_environment(),
        )

    barred = as_nobody()
    assert barred.returncode == 1
    assert barred.stderr == f"prefork: {path} belongs to uid 0: only that user and root control the server\n"
    path.chmod(0o666)
    refused = as_nobody()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"prefork: this server is controlled by uid 0; you are uid {NOBODY}\n"
    assert place.shown("--control", str(path))["server"]["pid"] == server.pid


@as_root
def test_a_server_of_another_user_obeys_root(place: Place) -> None:
    """The server becomes the other user only when it has imported all: that user may not be able to read our home."""
    path = place.root / "theirs.sock"
    place.root.chmod(0o777)
    script = (
        f"{IMPORT_ALL}\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        f"sys.argv = ['prefork', 'serve', '-w', '1', '-b', 'unix:{place.root}/s', '--control', {str(path)!r}]\n"
        f"main()\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=clean_environment(place.env)
    )
    try:
        eventually(path.exists, within_s=60, what="its socket")
        assert place.shown("--control", str(path))["server"]["pid"] == server.pid
        assert path.stat().st_uid == NOBODY
        place.ok("stop", "--control", str(path))
        assert server.wait(10) == 0
    finally:
        server.kill()
        server.communicate()
