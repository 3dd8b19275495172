"""The chores before a server: tables, the first admin and key, and what to tell who starts it.

Everything here may run at any time and any number of times.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import transaction

from proxy import __version__
from proxy.checks import is_loopback
from proxy.models import AllowedRoot, ApiKey
from proxy.policy import load_options

ADMIN_NAME = "admin"
FIRST_KEY_NAME = "first key"
FIRST_ROOT_ALIAS = "workspace"


@dataclass(frozen=True, slots=True)
class FirstRun:
    """What was created just now. Nothing keeps these: who does not read them loses them."""

    admin_name: str = ""
    password: str = ""
    api_key: str = ""


class AddressRefused(OSError):
    """The server cannot listen there; the text says why and what to do."""


def prepare() -> FirstRun:
    """Bring the database up to date, with an admin, a key and a root where there never was one.

    Two servers that start at once do this one after the other.
    """
    handle = os.open(settings.DATA_DIR.run / "bootstrap.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        call_command("migrate", interactive=False, verbosity=0)
        with transaction.atomic():
            return _create_first_rows()
    finally:
        os.close(handle)


def _create_first_rows() -> FirstRun:
    users = get_user_model()._default_manager
    admin, password, api_key = users.filter(is_superuser=True).order_by("pk").first(), "", ""
    if admin is None:
        password = secrets.token_urlsafe(12)
        admin = users.create_superuser(_free_name(ADMIN_NAME), password=password)
    # Keys are never deleted, so a root that an admin removed later does not come back.
    if not ApiKey.objects.exists():
        path = str(settings.DATA_DIR.workspace)
        AllowedRoot.objects.get_or_create(
            alias=FIRST_ROOT_ALIAS,
            defaults={"path": path, "description": "The server's own workspace folder."},
        )
        # Without roots of its own, so that it follows the settings and CODEX_PROXY_ALLOWED_ROOTS.
        _, api_key = ApiKey.objects.issue(name=FIRST_KEY_NAME, owner=admin, created_by=admin)
    return FirstRun(admin.get_username(), password, api_key)


def _free_name(name: str) -> str:
    taken = get_user_model()._default_manager.filter(username=name).exists()
    return f"{name}-{secrets.token_hex(3)}" if taken else name


# --- The address ------------------------------------------------------------------------------


def free_port(host: str, port: int) -> int:
    """Return the port, or a free one for port 0. Raises `AddressRefused` where it cannot be had."""
    if not 0 <= port <= 65535:
        raise AddressRefused(f"port {port} is not between 0 and 65535 (--port, CODEX_PROXY_PORT)")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), port))
            probe.listen()
            return int(probe.getsockname()[1])
    except OSError as error:
        raise AddressRefused(refusal(host, port, error.strerror or str(error))) from error


def refusal(host: str, port: int, reason: str) -> str:
    """Return the line for an address that cannot be had."""
    return f"cannot listen on {netloc(host, port)}: {reason}. Choose another with --port or --host."


def is_wildcard(host: str) -> bool:
    return host.strip("[]") in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


def netloc(host: str, port: int) -> str:
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def base_url(host: str, port: int) -> str:
    """Return the URL under which this machine itself reaches the server."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - the opposite of binding it
    return f"http://{netloc(near.get(host.strip('[]'), host), port)}"


# --- What to say ------------------------------------------------------------------------------


def login_hint() -> str:
    """Return how to log in to Codex, or nothing where no login is missing."""
    options = load_options()
    given = options.app_server_codex_home
    home = Path(given).expanduser() if given else settings.DATA_DIR.codex_home
    own = any(item.partition("=")[0].strip() == "model_provider" for item in options.overrides)
    if settings.DEMO or own or (home / "auth.json").exists():
        return ""
    return (
        "Codex is not logged in yet, so completions answer 503. Log in:\n"
        "  python manage.py codex login\n"
        "or look around without an account: python manage.py serve --demo"
    )


def warnings(host: str) -> list[str]:
    """Return what the operator should know about an address that others can reach."""
    if is_loopback(host):
        return []
    lines = [
        f"{host} can be reached from other machines, and nothing is encrypted: put a server "
        "with TLS in front of it on a network that you do not trust."
    ]
    if is_wildcard(host) and set(settings.ALLOWED_HOSTS) <= {"localhost", "127.0.0.1", "[::1]"}:
        lines.append(
            "The admin answers only requests to localhost so far. Name the addresses under which "
            "others reach it: CODEX_PROXY_ALLOWED_HOSTS=codex.example.org,192.0.2.7"
        )
    return lines


def summary(host: str, port: int, first: FirstRun) -> str:
    """Return what a server says when it starts: where it is, how to try it, what to keep."""
    url, demo = base_url(host, port), "  (demo: a stand-in answers, no account)" * settings.DEMO
    admin = f"Admin: {url}/admin/"
    if first.password:
        admin += f"  user {first.admin_name}  password (shown once): {first.password}"
    lines = [f"codexsite {__version__}{demo}", f"Data: {settings.DATA_DIR.root}", admin]
    if first.api_key:
        lines.append(f"API key (shown once): {first.api_key}")
    lines += [f"Base URL: {url}/v1", "Try it:", *_example(url, first.api_key)]
    if first.password or first.api_key:
        lines += ["", "Keep what is shown once; later starts do not show it again."]
    if hint := login_hint():
        lines += ["", hint]
    return "\n".join(lines)


def _example(url: str, api_key: str) -> list[str]:
    body = json.dumps({"model": "default", "messages": [{"role": "user", "content": "Hello"}]})
    return [
        f"  curl {url}/v1/chat/completions \\",
        f'    -H "authorization: Bearer {api_key or "$CODEXSITE_API_KEY"}" \\',
        f"    -H 'content-type: application/json' -d '{body}'",
    ]
