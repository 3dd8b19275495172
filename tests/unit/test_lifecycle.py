"""Start, drain, stop, and each request's whole end; with an application of a few lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from codexsite.lifecycle import Lifecycle

SCOPE = {"type": "http", "path": "/v1/x"}
App = Callable[[Any, Any, Any], Awaitable[None]]


class Recorded:
    """A service that remembers what was asked of it, and starts when it may."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.request_began = asyncio.Event()
        self.interrupted = asyncio.Event()
        self.interrupt_error: Exception | None = None

    async def start(self) -> None:
        await self.may_start.wait()
        self.calls.append("start")

    def refuse_new(self) -> None:
        self.calls.append("refuse_new")

    async def interrupt(self) -> None:
        self.calls.append("interrupt")
        self.interrupted.set()
        if self.interrupt_error:
            raise self.interrupt_error

    async def stop(self) -> None:
        self.calls.append("stop")


@pytest.fixture
async def service() -> AsyncIterator[Recorded]:
    yield Recorded()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


async def ignore(_: object) -> None:
    pass


def asked(lifecycle: Lifecycle, receive: Any = never) -> asyncio.Task[None]:
    return asyncio.ensure_future(lifecycle(SCOPE, receive, ignore))


async def bounded(work: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(work, 5)


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    pass


async def test_service_is_started_once_before_the_first_request(service: Recorded) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        service.calls.append("request")

    lifecycle = Lifecycle(app, service, grace_s=1)
    service.may_start.clear()
    requests = [asked(lifecycle), asked(lifecycle)]
    await asyncio.sleep(0)
    assert service.calls == []
    service.may_start.set()
    await bounded(asyncio.gather(*requests))
    assert service.calls == ["start", "request", "request"]


async def test_shutdown_drains_interrupts_and_stops_in_this_order(service: Recorded) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        service.request_began.set()
        await service.interrupted.wait()
        service.calls.append("last words")

    lifecycle = Lifecycle(app, service, grace_s=0.01)
    request = asked(lifecycle)
    await bounded(service.request_began.wait())
    await bounded(lifecycle.shutdown())
    await bounded(request)
    assert service.calls == ["start", "refuse_new", "interrupt", "last words", "stop"]


async def test_shutdown_during_the_start_stops_what_was_started(service: Recorded) -> None:
    lifecycle = Lifecycle(nothing, service, grace_s=0.01)
    service.may_start.clear()
    request = asked(lifecycle)
    await asyncio.sleep(0)
    ending = asyncio.ensure_future(lifecycle.shutdown())
    for _ in range(5):
        await asyncio.sleep(0)
    service.may_start.set()
    await bounded(asyncio.gather(request, ending))
    assert service.calls == ["refuse_new", "start", "interrupt", "stop"]


async def test_shutdown_without_a_start_stops(service: Recorded) -> None:
    lifecycle = Lifecycle(nothing, service, grace_s=0.01)
    await bounded(lifecycle.shutdown())
    assert service.calls[-1] == "stop"


async def test_service_is_stopped_though_its_interrupt_fails(
    service: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    lifecycle = Lifecycle(nothing, service, grace_s=0.01)
    service.interrupt_error = RuntimeError("broken")
    await bounded(asked(lifecycle))
    await bounded(lifecycle.shutdown())
    assert service.calls[-1] == "stop"
    assert "broken" in caplog.text


async def test_request_that_waits_for_its_client_is_told_that_it_left(
    service: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        service.request_began.set()
        service.calls.append((await receive())["type"])

    monkeypatch.setattr("codexsite.lifecycle.AFTER_INTERRUPT_S", 0.01)
    lifecycle = Lifecycle(app, service, grace_s=0.01)
    request = asked(lifecycle)
    await bounded(service.request_began.wait())
    await bounded(lifecycle.shutdown())
    await bounded(request)
    assert service.calls[-2:] == ["http.disconnect", "stop"]


async def test_host_that_cancels_twice_does_not_cut_a_request(service: Recorded) -> None:
    may_end = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        service.request_began.set()
        await may_end.wait()
        service.calls.append("cleaned up")

    lifecycle = Lifecycle(app, service, grace_s=1)
    request = asked(lifecycle)
    await bounded(service.request_began.wait())
    for _ in range(2):
        request.cancel()
        await asyncio.sleep(0)
    assert not request.done()
    may_end.set()
    await bounded(request)
    assert service.calls == ["start", "cleaned up"]


async def test_failure_of_a_request_reaches_the_host(service: Recorded) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await bounded(asked(Lifecycle(app, service, grace_s=1)))


async def test_failure_of_a_cancelled_request_reaches_the_host(service: Recorded) -> None:
    may_fail = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        service.request_began.set()
        await may_fail.wait()
        raise RuntimeError("broken")

    request = asked(Lifecycle(app, service, grace_s=1))
    await bounded(service.request_began.wait())
    may_fail.set()
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(RuntimeError, match="broken"):
        await bounded(request)


async def test_no_message_is_lost_or_doubled_on_the_way(service: Recorded) -> None:
    messages = [{"type": "http.request", "body": bytes([index])} for index in range(5)]
    seen: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages[len(seen)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while len(seen) < len(messages):
            seen.append(await receive())

    await bounded(asked(Lifecycle(app, service, grace_s=1), receive))
    assert seen == messages


async def test_lifespan_of_the_host_starts_and_stops(service: Recorded) -> None:
    inbox = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        return inbox.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    lifecycle = Lifecycle(nothing, service, grace_s=0.01)
    await bounded(lifecycle({"type": "lifespan"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert service.calls == ["start", "refuse_new", "interrupt", "stop"]


async def test_start_that_fails_is_told_in_a_line_and_tried_again_by_the_next_request(
    service: Recorded, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        service.calls.append("request")

    async def fail() -> None:
        raise OSError(30, "Read-only file system")

    lifecycle = Lifecycle(app, service, grace_s=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(service, "start", fail)
        await bounded(asked(lifecycle))
    await bounded(asked(lifecycle))
    await bounded(lifecycle.shutdown())
    assert service.calls == ["request", "start", "request", "refuse_new", "interrupt", "stop"]
    assert caplog.messages == ["the service does not start: [Errno 30] Read-only file system"]
    assert "Traceback" not in caplog.text


async def test_a_second_signal_cuts_the_grace_short_and_keeps_the_order(service: Recorded) -> None:
    """Without `hurry` this would wait for the whole grace, and the test's bound would pass."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        service.request_began.set()
        await service.interrupted.wait()
        service.calls.append("last words")

    lifecycle = Lifecycle(app, service, grace_s=1000)
    request = asked(lifecycle)
    await bounded(service.request_began.wait())
    stopping = asyncio.ensure_future(lifecycle.shutdown())
    await asyncio.sleep(0)
    lifecycle.hurry()
    lifecycle.hurry()
    await bounded(stopping)
    await bounded(request)
    assert service.calls == ["start", "refuse_new", "interrupt", "last words", "stop"]
