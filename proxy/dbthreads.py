"""The ORM off the event loop: a few threads whose database connections stay open.

Django's own way opens a thread and a connection for each request, and keeps both for as long as a
stream lasts. Here a read borrows a thread for a millisecond.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from django.db import InterfaceError, OperationalError, ProgrammingError, connections

from proxy.errors import ServerUnavailable

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

READ_BOUND_S = 5.0
"""How long a request waits for the database: a lock or a silent host may last much longer."""


class _DaemonThreads(Executor):
    """A few threads that the end of the process does not wait for: a database may never answer."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._threads: list[threading.Thread] = []
        self._mutex = threading.Lock()
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401 - Executor's own
        future: Future[Any] = Future()
        self._work.put((future, lambda: fn(*args, **kwargs)))
        with self._mutex:
            if len(self._threads) < self._count:
                number = len(self._threads) + 1
                thread = threading.Thread(target=self._run, name=f"db-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def _run(self) -> None:
        while True:
            future, work = self._work.get()
            if not future.set_running_or_notify_cancel():
                continue  # whoever asked has given up meanwhile
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is the asker's
                future.set_exception(error)
            del future, work


_threads = _DaemonThreads(4)


async def read(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that only reads, in a database thread, and return what it returns.

    A connection that broke since its last use is renewed and the read tried once more. Raises
    `ServerUnavailable` where the database does not answer, after `READ_BOUND_S` at the latest.
    Cancelling does not stop the thread.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(READ_BOUND_S):
            return await loop.run_in_executor(_threads, lambda: _read(function, *args, **kwargs))
    except TimeoutError as error:
        log.error("the database does not answer within %g s", READ_BOUND_S)
        raise ServerUnavailable("The server's database does not answer.") from error


def _read(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return function(*args, **kwargs)
    except (OperationalError, InterfaceError, ProgrammingError):
        connections.close_all()
    try:
        return function(*args, **kwargs)
    except (OperationalError, InterfaceError, ProgrammingError) as error:
        connections.close_all()
        log.error("the database does not answer: %s", error)
        if "no such table" in str(error) or isinstance(error, ProgrammingError):
            raise ServerUnavailable(
                "The server's database is not prepared: run `python manage.py migrate`."
            ) from error
        raise ServerUnavailable("The server's database does not answer.") from error
