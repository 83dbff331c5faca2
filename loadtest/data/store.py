"""A run's folder: plan.toml (the plan), rounds.jsonl (a line a round, append-only) and the report.md made of both.

Everything that is ever said about a run is computed from the first two. The logs of each round lie beside them, in
logs/NNN/, for whoever looks for the cause of an error; no report reads them. One run at a time writes to a folder: it
holds a lock on rounds.jsonl (flock(2)), which ends with its process.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.data.records import RecordError, Round
from loadtest.plan import file as planfile
from loadtest.plan.plan import Plan, PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = r"[^/\s=:,;'\"`()\[\]{}<>]"  # a character of a file's name, as far as paths are told from what is around them
_PATH = re.compile(rf"(?<![\w/.~-])(?:~{_NAME}*|/{_NAME}+)(?:/{_NAME}+)*/({_NAME}+)/?")


class StoreError(Exception):
    """A folder that holds no run, another run, or a file that cannot be read; the message says which and what to do."""


class Store:
    """The folder of one run."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self._rounds = folder / "rounds.jsonl"

    @classmethod
    def create(cls, folder: Path, plan: Plan, base: Path | None = None) -> Store:
        """A new folder for the plan, or the one that holds rounds of the same plan. Raises StoreError.

        `base` is where relative paths of the plan start; None is the current folder. A plan without a seed takes that
        of the folder, or draws one.
        """
        kept = planfile.moved(plan, base, folder)
        store = cls(folder, plan)
        if store._rounds.exists():
            found = cls.open(folder)
            kept = kept.seeded(found.plan.seed)
            store.plan = replace(plan, seed=kept.seed)
            if found.plan.fingerprint() != kept.fingerprint():
                raise StoreError(f"{folder} holds rounds of another plan ({found.plan.name!r}); choose another --out")
            found.rounds()  # those that cannot be read are named now, and not after the first new one
            if found.plan != kept:
                with store.writing():  # another run's reports go by its own plan
                    store.write("plan.toml", planfile.written(kept))  # what is wanted of the comparison now
            return store
        kept = kept.seeded()
        store.plan = replace(plan, seed=kept.seed)
        try:
            if folder.exists() and any(folder.iterdir()):
                raise StoreError(f"{folder} is not empty and holds no run; choose another --out")
            folder.mkdir(parents=True, exist_ok=True)
            store._rounds.touch(exist_ok=False)  # of two runs that begin together, one gets the folder
            try:
                store.write("plan.toml", planfile.written(kept))
            except StoreError:
                store._rounds.unlink()
                raise
        except OSError as error:
            raise StoreError(f"cannot write to {folder}: {error.strerror}") from None
        return store

    @classmethod
    def open(cls, folder: Path) -> Store:
        """The run that the folder holds. Raises StoreError."""
        path = folder / "plan.toml"
        if folder.is_file():
            raise StoreError(f"{folder} is a file, and a run of the lab is a folder; {_instead(folder)}")
        if not path.exists() or not (folder / "rounds.jsonl").exists():
            raise StoreError(f"{folder} holds no run of the lab: that has a plan.toml and a rounds.jsonl")
        try:
            return cls(folder, planfile.read(path, {}))
        except PlanError as error:
            raise StoreError(str(error)) from None

    def rounds(self) -> list[Round]:
        """Every round so far, in the order of measuring. Raises StoreError."""
        try:
            *lines, _ = self._rounds.read_bytes().split(b"\n")  # what has no end is of a run that was killed
        except OSError as error:
            raise StoreError(f"{self._rounds} cannot be read: {error.strerror}") from None
        found = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(Round.from_json(json.loads(line)))
            except ValueError as error:
                raise StoreError(f"{self._rounds}:{number} is not JSON: {error}") from None
            except RecordError as error:
                raise StoreError(f"{self._rounds}:{number} cannot be read: {error}") from None
        return found

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other runs out of the folder meanwhile. Cut off what a run that was killed has begun to write.

        Raises StoreError if another run writes to the folder.
        """
        try:
            file = self._rounds.open("r+b", buffering=0)
        except OSError as error:
            raise StoreError(f"{self._rounds} cannot be written: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.truncate(file.read().rfind(b"\n") + 1)
            except BlockingIOError:
                who = f"another run{_holder(file.fileno())}"
                raise StoreError(
                    f"{who} is writing to {self.folder}: wait for its end, or choose another --out"
                ) from None
            except OSError as error:
                raise StoreError(f"{self._rounds} cannot be written: {error.strerror}") from None
            yield

    def logs(self, number: int) -> Path:
        """A new folder for the logs of a round. Raises StoreError."""
        folder = self.folder / "logs" / f"{number:03}"
        try:
            if folder.exists():
                shutil.rmtree(folder)  # of a round of that number which was never kept
            folder.mkdir(parents=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be made: {error.strerror}") from None
        return folder

    def add(self, done: Round) -> None:
        """Append a round: one line, which is there whole or not at all. Raises StoreError. Call it while `writing`."""
        line = json.dumps(self._without_paths(done.to_json()), separators=(",", ":")).encode() + b"\n"
        try:
            with self._rounds.open("ab", buffering=0) as file:
                end = file.tell()
                try:
                    while line:
                        line = line[file.write(line) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            why = f"{self._rounds} cannot be written: {error.strerror}"
            raise StoreError(f"round {done.number} is not kept: {why}") from None

    def write(self, name: str, text: str) -> None:
        """Replace another file of the run in one step. Raises StoreError."""
        path = self.folder / name
        part = path.with_name(path.name + ".part")
        try:
            with part.open("wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except (OSError, UnicodeEncodeError) as error:
            part.unlink(missing_ok=True)
            why = error.strerror if isinstance(error, OSError) else "a name in it is not Unicode"
            raise StoreError(f"{path} cannot be written: {why}") from None

    def _without_paths(self, data: Any) -> Any:
        """Data whose texts name no folder of this machine: of an absolute path the last part is left.

        A round is to be published, and logs and arguments name homes and temporary folders. What clients ask for
        looks like a path, and stays.
        """
        if isinstance(data, dict):
            return self._joined([(self._without_paths(key), self._without_paths(each)) for key, each in data.items()])
        if isinstance(data, list | tuple):
            return [self._without_paths(item) for item in data]
        return _PATH.sub(self._shortened, data) if isinstance(data, str) else data

    @staticmethod
    def _joined(items: list[tuple[Any, Any]]) -> dict[Any, Any]:
        """Make a dict; counts whose keys have become the same are added."""
        joined: dict[Any, Any] = {}
        for key, value in items:
            joined[key] = joined[key] + value if key in joined and isinstance(value, int) else value
        return joined

    def _shortened(self, path: re.Match[str]) -> str:
        asked = any(path[0] in asked for load in self.plan.loads for asked in load.paths)
        return path[0] if asked else f".../{path[1]}"


def _instead(file: Path) -> str:
    """Say what to do instead of reading this file as a run."""
    if (file.parent / "rounds.jsonl").exists():
        return f"give {file.parent}"
    return "a result file of locust (--result) has the figures of its run as JSON; `loadtest run` makes tables"


def _holder(file: int) -> str:
    """Name the process that holds the lock of a file, for a message; empty if the kernel does not tell."""
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return ""
    # Not every file system shows the device that stat() does, so the inode has to do.
    inode = str(os.fstat(file).st_ino)
    pids = {words[4] for words in locks if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode}
    return f" (pid {pids.pop()})" if len(pids) == 1 and pids.isdisjoint({"0", "-1"}) else ""
