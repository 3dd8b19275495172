"""Retries that join: a request that still runs is not paid for twice.

SDKs retry by themselves after a timeout or a broken connection. Such a retry says so: it has the
same `Idempotency-Key`, or the SDKs' retry mark and the same body. Identical requests without a mark
are two requests.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from proxy.errors import InvalidRequest
from proxy.feed import Feed
from proxy.policy import Caller

MAX_KEY_LENGTH = 255
RETRY_GRACE_S = 0.7
"""How long a turn waits for the retry of a client that hung up before the answer began.

An SDK hangs up first and comes again after at most half a second; and a turn that nobody wants any
more must be over within a second.
"""


@dataclass(frozen=True, slots=True)
class RetryMark:
    """What tells a retry: the idempotency key ("" for none), the retry count, the body's digest.

    `may_come_again`: the caller retries by itself when its connection breaks.
    """

    idempotency_key: str
    is_retry: bool
    body: str
    may_come_again: bool = False


def mark_of(headers: Mapping[str, str], path: str, body: bytes) -> RetryMark:
    """Return the marks of a request. Raises `InvalidRequest` for an absurd idempotency key."""
    key = headers.get("Idempotency-Key", "")
    if len(key) > MAX_KEY_LENGTH:
        raise InvalidRequest("The Idempotency-Key header is too long.", code="invalid_value")
    count = headers.get("x-stainless-retry-count", "")
    # No `int`: a header may hold thousands of digits, or a superscript two.
    is_retry = count.isdecimal() and count.strip("0") != ""
    digest = hashlib.sha256(path.encode() + b"\n" + body).hexdigest()
    return RetryMark(key, is_retry, digest, may_come_again=bool(key or count))


@dataclass(frozen=True, slots=True)
class Running:
    """A request whose turns run, and the terms they run under: a retry joins under the same only."""

    request_id: uuid.UUID
    mark: RetryMark
    terms: Hashable
    feed: Feed


class Joins:
    """The requests of this process that run, by what their retries would carry."""

    def __init__(self) -> None:
        self._running: dict[Hashable, list[Running]] = {}

    def find(self, caller: Caller, mark: RetryMark, terms: Hashable) -> Running | None:
        """Return the running request that this one is a retry of, if any.

        Raises `InvalidRequest` where an idempotency key comes again with another body.
        """
        if mark.idempotency_key:
            named = self._live((_who(caller), "key", mark.idempotency_key))
            if any(found.mark.body != mark.body for found in named):
                raise InvalidRequest(
                    "This Idempotency-Key belongs to a request with another body.",
                    code="idempotency_key_reused",
                )
            if named:
                return next((found for found in named if found.terms == terms), None)
        if not mark.is_retry:
            return None
        # Two idempotency keys are two requests, whatever else they have in common.
        alike = [
            found
            for found in self._live((_who(caller), "body", mark.body))
            if found.terms == terms and not (found.mark.idempotency_key and mark.idempotency_key)
        ]
        # Of several, the one whose client has hung up is the one that comes again.
        return min(alike, key=lambda found: found.feed.has_readers, default=None)

    def _live(self, name: Hashable) -> list[Running]:
        return [found for found in self._running.get(name, ()) if found.feed.is_running]

    def add(self, caller: Caller, mark: RetryMark, running: Running) -> None:
        """Let retries find this request for as long as its turns run."""
        names: list[Hashable] = [(_who(caller), "body", mark.body)]
        if mark.idempotency_key:
            names.append((_who(caller), "key", mark.idempotency_key))
        for name in names:
            self._running.setdefault(name, []).append(running)
        running.feed.when_over(lambda: self._forget(names, running))

    def _forget(self, names: list[Hashable], running: Running) -> None:
        for name in names:
            alike = self._running[name]
            alike.remove(running)
            if not alike:
                del self._running[name]


def _who(caller: Caller) -> Hashable:
    return (caller.key_id, caller.name)
