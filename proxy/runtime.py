"""The engines of this process: built from the options in force, replaced when these change.

An engine is never changed. Other options mean another engine: the next request gets it, and the old
one is closed when its last turn has ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import codex_cli_bin
import orjson
from django.conf import settings

from proxy import policy
from proxy.board import Board
from proxy.dbthreads import read
from proxy.demo import DemoProvider
from proxy.demo import overrides as demo_overrides
from proxy.engines import certificates, scratch
from proxy.engines.app_server import AppServerEngine
from proxy.engines.base import Engine, EngineConfig, Inspection, Turn
from proxy.engines.exec import ExecEngine
from proxy.engines.gate import Gate, Pace, Waiter
from proxy.engines.running import RunningTurn
from proxy.errors import (
    EngineError,
    EngineUnavailable,
    InvalidRequest,
    KeyBusy,
    NotLoggedIn,
    ProxyError,
    ServerClosing,
)
from proxy.joining import Joins
from proxy.sandboxing import Proofs, agent_mode, granted_levels
from proxy.trail import Workplaces

log = logging.getLogger(__name__)

Builder = Callable[[EngineConfig], Engine]
BUILDERS: dict[str, Builder] = {"app-server": AppServerEngine, "exec": ExecEngine}

HOW_TO_LOG_IN = (
    "Codex is not logged in. Run `python manage.py codex login` on the server "
    "(or `codex login --api-key`, or `codex login --reuse`)."
)
NOT_LEAN = (
    "This codex describes its models in a form that this server does not know: it works, but each "
    "prompt is 10 to 50 KB larger. The server's log says what has changed."
)


GUESS_OF_A_KEY_S = 2.0
"""How long a key's request is thought to take before its first one has ended."""

Source = tuple[policy.Options, str]
"""What a configuration is made from: the options in force, and who is logged in."""


class _Seat:
    """One engine, its configuration, and how many requests hold it."""

    def __init__(self, source: Source, config: EngineConfig, engine: Engine) -> None:
        self.source, self.config, self.engine = source, config, engine
        self.inspection: Inspection | None = None
        self.users = 0
        self.is_replaced = False


@dataclass(frozen=True, slots=True)
class Queue:
    """The turns of this process: how many run and may run, and who waits, by engine."""

    running: int
    capacity: int
    waiters: tuple[tuple[str, Waiter], ...]

    @property
    def longest_wait_s(self) -> float:
        return max((waiter.waited_s for _, waiter in self.waiters), default=0.0)


class Runtime:
    """Owns the engines and, in the demo, their model provider. One per process and event loop."""

    def __init__(
        self, builders: dict[str, Builder] = BUILDERS, proofs: Proofs | None = None
    ) -> None:
        self._builders = builders
        self.proofs = proofs or Proofs()
        self._seats: dict[str, _Seat] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[_Seat] = set()
        self._turns_of_key: Counter[int] = Counter()
        self._paces: defaultdict[int, Pace] = defaultdict(lambda: Pace(GUESS_OF_A_KEY_S))
        self._log_level = ""
        self.joins = Joins()
        self.board = Board()
        self.workplaces = Workplaces()
        self._demo: DemoProvider | None = None
        self._is_closing = False
        self.notice: str | None = None

    async def start(self) -> None:
        """Start the demo's provider where this is the demo, and warm the engine up behind it."""
        if settings.DEMO:
            self._demo = DemoProvider()
            self._demo.start()
        scratch.sweep(str(settings.DATA_DIR.scratch))
        self._in_background(self._warm_up())

    async def _warm_up(self) -> None:
        try:
            options = await read(policy.load_options)
            inspection = await self.usable(options.engine, options)
        except ProxyError as error:
            log.warning("not ready: %s", error.message)
            return
        await self.prove_what_is_granted(options, inspection.codex_version)

    async def prove_what_is_granted(self, options: policy.Options, version: str) -> None:
        """Make the proofs that live grants will ask for, before the first of their requests does.

        Never raises: what came of it is in the proofs and in the log.
        """
        try:
            for level in await read(granted_levels):
                await self.proofs.require(self._config(options), level, version)
        except ProxyError as error:
            log.warning("agent mode: %s", error.message)

    async def usable(
        self, kind: str, options: policy.Options, *, is_fresh: bool = False
    ) -> Inspection:
        """Return what Codex says of itself, once it can be asked; `is_fresh` looks at it anew.

        Raises `EngineUnavailable` where it cannot start and `NotLoggedIn` where it lacks a login.
        """
        self.refuse_when_closing()
        with self._held(self._seat(kind, options)) as seat:
            inspection = await self._inspect(seat, is_fresh=is_fresh)
        self.notice = None if inspection.is_lean else NOT_LEAN
        self.notice = self.notice if inspection.can_ask else HOW_TO_LOG_IN
        if not inspection.can_ask:
            raise NotLoggedIn(
                "This server's Codex is not logged in; its administrator must run "
                "`python manage.py codex login`."
            )
        return inspection

    async def _inspect(self, seat: _Seat, *, is_fresh: bool) -> Inspection:
        if seat.inspection is None or is_fresh:
            try:
                seat.inspection = await seat.engine.inspect()
            except EngineError as error:
                self.notice = error.message
                raise
        return seat.inspection

    @contextmanager
    def engine(self, kind: str, options: policy.Options) -> Iterator[Callable[[Turn], RunningTurn]]:
        """Hold the engine for these options and give its `run`, whose turns must be closed.

        It stays open until it is let go, even where other options have replaced it meanwhile: all
        turns of one request run on one engine.
        """
        self.refuse_when_closing()
        with self._held(self._seat(kind, options)) as seat:
            yield seat.engine.run

    @contextmanager
    def _held(self, seat: _Seat) -> Iterator[_Seat]:
        seat.users += 1
        try:
            yield seat
        finally:
            seat.users -= 1
            if seat.is_replaced:
                self._close_when_idle(seat)

    @contextmanager
    def places_of(self, caller: policy.Caller, count: int) -> Iterator[None]:
        """Hold so many of the key's places.

        Raises `KeyBusy` when there are not as many left, and `InvalidRequest` when there never are:
        to come again later would not help.
        """
        key_id, cap = caller.key_id, caller.max_concurrency
        if key_id is None or cap is None:
            yield
            return
        if count > cap:
            raise InvalidRequest(
                f"This key may run {cap} turns at once, and each of n is one.",
                param="n",
                code="integer_above_max_value",
            )
        pace, too_many = self._paces[key_id], self._turns_of_key[key_id] + count - cap
        if too_many > 0:
            raise KeyBusy(
                f"This key may run {cap} turns at once, and too many are running.",
                retry_after_s=pace.retry_after_s(too_many, cap),
            )
        self._turns_of_key[key_id] += count
        held = [object() for _ in range(count)]
        for place in held:
            pace.begin(place)
        try:
            yield
        finally:
            for place in held:
                pace.end(place)
            self._turns_of_key[key_id] -= count

    # Which engine.

    def _seat(self, kind: str, options: policy.Options) -> _Seat:
        self._obey_log_level(options.log_level)
        source = (options, login_id(codex_home(options)))
        seat = self._seats.get(kind)
        if seat is not None and seat.source == source:
            return seat
        config = self._config(options)
        if seat is not None and seat.config == config:  # what changed is not the engine's
            seat.source = source
            return seat
        if seat is not None:
            log.info("the options of the %s engine have changed: it is replaced", kind)
            seat.is_replaced = True
            self._leaving.add(seat)
            self._close_when_idle(seat)
        seat = self._seats[kind] = _Seat(source, config, self._builders[kind](config))
        return seat

    def config_for(self, options: policy.Options) -> EngineConfig:
        """Return what an engine for these options is built from."""
        return self._config(options)

    def _config(self, options: policy.Options) -> EngineConfig:
        demo = demo_overrides(self._demo.base_url) if self._demo else ()
        return engine_config(options, more_overrides=demo)

    def _obey_log_level(self, level: str) -> None:
        if level == self._log_level:
            return
        self._log_level = level
        for name in ("proxy", "audit", "codexsite"):
            logging.getLogger(name).setLevel(level.upper())

    def _close_when_idle(self, seat: _Seat) -> None:
        if seat.users == 0:
            self._leaving.discard(seat)
            self._in_background(seat.engine.aclose())

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The end.

    def refuse_when_closing(self) -> None:
        if self._is_closing:
            raise ServerClosing("The server is shutting down.")

    def refuse_new(self) -> None:
        """Take no more turns; those that run may finish."""
        self._is_closing = True

    async def aclose(self) -> None:
        """Interrupt the running turns, end every child, and wait for both."""
        self._is_closing = True
        await self.proofs.aclose()
        seats = [*self._seats.values(), *self._leaving]
        ends = await asyncio.gather(
            *(seat.engine.aclose() for seat in seats), return_exceptions=True
        )
        for error in ends:
            if isinstance(error, Exception):
                log.error("an engine did not close cleanly", exc_info=error)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=15)
        if self._demo is not None:
            self._demo.close()

    def has_engine(self, kind: str) -> bool:
        """Return whether an engine of this kind has been built."""
        return kind in self._seats

    @property
    def queue(self) -> Queue:
        """Who waits and who runs now, on engines that have been replaced as well."""
        gates: list[tuple[str, Gate]] = [
            (seat.engine.name, gate)
            for seat in (*self._seats.values(), *self._leaving)
            if (gate := getattr(seat.engine, "gate", None)) is not None
        ]
        return Queue(
            running=sum(gate.inside for _, gate in gates),
            capacity=sum(gate.capacity for _, gate in gates),
            waiters=tuple((name, waiter) for name, gate in gates for waiter in gate.waiters()),
        )


def engine_config(options: policy.Options, *, more_overrides: tuple[str, ...] = ()) -> EngineConfig:
    """Return what an engine is built from, for the options in force; makes its CODEX_HOME."""
    home, user = codex_home(options), settings.CODEX_USER
    try:
        if not home.is_dir():
            home.mkdir(mode=0o700, parents=True)
            if user is not None:
                os.chown(home, user.uid, user.gid)
    except OSError as error:
        log.error("CODEX_HOME %s cannot be used: %s", home, error)
        raise EngineUnavailable("The server's CODEX_HOME cannot be used.") from error
    return EngineConfig(
        codex_bin=codex_binary(options.codex_bin),
        codex_home=str(home),
        scratch_dir=str(settings.DATA_DIR.scratch),
        environment=child_environment(options.proxy),
        overrides=(*options.overrides, *more_overrides),
        ephemeral=options.ephemeral,
        workers=options.workers,
        turns_per_worker=options.turns_per_worker,
        worker_max_mb=options.worker_max_mb,
        is_lean=options.is_lean,
        worker_max_age_s=options.worker_max_hours * 3600,
        max_concurrency=options.max_concurrency,
        max_queue_size=options.max_queue_size,
        queue_timeout_s=options.queue_timeout_seconds,
        login_id=login_id(home),
        user=user,
    )


def codex_home(options: policy.Options) -> Path:
    return Path(options.app_server_codex_home or settings.DATA_DIR.codex_home).expanduser()


def codex_binary(configured: str) -> str:
    """Return the program to run: the configured path or name, else the one from the package."""
    if not configured:
        return str(codex_cli_bin.bundled_codex_path())
    return shutil.which(os.path.expanduser(configured), path=settings.CHILD_PATH) or configured


def child_environment(outbound_proxy: str = "") -> dict[str, str]:
    """Return the listed environment of the children; nothing else of the server's reaches them."""
    folder = codex_cli_bin.bundled_path_dir()
    scratch = str(settings.DATA_DIR.scratch)
    environment = {
        "PATH": f"{settings.CHILD_PATH}:{folder}" if folder else settings.CHILD_PATH,
        "LANG": settings.CHILD_LANG,
        "HOME": scratch,
        "TMPDIR": scratch,
        **settings.CHILD_ENVIRONMENT,
    }
    if not settings.CHILD_ENVIRONMENT.keys() & set(certificates.OPERATORS_CHOICE):
        environment |= _authorities()
    if outbound_proxy:
        for name in ("http_proxy", "https_proxy"):
            environment[name] = environment[name.upper()] = outbound_proxy
        environment["no_proxy"] = environment["NO_PROXY"] = "127.0.0.1,localhost"
    return environment


@cache
def _authorities() -> dict[str, str]:
    return certificates.spread_out(settings.DATA_DIR.certificates)


def login_id(codex_home: Path) -> str:
    """Return a digest of who is logged in: it changes with the account, not with a token refresh."""
    try:
        login = orjson.loads((codex_home / "auth.json").read_bytes())
        tokens = login.get("tokens") or {}
        who = [login.get("auth_mode"), login.get("OPENAI_API_KEY"), tokens.get("account_id")]
    except (OSError, ValueError, AttributeError):
        return ""
    return hashlib.sha256(orjson.dumps(who)).hexdigest()


class Health:
    """What `/ready` says, item by item: the reason why not, or None."""

    def __init__(self) -> None:
        self.reasons: dict[str, str | None] = {}
        self.remarks: dict[str, str] = {}
        self.checked_at = time.time()

    def note(self, item: str, reason: str | None) -> None:
        self.reasons[item] = reason

    def remark(self, item: str, text: str) -> None:
        """Say something of an item that keeps nobody from being served."""
        self.reasons[item] = None
        self.remarks[item] = text

    @property
    def is_ready(self) -> bool:
        return not any(self.reasons.values())


async def check_health(runtime: Runtime) -> Health:
    """Look at everything a completion needs. Never raises."""
    health = Health()
    folder = settings.DATA_DIR.spool
    writable = os.access(folder, os.W_OK | os.X_OK)
    health.note("data_directory", None if writable else "The data directory is not writable.")
    try:
        options = await read(policy.load_options)
    except ProxyError as error:
        health.note("database", error.message)
        health.note("engine", "Unknown: its options are in the database.")
        health.note("login", "Unknown: its options are in the database.")
        return health
    health.note("database", None)
    try:
        inspection = await runtime.usable(options.engine, options, is_fresh=True)
    except NotLoggedIn as error:
        health.note("engine", None)
        health.note("login", error.message)
    except ProxyError as error:
        health.note("engine", error.message)
        health.note("login", "Unknown: the engine does not start.")
    else:
        health.note("engine", None)
        health.note("login", None)
        await runtime.prove_what_is_granted(options, inspection.codex_version)
        is_needed, text = await read(agent_mode, inspection.codex_version)
        if is_needed:
            health.note("agent_mode", text)
        else:
            health.remark("agent_mode", text or "proven")
    return health


def listens_on_loopback_only() -> bool:
    """Return whether every listening TCP socket of this server is bound to loopback.

    Twisted knows the sockets, whichever command opened them. Where no reactor runs (in tests, under
    another server) there is nothing to see, and the answer is no.
    """
    from twisted.internet import reactor as installed
    from twisted.internet import tcp

    reactor: Any = installed  # asyncio's, whose interface the declared one lacks
    if not getattr(reactor, "running", False):
        return False
    ports = [item for item in reactor.getReaders() if isinstance(item, tcp.Port)]
    return bool(ports) and all(ip_address(_host_of(port)).is_loopback for port in ports)


def _host_of(port: Any) -> str:  # noqa: ANN401 - Twisted's listening port, which has no types
    return str(port.getHost().host)


_current: Runtime | None = None


def install(runtime: Runtime | None) -> None:
    """Make this the process's runtime; called by the composition root alone."""
    global _current  # noqa: PLW0603 - one place, one writer
    _current = runtime


def current() -> Runtime:
    """Return the process's runtime."""
    if _current is None:
        raise RuntimeError("the server was not started: no runtime is installed")
    return _current


def last_notice() -> str | None:
    """Return what keeps Codex from answering, as this process saw it last; for the admin's pages."""
    return _current.notice if _current else None


def find_board() -> Board | None:
    """Return the board of this process, where it serves."""
    return _current.board if _current else None


def announce_orders() -> None:
    """Have the orders to kill looked at now, where this process serves. Safe from any thread."""
    if _current is not None:
        _current.board.announce_orders()
