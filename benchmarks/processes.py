"""The processes that a benchmark starts, and their certain end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

START_BOUND_S = 60.0
STOP_BOUND_S = 10.0


class StartFailed(RuntimeError):
    """A server did not come up; the text has the end of its log."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def serving(
    argv: Sequence[str], *, port: int, env: Mapping[str, str], cwd: Path, log: Path
) -> AsyncIterator[int]:
    """Run a server until the block is left; gives its pid once its port answers.

    Raises `StartFailed`.
    """
    with log.open("wb") as output:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    try:
        await _wait_for_port(child, port, log)
        yield child.pid
    finally:
        await stop(child)


async def _wait_for_port(child: asyncio.subprocess.Process, port: int, log: Path) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_BOUND_S):
            while child.returncode is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return
                await asyncio.sleep(0.1)
    raise StartFailed(await asyncio.to_thread(_end_of, log))


def _end_of(log: Path) -> str:
    return f"{log.name}: …{log.read_text(errors='replace')[-2000:]}"


async def stop(child: asyncio.subprocess.Process) -> None:
    """End a child that leads its own session, its group, and whatever either has started."""
    family = descendants(child.pid)
    for sig in (signal.SIGTERM, signal.SIGKILL):
        _signal_group(child.pid, sig)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), STOP_BOUND_S)
            break
    _signal_group(child.pid, signal.SIGKILL)
    # The predecessor's workers lead sessions of their own; a number that the system has given to
    # another process since is told by its start time.
    survivors = family & _processes().keys()
    for pid, _ in survivors:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _signal_group(pid: int, sig: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, sig)


Identity = tuple[int, str]
"""A process id and when it started."""


def _processes() -> dict[Identity, int]:
    """Return every process with its parent's id; nothing on a system without `ps`."""
    if shutil.which("ps") is None:
        return {}
    command = ("ps", "-A", "-o", "pid=,ppid=,lstart=")
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 2) for line in listing.splitlines())
    return {(int(pid), started.strip()): int(parent) for pid, parent, started in rows}


def descendants(pid: int) -> set[Identity]:
    """Return the children of a process, their children, and so on."""
    parents = _processes()
    found: set[Identity] = set()
    pids = {pid}
    while more := {one for one, parent in parents.items() if parent in pids} - found:
        found |= more
        pids = {child for child, _ in more}
    return found
