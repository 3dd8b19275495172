"""Some forty troubles at the same time on one server: each ends as its own, and nobody else's.

The fault suite does one fault after the other and looks what is left behind each. Here they meet: the
callers' and the provider's troubles of a bad day, all at once, on both engines, and then with the
retries that Codex makes for a provider of one's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import children_of, drain
from tests.faults.byhand import Call, Json, Seen
from tests.faults.checker import Checker
from tests.faults.crowd import Crowd
from tests.processes import Serving
from tests.provider import (
    USAGE,
    Answer,
    BreakOff,
    Disconnect,
    Fail,
    FunctionCall,
    Hang,
    Incomplete,
    Reasoning,
    Response,
    Script,
    ScriptedProvider,
    SseFailed,
    Stall,
    Text,
)

Act = Callable[[Crowd, str], Awaitable[tuple[Call, Seen]]]

SECONDS = itertools.count(6017)
"""How long the commands of agents sleep: each is told from all others by its number."""
PROMPT_S = 12.0
"""For what is at once: an answer never waits for a deadline. A busy machine needs some room."""


class NoSense:
    """Lines that are no events, broken JSON, events that nobody knows; then a good answer."""

    async def run(self, out: Response) -> None:
        await out.start()
        await out.write(b"event: what\ndata: {broken\n\n: a comment\nno event at all\n\n")
        await out.send("response.nobody_knows", thing=1)
        await Text().play(out)
        await out.finish("completed", usage=USAGE)


@dataclass(frozen=True)
class Fault:
    """One fault; `caller` and `row` are what the victim sees and what its row says."""

    name: str
    act: Act
    caller: str
    row: str
    within_s: float = PROMPT_S


@dataclass(frozen=True)
class Batch:
    """Faults under the same settings, all at the same time."""

    name: str
    faults: tuple[Fault, ...]
    settings: dict[str, Any] = field(default_factory=dict)


# --- What is done ----------------------------------------------------------------------------


def asked(*scripts: Script, key: str = "app-server", **body: Any) -> Act:
    """Ask; the model answers so."""

    async def act(site: Crowd, mark: str) -> tuple[Call, Seen]:
        site.script(mark, *scripts)
        async with site.call(mark, key, **body) as call:
            return call, await call.finish()

    return act


def left(
    leave: Callable[[Call], None], *scripts: Script, when: str, key: str = "app-server"
) -> Act:
    """Ask and leave: when the model was "asked", or at the first "text"."""

    async def act(site: Crowd, mark: str) -> tuple[Call, Seen]:
        site.script(mark, *scripts)
        async with site.call(mark, key, stream=when == "text") as call:
            await site.until_asked(mark)
            if when == "text":
                await call.read_first_text()
            leave(call)
            await site.until(
                lambda: (site.row(call.name) or {"outcome": "running"})["outcome"] != "running",
                "the row of who left is closed",
            )
            call.seen.status = None
            return call, call.over()

    return act


async def blocked_in_send(site: Crowd, mark: str) -> tuple[Call, Seen]:
    """A client that asks for a lot, reads none of it, and goes while the server is stuck in a send."""
    site.script(mark, Text(("x" * 50_000,) * 240))
    async with site.call(mark, stream=True) as call:
        await call.read_first_text()
        call.stop_reading()
        await asyncio.sleep(0.5)  # it fills the socket's buffers; nothing tells when they are full
        call.reset()
        await site.closed_row(call)
        call.seen.status = None
        return call, call.over()


async def half_closed(site: Crowd, mark: str) -> tuple[Call, Seen]:
    site.script(mark, Stall(after=2))
    async with site.call(mark, stream=True) as call:
        await call.read_first_text()
        call.close_half()
        await site.closed_row(call)
        call.seen.status = None
        return call, call.over()


async def cut_body(site: Crowd, mark: str) -> tuple[Call, Seen]:
    call = site.call(mark)
    call.is_whole = False
    async with call:
        call.hang_up()
    await site.ask(f"{mark}-after")  # the next request comes through, and only that one has a row
    assert not site.asked(mark)
    return call, call.over()


async def worker_dies_young(site: Crowd, mark: str) -> tuple[Call, Seen]:
    """Two workers in a row die young: the next one has to wait, and callers are told; then it works."""
    for is_first in (True, False):
        pids = site.workers()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await site.until(lambda: not set(pids) & set(site.workers()), "it is dead")  # noqa: B023
        if is_first:
            await site.until(lambda: bool(site.workers()), "the worker is replaced by itself")
            await site.ask(f"{mark}-between")
    async with site.call(mark) as call:
        seen = await call.finish()
    assert 1 <= int(seen.headers["retry-after"]) <= 60
    await site.until(lambda: bool(site.workers()), "it is started after the pause, unasked")
    assert (await site.ask(f"{mark}-after")).view == "200, stop"
    return call, seen


def hangs_up(site: Crowd, call: Call) -> None:
    call.hang_up()


def agent(end: Callable[[Crowd, Call], None] | None, key: str) -> Act:
    """An agent runs a command for hours; something happens meanwhile, and the command is gone."""

    async def act(site: Crowd, mark: str) -> tuple[Call, Seen]:
        command = f"sleep {next(SECONDS)}"
        site.script(mark, FunctionCall("exec_command", {"cmd": command}), Text(("done",)))
        async with site.call(mark, key, metadata={"agent": "true"}) as call:
            await site.until(lambda: runs(site, command), "the command runs")
            if end is not None:
                end(site, call)
            row = await site.closed_row(call)
            if row.startswith("cancelled"):
                call.over()
            else:
                await call.finish()
            await site.until(lambda: not runs(site, command), "the command is gone")
            return call, call.seen

    return act


def runs(site: Crowd, command: str) -> bool:
    """Tell whether the command runs below the server."""
    for pid in children_of(site.server.process.pid):
        with contextlib.suppress(psutil.Error):
            if psutil.Process(pid).cmdline() == command.split():
                return True
    return False


def closed_port() -> int:
    """Return a port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_provider(base_url: str) -> tuple[str, ...]:
    """The README's provider of one's own: with all the retries that Codex has by default."""
    return (
        'model_provider="team"',
        f'model_providers.team={{name="team",base_url={base_url!r},wire_api="responses"}}'.replace(
            "'", '"'
        ),
    )


# --- The list --------------------------------------------------------------------------------

OVERLOADED = {"error": {"code": "server_is_overloaded", "message": "busy"}}
LOTS = 20_000
LONG = 8_000_000
NOTHING = "nothing"
GONE = "cancelled None client_disconnected"
GONE_LATE = "cancelled 200 client_disconnected"
CRASHED = ("200 stream, then engine_crashed", "failed 200 engine_crashed")
BROKEN = ("200 stream, then upstream_disconnected", "failed 200 upstream_disconnected")
ANSWER = ("200, stop", "ok 200")
STREAM = ("200 stream, stop, [DONE]", "ok 200")
LATE = ("504 upstream_timeout", "timed_out 504 upstream_timeout")
LATE_STREAM = ("200 stream, then upstream_timeout", "timed_out 200 upstream_timeout")


def failed(status: int, code: str, outcome: str = "failed") -> tuple[str, str]:
    return f"{status} {code}", f"{outcome} {status} {code}"


def provider_faults(key: str, engine: str) -> tuple[Fault, ...]:
    """What a provider can do, the same on both engines."""
    refusals: list[tuple[int, Json | str, tuple[str, str]]] = [
        (400, {"error": {"message": "no"}}, failed(400, "invalid_prompt")),
        (401, {}, failed(503, "upstream_auth_failed")),
        (403, {}, failed(503, "upstream_auth_failed")),
        (404, {}, failed(502, "upstream_error")),
        (413, {}, failed(502, "upstream_error")),
        (429, {}, failed(429, "rate_limit_exceeded")),
        (500, {}, failed(502, "upstream_error")),
        (502, "<html>Bad Gateway</html>", failed(502, "upstream_error")),
        (503, OVERLOADED, failed(503, "server_overloaded")),
    ]
    return (
        *(
            Fault(
                f"{engine}: provider refuses with {status}",
                asked(Fail(status, body), key=key),
                *said,
            )
            for status, body, said in refusals
        ),
        Fault(
            f"{engine}: provider hangs up before its first word",
            asked(BreakOff((), is_abrupt=True), key=key),
            *failed(502, "upstream_disconnected"),
        ),
        Fault(
            f"{engine}: answer ends without its end",
            asked(BreakOff(), key=key),
            *failed(502, "upstream_disconnected"),
        ),
        Fault(
            f"{engine}: provider reports a failure in the stream",
            asked(SseFailed("server_error"), key=key),
            *failed(502, "upstream_disconnected"),
        ),
        Fault(f"{engine}: lines that make no sense", asked(NoSense(), key=key), *ANSWER),
        Fault(
            f"{engine}: client leaves before the first byte",
            left(Call.hang_up, Hang(), when="asked", key=key),
            NOTHING,
            GONE,
        ),
    )


PLAIN = Batch(
    "one request's own troubles",
    (
        *provider_faults("app-server", "app-server"),
        *provider_faults("exec", "exec"),
        Fault("provider hangs up in mid-stream", asked(Disconnect(after=2), stream=True), *BROKEN),
        Fault("answer without its end, streamed", asked(BreakOff(), stream=True), *BROKEN),
        Fault("one line of 8 MB", asked(Text(("x" * LONG,))), *ANSWER, 60.0),
        Fault("20,000 deltas", asked(Text(("w ",) * LOTS), stream=True), *STREAM, 60.0),
        Fault(
            "model runs out of tokens",
            asked(Incomplete("max_output_tokens")),
            "200, length",
            "ok 200",
        ),
        Fault("stop text ends a turn", asked(Stall(after=3), stop="d w"), *ANSWER),
        Fault("stop text ends a stream", asked(Stall(after=3), stop="d w", stream=True), *STREAM),
        Fault(
            "max_tokens ends a turn",
            asked(Stall(after=9), max_tokens=3),
            "200, length",
            "ok 200",
        ),
        Fault(
            "client leaves in mid-stream",
            left(Call.hang_up, Stall(2), when="text"),
            NOTHING,
            GONE_LATE,
        ),
        Fault(
            "client's connection breaks in mid-stream",
            left(Call.reset, Stall(2), when="text"),
            NOTHING,
            GONE_LATE,
        ),
        Fault(
            "client leaves while the model thinks",
            left(Call.hang_up, [Reasoning(), Text(("a", "b"), gate=Hang().release)], when="asked"),
            NOTHING,
            GONE,
        ),
        Fault("client stops reading, then goes", blocked_in_send, NOTHING, GONE_LATE),
        Fault("client closes its half in mid-stream", half_closed, NOTHING, GONE_LATE),
        Fault("client leaves in the middle of its body", cut_body, NOTHING, "none"),
        Fault(
            "agent's client leaves while a command runs", agent(hangs_up, "agent"), NOTHING, GONE
        ),
        Fault(
            "exec agent's client leaves while a command runs",
            agent(hangs_up, "exec-agent"),
            NOTHING,
            GONE,
        ),
    ),
)

DEADLINE = Batch(
    "deadline of 3 seconds",
    (
        Fault("provider stalls before its headers", asked(Hang()), *LATE),
        Fault("provider stalls in mid-stream", asked(Stall(2), stream=True), *LATE_STREAM),
        Fault(
            "provider talks for ever",
            asked(Text(("word ",) * 9_999, pause_s=0.05), stream=True),
            *LATE_STREAM,
        ),
        Fault("exec: provider stalls", asked(Hang(), key="exec"), *LATE),
        Fault("agent's command outlasts the deadline", agent(None, "agent"), *LATE, 8.0),
        Fault("exec agent's command outlasts the deadline", agent(None, "exec-agent"), *LATE, 8.0),
    ),
    {"timeout_seconds": 3.0},
)

RETRIES = Batch(
    "own provider with all of Codex's retries, deadline of 5 seconds",
    (
        Fault("retried: provider refuses with 401", asked(Fail(401)), *LATE, 9.0),
        Fault(
            "retried: provider refuses with 429",
            asked(Fail(429)),
            *failed(429, "rate_limit_exceeded"),
        ),
        Fault("retried: provider refuses with 500", asked(Fail(500)), *LATE, 9.0),
        Fault("retried: provider refuses with 502", asked(Fail(502, "<html>")), *LATE, 9.0),
        Fault("retried: provider refuses with 500 once", asked(Fail(500), Answer()), *ANSWER),
        Fault(
            "retried: provider hangs up in mid-stream",
            asked(Disconnect(2), stream=True),
            *BROKEN,
        ),
        Fault(
            "retried: provider hangs up once, not streamed", asked(Disconnect(2), Answer()), *ANSWER
        ),
        Fault("retried: provider stalls", asked(Hang()), *LATE, 9.0),
        Fault("retried: exec, provider refuses with 500", asked(Fail(500), key="exec"), *LATE, 9.0),
    ),
    {"timeout_seconds": 5.0, "codex_configs": "own provider"},
)

DOWN = Batch(
    "provider that does not listen",
    (
        Fault("provider is down", asked(), *failed(502, "upstream_unreachable")),
        Fault(
            "provider is down, streamed", asked(stream=True), *failed(502, "upstream_unreachable")
        ),
        Fault("exec: provider is down", asked(key="exec"), *failed(502, "upstream_unreachable")),
    ),
    {"codex_configs": "down"},
)

DOWN_RETRIED = Batch(
    "own provider that does not listen, deadline of 3 seconds",
    (Fault("retried: provider is down", asked(), *LATE, 8.0),),
    {"codex_configs": "own provider, down", "timeout_seconds": 3.0},
)

YOUNG = Batch(
    "workers that die young",
    (Fault("two in a row", worker_dies_young, *failed(503, "engine_unavailable"), within_s=12.0),),
)

BATCHES = (PLAIN, DEADLINE, RETRIES, DOWN, DOWN_RETRIED, YOUNG)


# --- How it is looked at ---------------------------------------------------------------------

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]
USUAL = {"timeout_seconds": 60.0}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """A server as it is in the middle of a day: all that it builds once is built."""
    place = tmp_path_factory.mktemp("crowd")
    (place / "project").mkdir()
    with ScriptedProvider() as provider, Serving(place / "data", "serve", "--port", "0") as server:
        drain(server)
        crowd = Crowd(server, place / "data", provider, place / "project")
        asyncio.run(warm_up(crowd))
        yield crowd
        crowd.close()


async def warm_up(crowd: Crowd) -> None:
    for key in ("exec", "agent", "exec-agent"):
        more = {"metadata": {"agent": "true"}} if "agent" in key else {}
        seen = await crowd.ask("warm", key, **more)
        assert seen.status == 200, seen
    await asyncio.gather(*(crowd.ask("warm", stream=number % 2 == 0) for number in range(48)))


@pytest.fixture(scope="module")
def checker(crowd: Crowd) -> Checker:
    checker = Checker(crowd, crowd.server.process.pid)
    figures = checker.baseline()
    # Python starts the threads of a loop's own pool when they are needed, and keeps them.
    pool = (os.cpu_count() or 1) + 4
    more = None if figures.threads is None else figures.threads + pool
    checker.allow(replace(figures, threads=more))
    return checker


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: batch.name)
def test_each_of_many_troubles_ends_as_its_own(
    crowd: Crowd, checker: Checker, batch: Batch
) -> None:
    crowd.change_settings(**(USUAL | settings_of(crowd, batch)))
    complaints = asyncio.run(suffer_all(crowd, batch))
    crowd.change_settings(**USUAL, codex_configs=crowd.provider.overrides)
    after = asyncio.run(crowd.ask("after"))  # the next caller is served
    assert not complaints, "\n".join(complaints)
    assert after.view == "200, stop"
    checker.check(crowd.sent)


def settings_of(crowd: Crowd, batch: Batch) -> dict[str, Any]:
    ours, closed = crowd.provider.base_url, f"http://127.0.0.1:{closed_port()}/v1"
    configs = {
        "own provider": own_provider(ours),
        "own provider, down": own_provider(closed),
        "down": [text.replace(ours, closed) for text in crowd.provider.overrides],
        "": crowd.provider.overrides,
    }
    meant = configs[batch.settings.get("codex_configs", "")]
    return {**batch.settings, "codex_configs": meant}


async def suffer_all(crowd: Crowd, batch: Batch) -> list[str]:
    found = await asyncio.gather(*(suffer(crowd, fault) for fault in batch.faults))
    return [text for texts in found for text in texts]


async def suffer(crowd: Crowd, fault: Fault) -> list[str]:
    """Do it; return in what way it ended otherwise than it should."""
    mark = "".join(letter if letter.isalnum() else "-" for letter in fault.name)
    try:
        call, seen = await fault.act(crowd, mark)
        row = await crowd.closed_row(call)
    except Exception:  # noqa: BLE001 - the others' outcomes are told, too
        return [f"{fault.name}: {traceback.format_exc()}"]
    found = [
        f"{fault.name}: {what} {is_now!r}, not {want!r}"
        for what, want, is_now in (
            ("caller", fault.caller, seen.view),
            ("row", fault.row, row),
        )
        if is_now != want
    ]
    if seen.took_s > fault.within_s:
        found.append(f"{fault.name}: took {seen.took_s:.1f} s, not {fault.within_s:g}")
    return found
