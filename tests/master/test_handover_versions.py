"""An upgrade from a version that does not hand connections over, and to one: each keeps its own, as ever."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.master.test_handover import each_way
from tests.master.test_upgrade import Line
from tests.support.kept import KeptClients, some
from tests.support.server import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve
    from tests.support.control import Place

pytestmark = pytest.mark.slow

CHANGES = (  # what a master knew before that
    ('"transfer": list(transfer),', ""),
    ('*inherited["transfer"], ', ""),
    ('inherited.get("transfer")', "None"),
    (', "reads": [VERSION] if takes else []', ""),
    ("takes=VERSION in versions", "takes=False"),
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The code of such a version."""
    folder = tmp_path / "old"
    shutil.copytree(ROOT / "prefork", folder / "prefork", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "prefork" / "master" / "upgrade.py"
    text = path.read_text()
    for now, then in CHANGES:
        assert now in text
        text = text.replace(now, then)
    path.write_text(text)
    return folder


@each_way
@pytest.mark.parametrize("first", ["old", "new"])
def test_connections_stay_where_they_are_and_end_with_a_last_answer(
    serve: Serve, place: Place, old: Path, tmp_path: Path, way: tuple[str, ...], first: str
) -> None:
    code = tmp_path / "code"
    versions = [old, ROOT] if first == "old" else [ROOT, old]
    code.symlink_to(versions[0])
    env = place.env | {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    line = Line(serve(*way, "--workers", "2", env=env, cwd=tmp_path))
    with (
        KeptClients(line.server.address, 60, pause_s=some(0.05, 1.0)) as idle,
        KeptClients(line.server.address, 4) as busy,
    ):
        for number, version in enumerate(versions[::-1], start=1):
            idle.wait_more(120)
            code.unlink()
            code.symlink_to(version)
            line.upgrade()
            idle.wait_more(120)
            assert idle.told_to_close == 60 * number
        idle.stop()
        busy.stop()
        assert idle.losses + busy.losses == []
    line.stop()
