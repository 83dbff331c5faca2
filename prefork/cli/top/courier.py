"""CLIENT. Carries questions to the server and answers back, each in a thread of its own: none holds up the keys."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefork.control.client import NoServerError, ask, find
from prefork.errors import PreforkError

Request = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What came of a question: `answer`, or `error`; before that, any number of times, how far it is: `progress`."""

    subject: str
    answer: Any = None
    error: str = ""
    progress: str = ""


class Courier:
    """CLIENT. `fd` is readable when `take` has something. `path` is the server's socket; it is looked for anew when
    nobody is there, as the next server has another."""

    def __init__(self, place: str, path: str) -> None:
        self._place = place
        self._path = path
        self._letters: deque[Letter] = deque()  # appended by threads, drained by take()
        self._under_way: set[str] = set()  # subjects
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def busy(self, subject: str) -> bool:
        """An answer is still to come."""
        return subject in self._under_way

    def send(self, subject: str, request: Request) -> None:
        """Ask; the thread dies with the program, whatever it waits for."""
        self._under_way.add(subject)
        threading.Thread(target=self._carry, args=(subject, request), daemon=True).start()

    def take(self) -> list[Letter]:
        """What has come since the last call. Never blocks."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass  # nothing new
        found = []
        while self._letters:
            found.append(self._letters.popleft())
        self._under_way -= {letter.subject for letter in found if not letter.progress}
        return found

    def _carry(self, subject: str, request: Request) -> None:
        def tell(progress: str) -> None:
            self._post(Letter(subject=subject, progress=progress))

        try:
            answer = self._ask(request, tell)
        except PreforkError as error:
            self._post(Letter(subject=subject, error=str(error)))
        else:
            self._post(Letter(subject=subject, answer=answer))

    def _ask(self, request: Request, tell: Callable[[str], None]) -> Any:
        try:
            return ask(self._path, request, progress=tell)
        except NoServerError:
            if request["command"] != "status":
                raise  # it was meant for the server that is gone
            self._path = find(self._place)
            return ask(self._path, request, progress=tell)

    def _post(self, letter: Letter) -> None:
        self._letters.append(letter)
        os.eventfd_write(self.fd, 1)
