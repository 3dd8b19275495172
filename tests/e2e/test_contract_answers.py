"""Issue 3, points 3, 5, 6, 7 and 12: form, reasoning, usage, choices, cuts, and the model's name."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from tests.e2e.conftest import LiveSite
from tests.e2e.wire import CODE_MODEL, HI, PLAIN_MODEL, Json, Reply, Streamed, ask, stream
from tests.provider import Answer, Reasoning, Refusal, Stall, Text

both_wire_forms = pytest.mark.parametrize("model", [PLAIN_MODEL, CODE_MODEL])
either_way = pytest.mark.parametrize("send", [ask, stream], ids=["whole", "streamed"])
STRICT: Json = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
LOOSE: Json = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 2}, "nick": {"type": "string"}},
    "required": ["name"],
}


def form(schema: Json, *, strict: bool = True, name: str = "person") -> Json:
    return {
        "type": "json_schema",
        "json_schema": {"name": name, "strict": strict, "schema": schema},
    }


def text_of(reply: Reply | Streamed) -> str:
    return reply.text if isinstance(reply, Streamed) else str(reply.message["content"])


def finish_of(reply: Reply | Streamed) -> str:
    return reply.finishes[0] if isinstance(reply, Streamed) else str(reply.choice["finish_reason"])


def row_of(live: LiveSite, reply: Reply | Streamed) -> dict[str, Any]:
    return live.row_of(reply.headers["x-request-id"])


# 3. Structured output.


@either_way
@both_wire_forms
def test_strict_schema_reaches_the_model_as_its_format(
    live: LiveSite, send: Any, model: str
) -> None:
    text = ('{"name": "Ada",', ' "age": 36}')
    reply = send(live, Text(text), model=model, response_format=form(STRICT))
    assert text_of(reply) == "".join(text)
    (asked,) = reply.upstream
    assert asked.body["text"]["format"]["type"] == "json_schema"
    assert asked.body["text"]["format"]["strict"] is True
    assert asked.body["text"]["format"]["schema"] == STRICT


@either_way
def test_loose_schema_is_made_strict_and_the_answer_fits_the_caller_s_own(
    live: LiveSite, send: Any
) -> None:
    reply = send(
        live, Text(('{"name": "Ada", "nick": null}',)), response_format=form(LOOSE, strict=False)
    )
    assert json.loads(text_of(reply)) == {"name": "Ada"}
    (asked,) = reply.upstream
    sent = asked.body["text"]["format"]["schema"]
    assert sent["required"] == ["name", "nick"]
    assert sent["additionalProperties"] is False
    assert "null" in json.dumps(sent["properties"]["nick"])


def test_answer_that_does_not_fit_is_asked_for_once_more(live: LiveSite) -> None:
    reply = ask(
        live, Text(('{"name": "A"}',)), Text(('{"name": "Ada", "nick": null}',)),
        response_format=form(LOOSE),
    )  # fmt: skip
    assert json.loads(text_of(reply)) == {"name": "Ada"}
    assert len(reply.upstream) == 2
    assert reply.body["usage"]["total_tokens"] == 2 * 188
    assert row_of(live, reply)["input_tokens"] == 222


def test_answer_that_never_fits_is_an_error(live: LiveSite) -> None:
    wrong = Text(('{"name": 1}',))
    reply = ask(live, wrong, wrong, response_format=form(LOOSE))
    assert (reply.status, reply.error["code"]) == (502, "invalid_structured_output")
    assert len(reply.upstream) == 2


@either_way
def test_json_object_is_asked_for_in_words_and_repaired_once(live: LiveSite, send: Any) -> None:
    reply = send(
        live, Text(("Sure! {}",)), Text(('{"a":', " 1}")), response_format={"type": "json_object"}
    )
    assert json.loads(text_of(reply)) == {"a": 1}
    first, second = reply.upstream
    assert "format" not in (first.body.get("text") or {})
    assert any("JSON object" in text for text in first.texts("developer"))
    assert "Sure! {}" in second.texts("assistant")


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        (form(STRICT, name="not a name"), "response_format.json_schema.name"),
        (form({"type": "nonsense"}), "response_format.json_schema.schema"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "xml"}, "response_format.type"),
    ],
)
def test_bad_format_is_a_400_that_names_the_field(live: LiveSite, wanted: Json, param: str) -> None:
    reply = ask(live, response_format=wanted)
    assert (reply.status, reply.error["param"], reply.upstream) == (400, param, [])


class Person(BaseModel):
    name: str
    nick: str | None = None


def test_official_client_parses_into_a_model(live: LiveSite) -> None:
    live.provider.reply(Text(('{"name": "Ada", "nick": null}',)))
    messages: Any = HI
    parsed = live.client().chat.completions.parse(
        model=CODE_MODEL, messages=messages, response_format=Person
    )
    assert parsed.choices[0].message.parsed == Person(name="Ada")


def test_refusal_instead_of_the_form_is_shown_as_one(live: LiveSite) -> None:
    for send in (ask, stream):
        reply = send(live, Refusal())
        assert finish_of(reply) == "content_filter"
        refusal = (
            reply.joined("refusal") if isinstance(reply, Streamed) else reply.message["refusal"]
        )
        assert refusal


# 5. Reasoning, verbosity, tier.


@pytest.mark.parametrize("effort", ["low", "high"])
@both_wire_forms
def test_effort_reaches_the_model(live: LiveSite, model: str, effort: str) -> None:
    asked = ask(live, model=model, reasoning_effort=effort).asked
    assert asked.body["reasoning"]["effort"] == effort


def test_effort_that_the_model_does_not_offer_is_a_400(live: LiveSite) -> None:
    reply = ask(live, reasoning_effort="minimal")
    assert (reply.status, reply.error["param"]) == (400, "reasoning_effort")
    assert reply.upstream == []


@both_wire_forms
def test_reasoning_summary_is_asked_for_and_shown(live: LiveSite, model: str) -> None:
    parts: Any = [Reasoning(("**Plan**", " it")), Text(("Done",))]
    whole = ask(live, parts, model=model)
    assert whole.message["reasoning_content"] == "**Plan** it"
    assert whole.message["content"] == "Done"
    assert whole.asked.body["reasoning"]["summary"] == "auto"
    streamed = stream(live, parts, model=model)
    pieces = [d["reasoning_content"] for d in streamed.deltas if "reasoning_content" in d]
    assert pieces == ["**Plan**", " it"]
    assert streamed.text == "Done"


def test_reasoning_is_off_where_the_setting_says_so(live: LiveSite) -> None:
    live.run_code("ProxySettings(reasoning=False).save()")
    try:
        reply = ask(live, [Reasoning(), Text(("Done",))])
    finally:
        live.run_code("ProxySettings(reasoning=True).save()")
    assert "reasoning_content" not in reply.message
    assert "summary" not in (reply.asked.body.get("reasoning") or {})


@pytest.mark.parametrize("verbosity", ["low", "medium", "high"])
def test_verbosity_reaches_the_model(live: LiveSite, verbosity: str) -> None:
    asked = ask(live, model=CODE_MODEL, verbosity=verbosity).asked
    assert asked.body["text"]["verbosity"] == verbosity


def test_verbosity_and_form_go_together(live: LiveSite) -> None:
    text = ask(
        live, Text(('{"name": "Ada", "age": 1}',)), verbosity="high", response_format=form(STRICT)
    ).asked.body["text"]
    assert (text["verbosity"], text["format"]["schema"]) == ("high", STRICT)


@either_way
@pytest.mark.parametrize(
    ("wanted", "sent"),
    [("flex", "flex"), ("priority", "priority"), ("auto", None), ("default", None)],
)
def test_service_tier_that_is_sent_is_the_one_that_is_echoed(
    live: LiveSite, send: Any, wanted: str, sent: str | None
) -> None:
    reply = send(live, model=CODE_MODEL, service_tier=wanted)
    (asked,) = reply.upstream
    assert asked.body.get("service_tier") == sent
    told = reply.chunks[0] if isinstance(reply, Streamed) else reply.body
    assert told["service_tier"] == (sent or "default")
    assert row_of(live, reply)["service_tier"] == (sent or "default")


# 6. Usage.


def test_usage_tells_cached_and_reasoning_tokens(live: LiveSite) -> None:
    usage = ask(live).body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (
        111,
        77,
        188,
    )
    assert usage["prompt_tokens_details"]["cached_tokens"] == 30
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 20


def test_streamed_usage_comes_only_when_asked_for_and_last(live: LiveSite) -> None:
    assert stream(live).usage is None
    reply = stream(live, stream_options={"include_usage": True})
    assert reply.chunks[-1]["choices"] == []
    assert reply.usage is not None
    assert reply.usage["completion_tokens_details"]["reasoning_tokens"] == 20
    assert all(chunk["usage"] is None for chunk in reply.chunks[:-1])
    assert reply.is_done
    for name in ("id", "created", "model", "object"):
        assert len({chunk[name] for chunk in reply.chunks}) == 1


def test_usage_that_the_provider_did_not_tell_is_not_made_up(live: LiveSite) -> None:
    assert ask(live, Answer((Text(),), usage=None)).body["usage"] is None


# 7. n, stop, limits.


def test_several_choices_are_several_turns_and_one_row(live: LiveSite) -> None:
    row_of(live, ask(live))  # the rows of the requests before are written now
    rows = live.count()
    reply = ask(live, Text(("one",)), Text(("two",)), Text(("three",)), n=3)
    choices = reply.body["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in choices} == {"one", "two", "three"}
    assert len(reply.upstream) == 3
    assert reply.body["usage"]["total_tokens"] == 3 * 188
    assert row_of(live, reply)["output_tokens"] == 3 * 77
    assert live.count() == rows + 1


def test_several_choices_stream_side_by_side(live: LiveSite) -> None:
    reply = stream(
        live, Text(("a", "b")), Text(("c", "d")), n=2, stream_options={"include_usage": True}
    )
    assert {reply.joined("content", 0), reply.joined("content", 1)} == {"ab", "cd"}
    assert reply.finishes == ["stop", "stop"]
    assert reply.usage is not None
    assert reply.usage["total_tokens"] == 2 * 188


def test_more_choices_than_the_setting_allows_are_a_400(live: LiveSite) -> None:
    reply = ask(live, n=100)
    assert (reply.status, reply.error["param"], reply.upstream) == (400, "n", [])


@either_way
def test_stop_text_cuts_the_answer_and_the_connection_to_the_model(
    live: LiveSite, send: Any
) -> None:
    gone = live.provider.disconnects
    never = threading.Event()
    reply = send(
        live, [Text(("one EN", "D two")), Text(("three", "four"), gate=never)], stop=["END"]
    )
    assert text_of(reply) == "one "
    assert finish_of(reply) == "stop"
    live.provider.wait_for_disconnect(gone + 1)
    row = row_of(live, reply)
    assert (row["outcome"], row["http_status"]) == ("ok", 200)
    # Nobody has told what a cut answer cost, and nothing is made up.
    assert (reply.usage if isinstance(reply, Streamed) else reply.body["usage"]) is None
    assert row["output_tokens"] is None


def test_stop_text_that_begins_and_is_none_after_all_is_kept(live: LiveSite) -> None:
    for send in (ask, stream):
        reply = send(live, Text(("one EN", "ough E")), stop="END")
        assert text_of(reply) == "one ENough E"
        assert finish_of(reply) == "stop"


@either_way
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_limit_cuts_after_at_least_as_many_tokens(live: LiveSite, send: Any, name: str) -> None:
    gone = live.provider.disconnects
    never = threading.Event()
    words = Text(("a ", "b ", "c ", "d "))
    reply = send(live, [words, Text(("x", "y"), gate=never)], **{name: 3})
    assert text_of(reply) == "a b c "
    assert finish_of(reply) == "length"
    live.provider.wait_for_disconnect(gone + 1)


def test_answer_within_the_limit_is_whole(live: LiveSite) -> None:
    reply = ask(live, Text(("a ", "b ", "c ")), max_tokens=3)
    assert (text_of(reply), finish_of(reply)) == ("a b c ", "stop")


def test_worker_serves_on_after_many_cut_turns(live: LiveSite) -> None:
    for _ in range(5):
        assert text_of(ask(live, Stall(after=3), stop="word")) == ""
    assert text_of(ask(live)) == "Hello world"


# 12. The model that served.


@either_way
def test_model_that_codex_reroutes_to_is_in_the_answer_and_the_row(
    live: LiveSite, send: Any
) -> None:
    reply = send(live, Answer(headers={"openai-model": "gpt-5.6-luna"}), model=CODE_MODEL)
    (asked,) = reply.upstream
    assert asked.body["model"] == CODE_MODEL
    models = (
        {chunk["model"] for chunk in reply.chunks}
        if isinstance(reply, Streamed)
        else {reply.body["model"]}
    )
    assert models == {"gpt-5.6-luna"}
    row = row_of(live, reply)
    assert (row["model_asked"], row["model_served"]) == (CODE_MODEL, "gpt-5.6-luna")


def test_unknown_model_is_a_404_and_no_other_one_is_asked(live: LiveSite) -> None:
    reply = ask(live, model="gpt-2")
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert reply.upstream == []
