"""How codex is started: its arguments and overrides, the same for both engines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from proxy.engines.base import EngineConfig, User

DISABLED = ("apps", "plugins")

ENFORCED: tuple[str, ...] = (
    "mcp_servers={}",
    "analytics.enabled=false",
    "check_for_update_on_startup=false",
    "project_doc_max_bytes=0",
    # Else `$skill-creator` in a caller's text would put 16 KB and a path of ours into the prompt.
    "skills.bundled.enabled=false",
    'shell_environment_policy.inherit="core"',
    "allow_login_shell=false",
    "features.unbounded_connection_retries=false",
    "thread_unload_delay_secs=0",
)
"""Given last, so that no override of the operator's comes after them."""


def toml(value: object) -> str:
    """Return a value as TOML: JSON is, but for tables, and for DEL, which TOML wants escaped."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return orjson.dumps(value).decode().replace("\x7f", "\\u007f")


def overrides_of(config: Mapping[str, Any]) -> list[str]:
    """Return a nested or dotted config as `key=value` overrides."""
    return [f"{key}={toml(value)}" for key, value in config.items()]


def arguments(config: EngineConfig, *more: str, overrides: Iterable[str] = ()) -> list[str]:
    """Return the program and its arguments; `more` are those of the subcommand."""
    argv = [config.codex_bin, *more]
    for feature in DISABLED:
        argv += ["--disable", feature]
    for override in (*config.overrides, *overrides, *ENFORCED):
        argv += ["-c", override]
    return argv


def environment(config: EngineConfig) -> dict[str, str]:
    """Return the whole environment of a child.

    Codex itself runs `git status` in a workspace, outside the sandbox, and git runs what the
    repository's configuration names as a filter; an agent could write one. So Codex's own git finds
    no repository. Commands do not see this variable.
    """
    return {**config.environment, "CODEX_HOME": config.codex_home, "GIT_DIR": os.devnull}


def as_user(user: User | None) -> dict[str, Any]:
    """Return what `subprocess` is told so that a child runs as this user, with no other group."""
    return {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}
