"""The lab as others install it: from a wheel, and without the extra `loadtest`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from loadtest.data.store import Store
from loadtest.plan.plan import Load, Plan, Server
from tests.loadtest.records import measured
from tests.support.server import ROOT

SERVER = "one={python} -m prefork serve nap --bind {address}"
NEEDED = "Error: the load generator needs locust: pip install 'prefork[loadtest]'\n"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with prefork and what it depends on, and nothing else."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name in ("click", "tabulate"):
        found = importlib.util.find_spec(name)
        assert found
        assert found.origin
        source = Path(found.origin)
        source = source.parent if source.name == "__init__.py" else source
        (folder / source.name).symlink_to(source)
    for name in ("prefork", "loadtest"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def without_locust(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the lab with what is in `site` only."""
    return subprocess.run(
        [sys.executable, "-S", "-m", "loadtest", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        timeout=60,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "demo", "--out", "out"],
        ["run", "--server", SERVER, "--out", "out"],
        ["run", "--server", SERVER, "--locustfile", "x.py", "--dry-run"],
        ["locustfile"],
    ],
)
def test_what_needs_locust_says_so_in_one_line_before_anything_starts(
    bare: Path, tmp_path: Path, arguments: list[str]
) -> None:
    done = without_locust(bare, tmp_path, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", NEEDED)
    assert not (tmp_path / "out").exists()


def test_what_needs_no_locust_works_without_it(bare: Path, tmp_path: Path) -> None:
    store = Store.create(
        tmp_path / "run", Plan(name="p", servers=(Server(name="one", command="x {port}"),), loads=(Load(name="nap"),))
    )
    store.add(measured("one", 0))
    for command, said in (
        (["report", "run"], "configuration"),
        (["report", "run", "--format", "html"], "<!doctype html>"),
        (["compare", "run", "--format", "json"], "{"),
        (["plans"], "plan "),
        (["--version"], f"in {bare / 'loadtest'}"),
        (["run", "demo", "--dry-run"], "demo: compared with 1 worker"),
    ):
        done = without_locust(bare, tmp_path, *command)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout.splitlines()[0].replace("<!DOCTYPE", "<!doctype")


@pytest.mark.slow
def test_a_wheel_has_the_plans_and_the_locustfiles(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "tests", "results", "build"))
    if importlib.util.find_spec("hatchling") is None:
        pip.remove("--no-build-isolation")
    subprocess.run([*pip, "--wheel-dir", tmp_path, source], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    ours = [path for path in (ROOT / "loadtest").rglob("*") if path.suffix in (".py", ".toml", ".css")]
    wanted = {path.relative_to(ROOT) for path in ours}
    assert {path for path in wanted if not (site / path).is_file()} == set()
    quick = ("--rounds", "1", "--duration", "0.3", "--warmup", "0.2", "--no-aa", "--out", "out")
    for command, said in (
        (("locustfile",), str(site / "loadtest" / "locustfile.py")),
        (("run", "workers-cpu", "--dry-run"), "workers-cpu: compared with 1 worker"),
        (("run", "demo", *quick), "configuration "),
    ):
        argv = [sys.executable, "-m", "loadtest", *command]
        environ = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(argv, check=False, capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(said)
