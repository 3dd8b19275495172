"""The board over its websocket: what it says, to whom, and to whom not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import Group, User
from django.test import Client

from proxy.consumers import BoardConsumer, is_own_page
from tests.asgi import question
from tests.contract.http.waiting import until

PATH = "/admin/running/live"
ORIGIN = "http://localhost"


def cookie_of(role: str | None, *, is_staff: bool = True) -> str:
    user = User.objects.create_user(f"u-{role}", is_staff=is_staff)
    if role:
        user.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client()
    client.force_login(user)
    return f"codexsite_session={client.cookies['codexsite_session'].value}"


@pytest.fixture
async def roles(site: Any) -> None:
    """The groups as the migrations make them; a test that ends with a flush loses them."""

    def prepare() -> None:
        from django.contrib.auth.models import Permission

        for name in ("Auditor", "Operator", "Administrator"):
            group, _ = Group.objects.get_or_create(name=name)
            group.permissions.add(Permission.objects.get(codename="view_requestrecord"))

    await site.database(prepare)


@asynccontextmanager
async def watching(
    site: Any, cookie: str = "", *, origin: str = ORIGIN, path: str = PATH
) -> AsyncIterator[tuple[WebsocketCommunicator, bool]]:
    headers = [(b"host", b"localhost"), (b"origin", origin.encode()), (b"cookie", cookie.encode())]
    socket = WebsocketCommunicator(site.application, path, headers=headers)
    accepted, _ = await socket.connect(timeout=5)
    try:
        yield socket, accepted
    finally:
        await socket.disconnect()


async def next_rows(socket: WebsocketCommunicator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = orjson.loads(await socket.receive_from(timeout=5))["rows"]
    return rows


@pytest.mark.parametrize("role", ["Auditor", "Operator", "Administrator"])
async def test_it_shows_what_runs_and_forgets_what_has_ended(
    site: Any, roles: None, role: str
) -> None:
    go_on = asyncio.Event()
    site.engine.script = [go_on]
    cookie = await site.database(cookie_of, role)
    async with watching(site, cookie) as (socket, accepted):
        assert accepted
        assert await next_rows(socket) == []
        answer = site.client.open("POST", "/v1/chat/completions", json=question())
        await until(lambda: site.engine.turns)
        while not (rows := await next_rows(socket)):
            pass
        (row,) = rows
        assert (row["key_name"], row["root_alias"], row["engine"]) == (
            "laptop",
            "project",
            "app-server",
        )
        assert (row["phase"], row["is_here"]) == ("waiting for the model", True)
        assert row["kill"] == f"/admin/running/{row['request_id']}/kill/"
        go_on.set()
        await (await answer.start()).finish()
        while await next_rows(socket):
            pass
    assert site.service.runtime.board.watchers == 0


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://localhost:3000", "null", "", "http://localhost.evil"]
)
async def test_another_origin_is_refused(site: Any, roles: None, origin: str) -> None:
    cookie = await site.database(cookie_of, "Operator")
    async with watching(site, cookie, origin=origin) as (_, accepted):
        assert not accepted


@pytest.mark.parametrize(
    ("origin", "host", "is_own"),
    [
        ("http://proxy.example:8765", "proxy.example:8765", True),
        ("https://team.example", "10.0.0.1:8765", True),  # a trusted origin, before a proxy
        ("http://proxy.example:3000", "proxy.example:8765", False),
        ("null", "", False),
        ("", "", False),
        ("https://team.example.evil", "10.0.0.1:8765", False),
    ],
)
def test_a_page_is_ours_by_host_and_port(
    settings: Any, origin: str, host: str, is_own: bool
) -> None:
    settings.CSRF_TRUSTED_ORIGINS = ["https://team.example"]

    assert is_own_page(origin, host) is is_own


async def test_without_login_or_permission_it_is_refused(site: Any, roles: None) -> None:
    cookies = [
        "",
        "codexsite_session=made-up",
        await site.database(cookie_of, None),
        await site.database(lambda: cookie_of("Auditor", is_staff=False)),
    ]
    for cookie in cookies:
        async with watching(site, cookie) as (_, accepted):
            assert not accepted, cookie


async def test_there_is_no_other_socket(site: Any, roles: None) -> None:
    cookie = await site.database(cookie_of, "Operator")
    async with watching(site, cookie, path="/admin/other") as (_, accepted):
        assert not accepted


async def test_who_logs_out_no_longer_sees(
    site: Any, roles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.consumers.CHECK_EVERY", 1)
    cookie = await site.database(cookie_of, "Auditor")
    async with watching(site, cookie) as (socket, accepted):
        assert accepted
        await next_rows(socket)
        await site.database(
            lambda: User.objects.filter(username="u-Auditor").update(is_active=False)
        )
        while (message := await socket.receive_output(timeout=5))["type"] != "websocket.close":
            pass
        assert message["code"] == 4403


async def test_a_board_that_fails_closes_so_that_the_page_connects_again(
    site: Any, roles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Any) -> None:
        raise ValueError("odd")

    monkeypatch.setattr("proxy.consumers.all_rows", fail)
    cookie = await site.database(cookie_of, "Auditor")
    async with watching(site, cookie) as (socket, accepted):
        assert accepted
        message = await socket.receive_output(timeout=5)
        assert (message["type"], message["code"]) == ("websocket.close", 1011)
    assert site.service.runtime.board.watchers == 0


async def test_nobody_looking_costs_nothing(
    site: Any, roles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("nobody asked")

    monkeypatch.setattr("proxy.board.Board.rows", fail)
    assert (await site.client.ask()).status == 200
    assert BoardConsumer.channel_layer_alias == "none"
