"""The faults: what is done, what the caller then sees and within what time, and what the row says."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

from proxy.demo import overrides
from tests.e2e.conftest import is_alive, wait_until
from tests.faults.world import HELLO, LEFT, World
from tests.processes import free_port
from tests.provider import (
    Answer,
    Behaviour,
    BreakOff,
    Disconnect,
    Fail,
    FunctionCall,
    Garbage,
    Hang,
    Incomplete,
    Reasoning,
    SseFailed,
    Stall,
    Text,
)

PROMPTLY_S = 3.0
"""At once, on a busy machine; far below any deadline or patience inside the server."""
DEADLINE_S = 1.0
LATE = "504 upstream_timeout"
TIMED_OUT = "timed_out upstream_timeout 504"
CRASHED = "failed engine_crashed 502"
CANCELLED = "cancelled client_disconnected"


@dataclass(frozen=True)
class Fault:
    """`act` does it and returns when nothing more has to be done; the last request is its subject."""

    group: str
    name: str
    act: Callable[[World], None]
    sees: str
    row: str
    bound_s: float = PROMPTLY_S
    engine: str = "app-server"

    @property
    def id(self) -> str:
        return f"{self.group}: {self.name}"


# The worker.


def dies_before_the_first_word(world: World, number: int, engine: str) -> None:
    world.fresh_engine(engine)
    world.asked_at_provider(Hang(), engine, stream=True)
    world.signal(number, engine)


def dies_in_mid_stream(world: World, number: int) -> None:
    world.fresh_engine()
    asking = world.asked_at_provider(Stall(after=2), stream=True)
    asking.said.wait(10)
    world.signal(number)


def dies_behind_its_reasoning(world: World, number: int) -> None:
    """What `codex exec` says comes as whole items: one is there, another is on its way."""
    asking = world.asked_at_provider(
        Answer((Reasoning(), Text(("one", "two"), gate=threading.Event()))), "exec", stream=True
    )
    assert asking.said.wait(10)
    world.signal(number, "exec")


def dies_twice_before_the_first_word(world: World) -> None:
    world.fresh_engine()
    number = len(world.provider.requests) + 2
    world.provider.reply(Hang(), Hang())
    world.ask()
    world.provider.wait_for_request(number - 1)
    world.signal(signal.SIGKILL)
    world.provider.wait_for_request(number)
    world.signal(signal.SIGKILL)


def dies_idle(world: World, number: int) -> None:
    world.fresh_engine()
    died = world.signal(number)
    wait_until(lambda: not is_alive(died.pid))
    world.strike()
    world.ask()


def stops_before_the_first_word(world: World, engine: str) -> None:
    world.fresh_engine(engine)
    world.options(timeout_seconds=DEADLINE_S)
    world.asked_at_provider(Hang(), engine)
    stopped = world.signal(signal.SIGSTOP, engine)
    world.watched.append(stopped.pid)


def stops_in_mid_stream(world: World) -> None:
    world.fresh_engine()
    world.options(timeout_seconds=DEADLINE_S)
    asking = world.asked_at_provider(Stall(after=2), stream=True)
    assert asking.said.wait(10)
    stopped = world.signal(signal.SIGSTOP)
    world.watched.append(stopped.pid)


def stops_idle(world: World) -> None:
    world.fresh_engine()
    world.options(timeout_seconds=DEADLINE_S)
    world.watched.append(world.signal(signal.SIGSTOP).pid)
    world.ask()


def several_turns_lose_their_worker(world: World) -> None:
    world.fresh_engine()
    several = [world.asked_at_provider(Stall(after=2), stream=True) for _ in range(5)]
    assert all(one.said.wait(10) for one in several)
    world.signal(signal.SIGKILL)
    assert {one.view() for one in several} == {"200, then engine_crashed"}


def dies_while_its_command_runs(world: World, engine: str) -> None:
    command = runs_a_command(world, engine)
    world.signal(signal.SIGKILL, engine)
    wait_until(lambda: not is_alive(command), 10)


DEADLY = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV)

WORKER = [
    *(
        Fault(
            "worker",
            f"{engine}: {number.name} before the first word",
            partial(dies_before_the_first_word, number=number, engine=engine),
            HELLO,
            "ok 200",
            bound_s=8,
            engine=engine,
        )
        for engine in ("app-server", "exec")
        for number in DEADLY
    ),
    *(
        Fault(
            "worker",
            f"app-server: {number.name} in mid-stream",
            partial(dies_in_mid_stream, number=number),
            "200, then engine_crashed",
            "failed engine_crashed 200",
        )
        for number in DEADLY
    ),
    *(
        Fault(
            "worker",
            f"exec: {number.name} behind its reasoning",
            partial(dies_behind_its_reasoning, number=number),
            "200, then engine_crashed",
            "failed engine_crashed 200",
            engine="exec",
        )
        for number in DEADLY
    ),
    *(
        Fault(
            "worker",
            f"app-server: {number.name} while idle",
            partial(dies_idle, number=number),
            HELLO,
            "ok 200",
            bound_s=8,
        )
        for number in DEADLY
    ),
    Fault(
        "worker",
        "app-server: SIGKILL before the first word, and of its successor",
        dies_twice_before_the_first_word,
        "502 engine_crashed",
        CRASHED,
    ),
    *(
        Fault(
            "worker",
            f"{engine}: SIGSTOP before the first word",
            partial(stops_before_the_first_word, engine=engine),
            LATE,
            TIMED_OUT,
            bound_s=DEADLINE_S + PROMPTLY_S,
            engine=engine,
        )
        for engine in ("app-server", "exec")
    ),
    Fault(
        "worker",
        "app-server: SIGSTOP in mid-stream",
        stops_in_mid_stream,
        "200, then upstream_timeout",
        "timed_out upstream_timeout 200",
        bound_s=DEADLINE_S + PROMPTLY_S,
    ),
    Fault(
        "worker",
        "app-server: SIGSTOP while idle",
        stops_idle,
        LATE,
        TIMED_OUT,
        bound_s=DEADLINE_S + PROMPTLY_S,
    ),
    Fault(
        "worker",
        "app-server: SIGKILL under five streams",
        several_turns_lose_their_worker,
        "200, then engine_crashed",
        "failed engine_crashed 200",
    ),
    *(
        Fault(
            "worker",
            f"{engine}: SIGKILL while a command of its agent runs",
            partial(dies_while_its_command_runs, engine=engine),
            "502 engine_crashed",
            CRASHED,
            engine=engine,
        )
        for engine in ("app-server", "exec")
    ),
]


# The client.


def runs_a_command(world: World, engine: str) -> int:
    """Begin an agent turn and return the pid of the command that runs for it."""
    seconds = world.unique_seconds()
    world.asked_at_provider(
        FunctionCall("exec_command", {"cmd": f"sleep {seconds}", "yield_time_ms": 30_000}),
        f"agent-{engine}",
        metadata={"agent": "true"},
    )

    def find() -> list[int]:
        return [
            one.pid
            for one in psutil.process_iter(["cmdline"])
            if one.info["cmdline"] == ["sleep", seconds]
        ]

    wait_until(lambda: bool(find()))
    return find()[0]


def leaves_before_the_first_byte(world: World, engine: str, *, stream: bool) -> None:
    gone = world.provider.disconnects
    asking = world.asked_at_provider(Hang(), engine, stream=stream)
    world.strike()
    asking.leave()
    world.provider.wait_for_disconnect(gone + 1)


def leaves_in_mid_stream(world: World) -> None:
    gone = world.provider.disconnects
    asking = world.asked_at_provider(Stall(after=2), stream=True)
    assert asking.said.wait(10)
    world.strike()
    asking.leave()
    world.provider.wait_for_disconnect(gone + 1)


def leaves_the_queue(world: World) -> None:
    world.options(turns_per_worker=1)
    world.asked_at_provider(Hang())
    waiting = world.ask()
    wait_until(lambda: world.queued() == 1)
    world.strike()
    waiting.leave()
    wait_until(lambda: world.queued() == 0)


def closes_its_half(world: World) -> None:
    """It sends no more, and still reads: the server cannot tell it from one that has gone."""
    gate = threading.Event()
    asking = world.asked_at_provider(Text(("Hello", " world"), gate=gate), stream=True)
    assert asking.said.wait(10)
    world.strike()
    asking.socket.shutdown(socket.SHUT_WR)
    time.sleep(0.3)
    gate.set()


def stops_reading_a_flood(world: World) -> None:
    """It reads nothing of an answer that fits no buffer, until the deadline."""
    world.options(timeout_seconds=DEADLINE_S)
    gone = world.provider.disconnects
    number = len(world.provider.requests) + 1
    world.provider.reply(Answer((Text(["x" * 1000] * 20_000, pause_s=0.0001),)))
    world.strike()
    asking = world.send(stream=True)
    world.provider.wait_for_request(number)
    world.provider.wait_for_disconnect(gone + 1, 20)
    asking.leave()


def cuts_its_body_short(world: World) -> None:
    """It promises a body and leaves in the middle of it."""
    asking = world.send_half()
    world.strike()
    asking.leave()


def leaves_while_a_command_runs(world: World, engine: str) -> None:
    command = runs_a_command(world, engine)
    assert world.subject is not None
    world.strike()
    world.subject.leave()
    wait_until(lambda: not is_alive(command), 10)


CLIENT = [
    *(
        Fault(
            "client",
            f"{engine}: gone before the first byte of {'a stream' if stream else 'an answer'}",
            partial(leaves_before_the_first_byte, engine=engine, stream=stream),
            LEFT,
            CANCELLED,
            engine=engine,
        )
        for engine in ("app-server", "exec")
        for stream in (True, False)
    ),
    Fault("client", "gone in mid-stream", leaves_in_mid_stream, LEFT, f"{CANCELLED} 200"),
    Fault("client", "gone while it is queued", leaves_the_queue, LEFT, CANCELLED),
    Fault(
        "client",
        "half-closed in mid-stream",
        closes_its_half,
        "200, then cut off",
        f"{CANCELLED} 200",
    ),
    Fault(
        "client",
        "reads nothing of a flood",
        stops_reading_a_flood,
        LEFT,
        "timed_out upstream_timeout 200",
        bound_s=DEADLINE_S + 5,
    ),
    Fault("client", "cuts its body short", cuts_its_body_short, LEFT, "none"),
    *(
        Fault(
            "client",
            f"{engine}: gone while a command of its agent runs",
            partial(leaves_while_a_command_runs, engine=engine),
            LEFT,
            CANCELLED,
            engine=engine,
        )
        for engine in ("app-server", "exec")
    ),
]


# The model provider.


def provider_does(
    world: World, behaviour: Callable[[], Behaviour], *, stream: bool, engine: str
) -> None:
    world.provider.reply(behaviour())
    world.strike()
    world.ask(engine, stream=stream)


def refuses_connections(world: World) -> None:
    world.options(codex_configs=overrides(f"http://127.0.0.1:{free_port()}/v1"))
    world.strike()
    world.ask()


def stalls(world: World, behaviour: Callable[[], Behaviour], *, stream: bool) -> None:
    world.options(timeout_seconds=DEADLINE_S)
    world.provider.reply(behaviour())
    world.strike()
    world.ask(stream=stream)


def floods(world: World, deltas: list[str], *, stream: bool) -> None:
    world.provider.reply(Answer((Text(deltas),)))
    world.strike()
    asking = world.ask(stream=stream)
    asking.view()
    if stream:
        assert asking.text == "".join(deltas)


def fails_for_a_codex_that_retries(world: World, behaviour: Callable[[], Behaviour]) -> None:
    """A provider of the operator's own, with as many retries as Codex makes by itself."""
    provider = f'{{name="own",base_url="{world.provider.base_url}",wire_api="responses"}}'
    world.options(
        codex_configs=['model_provider="own"', f"model_providers.own={provider}"],
        timeout_seconds=DEADLINE_S,
    )
    usual, world.provider.default = world.provider.default, lambda _: behaviour()
    try:
        world.strike()
        world.ask().view()
    finally:
        world.provider.default = usual


def error(code: str | None, message: str = "no") -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": None, "code": code}}


SAID: list[tuple[str, Callable[[], Behaviour], str, str]] = [
    ("401", lambda: Fail(401, error("invalid_api_key")), "503 upstream_auth_failed", ""),
    ("403", lambda: Fail(403, error("forbidden")), "503 upstream_auth_failed", ""),
    ("404", lambda: Fail(404, error("not_found")), "502 upstream_error", ""),
    ("413", lambda: Fail(413, error("too_large")), "502 upstream_error", ""),
    ("429", lambda: Fail(429, error("rate_limit_exceeded")), "429 rate_limit_exceeded", ""),
    ("500", lambda: Fail(500, error("server_error")), "502 upstream_error", ""),
    (
        "502 in HTML",
        lambda: Fail(502, "<html><h1>Bad gateway</h1></html>", {"content-type": "text/html"}),
        "502 upstream_error",
        "",
    ),
    ("503", lambda: Fail(503, error("overloaded")), "503 server_overloaded", ""),
    (
        "400 context_length_exceeded",
        lambda: Fail(400, error("context_length_exceeded")),
        "400 context_length_exceeded",
        "",
    ),
    (
        "response.failed context_length_exceeded",
        lambda: SseFailed("context_length_exceeded"),
        "400 context_length_exceeded",
        "",
    ),
    ("lines that are no events", Garbage, "502 upstream_disconnected", ""),
    ("hangs up before the first delta", lambda: Disconnect(0), "502 upstream_disconnected", ""),
    (
        "hangs up without response.completed",
        lambda: BreakOff((Text(),)),
        "502 upstream_disconnected",
        "",
    ),
    (
        "resets the connection behind a message",
        lambda: BreakOff((Text(),), is_abrupt=True),
        "502 upstream_disconnected",
        "",
    ),
]

PROVIDER = [
    Fault(
        "provider",
        "refuses connections",
        refuses_connections,
        "502 upstream_unreachable",
        "failed upstream_unreachable 502",
        bound_s=6,
    ),
    *(
        Fault(
            "provider",
            f"says {name}" if name[0].isdigit() or name.startswith("resp") else name,
            partial(provider_does, behaviour=make, stream=False, engine="app-server"),
            sees,
            row or f"failed {sees.split()[1]} {sees.split()[0]}",
        )
        for name, make, sees, row in SAID
    ),
    Fault(
        "provider",
        "exec: says 500",
        partial(provider_does, behaviour=lambda: Fail(500), stream=False, engine="exec"),
        "502 upstream_error",
        "failed upstream_error 502",
        engine="exec",
    ),
    Fault(
        "provider",
        "exec: hangs up after a delta",
        partial(provider_does, behaviour=lambda: Disconnect(1), stream=False, engine="exec"),
        "502 upstream_disconnected",
        "failed upstream_disconnected 502",
        engine="exec",
    ),
    Fault(
        "provider",
        "hangs up in mid-stream",
        partial(provider_does, behaviour=lambda: Disconnect(2), stream=True, engine="app-server"),
        "200, then upstream_disconnected",
        "failed upstream_disconnected 200",
    ),
    Fault(
        "provider",
        "says nothing, not even a status",
        partial(stalls, behaviour=Hang, stream=False),
        LATE,
        TIMED_OUT,
        bound_s=DEADLINE_S + PROMPTLY_S,
    ),
    Fault(
        "provider",
        "falls silent in mid-stream",
        partial(stalls, behaviour=lambda: Stall(after=2), stream=True),
        "200, then upstream_timeout",
        "timed_out upstream_timeout 200",
        bound_s=DEADLINE_S + PROMPTLY_S,
    ),
    Fault(
        "provider",
        "sends 20,000 deltas",
        partial(floods, deltas=["word "] * 20_000, stream=True),
        '200 stop "99999 characters"',
        "ok 200",
        bound_s=30,
    ),
    Fault(
        "provider",
        "sends one delta of 8 MB",
        partial(floods, deltas=["x" * 8_000_000], stream=True),
        '200 stop "8000000 characters"',
        "ok 200",
        bound_s=40,
    ),
    Fault(
        "provider",
        "ends with response.incomplete",
        partial(
            provider_does,
            behaviour=lambda: Incomplete("max_output_tokens"),
            stream=False,
            engine="app-server",
        ),
        '200 length "Hello"',
        "ok 200",
    ),
    Fault(
        "provider",
        "fails again and again, with the retries of Codex itself",
        partial(fails_for_a_codex_that_retries, behaviour=lambda: Fail(500)),
        LATE,
        TIMED_OUT,
        bound_s=DEADLINE_S + PROMPTLY_S,
    ),
    Fault(
        "provider",
        "hangs up again and again, with the retries of Codex itself",
        partial(fails_for_a_codex_that_retries, behaviour=lambda: Disconnect(0)),
        LATE,
        TIMED_OUT,
        bound_s=DEADLINE_S + PROMPTLY_S,
    ),
]


# Time: one deadline for all, and the ends that are no faults.


def is_late_in_the_queue(world: World) -> None:
    world.options(turns_per_worker=1, timeout_seconds=60)
    world.asked_at_provider(Hang())
    world.options(timeout_seconds=DEADLINE_S)
    world.strike()
    world.ask().view()


def is_late_while_codex_starts(world: World) -> None:
    world.options(codex_bin=program(world, "exec sleep 60"), timeout_seconds=DEADLINE_S)
    world.strike()
    world.ask().view()


def meets_its_stop_text(world: World) -> None:
    gone = world.provider.disconnects
    world.provider.reply(Text(("Hello", " STOP", " never"), gate=None, pause_s=0.2), Hang())
    world.strike()
    world.ask(stream=True, stop=["STOP"]).view()
    world.provider.wait_for_disconnect(gone + 1)


def program(world: World, script: str) -> str:
    """Return a program to run in the place of codex."""
    path = world.folder / f"codex-{world.unique_seconds()}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return str(path)


TIME = [
    Fault("time", "deadline in the queue", is_late_in_the_queue, LATE, TIMED_OUT),
    Fault("time", "deadline while codex starts", is_late_while_codex_starts, LATE, TIMED_OUT),
    Fault("time", "stop text in mid-stream", meets_its_stop_text, '200 stop "Hello"', "ok 200"),
]


# The queue.


def finds_the_queue_full(world: World) -> None:
    world.options(turns_per_worker=1, max_queue_size=1)
    world.asked_at_provider(Hang())
    world.ask()
    wait_until(lambda: world.queued() == 1)
    world.strike()
    world.ask().view()


def waits_too_long(world: World) -> None:
    world.options(turns_per_worker=1, queue_timeout_seconds=0.5)
    world.asked_at_provider(Hang())
    world.strike()
    world.ask().view()


def exceeds_its_cap(world: World) -> None:
    world.asked_at_provider(Hang(), "capped")
    world.strike()
    world.ask("capped").view()


def finds_all_processes_busy(world: World) -> None:
    world.options(max_concurrency=1, max_queue_size=0)
    world.asked_at_provider(Hang(), "exec")
    world.strike()
    world.ask("exec").view()


BUSY = "429 server_busy"
REFUSED_AS_BUSY = "rejected server_busy 429"

QUEUE = [
    Fault("queue", "full", finds_the_queue_full, BUSY, REFUSED_AS_BUSY),
    Fault("queue", "waited too long", waits_too_long, BUSY, REFUSED_AS_BUSY),
    Fault(
        "queue",
        "one turn more than the key may run",
        exceeds_its_cap,
        "429 key_concurrency_exceeded",
        "rejected key_concurrency_exceeded 429",
    ),
    Fault(
        "queue",
        "exec: all processes busy, and no queue",
        finds_all_processes_busy,
        BUSY,
        REFUSED_AS_BUSY,
        engine="exec",
    ),
]


# Codex itself.


def cannot_start(world: World, script: str | None, engine: str) -> None:
    world.options(
        codex_bin="/does/not/exist/codex" if script is None else program(world, script),
        engine=engine,
    )
    world.strike()
    world.ask(engine).view()
    status, body = world.readiness()
    assert status == 503
    assert body["checks"]["engine"]["reason"]


def has_no_home(world: World) -> None:
    (world.folder / "file").touch()
    world.options(app_server_codex_home=str(world.folder / "file" / "home"))
    world.strike()
    world.ask().view()
    status, body = world.readiness()
    assert status == 503
    assert body["checks"]["engine"]["reason"] == "The server's CODEX_HOME cannot be used."


UNAVAILABLE = "503 engine_unavailable"
FAILED_TO_START = "failed engine_unavailable 503"

CODEX = [
    *(
        Fault(
            "codex",
            f"{engine}: {name}",
            partial(cannot_start, script=script, engine=engine),
            UNAVAILABLE,
            FAILED_TO_START,
            engine=engine,
        )
        for engine in ("app-server", "exec")
        for name, script in (
            ("is not there", None),
            ("ends at once", "echo no >&2; exit 3"),
        )
    ),
    Fault("codex", "its CODEX_HOME cannot be made", has_no_home, UNAVAILABLE, FAILED_TO_START),
]


# The policy, changed while a turn runs.


def key_is_revoked_in_mid_stream(world: World) -> None:
    """The turn that runs is paid for and ends well; the next one is refused."""
    gate = threading.Event()
    asking = world.asked_at_provider(Text(("Hello", " world"), gate=gate), stream=True)
    assert asking.said.wait(10)
    world.strike()
    revoke = "UPDATE proxy_apikey SET revoked_at = ? WHERE name = 'app-server'"
    world.execute(revoke, "2026-01-01 00:00:00")
    try:
        gate.set()
        assert asking.view() == HELLO
        world.ask().view()
    finally:
        world.execute(revoke, None)


def same_idempotency_key_twice(world: World) -> None:
    """The second joins the first: one turn, two rows."""
    gate = threading.Event()
    asked = len(world.provider.requests)
    headers = {"idempotency-key": f"once-{world.unique_seconds()}"}
    first = world.asked_at_provider(
        Text(("Hello", " world"), gate=gate), stream=True, headers=headers
    )
    assert first.said.wait(10)
    world.strike()
    second = world.ask(stream=True, headers=headers)
    assert second.said.wait(10)
    gate.set()
    assert first.view() == second.view()
    assert len(world.provider.requests) == asked + 1


def same_idempotency_key_for_another_body(world: World) -> None:
    headers = {"idempotency-key": f"once-{world.unique_seconds()}"}
    world.asked_at_provider(Hang(), headers=headers)
    world.strike()
    world.ask(headers=headers, messages=[{"role": "user", "content": "another"}]).view()


POLICY = [
    Fault(
        "policy",
        "key revoked in mid-stream: that stream ends well, and the next request is refused",
        key_is_revoked_in_mid_stream,
        "401 invalid_api_key",
        "rejected invalid_api_key 401",
    ),
    Fault(
        "policy",
        "same idempotency key while the first request runs",
        same_idempotency_key_twice,
        HELLO,
        "ok 200",
    ),
    Fault(
        "policy",
        "same idempotency key for another body",
        same_idempotency_key_for_another_body,
        "400 idempotency_key_reused",
        "rejected idempotency_key_reused 400",
    ),
]


# The server. Each of these has one to itself, with a grace of GRACE_S.

GRACE_S = 3.0


def is_terminated_idle(world: World) -> None:
    world.ask().view()
    world.end(signal.SIGTERM)


def is_terminated_with_a_turn_that_finishes(world: World) -> None:
    gate = threading.Event()
    asking = world.asked_at_provider(Text(("Hello", " world"), gate=gate), stream=True)
    assert asking.said.wait(10)
    world.strike()
    world.site.server.process.send_signal(signal.SIGTERM)
    wait_until(world.is_ending)
    gate.set()
    world.end()


def is_terminated_with_a_turn_that_does_not(world: World, engine: str) -> None:
    world.asked_at_provider(Hang(), engine)
    world.end(signal.SIGTERM)


def is_terminated_twice(world: World) -> None:
    asking = world.asked_at_provider(Stall(after=2), stream=True)
    assert asking.said.wait(10)
    world.site.server.process.send_signal(signal.SIGTERM)
    wait_until(world.is_ending)
    world.end(signal.SIGTERM)


def is_killed(world: World, engine: str) -> None:
    world.asked_at_provider(Hang(), engine)
    world.end(signal.SIGKILL)


def is_killed_while_a_command_runs(world: World) -> None:
    command = runs_a_command(world, "app-server")
    world.end(signal.SIGKILL)
    wait_until(lambda: not is_alive(command), 10)


CLOSING = "503 server_shutting_down"
INTERRUPTED = "interrupted server_shutting_down 503"

SERVER = [
    Fault("server", "SIGTERM while idle", is_terminated_idle, HELLO, "ok 200"),
    Fault(
        "server",
        "SIGTERM, and the turn ends within the grace",
        is_terminated_with_a_turn_that_finishes,
        HELLO,
        "ok 200",
    ),
    *(
        Fault(
            "server",
            f"{engine}: SIGTERM, and the turn does not end",
            partial(is_terminated_with_a_turn_that_does_not, engine=engine),
            CLOSING,
            INTERRUPTED,
            bound_s=GRACE_S + PROMPTLY_S,
        )
        for engine in ("app-server", "exec")
    ),
    Fault(
        "server",
        "SIGTERM twice with a stream",
        is_terminated_twice,
        "200, then server_shutting_down",
        "interrupted server_shutting_down 200",
        bound_s=GRACE_S / 2,
    ),
    *(
        Fault(
            "server",
            f"{engine}: SIGKILL with a turn",
            partial(is_killed, engine=engine),
            "connection lost",
            "interrupted",
        )
        for engine in ("app-server", "exec")
    ),
    Fault(
        "server",
        "SIGKILL while a command of an agent runs",
        is_killed_while_a_command_runs,
        "connection lost",
        "interrupted",
    ),
]

SHARED: list[Fault] = [*WORKER, *CLIENT, *PROVIDER, *TIME, *QUEUE, *CODEX, *POLICY]
FAULTS: list[Fault] = [*SHARED, *SERVER]
