"""Whether agent mode may run here: as whom, and proven by which attacks that the sandbox withstood.

A proof counts for this host and kernel, this user, this version of codex and this form of the policy.
Where there is none yet, the first agent request of a level has it made, once, and waits for it; the
administrator may ask for one at any time.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils import timezone

from proxy.confining import codex_package
from proxy.dbthreads import read
from proxy.engines.app_server import AppServerEngine
from proxy.engines.base import Engine, EngineConfig
from proxy.engines.confinement import LEVELS, Level, form_of
from proxy.engines.exec import ExecEngine
from proxy.errors import AgentUnavailable, EngineError, EngineTimeout
from proxy.models import AgentGrant, SandboxProof
from proxy.probing import Probe, probe

log = logging.getLogger(__name__)

ENGINES: tuple[Callable[[EngineConfig], Engine], ...] = (AppServerEngine, ExecEngine)
WAIT_BOUND_S = 60.0
RETRY_AFTER = timedelta(minutes=10)
"""A sandbox that broke may have been mended, and a busy machine is not busy for ever."""

AS_ROOT = (
    "Agent mode is off: Codex would run as root here. Name an unprivileged user in "
    "CODEX_PROXY_CODEX_USER, or start the server as one."
)
AS_ROOT_KNOWINGLY = (
    "Agent turns run as root here (CODEX_PROXY_ALLOW_ROOT_AGENT). That is fit for a throwaway "
    "container only."
)
NOT_PROVEN = (
    "Agent mode is off: the sandbox of level '{level}' is not proven on this host. {why} Run "
    "`python manage.py verify_sandbox` on the server, or press the button on its page of sandbox "
    "proofs."
)


def runs_as_root() -> bool:
    """Return whether Codex's children have root's powers."""
    return settings.CODEX_USER is None and os.geteuid() == 0


def refuse_root() -> None:
    """Raise `AgentUnavailable` where an agent would be root and nobody has said that it may."""
    if runs_as_root() and not settings.ALLOW_ROOT_AGENT:
        raise AgentUnavailable(AS_ROOT, code="agent_as_root")


def form_hash(level: Level) -> str:
    """Return the hash of the policy's form: it changes with the code, not with a path."""
    return form_of(level).policy_hash


def host() -> str:
    """Return what a proof is bound to beside codex and policy: machine, kernel, user."""
    uid = settings.CODEX_USER.uid if settings.CODEX_USER else os.geteuid()
    machine = _line("/etc/machine-id")[:12] or "no-machine-id"
    return f"{platform.node()} {machine} {platform.system()} {platform.release()} uid={uid}"[:200]


def kernel_facts() -> dict[str, str]:
    """Return what decides on this machine whether a sandbox can be made."""
    names = (
        "user/max_user_namespaces",
        "kernel/unprivileged_userns_clone",
        "kernel/apparmor_restrict_unprivileged_userns",
    )
    facts = {name.replace("/", "."): _line(f"/proc/sys/{name}") for name in names}
    user = settings.CODEX_USER.name if settings.CODEX_USER else f"uid {os.geteuid()}"
    known = {"platform": platform.platform(), "codex runs as": user, **facts}
    return {name: value for name, value in known.items() if value}


def _line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def find_proof(level: Level, codex_version: str) -> SandboxProof | None:
    """Return the newest proof that was tried for this host, codex and policy, passed or not."""
    found = SandboxProof.objects.filter(
        host=host(), level=level, codex_version=codex_version, policy_hash=form_hash(level)
    )
    return found.order_by("-id").first()


def is_worth_a_retry(proof: SandboxProof) -> bool:
    """Return whether a sandbox that broke was last looked at a while ago."""
    return not proof.passed and proof.created_at < timezone.now() - RETRY_AFTER


async def prove(config: EngineConfig, level: Level, by: Any = None) -> SandboxProof:  # noqa: ANN401
    """Attack the sandbox of this level through both engines and store what was seen.

    `by` is the user who asked, None for the server itself. Raises `EngineError` where codex does not
    even start. Cancelling leaves nothing running and no row.
    """
    started = time.monotonic()
    private = {
        "the database": str(settings.DATABASES["default"]["NAME"] or settings.DATA_DIR.database),
        "the secret key": str(settings.DATA_DIR.root / "secret_key"),
        "the audit spool": str(settings.DATA_DIR.spool),
    }
    private = {name: path for name, path in private.items() if path.startswith("/")}
    readable = (codex_package(config.codex_bin),)
    probes: list[Probe] = []
    version = await _version(config)
    for build in ENGINES:
        probes += await probe(build, config, level, readable=readable, private=private)
    proof = SandboxProof(
        host=host(),
        codex_version=version,
        level=level,
        policy_hash=form_hash(level),
        facts=kernel_facts(),
        probes=[found.as_dict() for found in probes],
        passed=all(found.held for found in probes),
        as_root=runs_as_root(),
        duration_ms=round((time.monotonic() - started) * 1000),
        created_by=by,
    )
    await read(proof.save)
    outcome = "proven" if proof.passed else f"NOT proven: {proof.why}"
    log.log(
        logging.INFO if proof.passed else logging.ERROR, "sandbox, level %s: %s", level, outcome
    )
    return proof


async def _version(config: EngineConfig) -> str:
    engine = AppServerEngine(config)
    try:
        return (await engine.inspect()).codex_version
    finally:
        await engine.aclose()


Prover = Callable[[EngineConfig, Level], Any]


class Proofs:
    """The proofs that this process relies on, and those that it is making, one for each level."""

    def __init__(self, prover: Prover = prove) -> None:
        self._prover = prover
        self._making: dict[Level, asyncio.Task[SandboxProof]] = {}

    async def require(self, config: EngineConfig, level: Level, version: str) -> SandboxProof:
        """Return the proof that lets a turn of this level run, made now where none was tried lately.

        Raises `AgentUnavailable`: as root, or not proven, with the reason. Cancelling the wait does
        not stop the proof.
        """
        refuse_root()
        proof = await read(find_proof, level, version)
        if proof is None or is_worth_a_retry(proof):
            proof = await self._made(config, level)
        if not proof.passed:
            raise AgentUnavailable(NOT_PROVEN.format(level=level, why=proof.public_why))
        return proof

    async def _made(self, config: EngineConfig, level: Level) -> SandboxProof:
        task = self._making.get(level)
        if task is None:
            task = asyncio.get_running_loop().create_task(
                self._prover(config, level), name=f"proof-{level}", context=contextvars.Context()
            )
            self._making[level] = task
            task.add_done_callback(lambda done: self._forget(level, done))
        try:
            async with asyncio.timeout(WAIT_BOUND_S):
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise EngineTimeout("The proof of the sandbox did not end in time.") from error
        except EngineError as error:
            log.error("the sandbox cannot be proven: %s", error.message)
            raise AgentUnavailable(
                NOT_PROVEN.format(level=level, why="The probes could not be run.")
            ) from error

    def _forget(self, level: Level, task: asyncio.Task[SandboxProof]) -> None:
        self._making.pop(level, None)
        if not task.cancelled():
            task.exception()  # whoever waited may be gone

    async def aclose(self) -> None:
        """Stop the proofs in the making, and wait for that."""
        tasks = list(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def granted_levels() -> list[Level]:
    """Return the levels that live grants give now."""
    given = set(AgentGrant.objects.live().values_list("level", flat=True))
    return [level for level in LEVELS if level in given]


def agent_mode(codex_version: str) -> tuple[bool, str | None]:
    """Return whether live grants need agent mode, and why it is off for them, for an operator.

    Without a live grant the reason is about level `write`, and needs nobody's attention.
    """
    levels = granted_levels()
    return bool(levels), _why_off(levels or ["write"], codex_version)


def _why_off(levels: Sequence[Level], version: str) -> str | None:
    if runs_as_root() and not settings.ALLOW_ROOT_AGENT:
        return AS_ROOT
    for level in levels:
        proof = find_proof(level, version)
        if proof is None:
            return (
                f"The sandbox of level '{level}' is not proven yet: run `manage.py verify_sandbox`."
            )
        if not proof.passed:
            return f"The sandbox of level '{level}' does not hold: {proof.why}"
    return None


def notice() -> str | None:
    """Return what every page of the admin should say of agent mode, or None.

    Only where a live grant needs it: of the newest proof, whatever codex it was made with.
    """
    levels = granted_levels()
    if not levels:
        return None
    if runs_as_root():
        return AS_ROOT_KNOWINGLY if settings.ALLOW_ROOT_AGENT else AS_ROOT
    for level in levels:
        newest = SandboxProof.objects.filter(host=host(), level=level).order_by("-id").first()
        if newest is not None and not newest.passed:
            return f"Agent mode is off for level '{level}': {newest.why}"
    return None
