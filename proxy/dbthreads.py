"""The ORM off the event loop: a few threads whose database connections stay open.

Django's own way opens a thread and a connection for each request, and keeps both for as long as a
stream lasts. Here a read borrows a thread for a millisecond.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from django.db import InterfaceError, OperationalError, ProgrammingError, connections

from proxy.errors import ServerUnavailable

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_threads = ThreadPoolExecutor(4, thread_name_prefix="db")


async def read(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that only reads, in a database thread, and return what it returns.

    A connection that broke since its last use is renewed and the read tried once more. Raises
    `ServerUnavailable` where the database does not answer. Cancelling does not stop the thread.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads, lambda: _read(function, *args, **kwargs))


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
