"""The bearer key: who gets in, and what the row says of those who do not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from tests.asgi import AsgiClient, Exchange, question

SCHEMES = ["Bearer", "bearer", "BEARER"]


async def asked_with(site: Any, authorization: str) -> Exchange:
    exchange: Exchange = await site.client.post(
        "/v1/chat/completions", json=question(), headers={"authorization": authorization}
    )
    return exchange


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_live_key_is_let_in_under_any_spelling_of_the_scheme(site: Any, scheme: str) -> None:
    answer = await asked_with(site, f"{scheme} {site.secret}")
    assert answer.status == 200
    row = await site.recorded(answer, "ok")
    assert (row.key_id, row.key_prefix, row.key_owner) == (site.key.pk, site.key.prefix, "ada")


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic YWRhOnBhc3M=", "sk-codexsite-x"]
)
async def test_no_bearer_key_is_401_and_nobody_in_the_row(site: Any, header: str) -> None:
    answer = await asked_with(site, header)
    row = await site.refused(answer, 401, "missing_api_key", who="")
    assert answer.error["type"] == "invalid_request_error"
    assert row.key_id is None
    assert site.engine.turns == []


async def test_wrong_key_is_401_and_not_shown_back(site: Any) -> None:
    wrong = "sk-codexsite-" + "x" * 43
    answer = await site.client.post("/v1/chat/completions", json=question(), key=wrong)
    row = await site.refused(answer, 401, "invalid_api_key", who="")
    assert wrong.encode() not in answer.body
    assert (row.key_id, row.key_prefix) == (None, "")


async def test_right_prefix_with_wrong_end_is_401_and_names_no_key(site: Any) -> None:
    answer = await site.client.post("/v1/chat/completions", json=question(), key=site.secret[:-1])
    await site.refused(answer, 401, "invalid_api_key", who="")


async def test_key_with_letters_outside_ascii_is_401(site: Any) -> None:
    answer = await asked_with(site, "Bearer schlüssel")
    await site.refused(answer, 401, "invalid_api_key", who="")


async def test_wrong_key_is_401_before_the_body_is_looked_at(site: Any) -> None:
    answer = await site.client.post("/v1/chat/completions", body=b"{", key="nonsense")
    await site.refused(answer, 401, "invalid_api_key", who="")


async def test_models_need_a_key_as_well(site: Any) -> None:
    for path in ("/v1/models", "/v1/models/default"):
        answer = await site.client.get(path, headers={"authorization": ""})
        await site.refused(answer, 401, "missing_api_key", who="")


@pytest.mark.parametrize("state", ["expired", "revoked"])
async def test_closed_key_is_named_in_the_row_and_not_told_apart(site: Any, state: str) -> None:
    now = timezone.now()
    await site.change(**{"expires_at" if state == "expired" else "revoked_at": now})
    answer = await site.client.ask()
    row = await site.refused(answer, 401, "invalid_api_key")
    assert (row.key_id, row.key_owner) == (site.key.pk, "ada")
    assert row.error_message == f"the key is {state}"
    unknown = await site.client.post("/v1/chat/completions", json=question(), key="wrong")
    assert answer.error == unknown.error
    assert site.engine.turns == []


async def test_key_that_expires_later_still_opens(site: Any) -> None:
    await site.change(expires_at=timezone.now() + timedelta(hours=1))
    answer = await site.client.ask()
    await site.recorded(answer, "ok")


async def test_rotated_key_opens_with_the_new_secret_only(site: Any) -> None:
    new = await site.database(site.key.rotate)
    await site.refused(await site.client.ask(), 401, "invalid_api_key", who="")
    answer = await site.client.post("/v1/chat/completions", json=question(), key=new)
    await site.recorded(answer, "ok")


async def test_rotated_key_opens_with_both_secrets_in_its_grace(site: Any) -> None:
    new = await site.database(site.key.rotate, timedelta(minutes=5))
    for secret in (site.secret, new):
        answer = await site.client.post("/v1/chat/completions", json=question(), key=secret)
        row = await site.recorded(answer, "ok")
        assert row.key_id == site.key.pk


async def test_old_secret_is_refused_once_its_grace_is_over(site: Any) -> None:
    await site.database(site.key.rotate, timedelta(minutes=5))
    await site.change(previous_valid_until=timezone.now())
    await site.refused(await site.client.ask(), 401, "invalid_api_key", who="")


async def test_revoked_key_is_closed_in_its_grace_too(site: Any) -> None:
    await site.database(site.key.rotate, timedelta(minutes=5))
    await site.database(site.key.revoke)
    row = await site.refused(await site.client.ask(), 401, "invalid_api_key")
    assert row.error_message == "the key is revoked"


async def test_key_of_the_environment_is_let_in_under_the_default_policy(
    site: Any, settings: Any
) -> None:
    settings.ENV_API_KEY = "from-the-environment"
    answer = await site.client.post(
        "/v1/chat/completions", json=question(), key=settings.ENV_API_KEY
    )
    row = await site.recorded(answer, "ok", who="CODEX_PROXY_API_KEY")
    assert (row.key_id, row.key_prefix, row.key_owner) == (None, "", "")
    assert (row.root_alias, row.cwd) == ("workspace", str(settings.DATA_DIR.workspace))


async def test_renamed_key_keeps_its_old_name_in_old_rows(site: Any) -> None:
    await site.client.ask()
    await site.change(name="desktop")
    await site.recorded(await site.client.ask(), "ok", who="desktop")
    assert [row.key_name for row in await site.rows()] == ["laptop", "desktop"]


async def test_key_was_last_used_when_its_last_request_came(site: Any) -> None:
    await site.client.ask()
    row = await site.row()
    await site.database(site.key.refresh_from_db)
    assert site.key.last_used_at == row.created_at


async def test_no_key_was_used_by_a_wrong_secret(site: Any) -> None:
    answer = await site.client.post("/v1/chat/completions", json=question(), key="wrong")
    await site.refused(answer, 401, "invalid_api_key", who="")
    await site.database(site.key.refresh_from_db)
    assert site.key.last_used_at is None


class TestAnonymous:
    """Nobody's requests: only by a setting, only from this machine, only on a loopback server."""

    @pytest.fixture(autouse=True)
    def allowed(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.ALLOW_ANONYMOUS = True
        monkeypatch.setattr("proxy.runtime.listens_on_loopback_only", lambda: True)

    @staticmethod
    async def ask(site: Any, **kwargs: Any) -> Exchange:
        headers = {"authorization": "", **kwargs.pop("headers", {})}
        exchange: Exchange = await AsgiClient.post(
            site.client, "/v1/chat/completions", json=question(), headers=headers, **kwargs
        )
        return exchange

    @pytest.mark.parametrize(
        "host", ["localhost", "127.0.0.1:8765", "[::1]:8765", "[::1]", "LOCALHOST"]
    )
    async def test_local_client_is_let_in_and_recorded_as_anonymous(
        self, site: Any, settings: Any, host: str
    ) -> None:
        answer = await self.ask(site, headers={"host": host})
        row = await site.recorded(answer, "ok", who="anonymous")
        assert (row.key_id, row.root_alias) == (None, "workspace")

    async def test_setting_off_is_401(self, site: Any, settings: Any) -> None:
        settings.ALLOW_ANONYMOUS = False
        await site.refused(await self.ask(site), 401, "missing_api_key", who="")

    async def test_server_that_others_reach_is_401(
        self, site: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("proxy.runtime.listens_on_loopback_only", lambda: False)
        await site.refused(await self.ask(site), 401, "missing_api_key", who="")

    @pytest.mark.parametrize("client", ["192.0.2.7", "", "::ffff:192.0.2.7"])
    async def test_client_of_another_machine_is_401(self, site: Any, client: str) -> None:
        await site.refused(await self.ask(site, client=client), 401, "missing_api_key", who="")

    @pytest.mark.parametrize(
        "header", ["x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-host", "via"]
    )
    async def test_forwarded_request_is_401(self, site: Any, header: str) -> None:
        answer = await self.ask(site, headers={header: "127.0.0.1"})
        await site.refused(answer, 401, "missing_api_key", who="")

    @pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8765", ""])
    async def test_foreign_host_name_is_401(self, site: Any, host: str) -> None:
        answer = await self.ask(site, headers={"host": host})
        await site.refused(answer, 401, "missing_api_key", who="")

    async def test_wrong_key_is_401_all_the_same(self, site: Any) -> None:
        answer = await self.ask(site, headers={"authorization": "Bearer wrong"})
        await site.refused(answer, 401, "invalid_api_key", who="")

    async def test_nobody_gets_agent_mode(self, site: Any) -> None:
        answer = await site.client.post(
            "/v1/chat/completions",
            json=question(metadata={"agent": "true"}),
            headers={"authorization": ""},
        )
        row = await site.refused(answer, 403, "agent_not_granted", who="anonymous")
        assert (row.agent_mode, row.grant_id) == (True, None)


class TestClientAddress:
    async def test_forwarded_for_of_a_stranger_is_not_believed(self, site: Any) -> None:
        answer = await site.client.get(
            "/v1/models", client="192.0.2.7", headers={"x-forwarded-for": "10.9.8.7"}
        )
        row = await site.recorded(answer, "ok")
        assert row.client_address == "192.0.2.7"

    async def test_user_agent_is_kept_as_sent(self, site: Any) -> None:
        answer = await site.client.get("/v1/models", headers={"user-agent": "OpenAI/Python 3"})
        row = await site.recorded(answer, "ok")
        assert (row.user_agent, row.method, row.endpoint) == (
            "OpenAI/Python 3",
            "GET",
            "/v1/models",
        )
