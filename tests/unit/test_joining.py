"""Which request is a retry of one that still runs, and which only looks like one."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.engines.base import Completed, Turn
from proxy.engines.running import RunningTurn
from proxy.errors import InvalidRequest
from proxy.feed import Feed
from proxy.joining import Joins, RetryMark, Running, mark_of
from proxy.policy import Caller, Root

ROOT = Root("project", "/project")
FIRST = uuid.uuid4()


def caller(name: str = "laptop") -> Caller:
    return Caller(name, "", "", (ROOT,), ROOT)


def mark(key: str = "", *, retry: bool = False, body: str = "b") -> RetryMark:
    return RetryMark(key, retry, body)


class Playing:
    """A feed of one turn that runs until it is told to end."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

        async def drive(running: RunningTurn) -> None:
            await self.gate.wait()
            running.emit(Completed())

        deadline = asyncio.get_running_loop().time() + 10
        self.feed = Feed([RunningTurn(Turn("r", (), "/", deadline), drive)])
        self.reader = self.feed.join()

    async def end(self) -> None:
        self.gate.set()
        async with asyncio.timeout(5):
            await self.reader.next_event()
        await self.reader.aclose()


TERMS = ("app-server", "/work", "read-only", None, "m")


@pytest.fixture
async def playing() -> AsyncIterator[Playing]:
    found = Playing()
    yield found
    await found.reader.aclose()


def joins_with(playing: Playing, given_mark: RetryMark) -> Joins:
    joins = Joins()
    joins.add(caller(), given_mark, Running(FIRST, given_mark, TERMS, playing.feed))
    return joins


def id_of(found: Any) -> uuid.UUID | None:
    return found.request_id if found else None


@pytest.mark.parametrize(
    ("first", "second", "is_joined"),
    [
        (mark("k"), mark("k"), True),
        (mark("k"), mark("k", retry=True), True),
        (mark(), mark(retry=True), True),
        (mark("k"), mark(retry=True), True),
        (mark(), mark("k", retry=True), True),
        (mark(), mark(), False),
        (mark("k"), mark(), False),
        (mark("k"), mark("other"), False),
        (mark("k"), mark("other", retry=True), False),
        (mark(), mark(retry=True, body="other"), False),
    ],
)
async def test_retry_is_known_by_its_key_or_by_mark_and_body(
    playing: Playing, first: RetryMark, second: RetryMark, is_joined: bool
) -> None:
    found = joins_with(playing, first).find(caller(), second, TERMS)
    assert id_of(found) == (FIRST if is_joined else None)


@pytest.mark.parametrize("second", [mark("k"), mark(retry=True)])
async def test_another_caller_never_joins(playing: Playing, second: RetryMark) -> None:
    assert joins_with(playing, mark("k")).find(caller("other"), second, TERMS) is None


async def test_key_with_another_body_is_refused(playing: Playing) -> None:
    with pytest.raises(InvalidRequest) as refused:
        joins_with(playing, mark("k")).find(caller(), mark("k", body="other"), TERMS)
    assert refused.value.code == "idempotency_key_reused"


async def test_ended_request_is_not_joined_and_forgotten(playing: Playing) -> None:
    joins = joins_with(playing, mark("k"))
    await playing.end()
    await asyncio.sleep(0)  # the callbacks of the turn's task
    assert joins.find(caller(), mark("k", body="other"), TERMS) is None
    assert joins._running == {}


async def test_request_that_nobody_reads_any_more_is_not_joined(playing: Playing) -> None:
    joins = joins_with(playing, mark("k"))
    await playing.reader.aclose()
    assert joins.find(caller(), mark("k"), TERMS) is None


async def test_retry_under_other_terms_is_a_request_of_its_own(playing: Playing) -> None:
    joins = joins_with(playing, mark("k"))
    agents = ("app-server", "/work", "workspace-write", 1, "m")
    assert joins.find(caller(), mark("k"), agents) is None
    assert joins.find(caller(), mark(retry=True), agents) is None


async def test_retry_of_one_of_two_alike_finds_the_one_whose_client_hung_up(
    playing: Playing,
) -> None:
    joins, other = joins_with(playing, mark()), Playing()
    second = uuid.uuid4()
    joins.add(caller(), mark(), Running(second, mark(), TERMS, other.feed))
    leaving = asyncio.create_task(playing.reader.aclose(grace_s=5))
    await asyncio.sleep(0)
    assert id_of(joins.find(caller(), mark(retry=True), TERMS)) == FIRST
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await playing.feed.join().aclose()
    await other.end()


async def test_end_of_an_older_request_leaves_the_newer_one_known(playing: Playing) -> None:
    joins = joins_with(playing, mark())
    newer = Playing()
    second = uuid.uuid4()
    joins.add(caller(), mark(), Running(second, mark(), TERMS, newer.feed))
    await playing.end()
    await asyncio.sleep(0)
    assert id_of(joins.find(caller(), mark(retry=True), TERMS)) == second
    await newer.end()


@pytest.mark.parametrize(
    ("count", "is_retry"),
    [("", False), ("0", False), ("00", False), ("1", True), ("02", True), ("-1", False),
     ("one", False), ("²", False), ("9" * 5000, True)],
)  # fmt: skip
def test_retry_count_above_zero_is_the_mark(count: str, is_retry: bool) -> None:
    assert mark_of({"x-stainless-retry-count": count}, "/", b"").is_retry is is_retry


def test_no_header_is_no_mark() -> None:
    found = mark_of({}, "/v1/completions", b"{}")
    assert (found.idempotency_key, found.is_retry) == ("", False)


def test_body_and_path_make_the_digest() -> None:
    digests = {mark_of({}, path, body).body for path in ("/a", "/b") for body in (b"1", b"2")}
    assert len(digests) == 4


def test_absurd_key_is_refused() -> None:
    assert mark_of({"Idempotency-Key": "k" * 255}, "/", b"").idempotency_key == "k" * 255
    with pytest.raises(InvalidRequest):
        mark_of({"Idempotency-Key": "k" * 256}, "/", b"")


@given(st.text(), st.text(max_size=255))
def test_no_header_is_a_failure(count: str, key: str) -> None:
    mark_of({"x-stainless-retry-count": count, "Idempotency-Key": key}, "/", b"")
