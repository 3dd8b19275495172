"""Chat completions by hand: what a client sends and gets, byte by byte, and what the model was told.

No SDK in between, since SDKs repair what they read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.conftest import LiveSite, wait_until
from tests.processes import WAIT_S
from tests.provider import Request, Script

Json = dict[str, Any]
HI: list[Json] = [{"role": "user", "content": "hi"}]
PLAIN_MODEL = "gpt-5.5"
CODE_MODEL = "gpt-6.1-sol"


@dataclass(frozen=True)
class Reply:
    """A whole answer; `upstream` is what the model provider was asked for it."""

    status: int
    headers: httpx.Headers
    body: Json
    upstream: list[Request]

    @property
    def choice(self) -> Json:
        assert self.status == 200, self.body
        return dict(self.body["choices"][0])

    @property
    def message(self) -> Json:
        return dict(self.choice["message"])

    @property
    def error(self) -> Json:
        assert self.status >= 400, self.body
        assert set(self.body) == {"error"}
        assert set(self.body["error"]) == {"message", "type", "param", "code"}
        return dict(self.body["error"])

    @property
    def calls(self) -> list[tuple[str, str, str]]:
        return [
            (call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in self.message["tool_calls"]
        ]

    @property
    def asked(self) -> Request:
        """The one request that the model provider got."""
        (request,) = self.upstream
        return request


@dataclass
class Streamed:
    """A streamed answer, put together as clients do."""

    status: int
    headers: httpx.Headers
    chunks: list[Json] = field(default_factory=list)
    is_done: bool = False
    error: Json | None = None
    upstream: list[Request] = field(default_factory=list)

    @property
    def deltas(self) -> list[Json]:
        return [choice["delta"] for chunk in self.chunks for choice in chunk["choices"]]

    def joined(self, name: str, index: int = 0) -> str:
        return "".join(
            choice["delta"].get(name) or ""
            for chunk in self.chunks
            for choice in chunk["choices"]
            if choice["index"] == index
        )

    @property
    def text(self) -> str:
        return self.joined("content")

    @property
    def finishes(self) -> list[str]:
        return [
            choice["finish_reason"]
            for chunk in self.chunks
            for choice in chunk["choices"]
            if choice["finish_reason"]
        ]

    @property
    def usage(self) -> Json | None:
        found = [chunk for chunk in self.chunks if not chunk["choices"]]
        assert found == self.chunks[-len(found) :] if found else True, "usage is not last"
        return found[0]["usage"] if found else None

    @property
    def calls(self) -> list[tuple[str, str, str]]:
        """The calls as an SDK adds them up by index."""
        found: dict[int, list[str]] = {}
        for delta in self.deltas:
            for piece in delta.get("tool_calls") or ():
                call = found.setdefault(piece["index"], ["", "", ""])
                function = piece.get("function") or {}
                call[0] += piece.get("id") or ""
                call[1] += function.get("name") or ""
                call[2] += function.get("arguments") or ""
        assert list(found) == list(range(len(found)))
        return [(call[0], call[1], call[2]) for call in found.values()]


def _request(live: LiveSite, secret: str | None, headers: Mapping[str, str], body: Json) -> Json:
    return {
        "url": f"{live.url}/v1/chat/completions",
        "headers": {"authorization": f"Bearer {secret or live.secret}", **headers},
        "json": {"model": PLAIN_MODEL, "messages": HI, **body},
        "timeout": WAIT_S,
    }


def _wait_for_rest(live: LiveSite) -> None:
    """Wait until no turn runs: one that was cut may still ask, and would get what is not meant for it."""
    wait_until(lambda: httpx.get(f"{live.url}/metrics").json()["queue"]["running"] == 0)


def ask(
    live: LiveSite,
    *scripts: Script,
    secret: str | None = None,
    headers: Mapping[str, str] | None = None,
    **body: Any,
) -> Reply:
    """Send a chat completion; the model provider answers its requests with `scripts`."""
    _wait_for_rest(live)
    before = len(live.provider.requests)
    live.provider.reply(*scripts)
    got = httpx.post(**_request(live, secret, headers or {}, body))
    assert got.headers["content-type"] == "application/json"
    return Reply(got.status_code, got.headers, got.json(), live.provider.requests[before:])


def stream(
    live: LiveSite,
    *scripts: Script,
    secret: str | None = None,
    headers: Mapping[str, str] | None = None,
    **body: Any,
) -> Streamed:
    """The same, streamed. A failure before the first byte has a status and an `error` of its own."""
    _wait_for_rest(live)
    before = len(live.provider.requests)
    live.provider.reply(*scripts)
    request = _request(live, secret, headers or {}, {"stream": True, **body})
    with httpx.stream("POST", **request) as got:
        found = Streamed(got.status_code, got.headers)
        if got.status_code != 200:
            got.read()
            found.error = got.json()["error"]
        else:
            _read_events(found, got.iter_lines())
    found.upstream = live.provider.requests[before:]
    return found


def _read_events(found: Streamed, lines: Any) -> None:
    for line in lines:
        if not line.startswith("data: "):
            assert not line or line.startswith(":"), line
            continue
        assert not found.is_done, "something came after [DONE]"
        assert found.error is None, "something came after the error"
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            found.is_done = True
        elif "error" in (event := json.loads(data)):
            found.error = event["error"]
        else:
            found.chunks.append(event)
