"""What our server changes in Daphne's."""

from __future__ import annotations

import io
import logging
import socket
from typing import Any

import pytest

from codexsite.server import BACKLOG, ListenFailed, Request, Server, log_access


def test_tcp_endpoints_get_the_larger_backlog() -> None:
    asked = ["tcp:port=1:interface=127.0.0.1", "tcp:2:backlog=7", "unix:/s"]
    server = Server(None, asked)
    assert server.endpoints == [f"{asked[0]}:backlog={BACKLOG}", asked[1], asked[2]]
    assert server.application_close_timeout == 60


def test_request_is_one_line_at_debug_only(caplog: pytest.LogCaptureFixture) -> None:
    details = {
        "client": "1.2.3.4:5",
        "method": "GET",
        "path": "/x",
        "status": 200,
        "time_taken": 0.5,
    }
    log_access("http", "complete", details)
    assert caplog.messages == []
    with caplog.at_level(logging.DEBUG, "codexsite.access"):
        log_access("http", "complete", details)
        log_access("websocket", "connected", {})
    assert caplog.messages == ["1.2.3.4:5 GET /x 200 0.500s"]


def test_taken_address_raises_instead_of_ending_quietly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = Server(None, [f"tcp:port={other.getsockname()[1]}:interface=127.0.0.1"])
        with pytest.raises(ListenFailed, match="Address already in use"):
            server.run()


def test_no_more_of_a_body_is_kept_than_tells_that_it_is_too_large(settings: Any) -> None:
    settings.MAX_BODY_BYTES = 10
    request = Request.__new__(Request)
    request.content = io.BytesIO()
    for chunk in (b"12345", b"67890", b"abc", b"d" * 1000):
        request.handleContentChunk(chunk)
    assert request.content.getvalue() == b"1234567890a"
