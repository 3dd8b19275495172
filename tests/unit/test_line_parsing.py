"""Whatever Codex writes on a line, reading it ends in something that we know."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from proxy.engines.exec_events import LineReader
from proxy.engines.rpc import Answer, Notification, Peer, ServerRequest
from proxy.errors import EngineProtocolError

# JSON's integers here are those that orjson writes; other digits come with the raw lines.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
EXEC_TYPES = st.sampled_from(
    ["thread.started", "turn.started", "item.started", "item.completed", "turn.completed",
     "turn.failed", "error"]
)  # fmt: skip
ITEM_TYPES = st.sampled_from(
    [
        "agent_message",
        "reasoning",
        "command_execution",
        "file_change",
        "todo_list",
        "error",
        "mcp_tool_call",
        "web_search",
    ]
)
EXEC_FRAMES = st.fixed_dictionaries(
    {"type": EXEC_TYPES},
    optional={
        "item": st.fixed_dictionaries(
            {"type": ITEM_TYPES},
            optional=dict.fromkeys(("id", "text", "command", "status", "changes"), JSON),
        )
        | JSON,
        "usage": JSON,
        "error": JSON,
    },
)
RPC_FRAMES = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("id", "method", "params", "result", "error"), JSON)
)


def lines(frames: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return frames.map(orjson.dumps) | st.binary(max_size=60)


@given(st.lists(lines(EXEC_FRAMES | JSON), max_size=5))
def test_any_line_of_exec_gives_events_or_a_protocol_error(written: list[bytes]) -> None:
    reader = LineReader()
    for line in written:
        try:
            events = reader.read(line)
        except EngineProtocolError:
            return
        assert isinstance(events, list)


@given(lines(RPC_FRAMES | JSON))
def test_any_line_of_app_server_is_a_frame_or_nothing(line: bytes) -> None:
    frame = Peer().receive(line)
    assert frame is None or isinstance(frame, Answer | Notification | ServerRequest)


@given(RPC_FRAMES)
def test_any_request_of_the_server_gets_an_answer_under_its_id(frame: dict[str, Any]) -> None:
    peer = Peer()
    received = peer.receive(orjson.dumps(frame))
    if isinstance(received, ServerRequest):
        answer = orjson.loads(peer.reply(received))
        assert answer["id"] == received.id
        assert ("result" in answer) != ("error" in answer)
