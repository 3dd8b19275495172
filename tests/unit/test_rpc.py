from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.engines.rpc import Answer, Notification, Peer, ServerRequest


def receive(frame: object) -> object:
    return Peer().receive(json.dumps(frame).encode())


def test_a_request_is_one_line_with_the_number_of_its_answer():
    number, line = Peer().request("thread/start", {"cwd": "/\n"})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"id": number, "method": "thread/start", "params": {"cwd": "/\n"}}


def test_requests_have_numbers_of_their_own():
    peer = Peer()
    assert len({peer.request("x", {})[0] for _ in range(100)}) == 100


def test_a_notification_of_ours_has_no_id():
    assert json.loads(Peer().notify("initialized")) == {"method": "initialized"}


def test_a_result_is_an_answer():
    assert receive({"id": 3, "result": {"a": 1}}) == Answer(3, {"a": 1})


def test_an_error_is_an_answer():
    error = {"code": -32600, "message": "no"}
    assert receive({"id": 3, "error": error}) == Answer(3, None, error)


def test_an_empty_result_is_an_answer():
    assert receive({"id": 0, "result": None}) == Answer(0)


def test_a_notification_knows_its_thread():
    params = {"threadId": "t1", "delta": "x"}
    frame = receive({"method": "item/agentMessage/delta", "params": params})
    assert frame == Notification("item/agentMessage/delta", params, "t1")


@pytest.mark.parametrize("frame", [{"method": "m"}, {"method": "m", "params": None}])
def test_a_notification_about_no_thread_has_an_empty_one(frame: dict[str, Any]):
    assert receive(frame) == Notification("m", {}, "")


@pytest.mark.parametrize("number", [0, 7, "a-1"])
def test_method_and_id_together_are_a_request_of_the_server(number: int | str):
    frame = {"id": number, "method": "item/tool/call", "params": {"x": 1}}
    assert receive(frame) == ServerRequest(number, "item/tool/call", {"x": 1})


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"  ",
        b"hello",
        b"{",
        b"[]",
        b"7",
        b"null",
        b"{}",
        b'{"id": null}',
        b'{"method": 3}',
        b"\xff",
    ],
)
def test_what_is_no_frame_is_nothing(line: bytes):
    assert Peer().receive(line) is None


@pytest.mark.parametrize("kind", ["commandExecution", "fileChange"])
def test_an_approval_is_declined(kind: str):
    request = ServerRequest(0, f"item/{kind}/requestApproval", {})
    assert json.loads(Peer().reply(request)) == {"id": 0, "result": {"decision": "decline"}}


@pytest.mark.parametrize(
    "method",
    [
        "item/permissions/requestApproval",
        "item/tool/call",
        "item/tool/requestUserInput",
        "mcpServer/elicitation/request",
        "account/chatgptAuthTokens/refresh",
        "attestation/generate",
        "currentTime/read",
        "applyPatchApproval",
        "execCommandApproval",
        "not/yet/invented",
    ],
)
def test_every_other_request_is_answered_with_an_error(method: str):
    answer = json.loads(Peer().reply(ServerRequest(5, method, {})))
    assert answer["id"] == 5
    assert answer["error"]["code"] == -32601
