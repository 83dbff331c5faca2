"""WORKER. What an engine is given: the app, and the worker's part of what all processes share."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from prefork.config.config import Config
from prefork.core.listener import Listener
from prefork.core.log import Log
from prefork.runtime.inherited import Inherited
from prefork.runtime.loader import App
from prefork.runtime.master_link import MasterLink
from prefork.runtime.orders import Orders
from prefork.runtime.transfer import TransferQueue
from prefork.status.scoreboard import Row, Scoreboard


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """WORKER. What one worker serves with: its app, its listeners, its rows (one a thread), its ties to the master."""

    app: App
    config: Config
    listeners: Sequence[Listener]
    rows: Sequence[Row]
    board: Scoreboard
    orders: Orders
    group: int  # whose rows these are
    generation: int
    master: int  # pid
    transfer: TransferQueue
    wake_fd: int  # eventfd that all workers share: a connection waits that its finder leaves to another
    inherited: Inherited
    link: MasterLink
    log: Log
    end: Callable[[], None]  # to be called when the last connection is done, before the application is ended


class Engine(Protocol):
    """How a worker serves."""

    def __init__(self, worker: WorkerContext) -> None: ...

    def run(self) -> None:
        """Serve until told to retire, finish what is in flight, return. Raises BootError if it cannot begin."""


def most_units(config: Config) -> int:
    """After how many units of work this worker asks to be replaced (--max-requests); 0 is never."""
    jitter = random.randint(0, config.max_requests_jitter)  # noqa: S311 - so that not all workers are replaced at once
    return config.max_requests and config.max_requests + jitter
