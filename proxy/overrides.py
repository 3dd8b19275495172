"""Which `-c key=value` overrides an operator may give to Codex. Pure.

An override must not weaken what the policy promises: the sandbox, the approval policy, the trust
in a workspace, the environment of commands, or programs that Codex would start by itself.
"""

from __future__ import annotations

import tomllib

FORBIDDEN = {
    "sandbox_mode": "the sandbox is decided per request by the policy",
    "sandbox_workspace_write": "the sandbox is decided per request by the policy",
    "permissions": "the sandbox is decided per request by the policy",
    "default_permissions": "the sandbox is decided per request by the policy",
    "approval_policy": "nobody is there to approve; the policy is always `never`",
    "approvals_reviewer": "nobody is there to approve; the policy is always `never`",
    "projects": "a trusted workspace runs code outside the sandbox",
    "trust_level": "a trusted workspace runs code outside the sandbox",
    "profile": "a profile could carry a weaker sandbox",
    "profiles": "a profile could carry a weaker sandbox",
    "shell_environment_policy": "commands see a listed environment only",
    "allow_login_shell": "commands see a listed environment only",
    "mcp_servers": "Codex would start a program outside the sandbox",
    "command": "Codex would start a program outside the sandbox",
    "zsh_path": "Codex would start a program outside the sandbox",
    "js_repl_node_path": "Codex would start a program outside the sandbox",
    "shell_zsh_fork": "Codex would start a program outside the sandbox",
    "config_file": "another configuration could carry a weaker sandbox",
    "notify": "Codex would start a program outside the sandbox",
    "hooks": "Codex would start a program outside the sandbox",
    "plugins": "Codex would start a program outside the sandbox",
    "use_legacy_landlock": "the sandbox would lose its walls",
}


class OverrideRefused(ValueError):
    """This override is not `key=value`, or would weaken the sandbox; the text says which and why."""


def check_override(text: str) -> None:
    """Raise `OverrideRefused` unless `text` is a `key=value` that weakens nothing.

    Codex splits at the first `=`, takes dots as nesting and reads the value as TOML, else as plain
    text; so a forbidden name is looked for in every part of the key and in every table inside the
    value. Its TOML is newer than ours (a comma may end a table): what we cannot read is refused.
    """
    key, separator, value = text.partition("=")
    parts = [part.strip().strip("\"'") for part in key.split(".")]
    if not separator or not all(parts):
        raise OverrideRefused(f"{text!r} is not of the form key=value.")
    try:
        names = _names_inside(_parse(value))
    except tomllib.TOMLDecodeError as error:
        raise OverrideRefused(
            f"The override {key.strip()!r} is refused: its value is no TOML 1.0 ({error})."
        ) from error
    for name in (*parts, *names):
        if name in FORBIDDEN:
            raise OverrideRefused(f"The override {key.strip()!r} is refused: {FORBIDDEN[name]}.")


def _parse(value: str) -> object:
    try:
        return tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        if value.lstrip().startswith(("{", "[")):
            raise
        return value


def _names_inside(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [part for name in value for part in name.split(".")]
        return [*own, *(name for item in value.values() for name in _names_inside(item))]
    if isinstance(value, list):
        return [name for item in value for name in _names_inside(item)]
    return []
