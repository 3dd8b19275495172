from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.sse import DONE, KEEPALIVE, ChunkWriter, TextChunkWriter, frame


def data_of(event: bytes) -> dict[str, Any]:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    body = event.removeprefix(b"data: ").removesuffix(b"\n\n")
    assert b"\n" not in body
    assert b"\r" not in body
    result: dict[str, Any] = json.loads(body)
    return result


def writer(*, include_usage: bool = False) -> ChunkWriter:
    return ChunkWriter(
        completion_id="chatcmpl-1", created=7, model="m", include_usage=include_usage
    )


def test_text_is_one_delta_of_one_choice():
    chunk = data_of(writer().delta({"content": "hi"}))
    (choice,) = chunk["choices"]
    assert choice["delta"] == {"content": "hi"}
    assert choice["index"] == 0
    assert choice["finish_reason"] is None


def test_every_chunk_of_a_stream_has_the_same_head():
    chunks = writer()
    events = [
        chunks.role(),
        chunks.delta({"content": "x"}),
        chunks.delta({"refusal": "no"}),
        chunks.finish("stop"),
    ]
    heads = [{k: v for k, v in data_of(event).items() if k != "choices"} for event in events]
    assert heads == [heads[0]] * 4
    assert (heads[0]["id"], heads[0]["created"], heads[0]["model"]) == ("chatcmpl-1", 7, "m")
    assert heads[0]["object"] == "chat.completion.chunk"


def test_the_role_comes_in_the_first_chunk_only():
    chunks = writer()
    assert data_of(chunks.role())["choices"][0]["delta"]["role"] == "assistant"
    for event in (chunks.delta({"content": "x"}), chunks.finish("stop")):
        assert "role" not in data_of(event)["choices"][0]["delta"]


@pytest.mark.parametrize("text", ["a\nb\r\nc", "data: x\n\ndata: [DONE]\n\n", "\u2028\x00 ü"])
def test_a_text_cannot_break_out_of_its_event(text: str):
    assert data_of(writer().delta({"content": text}))["choices"][0]["delta"]["content"] == text


def test_the_finish_has_a_reason_and_no_text():
    (choice,) = data_of(writer().finish("length"))["choices"]
    assert (choice["finish_reason"], choice["delta"]) == ("length", {})


def test_usage_that_was_not_asked_for_is_not_there():
    chunks = writer()
    assert "usage" not in data_of(chunks.delta({"content": "x"}))
    assert chunks.usage({"total_tokens": 1}) == b""


def test_usage_that_was_asked_for_is_null_until_the_last_chunk():
    chunks = writer(include_usage=True)
    assert data_of(chunks.delta({"content": "x"}))["usage"] is None
    last = data_of(chunks.usage({"total_tokens": 1}))
    assert (last["usage"], last["choices"]) == ({"total_tokens": 1}, [])


def test_unknown_usage_stays_null():
    assert data_of(writer(include_usage=True).usage(None))["usage"] is None


def test_a_frame_is_one_data_line():
    assert data_of(frame({"error": {"message": "a\nb"}})) == {"error": {"message": "a\nb"}}


def test_a_keepalive_is_a_comment_and_the_end_a_word():
    assert KEEPALIVE.startswith(b":")
    assert KEEPALIVE.endswith(b"\n\n")
    assert DONE == b"data: [DONE]\n\n"


def test_each_choice_has_its_own_number():
    chunks = writer()
    events = [chunks.role(1), chunks.delta({"content": "x"}, 1), chunks.finish("stop", 1)]
    assert [data_of(event)["choices"][0]["index"] for event in events] == [1, 1, 1]


class TestTextChunks:
    """The legacy endpoint's stream."""

    @pytest.fixture
    def chunks(self) -> TextChunkWriter:
        return TextChunkWriter(completion_id="cmpl-1", created=7, model="m", include_usage=False)

    def test_text_is_a_choice_without_a_delta(self, chunks: TextChunkWriter):
        chunk = data_of(chunks.delta({"content": "hi"}, 2))
        assert chunk["object"] == "text_completion"
        assert chunk["choices"] == [
            {"index": 2, "text": "hi", "logprobs": None, "finish_reason": None}
        ]

    def test_role_and_reasoning_are_not_said(self, chunks: TextChunkWriter):
        assert chunks.role() == chunks.delta({"reasoning_content": "hm"}) == b""

    def test_finish_has_no_text(self, chunks: TextChunkWriter):
        (choice,) = data_of(chunks.finish("length"))["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("", "length")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=5))
def test_what_is_framed_is_read_back_event_by_event(given_events: list[dict[str, Any]]):
    stream = b"".join(frame(event) + KEEPALIVE for event in given_events) + DONE
    *events, rest = stream.split(b"\n\n")
    read = [event.removeprefix(b"data: ") for event in events if not event.startswith(b":")]
    assert rest == b""
    assert read.pop() == b"[DONE]"
    assert [json.loads(event) for event in read] == given_events
