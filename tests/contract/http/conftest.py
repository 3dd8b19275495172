"""The whole application on a scripted engine: real policy, real database, real audit log.

Behind every test the fixture counts: one closed row for each request to `/v1/*`, no secret in any
of them, no task left over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.forms.models import model_to_dict

from audit.models import RequestRecord
from codexsite.asgi import Service, build
from codexsite.lifecycle import Lifecycle
from proxy.dbthreads import read
from proxy.engines.base import (
    Completed,
    EngineConfig,
    MessageDone,
    TextDelta,
    Usage,
    UsageReported,
)
from proxy.engines.confinement import Level
from proxy.engines.scripted import ScriptedEngine, Step
from proxy.gateway import is_recorded
from proxy.models import AllowedRoot, ApiKey, ProxySettings, SandboxProof
from proxy.runtime import Builder, Runtime
from proxy.sandboxing import Proofs, form_hash, host
from tests.asgi import AsgiClient, Exchange, running

HELLO: list[Step] = [
    TextDelta("Hel"),
    TextDelta("lo"),
    MessageDone("Hello"),
    UsageReported(Usage(111, 30, 77, 20)),
    Completed(),
]


async def prove_nothing(config: EngineConfig, level: Level) -> SandboxProof:
    """Store a proof that passed, for an engine that runs no commands."""
    return await read(
        SandboxProof.objects.create,
        host=host(),
        codex_version="0.0.0",
        level=level,
        policy_hash=form_hash(level),
        passed=True,
        as_root=True,
        duration_ms=1,
    )


class CountingClient(AsgiClient):
    """Remembers how many rows there must be, and which secrets must not be in them."""

    def __init__(self, app: Any, key: str) -> None:
        super().__init__(app, key)
        self.sent = 0
        self.secrets = {key}

    def open(self, method: str, path: str, **kwargs: Any) -> Exchange:
        self.sent += is_recorded(path.partition("?")[0])
        self.secrets |= {kwargs.get("key") or self.key or ""} - {""}
        return super().open(method, path, **kwargs)


@dataclass
class Site:
    """What a test of the API needs at hand."""

    client: CountingClient
    engine: ScriptedEngine
    exec_engine: ScriptedEngine
    builders: dict[str, Builder]
    application: Lifecycle
    service: Service
    key: ApiKey
    secret: str
    owner: User
    root: AllowedRoot
    folder: Path
    outside: Path = field(init=False)

    def __post_init__(self) -> None:
        self.outside = self.folder.parent / "elsewhere"
        self.outside.mkdir()

    async def rows(self) -> list[RequestRecord]:
        """Every audit row, oldest first, once all that was appended is committed."""
        await asyncio.to_thread(self.service.audit_log.flush)
        return await read(lambda: list(RequestRecord.objects.order_by("id")))

    @staticmethod
    def newest() -> RequestRecord:
        """The newest row, read from the database: for when the log has ended and flushed."""
        return RequestRecord.objects.latest("id")

    async def row(self) -> RequestRecord:
        """The one row there is; a second one is a failure."""
        (row,) = await self.rows()
        return row

    async def recorded(
        self, answer: Exchange, outcome: str, code: str = "", *, who: str = "laptop"
    ) -> RequestRecord:
        """Return the row of this request, the newest, after checking what every row must say."""
        row = (await self.rows())[-1]
        assert (row.outcome, row.error_code, row.key_name) == (outcome, code, who)
        if answer.headers:
            assert row.http_status == answer.status
            assert answer.headers["x-request-id"] == str(row.request_id)
        return row

    async def refused(
        self,
        answer: Exchange,
        status: int,
        code: str,
        *,
        outcome: str = "rejected",
        who: str = "laptop",
    ) -> RequestRecord:
        """Return the row of a request that got this error, its envelope checked."""
        assert answer.status == status, answer.body
        assert answer.headers["content-type"] == "application/json"
        assert list(answer.json()) == ["error"]
        assert set(answer.error) == {"message", "type", "param", "code"}
        assert answer.error["message"]
        assert answer.error["code"] == code
        return await self.recorded(answer, outcome, code, who=who)

    async def database(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ORM code of the test."""
        return await read(function, *args, **kwargs)

    async def change(self, **fields: Any) -> None:
        """Change columns of the key."""
        await read(ApiKey.objects.filter(pk=self.key.pk).update, **fields)

    async def set_options(self, **fields: Any) -> None:
        """Save the row of the proxy's settings, as the admin does."""
        await read(lambda: ProxySettings(**fields).save())

    async def issue(self, name: str, **fields: Any) -> tuple[ApiKey, str]:
        """Issue one more key."""
        key, secret = await read(
            lambda: ApiKey.objects.issue(name=name, owner=self.owner, **fields)
        )
        self.client.secrets.add(secret)
        return key, secret


async def _everything_is_on_record(site: Site) -> None:
    """Check the promise of the audit log, after the server has ended."""
    rows = await read(lambda: list(RequestRecord.objects.all()))
    assert len(rows) == site.client.sent, "one row for each request to /v1/*"
    assert "running" not in {row.outcome for row in rows}
    text = str([model_to_dict(row) for row in rows])
    assert not [secret for secret in site.client.secrets if secret in text]


@pytest.fixture
async def site(transactional_db: None, settings: Any, tmp_path: Path) -> AsyncIterator[Site]:
    # To look for the admin's files takes half the time of a test.
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "servestatic" not in name]
    folder = tmp_path / "project"
    folder.mkdir()

    def prepare() -> tuple[User, AllowedRoot, ApiKey, str]:
        owner = User.objects.create_user("ada")
        root = AllowedRoot.objects.create(alias="project", path=str(folder))
        key, secret = ApiKey.objects.issue(name="laptop", owner=owner, default_root=root)
        key.allowed_roots.add(root)
        return owner, root, key, secret

    owner, root, key, secret = await read(prepare)
    engine, exec_engine = ScriptedEngine(HELLO), ScriptedEngine(HELLO)
    exec_engine.name = "exec"
    builders: dict[str, Builder] = {"app-server": lambda _: engine, "exec": lambda _: exec_engine}
    service = Service(Runtime(builders, Proofs(prove_nothing)), spool=tmp_path / "spool")
    before = asyncio.all_tasks()
    async with running(build(service)) as application:
        client = CountingClient(application, secret)
        site = Site(
            client, engine, exec_engine, builders, application, service,
            key, secret, owner, root, folder,
        )  # fmt: skip
        yield site
    await _everything_is_on_record(site)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, "tasks that outlive the server"
