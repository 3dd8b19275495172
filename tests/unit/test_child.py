"""One real child at a time: `sh`, which every machine here has."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from proxy.engines.child import MAX_LINE_BYTES, Child
from proxy.errors import EngineUnavailable

WAIT_S = 20.0


class Ears:
    """What a child said."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.ended = asyncio.Event()
        self.ends = 0
        self._news = asyncio.Event()

    def line(self, line: bytes) -> None:
        self.lines.append(line)
        self._news.set()

    def end(self) -> None:
        self.ends += 1
        self.ended.set()

    async def first(self) -> bytes:
        await asyncio.wait_for(self._news.wait(), WAIT_S)
        return self.lines[0]

    async def all(self) -> list[bytes]:
        await asyncio.wait_for(self.ended.wait(), WAIT_S)
        return self.lines


@pytest.fixture
def ears() -> Ears:
    return Ears()


Spawn = Callable[[str], Awaitable[Child]]


@pytest.fixture
async def spawn(ears: Ears) -> AsyncIterator[Spawn]:
    children: list[Child] = []

    async def start(script: str) -> Child:
        child = await Child.spawn(
            ["/bin/sh", "-c", script],
            env={"PATH": os.defpath},
            cwd="/",
            on_line=ears.line,
            on_end=ears.end,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        await child.stop(grace_s=0.1)
        await asyncio.wait_for(ears.ended.wait(), WAIT_S)
    assert ears.ends == len(children)


def is_gone(pid: int) -> bool:
    """Return whether the process has ended, buried or not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


async def gone(pid: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_gone(pid):  # noqa: ASYNC110 - another process tells nobody
            await asyncio.sleep(0.01)


async def test_lines_come_in_order_without_their_ends(spawn: Spawn, ears: Ears):
    await spawn("echo one; echo; echo three")
    assert await ears.all() == [b"one", b"", b"three"]


async def test_what_is_written_reaches_stdin_and_its_end_too(spawn: Spawn, ears: Ears):
    child = await spawn("cat")
    child.write(b"a\nb\n")
    child.close_stdin()
    assert await ears.all() == [b"a", b"b"]
    assert await child.wait(WAIT_S)
    assert child.returncode == 0


async def test_a_line_of_a_megabyte_is_one_line(spawn: Spawn, ears: Ears):
    child = await spawn("cat")
    child.write(b"x" * 1_000_000 + b"\n")
    assert await ears.first() == b"x" * 1_000_000


async def test_the_line_that_a_child_died_in_is_dropped(spawn: Spawn, ears: Ears):
    await spawn("echo whole; printf half")
    assert await ears.all() == [b"whole"]


async def test_a_line_without_end_is_bounded(
    spawn: Spawn, ears: Ears, monkeypatch: pytest.MonkeyPatch
):
    assert MAX_LINE_BYTES > 8_000_000
    monkeypatch.setattr("proxy.engines.child.MAX_LINE_BYTES", 100_000)
    child = await spawn("while :; do printf 0123456789012345678901234567890123456789; done")
    assert await ears.all() == []
    assert await child.wait(WAIT_S)
    assert child.returncode == -signal.SIGKILL


async def test_the_last_words_are_the_end_of_stderr(spawn: Spawn, ears: Ears):
    child = await spawn(
        "i=0; while [ $i -lt 2000 ]; do echo noise >&2; i=$((i+1)); done; echo last >&2; echo"
    )
    await ears.all()
    await child.wait(WAIT_S)
    assert child.stderr_tail.endswith("last")
    assert len(child.stderr_tail) <= 4096


async def test_stopping_ends_it_by_term(spawn: Spawn, ears: Ears):
    child = await spawn("echo ready; exec sleep 600")
    await ears.first()
    await child.stop(grace_s=WAIT_S)
    assert child.returncode == -signal.SIGTERM


async def test_a_child_that_ignores_term_is_killed(spawn: Spawn, ears: Ears):
    child = await spawn("trap '' TERM; echo ready; while :; do sleep 600; done")
    await ears.first()
    await child.stop(grace_s=0.1)
    assert child.returncode == -signal.SIGKILL


async def test_stopping_ends_its_whole_group(spawn: Spawn, ears: Ears):
    child = await spawn("trap '' TERM; sleep 600 & echo $!; wait")
    grandchild = int(await ears.first())
    await child.stop(grace_s=0.1)
    await gone(grandchild)


async def test_a_child_that_exits_leaves_nobody_behind(spawn: Spawn, ears: Ears):
    child = await spawn("sleep 600 & echo $!")
    grandchild = int(await ears.first())
    assert await child.wait(WAIT_S)
    await gone(grandchild)


async def test_a_grandchild_outside_the_group_does_not_hold_the_end_back(spawn: Spawn, ears: Ears):
    if not os.access("/usr/bin/setsid", os.X_OK):
        pytest.skip("setsid is not installed here")
    await spawn("setsid sleep 600 & echo $!; sleep 0.1")
    lines = await ears.all()
    os.kill(int(lines[0]), signal.SIGKILL)


async def test_stopping_again_and_again_signals_nobody_else(
    spawn: Spawn, ears: Ears, monkeypatch: pytest.MonkeyPatch
):
    child = await spawn("exit 3")
    assert await child.wait(WAIT_S)
    signalled: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, number: signalled.append(pid))
    await child.stop()
    await child.stop()
    assert child.returncode == 3
    assert signalled == []  # its number may be another's by now


async def test_cancelling_the_stop_kills_at_once(spawn: Spawn, ears: Ears):
    child = await spawn("trap '' TERM; echo ready; while :; do sleep 600; done")
    await ears.first()
    stopping = asyncio.create_task(child.stop(grace_s=WAIT_S))
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait({stopping})
    assert child.returncode == -signal.SIGKILL


async def test_writing_to_the_dead_is_no_error(spawn: Spawn, ears: Ears):
    child = await spawn("exit 0")
    await child.wait(WAIT_S)
    for _ in range(10):
        child.write(b"x" * 100_000)
        await asyncio.sleep(0)


async def test_a_prompt_that_nobody_reads_does_not_hold_the_stop_back(spawn: Spawn, ears: Ears):
    child = await spawn("echo ready; exec sleep 600")
    child.write(b"x" * 5_000_000)
    child.close_stdin()
    await ears.first()
    await child.stop(grace_s=WAIT_S)
    assert child.returncode == -signal.SIGTERM


async def test_a_folder_that_is_not_there_is_unavailable(ears: Ears):
    with pytest.raises(EngineUnavailable):
        await Child.spawn(
            ["/bin/sh"], env={}, cwd="/no/such/folder", on_line=ears.line, on_end=ears.end
        )
