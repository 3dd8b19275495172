"""System checks: what an operator should hear before the first request fails.

Those that need the database run with `manage.py check --database default` and with `migrate`.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DatabaseError, connections

from proxy.engines.base import User
from proxy.overrides import OverrideRefused, check_override


def find_program(name: str) -> str | None:
    """Return the path of a program that a child of this server would start under this name."""
    return shutil.which(os.path.expanduser(name), path=settings.CHILD_PATH)


def is_loopback(host: str) -> bool:
    """Tell whether a server bound to this host is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@register("proxy")
def check_codex_binary(
    app_configs: Sequence[AppConfig] | None,
    **kwargs: Any,  # noqa: ANN401 - Django's signature
) -> list[CheckMessage]:
    name = settings.OPTION_OVERRIDES.get("codex_bin")
    if name:
        return _binary_messages(name, settings.OPTION_VARIABLES["codex_bin"])
    try:
        from codex_cli_bin import bundled_codex_path

        bundled_codex_path()
    except (ImportError, FileNotFoundError) as error:
        hint = "Install openai-codex-cli-bin, or name a binary in CODEX_PROXY_CODEX_BIN."
        return [Error(f"The codex binary is missing: {error}", hint=hint, id="proxy.E001")]
    return []


def _binary_messages(name: str, where: str) -> list[CheckMessage]:
    if find_program(name):
        return []
    return [Error(f"{where}: there is no program {name!r} that can be run.", id="proxy.E001")]


@register("proxy")
def check_override_roots(
    app_configs: Sequence[AppConfig] | None,
    **kwargs: Any,  # noqa: ANN401 - Django's signature
) -> list[CheckMessage]:
    overrides, variables = settings.OPTION_OVERRIDES, settings.OPTION_VARIABLES
    folders = [(path, variables["allowed_roots"]) for path in overrides.get("allowed_roots", [])]
    if overrides.get("default_cwd"):
        folders.append((overrides["default_cwd"], variables["default_cwd"]))
    return _folder_messages(folders)


def _folder_messages(folders: Iterable[tuple[str, str]]) -> list[CheckMessage]:
    return [
        Warning(f"{where}: {path} is not a directory; requests there get 403.", id="proxy.W002")
        for path, where in folders
        if not os.path.isdir(path)
    ]


@register("proxy")
def check_override_configs(
    app_configs: Sequence[AppConfig] | None,
    **kwargs: Any,  # noqa: ANN401 - Django's signature
) -> list[CheckMessage]:
    return _config_messages(
        settings.OPTION_OVERRIDES.get("codex_configs", []),
        settings.OPTION_VARIABLES["codex_configs"],
    )


def _config_messages(overrides: Iterable[str], where: str) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    for override in overrides:
        try:
            check_override(override)
        except OverrideRefused as refused:
            messages.append(Error(f"{where}: {refused}", id="proxy.E003"))
    return messages


@register("proxy")
def check_anonymous_access(
    app_configs: Sequence[AppConfig] | None,
    **kwargs: Any,  # noqa: ANN401 - Django's signature
) -> list[CheckMessage]:
    if not settings.ALLOW_ANONYMOUS or is_loopback(settings.HOST):
        return []
    return [
        Warning(
            f"CODEX_PROXY_ALLOW_ANONYMOUS is ignored: {settings.HOST} is no loopback address.",
            hint="Issue a key, or bind 127.0.0.1.",
            id="proxy.W004",
        )
    ]


@register("proxy")
def check_codex_user(
    app_configs: Sequence[AppConfig] | None,
    **kwargs: Any,  # noqa: ANN401 - Django's signature
) -> list[CheckMessage]:
    """Check that the user whom Codex runs as can get to what is its own."""
    user = settings.CODEX_USER
    if user is None:
        return []
    closed = first_closed(settings.DATA_DIR.scratch, user)
    if closed is None:
        return []
    hint = f"Open the way (chmod o+x {closed}), or choose another CODEX_PROXY_DATA_DIR."
    message = (
        f"CODEX_PROXY_CODEX_USER: {user.name} cannot get to the data directory: {closed} is closed."
    )
    return [Error(message, hint=hint, id="proxy.E005")]


def first_closed(folder: Path, user: User) -> Path | None:
    """Return the outermost folder on the way that this user may not pass through, or None."""
    for step in (*reversed(folder.parents), folder):
        found = step.stat()
        if found.st_uid == user.uid:
            allowed = found.st_mode & stat.S_IXUSR
        elif found.st_gid == user.gid:
            allowed = found.st_mode & stat.S_IXGRP
        else:
            allowed = found.st_mode & stat.S_IXOTH
        if not allowed:
            return step
    return None


@register(Tags.database)
def check_stored_policy(
    app_configs: Sequence[AppConfig] | None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,  # noqa: ANN401 - Django's signature
) -> list[CheckMessage]:
    """Check what the admin stored: binary, overrides, roots. Quiet before the first migration."""
    from proxy.models import AllowedRoot, ProxySettings

    if "default" not in (databases or ()):
        return []
    try:
        if ProxySettings._meta.db_table not in connections["default"].introspection.table_names():
            return []
        stored, roots = ProxySettings.load(), list(AllowedRoot.objects.all())
    except DatabaseError:
        return []  # columns of a migration still to come
    messages = _folder_messages((root.path, f"Allowed root {root.alias}") for root in roots)
    messages += _config_messages(stored.codex_configs, "Proxy settings")
    if stored.codex_bin and "codex_bin" not in settings.OPTION_OVERRIDES:
        messages += _binary_messages(stored.codex_bin, "Proxy settings")
    return messages
