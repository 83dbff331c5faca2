"""The processes that made the load of one run together, on one machine or on several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .account import Account

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Who recorded what, by the names of the processes; a run without a result file records nothing."""

    accounts: Mapping[str, Account]
    lost: tuple[str, ...] = ()  # those that ended without telling what they had measured

    @property
    def account(self) -> Account | None:
        """What all of them recorded together."""
        return Account.merged(list(self.accounts.values())) if self.accounts else None

    def to_result(self) -> dict[str, Any]:
        """Their part of the result document."""
        return {
            "processes": [
                {
                    "name": name,
                    "began_s": account.began_s,
                    "duration_s": account.duration_s,
                    "connections": account.connections,
                    "completed": sum(second.n for second in account.latencies),
                    "failed": account.failures.total(),
                    "cpu_s": account.cpu_s,
                }
                for name, account in self.accounts.items()
            ],
            "lost": list(self.lost),
        }
