"""Whatever comes over the wire to `/v1/*` is one row, and what never became a request is none."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import LiveSite, drain, wait_until
from tests.processes import Serving
from tests.provider import ScriptedProvider

MAX_BYTES = 10_000


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, provider: ScriptedProvider
) -> Iterator[LiveSite]:
    data_dir: Path = tmp_path_factory.mktemp("wire") / "data"
    env = {
        "CODEX_PROXY_CODEX_CONFIGS": ";;".join(provider.overrides),
        "CODEX_PROXY_MAX_BODY_MB": str(MAX_BYTES / 1e6),
    }
    with Serving(data_dir, "serve", "--port", "0", **env) as server:
        drain(server)
        live = LiveSite(server, data_dir, provider)
        yield live
        live.close()
    assert "Traceback" not in server.output


@pytest.fixture
def before(site: LiveSite) -> int:
    return site.count()


def new_rows(site: LiveSite, before: int, count: int) -> list[tuple[str, int, str]]:
    """Return method, status and error code of the rows since then, which must be so many."""
    wait_until(lambda: site.count() >= before + count)
    rows = site.rows()[before:]
    assert len(rows) == count
    return [(row["method"], row["http_status"], row["error_code"]) for row in rows]


def send(site: LiveSite, data: bytes) -> socket.socket:
    address = urlsplit(site.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=20)
    connection.sendall(data)
    return connection


def request(site: LiveSite, method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "host: localhost",
        f"authorization: Bearer {site.secret}",
        "content-type: application/json",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "BREW"])
def test_any_method_is_one_row(site: LiveSite, before: int, method: str) -> None:
    with closing(http.client.HTTPConnection(urlsplit(site.url).netloc, timeout=20)) as connection:
        connection.request(method, "/v1/chat/completions")
        status = connection.getresponse().status
    assert [row[:2] for row in new_rows(site, before, 1)] == [(method, status)]


def test_pipelined_requests_are_one_row_each(site: LiveSite, before: int) -> None:
    one = request(site, "GET", "/v1/models")
    last = request(site, "GET", "/v1/nothing", "connection: close")
    with closing(send(site, one + one + last)) as connection:
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answers.count(b"HTTP/1.1 200") == 2
    assert new_rows(site, before, 3) == [
        ("GET", 200, ""),
        ("GET", 200, ""),
        ("GET", 404, "unknown_url"),
    ]


def test_chunked_body_is_read_and_one_row(site: LiveSite, before: int) -> None:
    body = json.dumps({"model": "default", "messages": [{"role": "user", "content": "hi"}]})
    chunks = "".join(f"{len(part):x}\r\n{part}\r\n" for part in (body[:20], body[20:], ""))
    head = request(
        site, "POST", "/v1/chat/completions", "transfer-encoding: chunked", "connection: close"
    )
    with closing(send(site, head + chunks.encode())) as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"Hello world" in answer
    assert new_rows(site, before, 1) == [("POST", 200, "")]


@pytest.mark.parametrize("is_chunked", [True, False])
def test_body_above_the_limit_is_413_one_row_and_not_kept(
    site: LiveSite, before: int, is_chunked: bool
) -> None:
    size = 50 * MAX_BYTES
    framing = "transfer-encoding: chunked" if is_chunked else f"content-length: {size}"
    body = b"x" * size
    if is_chunked:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    head = request(site, "POST", "/v1/chat/completions", framing, "connection: close")
    with closing(send(site, head + body)) as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in answer
    assert new_rows(site, before, 1) == [("POST", 413, "request_too_large")]


def test_client_that_leaves_in_its_own_body_never_asked(site: LiveSite, before: int) -> None:
    head = request(site, "POST", "/v1/chat/completions", "content-length: 100")
    send(site, head + b'{"model"').close()
    send(site, head).close()
    with closing(send(site, request(site, "GET", "/v1/models", "connection: close"))) as after:
        assert after.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert new_rows(site, before, 1) == [("GET", 200, "")]


def test_client_that_leaves_before_the_first_byte_is_one_row(site: LiveSite, before: int) -> None:
    for _ in range(5):
        send(site, request(site, "GET", "/v1/models")).close()
    rows = new_rows(site, before, 5)
    assert {row[1:] for row in rows} <= {(200, ""), (None, "client_disconnected")}


@pytest.mark.parametrize(("path", "count"), [("/v1/realtime", 1), ("/elsewhere", 0)])
def test_websocket_is_refused_and_one_row_where_it_is_the_apis(
    site: LiveSite, before: int, path: str, count: int
) -> None:
    handshake = request(
        site, "GET", path, "upgrade: websocket", "connection: upgrade",
        "sec-websocket-version: 13", f"sec-websocket-key: {base64.b64encode(b'k' * 16).decode()}",
    )  # fmt: skip
    with closing(send(site, handshake)) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 403 ")
    assert new_rows(site, before, count) == [("GET", 403, "unknown_url")] * count
