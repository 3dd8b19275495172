"""Issue 3, points 1 and 4: what the model reads is what the caller wrote, roles and images too."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from tests.e2e.conftest import LiveSite
from tests.e2e.wire import CODE_MODEL, PLAIN_MODEL, ask, stream
from tests.provider import Text

both_wire_forms = pytest.mark.parametrize("model", [PLAIN_MODEL, CODE_MODEL])


def called(call_id: str, name: str = "look", arguments: str = '{"at": 1}') -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


@both_wire_forms
def test_every_message_arrives_with_its_own_role_and_place(live: LiveSite, model: str) -> None:
    messages = [
        {"role": "system", "content": "one"},
        {"role": "developer", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
        {"role": "system", "content": "three"},
        {"role": "user", "content": "d", "name": "ann"},
        {"role": "developer", "content": "four"},
    ]
    asked = ask(live, model=model, messages=messages).asked
    (first, *rest) = asked.said()
    assert first[0] == "developer"
    assert first[1].index("one") < first[1].index("two")
    assert rest == [
        ("user", "a|b"),
        ("assistant", "c"),
        ("developer", "three"),
        ("user", "d"),
        ("developer", "four"),
    ]


@both_wire_forms
def test_calls_and_their_results_keep_the_client_s_ids_and_their_order(
    live: LiveSite, model: str
) -> None:
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [called("x-1"), called("x-2")]},
        {"role": "tool", "tool_call_id": "x-2", "content": "second"},
        {"role": "tool", "tool_call_id": "x-1", "content": [{"type": "text", "text": "first"}]},
        {
            "role": "assistant",
            "content": "Once more.",
            "tool_calls": [called("x-3", "exec_command")],
        },
        {"role": "tool", "tool_call_id": "x-3", "content": ""},
    ]
    reply = ask(live, Text(("done",)), model=model, messages=messages)
    assert reply.message["content"] == "done"
    asked = reply.asked
    assert [found for found in asked.said() if found[0] != "developer"] == [
        ("user", "go"),
        ("function_call", "x-1"),
        ("function_call", "x-2"),
        ("function_call_output", "x-2"),
        ("function_call_output", "x-1"),
        ("assistant", "Once more."),
        ("function_call", "x-3"),
        ("function_call_output", "x-3"),
    ]
    assert asked.tool_outputs() == ["second", "first", ""]
    calls = [item for item in asked.body["input"] if item["type"] == "function_call"]
    assert [call["arguments"] for call in calls] == ['{"at": 1}'] * 3
    assert [call["name"] for call in calls] == ["look", "look", "client_exec_command"]
    assert asked.tools() == []


def test_refusal_of_the_assistant_stays_in_the_history(live: LiveSite) -> None:
    part = {"type": "refusal", "refusal": "Not that."}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": [part]},
        {"role": "user", "content": "c"},
    ]
    asked = ask(live, messages=messages).asked
    assert asked.texts("assistant") == ["No.", "Not that."]


def test_legacy_function_messages_are_calls_and_results(live: LiveSite) -> None:
    call = {"name": "look", "arguments": '{"at":2}'}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "look", "content": "seen"},
    ]
    asked = ask(live, messages=messages).asked
    kinds = [kind for kind, _ in asked.said() if kind != "developer"]
    assert kinds == ["user", "function_call", "function_call_output"]
    assert asked.tool_outputs() == ["seen"]


@pytest.mark.parametrize("role", ["assistant", "system", "user"])
def test_conversation_may_end_with_any_role(live: LiveSite, role: str) -> None:
    messages = [{"role": "user", "content": "go"}, {"role": role, "content": "last"}]
    reply = ask(live, messages=messages)
    assert reply.message["content"] == "Hello world"
    wire_role = "developer" if role == "system" else role
    assert reply.asked.said()[-1] == (wire_role, "last")


def test_system_message_alone_is_enough(live: LiveSite) -> None:
    reply = ask(live, messages=[{"role": "system", "content": "Say hello."}])
    assert reply.message["content"] == "Hello world"
    assert reply.asked.said() == [("developer", "Say hello.")]


def test_empty_texts_are_taken(live: LiveSite) -> None:
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": ""}]},
    ]
    reply = ask(live, messages=messages)
    assert reply.message["content"] == "Hello world"
    assert [role for role, _ in reply.asked.said()] == ["user", "assistant", "user"]


def test_long_and_strange_text_arrives_whole(live: LiveSite) -> None:
    text = (
        "\x00\u2028 \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")
        + "é" * 1_200_000
    )
    asked = ask(live, messages=[{"role": "user", "content": text}]).asked
    assert asked.texts("user") == [text]


# Images.


def png(seed: int = 1, size: tuple[int, int] = (40, 30)) -> bytes:
    output = io.BytesIO()
    Image.effect_noise(size, 10 + seed).save(output, "PNG")
    return output.getvalue()


def image_part(data: bytes, detail: str | None = None) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {
        "type": "image_url",
        "image_url": {"url": url, **({"detail": detail} if detail else {})},
    }


def pixels(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@both_wire_forms
def test_images_of_every_user_message_arrive_byte_for_byte(live: LiveSite, model: str) -> None:
    pictures = [png(seed) for seed in range(3)]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "x"}, image_part(pictures[0])]},
        {"role": "assistant", "content": "seen"},
        {
            "role": "user",
            "content": [image_part(pictures[1], "high"), image_part(pictures[2], "auto")],
        },
    ]
    asked = ask(live, model=model, messages=messages).asked
    received = [base64.b64decode(url.partition(",")[2]) for url in asked.images()]
    assert received == pictures
    assert ("user", "x|<input_image>") in asked.said()


def test_image_of_low_detail_is_made_small_but_not_destroyed(live: LiveSite) -> None:
    big, small = png(1, (1500, 900)), png(2)
    content = [image_part(big, "low"), image_part(small, "low")]
    reply = ask(live, messages=[{"role": "user", "content": content}])
    first, second = (pixels(url) for url in reply.asked.images())
    assert max(first.size) <= 512
    assert second.size == (40, 30)
    assert "omitted" not in str(reply.asked.said())
    assert live.row_of(str(reply.headers["x-request-id"]))["outcome"] == "ok"


def test_broken_image_is_a_400_and_the_model_is_not_asked(live: LiveSite) -> None:
    broken = image_part(png()[:-20])
    reply = ask(live, messages=[{"role": "user", "content": [broken]}])
    assert (reply.status, reply.upstream) == (400, [])
    assert (reply.error["param"] or "").startswith("messages[0].content[0]")


def test_address_of_an_image_is_a_400_by_default(live: LiveSite) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    for send in (ask, stream):
        reply = send(live, messages=[{"role": "user", "content": [part]}])
        assert (reply.status, reply.upstream) == (400, [])
        assert reply.error is not None
        assert reply.error["code"] == "invalid_image_url"
