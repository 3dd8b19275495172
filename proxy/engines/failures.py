"""Codex's own words for a failure -> our typed error. Pure; the texts are those of Codex 0.163.

app-server names the cause (`codexErrorInfo`) beside the message; `codex exec` gives the message
only. So the name decides where there is one, and the message where there is none. What reaches a
caller is our own wording, or the provider's with addresses, paths and keys taken out.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from proxy.errors import (
    AnswerIncomplete,
    ContextTooLong,
    EngineError,
    EngineUnavailable,
    PromptRefused,
    RateLimited,
    TurnFailed,
    UpstreamOverloaded,
    UpstreamRefusedLogin,
    UsageLimited,
)

_SECRETS = re.compile(r"\b(?:sk-|sess-|eyJ|[Bb]earer )[-_A-Za-z0-9.*]{8,}")
_URLS = re.compile(r"\b(?:https?|wss?)://[^\s,)\"']+")
_PATHS = re.compile(r"(?<![\w<])/(?:[\w.@+-]+/)+[\w.@+-]*")
_STATUS = re.compile(r"(?:unexpected status|last status:) (\d{3})")


def scrub(text: str) -> str:
    """Return `text` without addresses, paths and keys, at most 300 characters long."""
    for pattern, mark in ((_SECRETS, "<key>"), (_URLS, "<url>"), (_PATHS, "<path>")):
        text = pattern.sub(mark, text)
    return text[:300]


def error_of(message: str, info: object = None) -> EngineError:
    """Return the error for a failed turn: `message` and `codexErrorInfo` as Codex gave them."""
    name, status = _name_and_status(info)
    if status is None and (found := _STATUS.search(message)):
        status = int(found[1])
    return (
        _by_name(name)
        or _by_body(message)
        or _by_text(message)
        or _by_status(status)
        or TurnFailed(
            f"Codex reported: {scrub(message)}" if message else "Codex reported a failure."
        )
    )


def _name_and_status(info: object) -> tuple[str, int | None]:
    if isinstance(info, str):
        return info, None
    if isinstance(info, dict) and info:
        name, details = next(iter(info.items()))
        status = details.get("httpStatusCode") if isinstance(details, dict) else None
        return str(name), status if isinstance(status, int) else None
    return "", None


def _context_too_long() -> EngineError:
    # Clients know this case by these words only.
    return ContextTooLong(
        "This model's maximum context length is smaller than this conversation. "
        "Please reduce the length of the messages.",
        param="messages",
    )


def _usage_limited() -> EngineError:
    return UsageLimited("The shared Codex account has reached its usage limit. Try again later.")


def _rate_limited() -> EngineError:
    return RateLimited("The model provider limits the rate of requests. Try again later.")


def _overloaded() -> EngineError:
    return UpstreamOverloaded("The model is at capacity now. Try again, or choose another model.")


def _login_refused() -> EngineError:
    return UpstreamRefusedLogin(
        "The model provider refused this server's own login; its administrator must log in again."
    )


def _policy_refused() -> EngineError:
    return PromptRefused(
        "The model provider refused this request by its policy.", code="content_policy_violation"
    )


def broken_off() -> EngineError:
    """Return the error of an answer without an end, or of one that Codex would say again."""
    return TurnFailed(
        "The model provider's answer broke off before its end.", code="upstream_disconnected"
    )


def _by_name(name: str) -> EngineError | None:
    makers = {
        "contextWindowExceeded": _context_too_long,
        "usageLimitExceeded": _usage_limited,
        "rateLimitExceeded": _rate_limited,
        "serverOverloaded": _overloaded,
        "unauthorized": _login_refused,
    }
    if name in makers:
        return makers[name]()
    if name == "internalServerError":
        return TurnFailed("The model provider failed. Try again.")
    if name == "cyberPolicy":
        return _policy_refused()
    return None


def _by_body(message: str) -> EngineError | None:
    """The provider's 400 arrives as its raw body."""
    if not message.lstrip().startswith("{"):
        return None
    try:
        body: Any = orjson.loads(message)
    except orjson.JSONDecodeError:
        return None
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    if error.get("code") == "context_length_exceeded":
        return _context_too_long()
    return PromptRefused(
        f"The model provider refused the request: {scrub(str(error.get('message') or 'bad request'))}"
    )


def _by_text(message: str) -> EngineError | None:
    if "Incomplete response returned, reason: " in message:
        reason = message.rpartition("reason: ")[2].strip()
        kind = "length" if reason == "max_output_tokens" else "content_filter"
        return AnswerIncomplete("The model's answer is incomplete.", finish_reason=kind)
    by_start = (
        ("Codex ran out of room", _context_too_long),
        ("You’ve hit your usage limit", _usage_limited),  # noqa: RUF001 - as Codex says it
        ("You've hit your usage limit", _usage_limited),
        ("Quota exceeded", _usage_limited),
        ("To use Codex with your ChatGPT plan", _usage_limited),
        ("This request has been flagged for possible", _policy_refused),
        ("This content was flagged for possible", _policy_refused),
        ("rate limit exceeded", _rate_limited),
        ("Selected model is at capacity", _overloaded),
    )
    for start, make in by_start:
        if message.startswith(start):
            return make()
    if message.startswith("Invalid prompt"):
        return PromptRefused(f"The model provider refused the request: {scrub(message)}")
    if message.startswith("Missing environment variable"):
        return EngineUnavailable(
            "The model provider's key is not in this server's environment; its administrator must set it."
        )
    if message.startswith("Connection failed"):
        return TurnFailed("The model provider cannot be reached.", code="upstream_unreachable")
    if message.startswith("stream disconnected before completion"):
        return broken_off()
    return None


def _by_status(status: int | None) -> EngineError | None:
    if status in (401, 403):
        return _login_refused()
    if status == 429:
        return _rate_limited()
    if status == 503:
        return _overloaded()
    if status is not None:
        return TurnFailed(f"The model provider answered with status {status}.")
    return None
