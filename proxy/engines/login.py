"""Logging Codex in and out through app-server's account methods, into the given CODEX_HOME.

Codex itself writes and refreshes `auth.json`; nothing here reads a token or keeps one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from proxy.engines.base import EngineConfig, Inspection
from proxy.engines.failures import scrub
from proxy.engines.worker import RpcRefused, Worker
from proxy.errors import EngineError

NO_THREAD = ""
"""What the account methods say is about no thread."""


class LoginFailed(Exception):
    """The login did not happen; the text says why, in words fit for a terminal."""


@asynccontextmanager
async def _worker(config: EngineConfig) -> AsyncIterator[Worker]:
    worker = await Worker.start(config, 0, None)
    try:
        yield worker
    except RpcRefused as refused:
        if "error sending request" in refused.reason:
            raise LoginFailed(
                "Codex cannot reach its login service, to get a device code for example. Check the "
                "network, or set an outbound proxy (CODEX_PROXY_PROXY)."
            ) from refused
        raise LoginFailed(f"Codex refused: {scrub(refused.reason)}") from refused
    finally:
        await worker.stop()


async def inspect(config: EngineConfig) -> Inspection:
    """Return what a Codex started with this configuration says of itself."""
    async with _worker(config) as worker:
        return worker.inspection


async def with_api_key(config: EngineConfig, api_key: str) -> Inspection:
    """Log in with an API key of the model provider. Raises `LoginFailed` or `EngineUnavailable`."""
    async with _worker(config) as worker:
        inbox = worker.open_inbox(NO_THREAD)
        await worker.call("account/login/start", {"type": "apiKey", "apiKey": api_key})
        await _until_completed(inbox.get, login_id=None)
        return await worker.inspect()


async def with_device_code(
    config: EngineConfig, show: Callable[[str, str], None], *, timeout_s: float
) -> Inspection:
    """Log in to ChatGPT: `show` is given the address and the code that the user must enter there.

    Waits until the user has done so, at most `timeout_s` seconds. Raises `LoginFailed`; cancelling
    tells Codex to forget the attempt.
    """
    async with _worker(config) as worker:
        inbox = worker.open_inbox(NO_THREAD)
        started = await worker.call("account/login/start", {"type": "chatgptDeviceCode"})
        show(started["verificationUrl"], started["userCode"])
        try:
            async with asyncio.timeout(timeout_s):
                await _until_completed(inbox.get, login_id=started["loginId"])
        except BaseException as error:
            await worker.call("account/login/cancel", {"loginId": started["loginId"]})
            if isinstance(error, TimeoutError):
                raise LoginFailed("Nobody entered the code in time.") from error
            raise
        return await worker.inspect()


async def log_out(config: EngineConfig) -> None:
    """Log out; Codex removes its `auth.json`. Raises `LoginFailed` or `EngineUnavailable`."""
    async with _worker(config) as worker:
        await worker.call("account/logout", {})


async def _until_completed(read: Callable[[], Any], *, login_id: str | None) -> None:
    while True:
        try:
            note = await read()
        except EngineError as error:
            raise LoginFailed(error.message) from error
        if note.method == "account/login/completed" and note.params.get("loginId") == login_id:
            if not note.params["success"]:
                raise LoginFailed(scrub(str(note.params.get("error") or "The login failed.")))
            return
