"""What every page has to say: this is the demo, Codex is not logged in, agent mode is off or root."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest

from proxy.runtime import last_notice
from proxy.sandboxing import notice as agent_notice

DEMO = "Demo"


def notices(request: HttpRequest) -> dict[str, object]:
    """Context processor: `demo` (bool), `codex_notice` and `agent_notice` (sentences, or None).

    The last one is for people who are logged in: it needs the database, and names what is open.
    """
    user = getattr(request, "user", None)
    is_staff = bool(user and user.is_authenticated and user.is_staff)
    return {
        "demo": settings.DEMO,
        "codex_notice": last_notice(),
        "agent_notice": agent_notice() if is_staff else None,
    }


def environment(request: HttpRequest) -> list[str] | None:
    """Return the badge in the admin's header."""
    return [DEMO, "warning"] if settings.DEMO else None


def title_prefix(request: HttpRequest) -> str | None:
    """Return what stands before the title of every admin page."""
    return f"[{DEMO}]" if settings.DEMO else None
