"""URLs, methods, sizes and headers: what every answer has, whoever makes it."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest

from proxy.errors import EngineBusy, EngineTimeout, EngineUnavailable, TurnFailed
from proxy.gateway import Gateway
from tests.asgi import question

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.mark.parametrize(
    "path",
    ["/v1", "/v1/", "/v1/x", "/v1/chat", "/v1/chat/completions/", "/v1/chat/completions/x", "/v1/models/",
     "/v1/ünbekannt", "/v1//models", "/v1/v1/models"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_unknown_url_is_404_in_the_envelope(site: Any, method: str, path: str) -> None:
    answer = await site.client.request(method, path)
    row = await site.refused(answer, 404, "unknown_url", who="")
    assert answer.error["message"] == f"Invalid URL ({method} {path})"
    assert (row.method, row.endpoint) == (method, path)


@pytest.mark.parametrize(
    "method", ["GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"]
)
async def test_wrong_method_is_405_and_says_the_right_one(site: Any, method: str) -> None:
    answer = await site.client.request(method, "/v1/chat/completions")
    row = await site.refused(answer, 405, "method_not_supported", who="")
    assert answer.headers["allow"] == "POST"
    assert row.method == method


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/default"])
@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS"])
async def test_models_are_only_got(site: Any, method: str, path: str) -> None:
    answer = await site.client.request(method, path)
    await site.refused(answer, 405, "method_not_supported", who="")
    assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PROPFIND"])
async def test_rare_method_on_an_unknown_url_is_refused_in_the_envelope(
    site: Any, method: str
) -> None:
    answer = await site.client.request(method, "/v1/x")
    assert answer.status in (404, 405)
    await site.refused(answer, answer.status, answer.error["code"], who="")


async def test_query_parameters_are_ignored(site: Any) -> None:
    for path in ("/v1/chat/completions?api-version=1&x=", "/v1/models?limit=5"):
        sent = {"json": question()} if "chat" in path else {}
        answer = await site.client.request("POST" if sent else "GET", path, **sent)
        assert answer.status == 200
        row = await site.recorded(answer, "ok")
        assert row.endpoint == path.partition("?")[0]


async def test_headers_of_sdks_are_ignored(site: Any) -> None:
    headers = {
        "x-stainless-retry-count": "1", "openai-organization": "o", "idempotency-key": "k",
        "x-request-id": "mine", "accept": "*/*", "expect": "100-continue",
    }  # fmt: skip
    answer = await site.client.post("/v1/chat/completions", json=question(), headers=headers)
    row = await site.recorded(answer, "ok")
    assert answer.headers["x-request-id"] != "mine"
    assert row.client_request_id == "mine"


@pytest.mark.parametrize("name", ["", "x" * 5000, "n\u00f6"])
async def test_any_request_id_of_the_client_is_kept_as_far_as_it_fits(site: Any, name: str) -> None:
    answer = await site.client.get("/v1/models", headers={"x-request-id": name})
    row = await site.recorded(answer, "ok")
    assert row.client_request_id == name.encode().decode("latin-1")[:128]


@pytest.mark.parametrize("stream", [False, True])
async def test_processing_time_is_told(site: Any, stream: bool) -> None:
    answers = [await site.client.ask(stream=stream), await site.client.ask(n=0)]
    for answer in answers:
        assert 0 <= int(answer.headers["openai-processing-ms"]) < 10_000
    assert "openai-processing-ms" not in (await site.client.get("/health")).headers


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/metrics", "/", "/admin/", "/nowhere", "/docs"]
)
async def test_every_page_has_a_request_id_and_none_has_a_row(site: Any, path: str) -> None:
    answer = await site.client.get(path)
    assert UUID.fullmatch(answer.headers["x-request-id"])
    assert await site.rows() == []


async def test_answers_have_ids_of_their_own(site: Any) -> None:
    ids = {(await site.client.ask()).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert {str(row.request_id) for row in await site.rows()} == ids


class TestSize:
    @pytest.fixture(autouse=True)
    def small(self, settings: Any) -> None:
        settings.MAX_BODY_BYTES = 1000

    @pytest.fixture
    def site(self, small: None, site: Any) -> Any:
        return site

    @staticmethod
    def body(size: int) -> bytes:
        empty = len(orjson.dumps(question("")))
        return orjson.dumps(question("x" * (size - empty)))

    async def test_body_of_the_limit_is_read(self, site: Any) -> None:
        answer = await site.client.post("/v1/chat/completions", body=self.body(1000))
        assert answer.status == 200
        await site.recorded(answer, "ok")

    async def test_larger_body_is_413_by_its_declared_length(self, site: Any) -> None:
        answer = await site.client.post("/v1/chat/completions", body=self.body(1001))
        await site.refused(answer, 413, "request_too_large", who="")

    async def test_declared_length_is_enough(self, site: Any) -> None:
        answer = await site.client.post(
            "/v1/chat/completions", body=b"", headers={"content-length": "1001"}
        )
        await site.refused(answer, 413, "request_too_large", who="")

    @pytest.mark.parametrize("length", ["", "5", "-1", "many"])
    async def test_larger_body_is_413_whatever_was_declared(self, site: Any, length: str) -> None:
        answer = await site.client.post(
            "/v1/chat/completions", body=self.body(1001), headers={"content-length": length}
        )
        await site.refused(answer, 413, "request_too_large", who="")

    async def test_other_urls_have_the_same_limit(self, site: Any) -> None:
        answer = await site.client.post("/v1/x", body=b"x" * 1001)
        await site.refused(answer, 413, "request_too_large", who="")


async def test_body_in_pieces_without_a_length_is_read(site: Any) -> None:
    whole = orjson.dumps(question("in pieces"))
    headers = {"content-length": "", "transfer-encoding": "chunked"}
    exchange = site.client.open("POST", "/v1/chat/completions", headers=headers)
    exchange._inbox.get_nowait()
    for index in range(len(whole)):
        piece = whole[index : index + 1]
        exchange._inbox.put_nowait({"type": "http.request", "body": piece, "more_body": True})
    exchange._inbox.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    answer = await (await exchange.start()).finish()
    await site.recorded(answer, "ok")
    assert site.engine.turns[0].messages[0].text == "in pieces"


async def test_body_of_many_megabytes_is_read(site: Any) -> None:
    text = "x" * 15_000_000
    answer = await site.client.ask(text)
    assert answer.status == 200
    await site.recorded(answer, "ok")
    assert len(site.engine.turns[0].messages[0].text) == len(text)


@pytest.mark.parametrize(
    ("error", "outcome", "retry_after"),
    [
        (EngineBusy("Busy."), "rejected", "5"),
        (EngineUnavailable("Down."), "failed", "10"),
        (TurnFailed("No."), "failed", None),
    ],
)
async def test_retry_after_comes_with_429_and_503(
    site: Any, error: Any, outcome: str, retry_after: str | None
) -> None:
    site.engine.script = [error]
    answer = await site.client.ask()
    await site.refused(answer, error.status, error.code, outcome=outcome)
    assert answer.headers.get("retry-after") == retry_after


async def test_turn_that_timed_out_is_not_to_be_retried(site: Any) -> None:
    site.engine.script = [EngineTimeout("Too late.")]
    answer = await site.client.ask()
    await site.refused(answer, 504, "upstream_timeout", outcome="timed_out")
    assert answer.headers["x-should-retry"] == "false"


async def test_error_says_its_length_and_kind(site: Any) -> None:
    answer = await site.client.get("/v1/x")
    assert answer.headers["content-length"] == str(len(answer.body))
    await site.refused(answer, 404, "unknown_url", who="")


async def test_bug_behind_the_api_is_500_without_its_text(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("proxy.policy.resolve_workspace", fail)
    answer = await site.client.ask()
    row = await site.refused(answer, 500, "internal_error", outcome="failed")
    assert b"secret" not in answer.body
    assert "secret" not in row.error_message


async def test_application_that_fails_mid_answer_is_a_failed_row(site: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("/secret/path")

    gateway = Gateway(
        app, audit_log=lambda: site.service.audit_log, max_body_bytes=1000, trusted_proxies=()
    )
    await site.client.get("/health")  # starts the service
    site.client.app = gateway
    exchange = site.client.open("GET", "/v1/models")
    with pytest.raises(RuntimeError):
        await exchange.task
    row = await site.row()
    assert (row.outcome, row.error_code, row.http_status) == ("failed", "internal_error", 200)
    assert "secret" not in row.error_message
