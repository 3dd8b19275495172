"""One child process: spawned in a session of its own, read by lines, ended as a group.

A child dies with its server: on Linux by a parent-death signal (which is tied to the thread that
forks, so spawn from the event loop's thread only), elsewhere by the hand of the `reaper`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from proxy.engines.base import User
from proxy.engines.launch import as_user
from proxy.engines.reaper import Reaper
from proxy.errors import EngineUnavailable

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 64 << 20
STDERR_TAIL_BYTES = 4096
EXIT_TO_EOF_S = 0.5
"""A grandchild may hold the pipe open after the child is gone; we do not wait for it."""


reaper = Reaper()


def parent_death_signal() -> list[str]:
    """Return what to put before a command so that the kernel kills it when its server dies.

    Nothing where the kernel or the tool for it is missing.
    """
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


class Child(asyncio.SubprocessProtocol):
    """Owns one process and everything it started.

    `on_line` gets each line of stdout without its end, in order; `on_end` is called once, after
    the last line, when stdout is closed or the process is gone. Both run on the event loop. A line
    without an end is one that the process died in: it is dropped.
    """

    def __init__(self, on_line: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._on_line, self._on_end = on_line, on_end
        self._buffer = bytearray()
        self._stderr = bytearray()
        self._exited = asyncio.Event()
        self._has_ended = False
        self._transport: asyncio.SubprocessTransport | None = None

    @classmethod
    async def spawn(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        on_line: Callable[[bytes], None],
        on_end: Callable[[], None],
        user: User | None = None,
    ) -> Child:
        """Start the program, as this user if one is given.

        Raises `EngineUnavailable` where it cannot be started.
        """
        loop = asyncio.get_running_loop()
        # It runs as the user already: a change of user would make the kernel forget the signal.
        prefix = parent_death_signal()
        try:
            _, child = await loop.subprocess_exec(
                lambda: cls(on_line, on_end),
                *prefix,
                *argv,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                **as_user(user),
            )
        except OSError as error:
            log.error("cannot start %s: %s", argv[0], error)
            raise EngineUnavailable(f"Codex cannot be started: {error.strerror}.") from error
        if not prefix:
            reaper.watch(child.pid)
        return child

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.SubprocessTransport", transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._stderr += data
            del self._stderr[:-STDERR_TAIL_BYTES]
            return
        self._buffer += data
        if b"\n" in data:
            *lines, rest = bytes(self._buffer).split(b"\n")
            self._buffer = bytearray(rest)
            for line in lines:
                self._on_line(line)
        elif len(self._buffer) > MAX_LINE_BYTES:
            log.error("child %s wrote a line above %d bytes", self.pid, MAX_LINE_BYTES)
            self._buffer.clear()
            self.signal_group(signal.SIGKILL)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self._end()

    def process_exited(self) -> None:
        # What it left behind ends now: later its number may be another's.
        self.signal_group(signal.SIGKILL)
        reaper.forget(self.pid)
        self._exited.set()
        asyncio.get_running_loop().call_later(EXIT_TO_EOF_S, self._end)

    def _end(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._on_end()

    # What its owner calls.

    @property
    def pid(self) -> int:
        assert self._transport is not None  # noqa: S101 - set before all else
        return self._transport.get_pid()

    @property
    def returncode(self) -> int | None:
        return self._transport.get_returncode() if self._transport else None

    @property
    def stderr_tail(self) -> str:
        """The last lines it wrote to stderr: for the log, never for a caller."""
        return self._stderr.decode(errors="replace").strip()

    def write(self, data: bytes) -> None:
        """Send bytes to stdin. What a dead child cannot take is dropped: its end is reported."""
        pipe = self._stdin()
        if pipe is not None and not pipe.is_closing():
            pipe.write(data)

    def close_stdin(self) -> None:
        pipe = self._stdin()
        if pipe is not None:
            pipe.close()

    def _stdin(self) -> asyncio.WriteTransport | None:
        if self._transport is None:
            return None
        return cast("asyncio.WriteTransport | None", self._transport.get_pipe_transport(0))

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the process and all that share its group, while it is there."""
        if self._exited.is_set():
            return
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # macOS says "not permitted" for a group of zombies

    async def wait(self, timeout_s: float) -> bool:
        """Return whether the process has exited within `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._exited.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self, *, grace_s: float = 1.0) -> None:
        """End the process and its group: end of input and TERM, then KILL after `grace_s`.

        Returns within about twice the grace. Idempotent. If cancelled, the group is killed at once.
        """
        try:
            if not self._exited.is_set():
                self.close_stdin()
                self.signal_group(signal.SIGTERM)
                await self.wait(grace_s)
        finally:
            self.signal_group(signal.SIGKILL)
            if not self._exited.is_set() and not await self.wait(grace_s):
                log.error("child %s does not die", self.pid)
            if self._transport is not None:
                self._transport.close()
