"""Waiting for what no event tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    """Let the application run until something holds, for so many seconds at most."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - the application must not know that it is tested
            await asyncio.sleep(0)
