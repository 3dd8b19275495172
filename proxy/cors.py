"""Browser pages of other origins: off, unless a setting names the origins. For the gateway alone.

Neither django-cors-headers (a middleware: it sees no error of the gateway's) nor Starlette's (which
would be the only use of Starlette, and refuses in plain text) fits around an ASGI application whose
errors have OpenAI's shape. Keys travel in a header and never as cookies, so no answer ever allows
credentials.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Headers = list[tuple[bytes, bytes]]

EXPOSED = b"x-request-id, retry-after, x-ignored-params, x-should-retry, openai-processing-ms"
METHODS = b"GET, POST, OPTIONS"
USUAL_HEADERS = b"authorization, content-type, idempotency-key, openai-organization, openai-project"
MAX_AGE_S = 600


@dataclass(frozen=True, slots=True)
class Permission:
    """What an answer says to a browser; a preflight is answered with that alone."""

    headers: Headers = field(default_factory=list)
    is_preflight: bool = False


class Cors:
    """Which pages may ask: those of the listed origins, or of all where `*` is listed."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)

    def judge(self, method: str, headers: Mapping[bytes, bytes]) -> Permission:
        """Return what a request with these headers (names in lower case) is to be told.

        An OPTIONS of a page that may not ask is no preflight: it gets what any OPTIONS gets.
        """
        if not self._origins:
            return Permission()
        origin = self._allowed(headers.get(b"origin", b""))
        # What is the same for every origin may be kept for every origin.
        vary = [] if b"*" in self._origins else [(b"vary", b"origin")]
        if not origin:
            return Permission(vary)
        allowed = [(b"access-control-allow-origin", origin)]
        if method != "OPTIONS" or b"access-control-request-method" not in headers:
            return Permission([*allowed, (b"access-control-expose-headers", EXPOSED), *vary])
        asked = headers.get(b"access-control-request-headers", USUAL_HEADERS)
        details = [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", asked),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
            (b"vary", b"origin, access-control-request-headers"),
        ]
        return Permission([*allowed, *details], is_preflight=True)

    def _allowed(self, origin: bytes) -> bytes:
        if b"*" in self._origins and origin:
            return b"*"
        return origin if origin.lower() in self._origins else b""
