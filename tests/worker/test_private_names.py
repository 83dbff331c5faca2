"""The private names of Python that the end of a worker needs: each version must have them, with the same effect."""

from __future__ import annotations

import subprocess
import sys

import pytest

ENDS = """
import atexit, os, threading, time
from concurrent.futures import ThreadPoolExecutor

executor = ThreadPoolExecutor(1)
atexit.register(print, "exit function")
if os.fork() == 0:
    executor.submit(lambda: (time.sleep(0.1), print("job")))
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    threading._shutdown()
    atexit._run_exitfuncs()
    import sys
    sys.stdout.flush()
    os._exit(0)
os.wait()
os._exit(0)
"""
REGISTERED = """
import atexit, logging, os, tempfile
from prefork.worker import exit

folder = tempfile.TemporaryDirectory()
atexit.register(print, "the caller's")
exit.leave_to_caller()
if os.fork() == 0:
    exit.forget_callers()
    atexit.register(print, "the worker's")
    atexit._run_exitfuncs()
    print(os.path.isdir(folder.name), flush=True)
    os._exit(0)
os.wait()
"""
CHILDREN = """
import multiprocessing, os, time
from prefork.worker import exit

child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
child.start()
if os.fork() == 0:
    exit.forget_processes()
    print(multiprocessing.active_children(), flush=True)
    os._exit(0)
os.wait()
print(child.is_alive())
"""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (ENDS, ["job", "thread", "exit function"]),
        (REGISTERED, ["the worker's", "True", "the caller's"]),
        (CHILDREN, ["[]", "True"]),
    ],
    ids=["threads and functions", "the caller's functions", "the caller's children"],
)
def test_a_forked_process_ends_as_python_does_and_leaves_the_rest_to_the_other(script: str, said: list[str]) -> None:
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    assert (done.stdout.splitlines(), done.stderr) == (said, "")
