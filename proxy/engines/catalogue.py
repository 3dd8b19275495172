"""A lean model catalogue, derived from the installed codex, and the lean settings of a chat thread.

With its own catalogue Codex wraps every tool of most models into a JavaScript `exec` tool and adds
collaboration tools, 10 KB that nothing per thread removes. Without three fields it does not. The
figures and the list of settings were found by experiment with Codex 0.163.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from proxy.engines.base import EngineConfig, User
from proxy.engines.launch import as_user
from proxy.engines.scratch import new_file

log = logging.getLogger(__name__)

READ_BOUND_S = 20.0

LEAN_CHAT_CONFIG: Mapping[str, Any] = {
    "features.multi_agent": False,
    "features.goals": False,
    "features.skill_search": False,
    "features.sleep_tool": False,
    "skills.include_instructions": False,
    "web_search": "disabled",
    "include_environment_context": False,
    "include_permissions_instructions": False,
    "include_collaboration_mode_instructions": False,
    "tools.experimental_request_user_input": {"enabled": False},
}
"""What a chat needs of Codex: nothing but the model."""

EXEC_CHAT_FEATURES_OFF = ("unified_exec", "shell_tool", "view_image", "image_generation")
"""`codex exec` always has an environment; without these its model has no tool for it."""

AGENT_CONFIG: Mapping[str, Any] = {
    "features.multi_agent": False,
    "features.goals": False,
    "skills.include_instructions": False,
    "web_search": "disabled",
    "tools.experimental_request_user_input": {"enabled": False},
}
"""What an agent keeps, less what a gateway must not offer; its `Confinement` says the rest."""


class CatalogueChanged(ValueError):
    """The installed codex describes its models in a form that this version does not know."""


def lean(catalogue: bytes, *, for_exec_chat: bool = False) -> bytes:
    """Return the catalogue with plain tools and without collaboration.

    `for_exec_chat` also takes the patch tool away. Raises `CatalogueChanged` for an unknown form.
    """
    try:
        document = orjson.loads(catalogue)
        models = document["models"]
        if not models or not all(isinstance(model["slug"], str) for model in models):
            raise CatalogueChanged("no models in it")
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise CatalogueChanged(str(error)) from error
    for model in models:
        if "experimental_supported_tools" not in model:
            raise CatalogueChanged(f"{model['slug']} has no experimental_supported_tools")
        model.pop("tool_mode", None)
        model.pop("multi_agent_version", None)
        model["experimental_supported_tools"] = []
        if for_exec_chat:
            model["apply_patch_tool_type"] = None
    return orjson.dumps(document)


async def write_lean(
    config: EngineConfig, env: Mapping[str, str], *, for_exec_chat: bool = False
) -> Path | None:
    """Ask the installed codex for its catalogue, write the lean one, and return its path.

    None where that fails or is not wanted: then Codex's own catalogue serves, with a fatter prompt,
    and the log says so. Safe to cancel.
    """
    codex_bin, folder = config.codex_bin, Path(config.scratch_dir)
    if not config.is_lean:
        log.info("Codex's own model catalogue is used, as the settings say")
        return None
    path = folder / ("models-exec-chat.json" if for_exec_chat else "models.json")
    try:
        text = lean(await _bundled(codex_bin, env, config.user), for_exec_chat=for_exec_chat)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.unlink(missing_ok=True)
        with new_file(draft) as file:
            file.write(text)
        draft.replace(path)
    except (CatalogueChanged, OSError, TimeoutError) as error:
        log.error("no lean model catalogue, prompts will be larger: %s", error)
        return None
    log.info("lean model catalogue written for %s", codex_bin)
    return path


async def _bundled(codex_bin: str, env: Mapping[str, str], user: User | None) -> bytes:
    process = await asyncio.create_subprocess_exec(
        codex_bin,
        "debug",
        "models",
        "--bundled",
        env=dict(env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        **as_user(user),
    )
    try:
        async with asyncio.timeout(READ_BOUND_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode != 0:
        raise CatalogueChanged(f"codex debug models exited with {process.returncode}")
    return output
