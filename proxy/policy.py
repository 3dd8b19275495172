"""Who may do what: the options in force, the caller behind a secret, the folder, the grant.

All of it is read from the database for each request, so a change made in any process holds from
the next request on in every process. These functions are synchronous; `dbthreads.read` runs them.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils import timezone

from proxy.engines.base import Inspection
from proxy.errors import AgentDenied, KeyRejected, ModelDenied, ModelNotFound, WorkspaceDenied
from proxy.models import (
    AgentGrant,
    ApiKey,
    ProxySettings,
    digest_of,
    is_inside,
    opens_data_directory,
)

DEFAULT_ALIASES = ("default", "codex-local")
FAST_OVERRIDE = 'model_reasoning_effort="low"'

NO_KEY = (
    "You didn't provide an API key. Send it in an Authorization header, as `Authorization: "
    "Bearer YOUR_KEY`. An administrator of this server issues keys."
)
WRONG_KEY = "Incorrect API key provided. An administrator of this server issues keys."
WRONG_FOLDER = "metadata.cwd is not a folder that this key may work in."
NO_GRANT = (
    "This key has no live grant for agent mode in this folder. An administrator of this server "
    "gives grants."
)


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that a key may work in; `path` is as configured, its real path counts."""

    alias: str
    path: str


@dataclass(frozen=True, slots=True)
class Options:
    """The server's options in force: those of the environment, else those of the admin's row."""

    codex_bin: str
    proxy: str
    model: str
    engine: str
    workers: int
    turns_per_worker: int
    worker_max_mb: int
    worker_max_hours: float
    max_concurrency: int
    max_queue_size: int
    queue_timeout_seconds: float
    app_server_codex_home: str
    codex_configs: tuple[str, ...]
    ephemeral: bool
    agent: bool
    fast: bool
    reasoning: bool
    max_choices: int
    fetch_images: bool
    default_cwd: str
    allowed_roots: tuple[Root, ...]
    timeout_seconds: float
    log_level: str

    @property
    def overrides(self) -> tuple[str, ...]:
        """The codex config overrides; `fast` adds its own where none is given, as it always did."""
        return self.codex_configs or ((FAST_OVERRIDE,) if self.fast else ())

    @property
    def working_directory(self) -> Root:
        return Root("workspace", self.default_cwd or str(settings.DATA_DIR.workspace))

    @property
    def roots(self) -> tuple[Root, ...]:
        """Where a key without roots of its own may work."""
        return self.allowed_roots or (self.working_directory,)


def load_options() -> Options:
    """Return the options in force now."""
    row = ProxySettings.load()
    names = [field.name for field in fields(Options)]
    values: dict[str, Any] = {name: getattr(row, name) for name in names if name != "allowed_roots"}
    values |= {name: value for name, value in settings.OPTION_OVERRIDES.items() if name in names}
    values["codex_configs"] = tuple(values["codex_configs"])
    values["allowed_roots"] = _configured_roots(row)
    return Options(**values)


def _configured_roots(row: ProxySettings) -> tuple[Root, ...]:
    if "allowed_roots" in settings.OPTION_OVERRIDES:
        paths = settings.OPTION_OVERRIDES["allowed_roots"]
        return tuple(Root(os.path.basename(path.rstrip("/")) or "root", path) for path in paths)
    if row._state.adding:
        return ()
    return tuple(Root(root.alias, root.path) for root in row.allowed_roots.all())


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what the policy of its key says. `key` is None for a key without a row."""

    name: str
    prefix: str
    owner: str
    roots: tuple[Root, ...]
    default_root: Root
    key: ApiKey | None = None

    @property
    def key_id(self) -> int | None:
        return self.key.pk if self.key else None

    @property
    def engine(self) -> str:
        return self.key.engine if self.key else ""

    @property
    def models_allowed(self) -> Sequence[str]:
        return self.key.models_allowed if self.key else ()

    @property
    def max_concurrency(self) -> int | None:
        return self.key.max_concurrency if self.key else None

    @property
    def is_strict(self) -> bool:
        return bool(self.key and self.key.is_strict)

    @property
    def asks_for_agent(self) -> bool:
        return bool(self.key and self.key.agent_by_default)


def authenticate(secret: str | None, *, may_be_anonymous: bool) -> tuple[Caller, Options]:
    """Return the caller behind a bearer secret, and the options in force.

    Raises `KeyRejected`: its message is the same for every wrong key, its `known_key` and `reason`
    are for the audit row. `may_be_anonymous` is whether the connection allows a caller without key.
    """
    options = load_options()
    if secret is None:
        if settings.ALLOW_ANONYMOUS and may_be_anonymous:
            return _caller_without_row("anonymous", options), options
        raise KeyRejected(NO_KEY, code="missing_api_key")
    env_key = settings.ENV_API_KEY
    if env_key and hmac.compare_digest(digest_of(secret), digest_of(env_key)):
        return _caller_without_row("CODEX_PROXY_API_KEY", options), options
    key = ApiKey.objects.find(secret)
    if key is None:
        raise KeyRejected(WRONG_KEY)
    if not key.is_live(timezone.now()):
        raise KeyRejected(WRONG_KEY, known_key=key, reason=f"the key is {key.state}")
    return _caller_of(key, options), options


def _caller_without_row(name: str, options: Options) -> Caller:
    return Caller(name, "", "", options.roots, _first(options.roots, options.working_directory))


def _caller_of(key: ApiKey, options: Options) -> Caller:
    own = tuple(Root(root.alias, root.path) for root in key.allowed_roots.all())
    roots = own or options.roots
    preferred = options.working_directory
    if key.default_root is not None:
        preferred = Root(key.default_root.alias, key.default_root.path)
    return Caller(
        key.name, key.prefix, key.owner.get_username(), roots, _first(roots, preferred), key
    )


def _first(roots: tuple[Root, ...], preferred: Root) -> Root:
    """Return the root in which `preferred` lies, with its path; else the first root."""
    real = os.path.realpath(preferred.path)
    for root in roots:
        if is_inside(real, os.path.realpath(root.path)):
            return Root(root.alias, real)
    return roots[0]


@dataclass(frozen=True, slots=True)
class Workspace:
    """The real path where a turn works, and the root that allows it."""

    path: str
    root: Root


def resolve_workspace(caller: Caller, asked: str | None) -> Workspace:
    """Return the folder for `metadata.cwd`: an absolute path, an alias, or None for the default.

    Symlinks are followed before the comparison. Raises `WorkspaceDenied`, the same for a folder
    outside the roots and for one that is not there.
    """
    if asked is None:
        wanted = caller.default_root.path
    elif asked.startswith("/"):
        wanted = asked
    else:
        named = [root.path for root in caller.roots if root.alias == asked]
        wanted = named[0] if named else ""
    try:
        real = os.path.realpath(wanted) if wanted else ""
        is_there = bool(real) and os.path.isdir(real)
    except (OSError, ValueError):  # a NUL in it, a loop of symlinks
        is_there, real = False, ""
    # Of nested roots the innermost names the place in the log.
    holding = [
        root for root in caller.roots if real and is_inside(real, os.path.realpath(root.path))
    ]
    # Looked at again here: a root may have become a link to somewhere else since it was named.
    if not is_there or not holding or opens_data_directory(Path(real)):
        raise WorkspaceDenied(WRONG_FOLDER, param="metadata.cwd")
    return Workspace(real, max(holding, key=lambda root: len(os.path.realpath(root.path))))


def find_grant(caller: Caller, workspace: Workspace) -> AgentGrant:
    """Return the live grant for agent mode of this key in this folder. Raises `AgentDenied`."""
    grant = AgentGrant.objects.covering(caller.key, workspace.path) if caller.key else None
    if grant is None:
        raise AgentDenied(NO_GRANT, param="metadata.agent")
    return grant


def resolve_model(asked: str, caller: Caller, options: Options, inspection: Inspection) -> str:
    """Return the catalogue's name for the model asked. Raises `ModelNotFound` or `ModelDenied`."""
    model = asked
    if asked in DEFAULT_ALIASES:
        default = next((model.id for model in inspection.models if model.is_default), "")
        model = options.model or default
    if not model or model not in {known.id for known in inspection.models} | {options.model}:
        raise unknown_model(asked)
    if caller.models_allowed and model not in caller.models_allowed:
        raise ModelDenied(f"This key may not use the model `{asked}`.", param="model")
    return model


def unknown_model(asked: str) -> ModelNotFound:
    """Return the error for a model that this server, or this key, does not have."""
    return ModelNotFound(f"The model `{asked}` does not exist on this server.", param="model")


def models_for(caller: Caller, options: Options, inspection: Inspection) -> list[str]:
    """Return the models that this caller may ask for, the alias `default` first where it works."""
    names = [model.id for model in inspection.models]
    if options.model and options.model not in names:
        names.append(options.model)
    allowed = [name for name in names if not caller.models_allowed or name in caller.models_allowed]
    try:
        resolve_model("default", caller, options, inspection)
    except (ModelNotFound, ModelDenied):
        return allowed
    return ["default", *allowed]
