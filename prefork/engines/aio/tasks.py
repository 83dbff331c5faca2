"""WORKER. The stack of an asyncio task: its coroutine, and what that awaits, down to what is not Python.

Task.get_stack() has only the outermost frame of a task that waits, and the interesting one is the innermost.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from typing import Any

_MOST = 200  # frames
_TASKS_MOST = 50
_KINDS = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


def stack_of(task: asyncio.Task[Any]) -> str:
    """Return what a task awaits, the innermost call last. Of the running task, only where it began."""
    frames = list(_frames(task.get_coro()))
    return "".join(traceback.StackSummary.extract(iter(frames)).format())


def tasks_of(
    loop: asyncio.AbstractEventLoop,
    names: dict[asyncio.Task[Any], str],
) -> tuple[list[tuple[str, str]], str]:
    """Return the titles and stacks of the loop's tasks, and whom the running task serves.

    A signal handler calls this: the set of all tasks may change while it is copied, and then only those in `names` are
    listed. `names`: whom each task serves, the oldest first.
    """
    try:
        everything = asyncio.all_tasks(loop)
    except RuntimeError:
        everything = set()
    current = asyncio.current_task(loop)
    others = sorted(everything - names.keys(), key=asyncio.Task.get_name)
    told = [task for task in (*names, *others) if not task.done()]
    sections = []
    for task in told[:_TASKS_MOST]:
        words = ["task", task.get_name(), names.get(task, ""), "(runs now)" if task is current else ""]
        sections.append((" ".join(filter(None, words)), stack_of(task)))
    if len(told) > _TASKS_MOST:
        sections.append((f"task - and {len(told) - _TASKS_MOST} more", ""))
    return sections, names.get(current, "") if current is not None else ""


def _frames(awaited: Any) -> Iterator[tuple[Any, int]]:
    for _ in range(_MOST):
        for frame_name, next_name in _KINDS:
            if (frame := getattr(awaited, frame_name, None)) is not None:
                yield frame, frame.f_lineno
                awaited = getattr(awaited, next_name)
                break
        else:
            return
