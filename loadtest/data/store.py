"""A run's folder: session.json (the plan), rounds/NNN.json (one a round, append-only), rounds/NNN/ (that round's logs).

Everything that is ever said about a run is computed from these files.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plan.plan import Plan, PlanError
from .records import SCHEMA, RecordError, Round

if TYPE_CHECKING:
    from collections.abc import Mapping


class StoreError(Exception):
    """A folder that holds no run, another run, or a file that cannot be read; the message says which and what to do."""


class Store:
    """The folder of one run."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan

    @classmethod
    def create(cls, folder: Path, plan: Plan) -> Store:
        """A new folder for the plan, or the one that holds rounds of the same plan. Raises StoreError."""
        session = folder / "session.json"
        if session.exists():
            found = cls.open(folder)
            if found.plan.fingerprint() != plan.fingerprint():
                raise StoreError(f"{folder} holds rounds of another plan ({found.plan.name!r}); choose another --out")
            found.rounds()  # those that cannot be read are named now, and not after the first new one
            if found.plan.to_json() != plan.to_json():
                _write(session, _session(plan))  # what is wanted of the comparison; reports go by it
            return cls(folder, plan)
        try:
            if folder.exists() and any(folder.iterdir()):
                raise StoreError(f"{folder} is not empty and holds no run; choose another --out")
            (folder / "rounds").mkdir(parents=True, exist_ok=True)
            _write(session, _session(plan))
        except OSError as error:
            raise StoreError(f"cannot write to {folder}: {error.strerror}") from None
        return cls(folder, plan)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """The run that the folder holds. Raises StoreError."""
        session = folder / "session.json"
        try:
            return cls(folder, Plan.from_json(_read(session)["plan"]))
        except FileNotFoundError:
            raise StoreError(f"{folder} holds no run of the lab: there is no {session}") from None
        except (KeyError, TypeError, PlanError) as error:
            raise StoreError(f"{session} cannot be read: {error!r}") from None

    def rounds(self) -> list[Round]:
        """Every round so far, in the order of measuring. Raises StoreError."""
        found = []
        for path in self._files():
            try:
                found.append(Round.from_json(_read(path)))
            except RecordError as error:
                raise StoreError(f"{path} cannot be read: {error}") from None
        return found

    def room(self) -> tuple[int, Path]:
        """The number of the next round and a folder for its logs."""
        number = max((int(path.stem) for path in self._files()), default=-1) + 1
        folder = self.folder / "rounds" / f"{number:03}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be made: {error.strerror}") from None
        return number, folder

    def add(self, done: Round) -> None:
        """Keep a round; it is there whole or not at all."""
        _write(self.folder / "rounds" / f"{done.number:03}.json", done.to_json())

    def _files(self) -> list[Path]:
        return sorted(path for path in (self.folder / "rounds").glob("*.json") if path.stem.isdecimal())


def _session(plan: Plan) -> dict[str, Any]:
    return {"schema": SCHEMA, "fingerprint": plan.fingerprint(), "plan": plan.to_json()}


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise StoreError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise StoreError(f"{path} is not a file of the lab")
    return data


def _write(path: Path, data: Mapping[str, Any]) -> None:
    """Replace the file in one step. A line for each of the top keys: short to read, and short to store."""
    part = path.with_name(path.name + ".part")
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write("{\n" + lines + "\n}\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written: {error.strerror}") from None
