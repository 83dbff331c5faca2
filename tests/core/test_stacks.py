"""Stacks as text: what is composed can be taken apart, and what is too long keeps its innermost calls."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

import prefork
from prefork.core.stacks import application, compose, thread
from prefork.engines.aio.tasks import stack_of, tasks_of

HOME = prefork.__file__.rpartition("/")[0]


def entry(path: str, name: str, line: int = 1) -> str:
    return f'  File "{path}", line {line}, in {name}\n    {name}()\n'


@given(depths=st.dictionaries(st.sampled_from(["MainThread", "serve-0", "serve-1", "mine"]), st.integers(1, 5)))
def test_a_threads_stack_is_found_again(depths: dict[str, int]) -> None:
    stacks = {name: "".join(entry("/a.py", f"{name}{n}") for n in range(depth)) for name, depth in depths.items()}
    text = compose([(f"thread {name}", stack) for name, stack in stacks.items()], 100_000)
    with_task = text + "task Task-7:\n" + entry("/b.py", "b")
    for name, stack in stacks.items():
        assert thread(text, name) == thread(with_task, name) == stack
    assert thread(text, "nobody") == ""


def test_of_many_deep_stacks_the_innermost_calls_are_kept_of_all() -> None:
    sections = [(f"thread {n}", "".join(entry("/a.py", f"f{n}_{depth}") for depth in range(100))) for n in range(50)]
    text = compose(sections, 32_000)
    assert len(text) < 34_000
    for n in range(50):
        stack = thread(text, str(n))
        assert stack.endswith(entry("/a.py", f"f{n}_99"))
        assert stack.startswith("  ...\n  ")


def test_the_applications_part_begins_where_an_engine_calls_it() -> None:
    ours = entry("/usr/runpy.py", "run") + entry(f"{HOME}/cli.py", "main") + entry("/click/core.py", "invoke")
    ours += entry(f"{HOME}/engines/wsgi/loop.py", "run") + entry(f"{HOME}/http/wsgi.py", "step")
    theirs = entry("/app.py", "app") + entry(f"{HOME}/http/wsgi.py", "start_response")
    assert application(ours + theirs) == theirs
    assert application(theirs) == theirs
    assert application(ours) == entry(f"{HOME}/engines/wsgi/loop.py", "run") + entry(f"{HOME}/http/wsgi.py", "step")
    assert application("") == ""


async def outer(event: asyncio.Event) -> None:
    await inner(event)


async def inner(event: asyncio.Event) -> None:
    async for _ in numbers(event):
        pass


async def numbers(event: asyncio.Event) -> asyncio.AsyncGenerator[int, None]:  # type: ignore[name-defined]
    await event.wait()
    yield 1


def test_a_task_tells_what_it_awaits_and_who_it_is() -> None:
    async def main() -> None:
        event = asyncio.Event()
        first, second = (asyncio.create_task(outer(event), name=f"number {n}") for n in (1, 2))
        await asyncio.sleep(0)
        me = asyncio.current_task()
        assert me is not None
        stack = stack_of(first)
        assert stack.index("in outer") < stack.index("in inner")
        sections, current = tasks_of(asyncio.get_running_loop(), {second: "a client", me: "this one"})
        titles = [title for title, _ in sections]
        assert titles == ["task number 2 a client", f"task {me.get_name()} this one (runs now)", "task number 1"]
        assert current == "this one"
        event.set()
        await asyncio.gather(first, second)

    asyncio.run(main())
