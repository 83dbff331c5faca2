"""Applications of every kind that own their worker: they fork, start pools and threads, and register for the end.

A client asks for one deed: `GET /deed/argument` over HTTP, the line `deed argument` elsewhere. DIARY names the file
that the deeds' ends are written to, SETUP what is done to the process when this is imported.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import faulthandler
import gc
import importlib
import multiprocessing
import os
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

LONG_S = 60


def write(line: str) -> None:
    """Add a line to the diary."""
    fd = os.open(os.environ["DIARY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{line} {os.getpid()}\n".encode())
    os.close(fd)


def job() -> None:
    """Take a moment, and note the end."""
    time.sleep(0.5)
    write("job")


async def call_a_program() -> None:
    """Use an event loop for all that it can do: a timer, a thread, a connection, a program."""
    await asyncio.sleep(0.01)
    await asyncio.to_thread(time.sleep, 0.01)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await reader.read()
    writer.close()
    server.close()
    program = await asyncio.create_subprocess_exec("true")
    assert await program.wait() == 0


def run_a_loop(library: str) -> None:
    """Run an event loop in a process of one's own."""
    importlib.import_module(library).run(call_a_program())


def square(number: int) -> int:
    """Compute in another process."""
    return number * number


def watch_up_to(number: int) -> list[select.epoll]:
    """Make epolls that have something to tell, until one has this number."""
    ready, end = os.pipe()
    os.write(end, b"x")
    epolls: list[select.epoll] = []
    while not epolls or epolls[-1].fileno() < number:
        epolls.append(select.epoll())
        epolls[-1].register(ready, select.EPOLLIN)
    return epolls


def wait_for(pid: int) -> str:
    """Wait for the end of a child; say its exit code."""
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


class Helpers:
    """A manager with a list, and a daemonic process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self.manager = context.Manager()
        self.list = self.manager.list()
        self.process = context.Process(target=time.sleep, args=(LONG_S,), daemon=True)
        self.process.start()
        self.pids = [self.manager._process.pid, self.process.pid]  # type: ignore[attr-defined]


class Deeds:
    """What a client may ask for; each method returns the answer."""

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(2)
        self.pool: ProcessPoolExecutor | None = None

    def pid(self, _: str) -> str:
        """Say who serves."""
        return str(os.getpid())

    def slow(self, seconds: str) -> str:
        """Take a while."""
        time.sleep(float(seconds or 0.3))
        return "ok"

    def fork(self, _: str) -> str:
        """Fork a child that sleeps; say its pid."""
        if not (pid := os.fork()):
            time.sleep(LONG_S)
            os._exit(0)
        return str(pid)

    def daemon(self, _: str) -> str:
        """Fork a child that becomes a daemon as most do: it closes nothing but its standard streams; say its pid."""
        if not (pid := os.fork()):
            print("a child says this", file=sys.stderr, flush=True)
            os.setsid()
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            time.sleep(LONG_S)
            os._exit(0)
        return str(pid)

    def alarms(self, _: str) -> str:
        """Fork beside alarms whose handler raises; say what is blocked in the end."""

        def late(*_: object) -> None:
            raise TimeoutError

        signal.signal(signal.SIGALRM, late)
        for _number in range(40):
            pid = -1
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            try:
                pid = os.fork()
                time.sleep(0.002)
            except TimeoutError:
                pass
            if not pid:
                os._exit(0)
            while True:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    break
                except TimeoutError:
                    continue
        while True:
            try:
                os.waitpid(-1, 0)
            except TimeoutError:
                continue
            except ChildProcessError:
                return str(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))

    def cfork(self, _: str) -> str:
        """Fork in C, where no hook of Python runs."""
        libc = ctypes.PyDLL(None)
        if not (pid := libc.fork()):
            libc.sleep(LONG_S)
            libc._exit(0)
        return str(pid)

    def back(self, _: str) -> str:
        """Fork, and return in both processes."""
        return str(os.fork())

    def leave(self, code: str) -> str:
        """Fork a child that leaves by sys.exit(); say its exit code."""
        if not (pid := os.fork()):
            sys.exit(int(code) if code.isdigit() else code)
        return wait_for(pid)

    def fail(self, what: str) -> str:
        """Fork a child that raises; say its exit code."""
        if not (pid := os.fork()):
            raise ValueError(what)
        return wait_for(pid)

    def crash(self, _: str) -> str:
        """Have crashes reported, and fork a child that crashes; say its exit code."""
        faulthandler.enable()
        if not (pid := os.fork()):
            if faulthandler.is_enabled():
                os.abort()
            os._exit(0)
        return wait_for(pid)

    def grandchild(self, _: str) -> str:
        """Fork a child that takes all numbers of descriptors for its epolls, and forks; say how many tell no more."""
        most = max(map(int, os.listdir("/proc/self/fd")))
        if not (pid := os.fork()):
            gc.disable()  # what is collected would close its number
            os.closerange(3, most + 1)
            epolls = watch_up_to(most)
            if not (grandchild := os.fork()):
                os._exit(sum(not epoll.poll(0) for epoll in epolls))
            os._exit(int(wait_for(grandchild)))
        return wait_for(pid)

    def timeout(self, seconds: str) -> str:
        """Give sockets a timeout by default."""
        socket.setdefaulttimeout(float(seconds))
        return "ok"

    def blocks(self, _: str) -> str:
        """Fork while a socket has no timeout; say whether it still has none."""
        sock, other = socket.socketpair()
        with sock, other:
            sock.settimeout(None)
            if not (pid := os.fork()):
                os._exit(0)
            wait_for(pid)
            return str(os.get_blocking(sock.fileno()))

    def process(self, method: str) -> str:
        """Start a daemonic process; say its pid."""
        process: Any = multiprocessing.get_context(method).Process(target=time.sleep, args=(LONG_S,), daemon=True)
        process.start()
        return str(process.pid)

    def terminate(self, method: str) -> str:
        """Start a process and end it by a signal; say how that went."""
        process: Any = multiprocessing.get_context(method).Process(target=time.sleep, args=(LONG_S,))
        process.start()
        time.sleep(0.2)
        process.terminate()
        process.join(5)
        return f"{process.is_alive()} {process.exitcode}"

    def terminate_at_once(self, _: str) -> str:
        """Start processes, and end each by a signal before it has done anything; say how many have not ended."""
        left = 0
        for _number in range(20):
            process: Any = multiprocessing.get_context("fork").Process(target=time.sleep, args=(LONG_S,))
            process.start()
            process.terminate()
            process.join(2)
            if process.is_alive():
                left += 1
                process.kill()
                process.join()
        return str(left)

    def pools(self, _: str) -> str:
        """Use pools of processes one after the other; say what the last one has computed."""
        for _number in range(5):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                squares = pool.map(square, range(4))
        return str(squares)

    def helpers(self, _: str) -> str:
        """Use the helpers that were started at import; say who serves, their pids, and how often they were used."""
        assert HELPERS is not None
        HELPERS.list.append(os.getpid())
        return " ".join(map(str, (os.getpid(), *HELPERS.pids, len(HELPERS.list))))

    def loop(self, library: str) -> str:
        """Run an event loop in a forked process; say how that went."""
        process: Any = multiprocessing.get_context("fork").Process(target=run_a_loop, args=(library,))
        process.start()
        process.join(20)
        return f"{process.is_alive()} {process.exitcode}"

    def compute(self, _: str) -> str:
        """Use a pool of processes; say their pids."""
        self.pool = self.pool or ProcessPoolExecutor(2)
        assert self.pool.submit(square, 7).result() == 49
        return " ".join(map(str, self.pool._processes))

    def program(self, _: str) -> str:
        """Start a program that outlives the exchange; say its pid."""
        null = subprocess.DEVNULL
        return str(subprocess.Popen(["sleep", str(LONG_S)], stdin=null, stdout=null, stderr=null).pid)

    def submit(self, _: str) -> str:
        """Hand a job to an executor."""
        self.executor.submit(job)
        return "ok"

    def thread(self, _: str) -> str:
        """Start a thread that takes a moment."""
        threading.Thread(target=job).start()
        return "ok"

    def stuck(self, _: str) -> str:
        """Start a thread that does not end in time."""
        threading.Thread(target=time.sleep, args=(LONG_S,), name="uploader").start()
        return "ok"

    def hang(self, _: str) -> str:
        """Register a function that does not end in time."""
        atexit.register(linger_at_exit)
        return "ok"

    def stop_loop(self, _: str) -> str:
        """Stop the event loop that serves."""
        asyncio.get_event_loop().stop()
        return "ok"

    def cancel_all(self, _: str) -> str:
        """Cancel every task but this one, as handlers of a signal do."""
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return "ok"

    def take_signals(self, _: str) -> str:
        """Take the signals of the event loop."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            loop.add_signal_handler(signum, write, "signal")
        return "ok"


def linger_at_exit() -> None:
    """Take long."""
    time.sleep(LONG_S)


def prepare(what: str) -> None:
    """Do to the process what applications do when they are imported."""
    if what == "handlers":
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, lambda *_: write("signal"))
    elif what == "ignored":
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, signal.SIG_IGN)
    elif what == "mask":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    elif what == "wakeup":
        signal.set_wakeup_fd(-1)


if "DIARY" in os.environ:
    atexit.register(write, "atexit")
prepare(os.environ.get("SETUP", ""))
HELPERS = Helpers() if os.environ.get("SETUP") == "helpers" else None
DEEDS = Deeds()


def act(text: str) -> bytes:
    """Do what is asked for."""
    deed, _, argument = text.strip().partition(" ")
    return getattr(DEEDS, deed)(argument).encode() if deed else b""


def handle(conn: Any) -> None:
    """Serve as a stream handler."""
    conn.sendall(act(conn.readline().decode()))


class Request(socketserver.StreamRequestHandler):
    """Serve as a handler of socketserver."""

    def handle(self) -> None:
        """Answer."""
        self.wfile.write(act(self.rfile.readline().decode()))


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve as a coroutine handler."""
    writer.write(act((await reader.readline()).decode()))
    await writer.drain()


class Talk(asyncio.Protocol):
    """Serve as a protocol."""

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer, and close."""
        self.transport.write(act(data.decode()))
        self.transport.close()


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Serve as a WSGI application."""
    body = act(environ["PATH_INFO"].strip("/").replace("/", " "))
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope: dict[str, Any], _receive: Any, send: Any) -> None:
    """Serve as an ASGI application."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    body = act(scope["path"].strip("/").replace("/", " "))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
