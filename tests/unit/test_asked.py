"""What a request asks for, in our own terms: each field carried out, ignored by name, or refused."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture
from pydantic import ValidationError

from proxy.asked import (
    EFFORTS,
    Asked,
    as_chat,
    check_effort,
    check_images,
    tier_to_send,
    understand,
    wish_of,
)
from proxy.engines.base import Image, Message, Model, Text, ToolCall
from proxy.errors import InvalidRequest, UnsupportedParameter
from proxy.schemas import HINTS, ChatCompletionRequest, CompletionRequest

USER = {"role": "user", "content": "hi"}
MODEL = Model("m", "M", ("low", "high"), is_default=True, service_tiers=("priority",))


def a_picture() -> str:
    output = io.BytesIO()
    Picture.new("RGB", (2, 2)).save(output, "PNG")
    return f"data:image/png;base64,{base64.b64encode(output.getvalue()).decode()}"


PICTURE = {"type": "image_url", "image_url": {"url": a_picture()}}
WORDS = {"type": "text", "text": "a"}


def asked(*messages: dict[str, Any], max_choices: int = 4, **fields: Any) -> Asked:
    body = {"model": "m", "messages": list(messages) or [USER], **fields}
    request = ChatCompletionRequest.model_validate(body)
    return understand(request, max_choices=max_choices)


def refusal(*messages: dict[str, Any], **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        asked(*messages, **fields)
    return refused.value


def call(call_id: str = "1", name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def calling(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


def answering(call_id: str = "1", content: Any = "done") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def test_plain_request_asks_for_nothing_else() -> None:
    found = asked()
    assert found.messages == (Message("user", "hi"),)
    assert (found.choices, found.stops, found.max_tokens, found.ignored) == (1, (), None, ())
    assert found.summary() == {"messages": 1}
    assert found.only_app_server == ""


class TestHistory:
    def test_roles_stay_what_they_are_and_in_order(self) -> None:
        roles = ["system", "user", "developer", "assistant", "system"]
        found = asked(*({"role": role, "content": role} for role in roles))
        assert [(message.role, message.text) for message in found.messages] == [
            (role, role) for role in roles
        ]

    def test_parts_are_joined_by_lines(self) -> None:
        (message,) = asked({"role": "user", "content": [WORDS, WORDS]}).messages
        assert (message.parts, message.text) == ((Text("a"), Text("a")), "a\na")

    def test_calls_and_their_answers_keep_the_clients_ids(self) -> None:
        history = [
            calling(call("abc", arguments='{"a": 1}'), call("d")), answering("d"), answering("abc"),
        ]  # fmt: skip
        made, *answers = asked(*history).messages
        assert made == Message(
            "assistant", "", (ToolCall("abc", "f", '{"a": 1}'), ToolCall("d", "f", "{}"))
        )
        assert [(answer.role, answer.tool_call_id) for answer in answers] == [
            ("tool", "d"),
            ("tool", "abc"),
        ]

    def test_calls_may_have_text_beside_them(self) -> None:
        (message,) = asked(calling(call(), content="Let me see.")).messages
        assert (message.text, len(message.tool_calls)) == ("Let me see.", 1)

    def test_calls_may_have_an_empty_list_beside_them(self) -> None:
        (message,) = asked(calling(call(), content=[])).messages
        assert (message.text, len(message.tool_calls)) == ("", 1)

    def test_tool_answer_may_be_parts_or_empty(self) -> None:
        found = asked(calling(call()), answering(content=[WORDS]), answering(content=""))
        assert [message.text for message in found.messages] == ["", "a", ""]

    def test_names_that_codex_swallows_are_aliased_in_the_history_too(self) -> None:
        (message,) = asked(calling(call(name="exec_command"))).messages
        assert message.tool_calls[0].name != "exec_command"

    def test_legacy_calls_get_ids_that_their_answers_share(self) -> None:
        legacy = {"role": "assistant", "content": None}
        found = asked(
            {**legacy, "function_call": {"name": "f", "arguments": "1"}},
            {"role": "function", "name": "f", "content": "one"},
            {**legacy, "function_call": {"name": "f", "arguments": "2"}},
            {"role": "function", "name": "f", "content": None},
        )
        first, one, second, two = found.messages
        assert one.tool_call_id == first.tool_calls[0].id
        assert two.tool_call_id == second.tool_calls[0].id
        assert first.tool_calls[0].id != second.tool_calls[0].id
        assert (one.role, one.text, two.text) == ("tool", "one", "")

    @pytest.mark.parametrize(
        "message",
        [
            {"role": "assistant", "content": None, "refusal": "no"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        ],
    )
    def test_refusal_of_the_assistant_is_its_text(self, message: dict[str, Any]) -> None:
        assert asked(message, USER).messages[0].text == "no"

    @pytest.mark.parametrize(
        ("messages", "param", "code"),
        [
            ([answering("1")], "messages[0].tool_call_id", "invalid_value"),
            ([calling(call("1")), answering("2")], "messages[1].tool_call_id", "invalid_value"),
            ([answering("1"), calling(call("1"))], "messages[0].tool_call_id", "invalid_value"),
            (
                [calling(call()), {"role": "tool", "content": "a"}],
                "messages[1].tool_call_id",
                "missing_required_parameter",
            ),
            (
                [calling(call()), answering(content=None)],
                "messages[1].content",
                "invalid_type",
            ),
            (
                [{"role": "function", "name": "f", "content": "a"}],
                "messages[0].name",
                "invalid_value",
            ),
            (
                [calling({"id": "1", "type": "custom", "custom": {"name": "f", "input": ""}})],
                "messages[0].tool_calls[0]",
                "unsupported_parameter",
            ),
            ([{"role": "assistant"}], "messages[0].content", "invalid_type"),
            ([{"role": "assistant", "content": []}], "messages[0].content", "empty_array"),
            (
                [{"role": "assistant", "content": None, "tool_calls": []}],
                "messages[0].content",
                "invalid_type",
            ),
            ([{"role": "system", "content": None}], "messages[0].content", "invalid_type"),
        ],
    )
    def test_history_that_cannot_be_is_refused_at_its_place(
        self, messages: list[dict[str, Any]], param: str, code: str
    ) -> None:
        found = refusal(*messages)
        assert (found.param, found.code) == (param, code)

    def test_order_of_tool_messages_is_told_in_openais_words(self) -> None:
        assert "must be a response to a preceeding message with 'tool_calls'" in (
            refusal(answering()).message
        )


class TestImages:
    def test_picture_of_a_user_is_a_part(self) -> None:
        (message, _) = asked({"role": "user", "content": [WORDS, PICTURE]}, USER).messages
        text, image = message.parts
        assert isinstance(text, Text)
        assert isinstance(image, Image)
        assert image.url == a_picture()

    @pytest.mark.parametrize("role", ["system", "developer", "assistant"])
    def test_picture_of_another_role_is_refused(self, role: str) -> None:
        found = refusal({"role": role, "content": [WORDS, PICTURE]}, USER)
        assert (found.param, found.code) == ("messages[0].content[1]", "unsupported_parameter")

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
            {"type": "file", "file": {"file_id": "x"}},
            {"type": "video_url", "video_url": {}},
            {"type": "refusal", "refusal": "no"},
        ],
    )
    def test_part_of_another_kind_is_refused(self, part: dict[str, Any]) -> None:
        found = refusal({"role": "user", "content": [WORDS, part]})
        assert (found.param, found.code) == ("messages[0].content[1]", "unsupported_parameter")

    def test_model_that_takes_none_is_refused_them(self) -> None:
        blind = Model("m", "M", (), is_default=True, takes_images=False)
        found = asked({"role": "user", "content": [PICTURE]})
        with pytest.raises(UnsupportedParameter) as refused:
            check_images(found, blind)
        assert (refused.value.param, refused.value.code) == ("messages", "unsupported_value")
        check_images(found, MODEL)
        check_images(found, None)
        check_images(asked(), blind)


class TestEngine:
    @pytest.mark.parametrize(
        ("messages", "fields", "field"),
        [
            ([USER], {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
            ([calling(call()), answering(), USER], {}, "messages"),
            ([{"role": "user", "content": [PICTURE]}], {}, ""),
            ([USER, {"role": "system", "content": "late"}], {}, "messages"),
            ([{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, USER], {}, ""),
            (
                [USER],
                {
                    "tools": [{"type": "function", "function": {"name": "f"}}],
                    "tool_choice": "required",
                },
                "",
            ),
            ([USER], {"response_format": {"type": "json_object"}}, ""),
        ],
    )  # fmt: skip
    def test_only_the_app_server_can_is_said_with_the_field(
        self, messages: list[Any], fields: dict[str, Any], field: str
    ) -> None:
        assert asked(*messages, **fields).only_app_server == field


class TestFields:
    @pytest.mark.parametrize(
        ("given_stop", "stops"),
        [(None, ()), ("a", ("a",)), ([], ()), (["a", "b"], ("a", "b")), (list("abcd"), tuple("abcd"))],
    )  # fmt: skip
    def test_stop_is_a_text_or_up_to_four(self, given_stop: Any, stops: tuple[str, ...]) -> None:
        assert asked(stop=given_stop).stops == stops

    @pytest.mark.parametrize(
        ("given_stop", "code"),
        [
            (list("abcde"), "array_above_max_length"),
            ("", "invalid_value"),
            (["a", ""], "invalid_value"),
        ],
    )
    def test_stop_of_another_kind_is_refused(self, given_stop: Any, code: str) -> None:
        found = refusal(stop=given_stop)
        assert (found.param, found.code) == ("stop", code)

    def test_choices_have_a_limit(self) -> None:
        assert asked(n=4).choices == 4
        found = refusal(n=5)
        assert (found.param, found.code) == ("n", "integer_above_max_value")

    @pytest.mark.parametrize(
        ("fields", "param", "code"),
        [
            ({"logprobs": True}, "logprobs", "unsupported_parameter"),
            ({"top_logprobs": 1}, "top_logprobs", "unsupported_parameter"),
            ({"audio": {}}, "audio", "unsupported_parameter"),
            ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
            ({"modalities": ["text", "audio"]}, "modalities", "unsupported_value"),
            ({"modalities": []}, "modalities", "unsupported_value"),
            ({"stream_options": {}}, "stream_options", "invalid_value"),
        ],
    )
    def test_what_cannot_be_is_refused(self, fields: Any, param: str, code: str) -> None:
        found = refusal(**fields)
        assert (found.param, found.code) == (param, code)

    @pytest.mark.parametrize(
        "fields",
        [{"logprobs": False}, {"top_logprobs": 0}, {"modalities": ["text"]}, {"n": 1}, {"tools": []}],
    )  # fmt: skip
    def test_neutral_value_asks_for_nothing(self, fields: dict[str, Any]) -> None:
        assert asked(**fields).summary() == {"messages": 1}

    def test_hints_and_unknown_fields_are_named_as_ignored(self) -> None:
        found = asked(seed=1, temperature=0.5, zz=1, top_k=2, user=None, x=None)
        assert found.ignored == ("temperature", "seed", "top_k", "zz")

    def test_every_hint_is_a_field(self) -> None:
        assert set(HINTS) < set(ChatCompletionRequest.model_fields)

    def test_summary_has_names_and_numbers_only(self) -> None:
        found = asked(
            {"role": "user", "content": [{"type": "text", "text": "secret"}, PICTURE]},
            tools=[{"type": "function", "function": {"name": "secret"}}],
            stop=["secret"], n=2, max_tokens=7, reasoning_effort="low", verbosity="high",
            service_tier="flex", user="secret", metadata={"secret": "secret"},
        )  # fmt: skip
        assert found.summary() == {
            "messages": 1, "tools": 1, "tool_choice": "auto", "n": 2, "stop": 1, "max_tokens": 7,
            "images": 1, "effort": "low", "verbosity": "high", "service_tier": "flex",
        }  # fmt: skip

    def test_forced_tools_and_formats_are_in_the_summary(self) -> None:
        tool = {"type": "function", "function": {"name": "f"}}
        assert asked(tools=[tool], tool_choice="required").summary()["tool_choice"] == "forced"
        formatted = asked(response_format={"type": "json_object"})
        assert formatted.summary()["response_format"] == "json_object"


class TestEffort:
    @pytest.mark.parametrize("effort", [None, "low", "high"])
    def test_of_the_models_list_is_taken(self, effort: str | None) -> None:
        check_effort(asked(reasoning_effort=effort), MODEL)

    @pytest.mark.parametrize("effort", EFFORTS)
    def test_for_a_model_outside_the_catalogue_is_any_word_of_openais(self, effort: str) -> None:
        check_effort(asked(reasoning_effort=effort), None)

    @pytest.mark.parametrize(
        ("effort", "model", "code"),
        [
            ("medium", MODEL, "unsupported_value"),
            ("much", MODEL, "invalid_value"),
            ("", MODEL, "invalid_value"),
            ("much", None, "invalid_value"),
        ],
    )
    def test_other_is_refused_with_the_list(
        self, effort: str, model: Model | None, code: str
    ) -> None:
        with pytest.raises(InvalidRequest) as refused:
            check_effort(asked(reasoning_effort=effort), model)
        assert (refused.value.param, refused.value.code) == ("reasoning_effort", code)
        assert "'low'" in refused.value.message


@pytest.mark.parametrize(
    ("tier", "sent"),
    [(None, None), ("auto", None), ("default", None), ("scale", None), ("flex", "flex"),
     ("priority", "priority"), ("fast", "priority")],
)  # fmt: skip
def test_tier_is_sent_where_codex_passes_it_on(tier: str | None, sent: str | None) -> None:
    assert tier_to_send(asked(service_tier=tier), MODEL) == sent


def test_tier_that_the_model_does_not_have_is_not_sent() -> None:
    assert (
        tier_to_send(asked(service_tier="priority"), Model("x", "X", (), is_default=True)) is None
    )


class TestWish:
    @pytest.mark.parametrize(
        ("metadata", "cwd", "agent"),
        [
            (None, None, None),
            ({}, None, None),
            ({"cwd": "x", "agent": True}, "x", True),
            ({"agent": "False"}, None, False),
        ],
    )
    def test_is_read_from_the_metadata(
        self, metadata: Any, cwd: str | None, agent: bool | None
    ) -> None:
        wish = wish_of(metadata)
        assert (wish.cwd, wish.agent) == (cwd, agent)

    @pytest.mark.parametrize("metadata", [{"cwd": 1}, {"agent": 1}, {"agent": "yes"}])
    def test_of_another_kind_is_refused(self, metadata: Any) -> None:
        with pytest.raises(InvalidRequest):
            wish_of(metadata)

    @pytest.mark.parametrize(
        ("metadata", "code"),
        [
            ({str(index): "a" for index in range(17)}, "object_above_max_properties"),
            ({"k" * 65: "a"}, "string_above_max_length"),
            ({"k": "a" * 513}, "string_above_max_length"),
        ],
    )
    def test_is_as_small_as_openais(self, metadata: Any, code: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            wish_of(metadata)
        assert (refused.value.param, refused.value.code) == ("metadata", code)

    def test_folder_may_be_longer(self) -> None:
        assert wish_of({"cwd": "/" + "a" * 600}).cwd


class TestLegacy:
    @staticmethod
    def chat(prompt: Any = "hi", **fields: Any) -> ChatCompletionRequest:
        body = {"model": "m", "prompt": prompt, **fields}
        return as_chat(CompletionRequest.model_validate(body))

    @pytest.mark.parametrize("prompt", ["hi", ["hi"]])
    def test_prompt_is_one_message_of_the_user(self, prompt: Any) -> None:
        found = understand(self.chat(prompt), max_choices=4)
        assert found.messages == (Message("user", "hi"),)

    def test_shared_fields_mean_the_same(self) -> None:
        chat = self.chat(
            stop=["a"], max_tokens=7, n=2, temperature=0, stream=True,
            stream_options={"include_usage": True}, metadata={"cwd": "x"}, top_k=1, store=5,
        )  # fmt: skip
        found = understand(chat, max_choices=4)
        assert (found.stops, found.max_tokens, found.choices) == (("a",), 7, 2)
        assert (found.is_stream, found.wants_usage, found.wish.cwd) == (True, True, "x")
        assert found.ignored == ("temperature", "store", "top_k")

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"prompt": ["a", "b"]}, "prompt"),
            ({"prompt": []}, "prompt"),
            ({"suffix": "a"}, "suffix"),
            ({"echo": True}, "echo"),
            ({"logprobs": 1}, "logprobs"),
            ({"best_of": 2}, "best_of"),
            ({"messages": [USER]}, "messages"),
            ({"tools": "x"}, "tools"),
        ],
    )
    def test_what_cannot_be_is_refused(self, fields: dict[str, Any], param: str) -> None:
        with pytest.raises(UnsupportedParameter) as refused:
            self.chat(**fields)
        assert refused.value.param == param

    def test_neutral_values_ask_for_nothing(self) -> None:
        chat = self.chat(suffix="", echo=False, logprobs=0, best_of=1, user=None)
        assert understand(chat, max_choices=4).ignored == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "refusal", "image_url", "input_audio", "file", "x"])},
    optional={
        "text": st.text(max_size=5) | JSON,
        "refusal": st.text(max_size=5),
        "image_url": st.fixed_dictionaries(
            {"url": st.sampled_from(["", "https://x/y", "data:image/png;base64,AAAA", a_picture()])},
            optional={"detail": st.sampled_from(["low", "auto", "x", 5])},
        )
        | JSON,
    },
)  # fmt: skip
NAMES = st.sampled_from(["f", "exec_command", "mcp__x", ""])
FUNCTIONS = st.fixed_dictionaries({"name": NAMES, "arguments": st.text(max_size=5)})
IDS = st.sampled_from(["1", "2", ""])
CALLS = st.fixed_dictionaries(
    {"id": IDS}, optional={"type": st.just("function"), "function": FUNCTIONS}
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])},
    optional={
        "content": st.none() | st.text(max_size=5) | st.lists(PARTS, max_size=3) | JSON,
        "tool_calls": st.none() | st.lists(CALLS, max_size=2),
        "tool_call_id": IDS,
        "function_call": st.none() | FUNCTIONS,
        "refusal": st.none() | st.text(max_size=5),
        "name": NAMES,
    },
)


@given(st.lists(MESSAGES, min_size=1, max_size=5) | JSON)
def test_any_messages_are_understood_whole_or_refused_by_name(messages: Any) -> None:
    try:
        request = ChatCompletionRequest.model_validate({"model": "m", "messages": messages})
        found = understand(request, max_choices=4)
    except (InvalidRequest, ValidationError):
        return
    assert len(found.messages) == len(messages)
    called = [made.id for message in found.messages for made in message.tool_calls]
    for message, given_message in zip(found.messages, messages, strict=True):
        assert message.role == given_message["role"].replace("function", "tool")
        if message.role == "tool":
            assert message.tool_call_id in called
        content = given_message.get("content")
        if isinstance(content, str):
            assert message.text == content or given_message.get("refusal") == message.text
        elif isinstance(content, list):
            assert len(message.parts) == len(content)


@given(
    st.dictionaries(st.sampled_from(sorted(ChatCompletionRequest.model_fields)) | st.text(), JSON)
)
def test_any_fields_are_understood_or_refused(fields: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [USER], **fields}
    try:
        understand(ChatCompletionRequest.model_validate(body), max_choices=4)
    except (InvalidRequest, ValidationError):
        return


@given(
    st.dictionaries(st.sampled_from(sorted(ChatCompletionRequest.model_fields)) | st.text(), JSON)
)
def test_any_legacy_fields_are_understood_or_refused(fields: dict[str, Any]) -> None:
    body = {"model": "m", "prompt": "hi", **fields}
    try:
        understand(as_chat(CompletionRequest.model_validate(body)), max_choices=4)
    except (InvalidRequest, ValidationError):
        return
