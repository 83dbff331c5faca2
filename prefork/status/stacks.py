"""The answer to `prefork stack` as a page. Pure."""

from __future__ import annotations

from typing import Any

from prefork.status.document import cell


def stacks_page(answer: dict[str, Any]) -> str:
    """What the command prints."""
    return "\n\n".join(map(_worker, answer["workers"]))


def _worker(entry: dict[str, Any]) -> str:
    facts = [f"worker {entry['slot']}  pid {entry['pid']}  generation {entry['generation']}"]
    facts += [entry["state"]] if entry.get("state") else []
    facts += [f"serving {entry['serving']}"] if entry.get("serving") else []
    facts += [f"for {cell('busy_s', entry['busy_s'])}"] if entry.get("busy_s") is not None else []
    lines = (entry["stacks"] or entry["reason"] or "").rstrip().split("\n")
    return "\n".join(["  ".join(facts), *(f"  {line}" for line in lines)])
