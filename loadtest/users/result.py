"""The end of a run: the result document, and locust's exit code when nothing was measured that may be used."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import locust
from locust.runners import MasterRunner

from ..generator.account import SCHEMA
from .options import engine_of, scenario_of

if TYPE_CHECKING:
    from locust.env import Environment

    from ..generator.account import Account
    from ..generator.crew import Crew

logger = logging.getLogger("loadtest")

NOTHING_MEASURED = 1
"""The exit code."""


class Source(Protocol):
    """Who knows what was measured: the local runner's side or the master's."""

    started: bool

    def finish(self) -> Crew:
        """End the run that still goes on, and wait for what was measured."""


class Conclusion:
    """Writes the result and sets the exit code when locust quits, by itself, by Ctrl-C or by SIGTERM."""

    def __init__(self, environment: Environment, source: Source) -> None:
        self.environment = environment
        self.source = source
        self.alone = not isinstance(environment.runner, MasterRunner)
        # locust calls these in reverse order: ours comes before its own, which ends the connection to the workers.
        environment.events.quitting.add_listener(self.on_quitting)

    def on_quitting(self, **_: object) -> None:
        """Conclude the last run, if there was one: a web page that nobody used is no failure."""
        crew = self.source.finish()
        if not self.source.started:
            return
        account = crew.account
        flaws = [_loss(crew), self._emptiness(account), self._write(crew, account) if account else ""]
        for flaw in filter(None, flaws):
            logger.error(flaw)
            self.environment.process_exit_code = self.environment.process_exit_code or NOTHING_MEASURED

    def _emptiness(self, account: Account | None) -> str:
        """Why a run without any exchange has none; empty for all others."""
        if self.environment.stats.total.num_requests == 0:
            why = "the run was too short, or the server does not answer"
            why += "" if self.alone else "; the workers' logs may say more"
            return f"no exchange ended on {self.environment.host}: {why}"
        if account and not account.failures and not any(second.n for second in account.latencies):
            warmup_s = self.environment.parsed_options.warmup
            return f"no exchange began in the {account.duration_s:g} s that followed the warm-up of {warmup_s:g} s"
        return ""

    def _write(self, crew: Crew, account: Account) -> str:
        """Write the result document in one step: a reader finds all of it or nothing. Returns what went wrong."""
        options = self.environment.parsed_options
        path = Path(options.result)
        classes = self.environment.user_classes
        scenarios = {scenario_of(user_class, options) for user_class in classes}
        engines = {engine_of(user_class) for user_class in classes}
        document = {
            "schema": SCHEMA,
            "generator": {
                "engine": "+".join(sorted(engines)),
                "locust": locust.__version__,
                "cpu_s": account.cpu_s,
                "wall_s": account.wall_s,
                "max_gap_s": None if account.gap_ns is None else account.gap_ns / 1e9,
                **crew.to_result(),
            },
            "scenario": "+".join(sorted(scenarios)),
            "address": self.environment.host,
            "warmup_s": options.warmup,
            **account.to_result(),
        }
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            unfinished.write_text(json.dumps(document) + "\n")
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            return f"cannot write the result to {path}: {error.strerror}"
        return ""


def _loss(crew: Crew) -> str:
    """Which part of what was measured is missing; empty if all is there."""
    if not crew.lost:
        return ""
    count = f"{len(crew.lost)} of {len(crew.lost) + len(crew.accounts)} workers"
    return f"{count} ended without telling what they measured, which is missing in the result: {', '.join(crew.lost)}"
