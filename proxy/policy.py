"""Who may do what: the options in force, the caller behind a secret, the folder, the grant.

A change made in any process holds from the next request on in every process: each request asks the
database whether the policy has changed since it was read, and reads it again if it has. Real paths
are found anew for each request. These functions are synchronous; `dbthreads.read` runs them.
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
from proxy.policyversion import read_version

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
    is_lean: bool
    max_concurrency: int
    max_queue_size: int
    queue_timeout_seconds: float
    app_server_codex_home: str
    codex_configs: tuple[str, ...]
    ephemeral: bool
    agent: bool
    action_output_chars: int
    action_diff_chars: int
    compared_files: int
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
    preferred: Root
    key: ApiKey | None = None

    @property
    def default_root(self) -> Root:
        """The root in which `preferred` lies, with its real path now; else the first root."""
        real = os.path.realpath(self.preferred.path)
        for root in self.roots:
            if is_inside(real, os.path.realpath(root.path)):
                return Root(root.alias, real)
        return self.roots[0]

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
    def max_queued(self) -> int | None:
        return self.key.max_queued if self.key else None

    @property
    def is_strict(self) -> bool:
        return bool(self.key and self.key.is_strict)

    @property
    def asks_for_agent(self) -> bool:
        return bool(self.key and self.key.agent_by_default)


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read of the policy at one version: the options, and keys by their secret's digest."""

    version: int | None
    options: Options
    keys: dict[str, tuple[ApiKey, Caller]]


KEYS_KEPT = 1000
"""So many keys are kept between requests; any more are read each time."""

_known: _Known | None = None


def _what_is_known() -> _Known:
    """Return what was read before, if the policy has not changed since; else read it."""
    global _known  # noqa: PLW0603 - replaced as a whole, so that any thread may read it
    version = read_version()
    known = _known
    if known is None or version is None or known.version != version:
        # The version first: what is read after it is never older than it.
        known = _known = _Known(version, load_options(), {})
    return known


def authenticate(secret: str | None, *, may_be_anonymous: bool) -> tuple[Caller, Options]:
    """Return the caller behind a bearer secret, and the options in force.

    Raises `KeyRejected`: its message is the same for every wrong key, its `known_key` and `reason`
    are for the audit row. `may_be_anonymous` is whether the connection allows a caller without key.
    """
    known = _what_is_known()
    options = known.options
    if secret is None:
        if settings.ALLOW_ANONYMOUS and may_be_anonymous:
            return _caller_without_row("anonymous", options), options
        raise KeyRejected(NO_KEY, code="missing_api_key")
    env_key = settings.ENV_API_KEY
    if env_key and hmac.compare_digest(digest_of(secret), digest_of(env_key)):
        return _caller_without_row("CODEX_PROXY_API_KEY", options), options
    key, caller = _key_of(secret, known)
    if not key.is_live(timezone.now()):
        raise KeyRejected(WRONG_KEY, known_key=key, reason=f"the key is {key.state}")
    return caller, options


def _key_of(secret: str, known: _Known) -> tuple[ApiKey, Caller]:
    """Return the key that this secret opens now, live or not. Raises `KeyRejected`."""
    digest = digest_of(secret)
    found = known.keys.get(digest)
    if found is not None and found[0].is_opened_by(digest, timezone.now()):
        return found
    key = ApiKey.objects.find(secret)
    if key is None:
        raise KeyRejected(WRONG_KEY)
    found = key, _caller_of(key, known.options)
    if len(known.keys) < KEYS_KEPT:
        known.keys[digest] = found
    return found


def _caller_without_row(name: str, options: Options) -> Caller:
    return Caller(name, "", "", options.roots, options.working_directory)


def _caller_of(key: ApiKey, options: Options) -> Caller:
    own = tuple(Root(root.alias, root.path) for root in key.allowed_roots.all())
    preferred = options.working_directory
    if key.default_root is not None:
        preferred = Root(key.default_root.alias, key.default_root.path)
    return Caller(
        key.name, key.prefix, key.owner.get_username(), own or options.roots, preferred, key
    )


@dataclass(frozen=True, slots=True)
class Workspace:
    """The real path where a turn works, and the root that allows it, with that one's real path."""

    path: str
    root: Root
    root_path: str


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
    real_roots = [(os.path.realpath(root.path), root) for root in caller.roots] if real else []
    holding = [(path, root) for path, root in real_roots if is_inside(real, path)]
    # Looked at again here: a root may have become a link to somewhere else since it was named.
    if not is_there or not holding or opens_data_directory(Path(real)):
        raise WorkspaceDenied(WRONG_FOLDER, param="metadata.cwd")
    root_path, root = max(holding, key=lambda held: len(held[0]))
    return Workspace(real, root, root_path)


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
