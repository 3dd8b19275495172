"""Credentials that options may carry, starred before others read them. Pure."""

from __future__ import annotations

import json
import re

STARS = "***"
URL_LOGIN = re.compile(r"://[^/@\s\"]+@")
CREDENTIAL = re.compile(r"token(?!s)|secret|password|api_?key|authorization|bearer", re.IGNORECASE)


def redact_override(override: str) -> str:
    """Return a `key=value` override without its value where it speaks of a credential."""
    key, separator, _ = override.partition("=")
    if separator and CREDENTIAL.search(override):
        return f"{key}={STARS}"
    return redact_url(override)


def redact_url(text: str) -> str:
    """Return the text with the login of every URL in it starred."""
    return URL_LOGIN.sub(f"://{STARS}@", text)


def redact(text: str) -> str:
    """Return one option as it may be shown: a URL, or a list of overrides as JSON."""
    try:
        items = json.loads(text)
    except ValueError:
        return redact_url(text)
    if isinstance(items, list):
        return json.dumps([redact_override(str(item)) for item in items])
    return text
