"""A database in trouble, for a moment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from django.db import connection, connections

from proxy.dbthreads import read

THREADS = 4


def _execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


@asynccontextmanager
async def renamed_table(name: str) -> AsyncIterator[None]:
    """Take a table away, as before `migrate`."""
    await read(_execute, f'ALTER TABLE "{name}" RENAME TO "away"')
    try:
        yield
    finally:
        await read(_execute, f'ALTER TABLE "away" RENAME TO "{name}"')


async def _disconnect() -> None:
    """Close the connection of every database thread."""
    barrier = threading.Barrier(THREADS, timeout=5)

    def close() -> None:
        barrier.wait()
        connections.close_all()

    await asyncio.gather(*(read(close) for _ in range(THREADS)))


@asynccontextmanager
async def unreachable() -> AsyncIterator[None]:
    """Cut every database connection of the request path and let no new one be made."""
    settings = connections.settings["default"]
    name = settings["NAME"]
    settings["NAME"] = "/nowhere/at/all.sqlite3"
    await _disconnect()
    try:
        yield
    finally:
        settings["NAME"] = name
        await _disconnect()
