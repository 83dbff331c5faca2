"""Coroutine handlers, as `asyncio.start_server` takes them; what some of them do is written into the log."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import termios
import time

from tests.apps.asking import pass_gate

RUNNING = set[asyncio.Task[None]]()


def say(*words: object) -> None:
    """Write into the server's log, in one piece: other workers do so, too."""
    print(" ".join(("app:", *map(str, words))) + "\n", end="", flush=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The echo server of the standard library's documentation, for many lines."""
    while data := await reader.readline():
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def whose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer whose certificate the client has shown."""
    subject = writer.get_extra_info("peercert")["subject"]
    writer.write(f"{dict(pair for part in subject for pair in part)['commonName']}\n".encode())


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as the built-in talkback does; whoever returns need not close."""
    writer.write(b"hello from prefork\n")
    line = await reader.readline()
    writer.write(b"you said: " + line.rstrip(b"\r\n") + b"\n")


async def nap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Talk, and wait for 5 ms before the answer."""
    writer.write(b"hello from prefork\n")
    line = await reader.readline()
    await asyncio.sleep(0.005)
    writer.write(b"you said: " + line.rstrip(b"\r\n") + b"\n")


async def gated(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Talk, and wait at the test's gate before the answer."""
    writer.write(b"hello from prefork\n")
    line = await reader.readline()
    await pass_gate()
    writer.write(b"you said: " + line.rstrip(b"\r\n") + b"\n")


async def slot(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say slot, generation and pid of the worker."""
    environ = os.environ
    writer.write(f"{environ['PREFORK_SLOT']} {environ['PREFORK_GENERATION']} {os.getpid()}\n".encode())


async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say the pid, and stay for as long as the client does."""
    writer.write(b"%d\n" % os.getpid())
    await reader.read()


async def ends_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """End the reply, then read on to the client's end."""
    writer.write(b"my last word\n")
    writer.write_eof()
    say("read", len(await reader.read()))


async def told(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait until the client has sent something, without reading it."""
    fd = writer.get_extra_info("socket").fileno()
    while not reader._buffer and not any(fcntl.ioctl(fd, termios.FIONREAD, bytes(4))):  # type: ignore[attr-defined]
        await asyncio.sleep(0)


async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer without reading what the client has sent."""
    await told(reader, writer)
    writer.write(b"I do not listen\n")


async def deaf_closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same, with an end as in the documentation of asyncio."""
    await told(reader, writer)
    writer.write(b"I do not listen\n")
    writer.close()
    say("is closing:", writer.is_closing())
    await writer.wait_closed()
    say("closed")


async def works_on(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Go on for a while, whether the client is there or not."""
    await reader.read(1)
    say("works")
    await asyncio.sleep(1.2)
    say("done")


async def grouped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve from within a task group."""

    async def upper() -> None:
        while True:
            writer.write((await reader.readexactly(4)).upper())
            await writer.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(upper())


async def stubborn(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Do not let oneself be cancelled."""
    writer.write(b"here\n")
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            say("not me")


async def handles_signals(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Have the loop handle a signal that is nobody's."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, say, "a window")
    writer.write(b"done\n")


async def facts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say what a handler may ask of its connection."""
    loop, peer = type(asyncio.get_running_loop()).__module__, writer.get_extra_info("peername")
    line = await reader.readline()
    tls = writer.get_extra_info("ssl_object") is not None
    writer.write(f"{loop}|{peer}|{line.decode().strip()}|{tls}\n".encode())


async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say how long a silent client was waited for, twice, and on which error."""
    for _ in range(2):
        began_s = time.monotonic()
        try:
            await reader.readexactly(1000)
        except TimeoutError as error:
            writer.write(f"{type(error).__name__} {time.monotonic() - began_s:.2f}\n".encode())
            await writer.drain()


async def escapes(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Wait for a silent client, and let the error through."""
    await reader.readline()


async def big(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send 8 MB, and say how that ended."""
    try:
        for _ in range(128):
            writer.write(b"x" * 65536)
            await writer.drain()
    except OSError as error:
        say("drain", type(error).__name__, error)
        raise
    say("all is sent")


async def closes(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send 8 MB at once, close, and wait until all has gone."""
    writer.write(b"x" * (8 << 20))
    writer.close()
    try:
        await writer.wait_closed()
    finally:
        say("closed")


async def cleans_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Stay until cancelled, with something to put in order."""
    writer.write(b"here\n")
    try:
        await asyncio.sleep(600)
    finally:
        say("finally of the handler")


async def background(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Start something that outlives the connection."""

    async def go_on() -> None:
        try:
            say("background runs")
            await asyncio.sleep(600)
        finally:
            say("finally of the background")

    RUNNING.add(asyncio.get_running_loop().create_task(go_on()))
    writer.write(b"started\n")


async def writes_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Write to a client that has gone, as long as it takes to be told."""
    try:
        await reader.read()
    except ConnectionResetError:
        pass
    await asyncio.sleep(0.05)
    for _ in range(3):
        writer.write(b"too late\n")
        await writer.drain()
    say("nobody was told")


async def obey(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Do what a line asks for, the worst included."""
    word, _, argument = (await reader.readline()).decode().strip().partition(" ")
    match word:
        case "pid":
            writer.write(b"%d\n" % os.getpid())
        case "hello":
            writer.write(b"hello\n")
        case "raise":
            raise RuntimeError(argument)
        case "upstream":
            raise ConnectionResetError(104, "the database has gone")
        case "exit":
            raise SystemExit(int(argument))
        case "block":
            hold_up(float(argument))
            writer.write(b"done\n")
        case "later":
            asyncio.get_running_loop().call_later(0.05, hold_up, float(argument))
            writer.write(b"%d\n" % os.getpid())
        case "descriptors":
            take_descriptors(float(argument))
            await asyncio.sleep(float(argument))


def hold_up(seconds: float) -> None:
    """Block the loop."""
    say("blocked")
    time.sleep(seconds)


def take_descriptors(seconds: float) -> None:
    """Leave none for others, for a while."""
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        say("descriptors", len(taken))
    asyncio.get_running_loop().call_later(seconds, lambda: [os.close(fd) for fd in taken])


def not_a_coroutine(_reader: object, _writer: object) -> None:
    """What is no coroutine function."""
