"""response_format: what the model is asked for, and an answer that is never silently wrong."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from proxy.engines.base import Completed, Failed, TextDelta, Usage, UsageReported
from proxy.errors import AnswerIncomplete
from tests.asgi import question
from tests.contract.http.openai_shapes import CHAT, deltas_of, finish_of, message_of

USAGE = UsageReported(Usage(10, 2, 5, 1))
STRICT = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
LOOSE = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
OBJECT = {"type": "json_object"}


def schema(given: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": given, **more}}


FORMATS = {
    "strict schema": schema(STRICT, strict=True),
    "loose schema": schema(LOOSE),
    "object": OBJECT,
}
each_format = pytest.mark.parametrize("wanted", FORMATS.values(), ids=FORMATS)
both = pytest.mark.parametrize("stream", [False, True])


@both
@each_format
async def test_right_answer_is_the_content(site: Any, wanted: Any, stream: bool) -> None:
    site.engine.script = [TextDelta('{"a":'), TextDelta(" 1}"), USAGE, Completed()]
    answer = await site.client.ask(response_format=wanted, stream=stream)
    assert json.loads(message_of(answer)["content"]) == {"a": 1}
    assert finish_of(answer) == "stop"
    row = await site.recorded(answer, "ok")
    assert row.asked["response_format"] == wanted["type"]


async def test_schema_reaches_the_turn(site: Any) -> None:
    site.engine.script = [TextDelta('{"a": 1}')]
    await site.client.ask(response_format=schema(STRICT))
    turn = site.engine.turns[0]
    assert turn.output_schema == STRICT
    assert [message.role for message in turn.messages] == ["user"]


async def test_loose_schema_reaches_the_turn_in_strict_form(site: Any) -> None:
    site.engine.script = [TextDelta('{"a": null, "b": null}')]
    answer = await site.client.ask(response_format=schema(LOOSE))
    sent = site.engine.turns[0].output_schema
    assert sent["additionalProperties"] is False
    assert set(sent["required"]) == {"a", "b"}
    assert json.loads(message_of(answer)["content"]) == {}
    await site.recorded(answer, "ok")


async def test_object_is_asked_for_in_words(site: Any) -> None:
    site.engine.script = [TextDelta("{}")]
    answer = await site.client.ask(response_format=OBJECT)
    await site.recorded(answer, "ok")
    turn = site.engine.turns[0]
    assert turn.output_schema is None
    assert turn.messages[0].role == "developer"


async def test_strict_answer_is_streamed_as_the_model_says_it(site: Any) -> None:
    gate = asyncio.Event()
    site.engine.script = [TextDelta('{"a":'), gate, TextDelta(" 1}"), Completed()]
    body = question(response_format=schema(STRICT), stream=True)
    exchange = await site.client.open("POST", CHAT, json=body).start()
    while b'{\\"a\\":' not in exchange.body:
        await exchange.chunk()
    gate.set()
    await exchange.finish()
    assert deltas_of(exchange) == [{"content": '{"a":'}, {"content": " 1}"}]
    await site.recorded(exchange, "ok")


@pytest.mark.parametrize("wanted", [schema(LOOSE), OBJECT])
async def test_answer_that_may_have_to_change_is_streamed_when_it_is_whole(
    site: Any, wanted: Any
) -> None:
    site.engine.script = [TextDelta('{"a":'), TextDelta(" 1}"), Completed()]
    answer = await site.client.ask(response_format=wanted, stream=True)
    (delta,) = deltas_of(answer)
    assert json.loads(delta["content"]) == {"a": 1}
    await site.recorded(answer, "ok")


@pytest.mark.parametrize(
    ("wanted", "stream"),
    [(schema(STRICT), False), (schema(LOOSE), False), (OBJECT, False), (schema(LOOSE), True), (OBJECT, True)],
)  # fmt: skip
async def test_wrong_answer_is_repaired_once(site: Any, wanted: Any, stream: bool) -> None:
    site.engine.scripts = [
        [TextDelta("nonsense"), USAGE, Completed()],
        [TextDelta('{"a": 1}'), USAGE, Completed()],
    ]
    answer = await site.client.ask(response_format=wanted, stream=stream)
    assert json.loads(message_of(answer)["content"]) == {"a": 1}
    assert b"nonsense" not in answer.body
    second = site.engine.turns[1].messages
    assert [(message.role, message.text) for message in second[-2:-1]] == [
        ("assistant", "nonsense")
    ]
    assert second[-1].role == "user"
    row = await site.recorded(answer, "ok")
    assert (row.input_tokens, row.output_tokens) == (20, 10)


@both
@each_format
async def test_answer_that_stays_wrong_is_an_error(site: Any, wanted: Any, stream: bool) -> None:
    site.engine.script = [TextDelta("nonsense"), USAGE, Completed()]
    answer = await site.client.ask(response_format=wanted, stream=stream)
    if stream and wanted == FORMATS["strict schema"]:
        # What was said cannot be taken back or repaired; the end says that it is wrong.
        assert answer.events()[-1]["error"]["code"] == "invalid_structured_output"
        assert b"[DONE]" not in answer.body
        await site.recorded(answer, "failed", "invalid_structured_output")
        return
    row = await site.refused(answer, 502, "invalid_structured_output", outcome="failed")
    assert (len(site.engine.turns), row.output_tokens) == (2, 10)
    assert "nonsense" not in row.error_message


@both
@each_format
async def test_refusal_is_shown_as_such_and_not_repaired(
    site: Any, wanted: Any, stream: bool
) -> None:
    site.engine.script = [Completed()]
    answer = await site.client.ask(response_format=wanted, stream=stream)
    assert message_of(answer)["refusal"]
    assert (message_of(answer)["content"], finish_of(answer)) == (None, "content_filter")
    assert len(site.engine.turns) == 1
    await site.recorded(answer, "ok")


@both
@each_format
async def test_answer_cut_short_is_given_and_says_so(site: Any, wanted: Any, stream: bool) -> None:
    cut = AnswerIncomplete("Cut.", finish_reason="length")
    site.engine.script = [TextDelta('{"a"'), Failed(cut)]
    answer = await site.client.ask(response_format=wanted, stream=stream)
    assert (message_of(answer)["content"], finish_of(answer)) == ('{"a"', "length")
    assert len(site.engine.turns) == 1
    await site.recorded(answer, "ok")
