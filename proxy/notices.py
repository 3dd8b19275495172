"""What every page has to say: that this is the demo, that Codex is not logged in."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest

from proxy.runtime import last_notice

DEMO = "Demo"


def notices(request: HttpRequest) -> dict[str, object]:
    """Context processor: `demo` (bool) and `codex_notice` (a sentence for the operator, or None)."""
    return {"demo": settings.DEMO, "codex_notice": last_notice()}


def environment(request: HttpRequest) -> list[str] | None:
    """Return the badge in the admin's header."""
    return [DEMO, "warning"] if settings.DEMO else None


def title_prefix(request: HttpRequest) -> str | None:
    """Return what stands before the title of every admin page."""
    return f"[{DEMO}]" if settings.DEMO else None
