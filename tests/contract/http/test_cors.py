"""Browser pages of other origins: not let in, unless a setting names them."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import RateLimited
from proxy.gateway import Gateway
from tests.asgi import question
from tests.processes import manage

PAGE = "https://app.example.org"
STRANGER = "https://evil.example.net"
ASKS = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}
EXPOSED = {"x-request-id", "retry-after", "x-ignored-params", "openai-processing-ms"}


def cors_headers(answer: Any) -> dict[str, str]:
    found = {k: v for k, v in answer.headers.items() if k.startswith("access-control-")}
    return found | {"vary": answer.headers.get("vary", "")}


class TestOff:
    @pytest.mark.parametrize(("path", "status"), [("/v1/chat/completions", 405), ("/v1/x", 404)])
    async def test_preflight_is_an_options_like_any_other(
        self, site: Any, path: str, status: int
    ) -> None:
        answer = await site.client.request("OPTIONS", path, headers=ASKS)
        await site.refused(answer, status, answer.error["code"], who="")
        assert answer.status == status
        assert cors_headers(answer) == {"vary": ""}

    async def test_answers_say_nothing_to_pages(self, site: Any) -> None:
        answer = await site.client.ask(stream=True)
        assert cors_headers(answer) == {"vary": ""}
        await site.recorded(answer, "ok")


class TestOneOrigin:
    @pytest.fixture
    def site(self, allowed: None, site: Any) -> Any:
        return site

    @pytest.fixture
    def allowed(self, settings: Any) -> None:
        settings.CORS_ORIGINS = (PAGE,)

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/not/there"])
    async def test_preflight_without_a_key_is_204_and_one_row(self, site: Any, path: str) -> None:
        site.client.key = None
        answer = await site.client.request("OPTIONS", path, headers=ASKS)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["access-control-allow-methods"] == "GET, POST, OPTIONS"
        asked = ASKS["access-control-request-headers"]
        assert answer.headers["access-control-allow-headers"] == asked
        assert int(answer.headers["access-control-max-age"]) > 0
        assert "origin" in answer.headers["vary"]
        assert "access-control-allow-credentials" not in answer.headers
        row = await site.recorded(answer, "ok", who="")
        assert (row.method, row.endpoint) == ("OPTIONS", path)
        assert site.engine.turns == []

    async def test_preflight_that_names_no_headers_is_told_the_usual_ones(self, site: Any) -> None:
        headers = {**ASKS, "access-control-request-headers": ""}
        answer = await site.client.request("OPTIONS", "/v1/models", headers=headers)
        assert "authorization" in answer.headers["access-control-allow-headers"]
        await site.recorded(answer, "ok", who="")

    @pytest.mark.parametrize("fields", [{}, {"stream": True}])
    async def test_answer_may_be_read_by_the_page(self, site: Any, fields: dict[str, Any]) -> None:
        answer = await site.client.post(
            "/v1/chat/completions", json=question(seed=1, **fields), headers={"origin": PAGE}
        )
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert set(exposed) >= EXPOSED
        assert answer.headers["vary"] == "origin"
        assert answer.headers["x-ignored-params"] == "seed"
        await site.recorded(answer, "ok")

    async def test_errors_of_every_maker_may_be_read_by_the_page(self, site: Any) -> None:
        site.engine.script = [RateLimited("Slow.")]
        headers = {"origin": PAGE}
        for path, sent, status, code in (
            ("/v1/chat/completions", {"json": question()}, 429, "rate_limit_exceeded"),
            ("/v1/chat/completions", {"key": "sk-wrong"}, 401, "invalid_api_key"),
            ("/v1/x", {}, 404, "unknown_url"),
            ("/v1/x", {"body": b"x" * 20_000_001}, 413, "request_too_large"),
        ):
            answer = await site.client.post(path, headers=headers, **sent)
            assert (answer.status, answer.error["code"]) == (status, code)
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "retry-after" in answer.headers["access-control-expose-headers"]

    async def test_failure_of_the_application_may_be_read_by_the_page(self, site: Any) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise RuntimeError("/secret/path")

        await site.client.get("/health")  # starts the service
        gateway = site.application._app.application_mapping["http"]
        assert isinstance(gateway, Gateway)
        gateway._app = app
        answer = await site.client.get("/v1/models", headers={"origin": PAGE})
        await site.refused(answer, 500, "internal_error", outcome="failed", who="")
        assert answer.headers["access-control-allow-origin"] == PAGE

    @pytest.mark.parametrize("origin", [STRANGER, "null", f"{PAGE}.evil.net", f"{PAGE}:8443", ""])
    async def test_page_of_another_origin_gets_no_leave(self, site: Any, origin: str) -> None:
        asks = {**ASKS, "origin": origin}
        answer = await site.client.request("OPTIONS", "/v1/chat/completions", headers=asks)
        await site.refused(answer, 405, "method_not_supported", who="")
        assert cors_headers(answer) == {"vary": "origin"}
        answer = await site.client.get("/v1/models", headers={"origin": origin})
        assert answer.status == 200
        assert cors_headers(answer) == {"vary": "origin"}

    async def test_plain_options_is_no_preflight(self, site: Any) -> None:
        answer = await site.client.request("OPTIONS", "/v1/models", headers={"origin": PAGE})
        await site.refused(answer, 405, "method_not_supported", who="")

    @pytest.mark.parametrize("path", ["/health", "/metrics", "/admin/login/", "/docs"])
    async def test_only_the_api_is_opened(self, site: Any, path: str) -> None:
        answer = await site.client.get(path, headers={"origin": PAGE})
        assert "access-control-allow-origin" not in answer.headers
        answer = await site.client.request("OPTIONS", path, headers=ASKS)
        assert "access-control-allow-origin" not in answer.headers


class TestAllOrigins:
    @pytest.fixture
    def site(self, allowed: None, site: Any) -> Any:
        return site

    @pytest.fixture
    def allowed(self, settings: Any) -> None:
        settings.CORS_ORIGINS = ("*",)

    async def test_any_page_may_ask_and_the_answer_is_the_same_for_all(self, site: Any) -> None:
        headers = {**ASKS, "origin": STRANGER}
        answer = await site.client.request("OPTIONS", "/v1/chat/completions", headers=headers)
        assert answer.status == 204
        assert answer.headers["access-control-allow-origin"] == "*"
        answer = await site.client.get("/v1/models", headers={"origin": STRANGER})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "vary" not in answer.headers
        await site.recorded(answer, "ok")


@pytest.mark.parametrize(
    ("origins", "more"),
    [
        ("app.example.org", {}),
        ("https://app.example.org/", {}),
        ("https://a.example.org,null", {}),
        ("*", {"CODEX_PROXY_ALLOW_ANONYMOUS": "1"}),
    ],
)
def test_wrong_origins_stop_the_start_and_name_the_variable(
    tmp_path: Any, origins: str, more: dict[str, str]
) -> None:
    done = manage(tmp_path / "data", "check", CODEX_PROXY_CORS_ORIGINS=origins, **more)
    assert done.returncode != 0
    assert "CODEX_PROXY_CORS_ORIGINS: " in done.stderr
