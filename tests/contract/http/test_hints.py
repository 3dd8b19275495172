"""What cannot be carried out: checked, named in a header and in the row, refused by a strict key.

And what shapes the answer without changing it: reasoning, effort, verbosity, tier.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from proxy.engines import scripted
from proxy.engines.base import Completed, ReasoningDelta, TextDelta
from tests.asgi import question
from tests.contract.http.openai_shapes import CHAT, chunks_of, deltas_of, message_of

HINTS: dict[str, Any] = {
    "temperature": 0.5, "top_p": 1, "presence_penalty": -1, "frequency_penalty": 1.5,
    "logit_bias": {"5": 1}, "seed": 7, "user": "secret", "safety_identifier": "secret",
    "prompt_cache_key": "secret", "prompt_cache_retention": "24h", "prompt_cache_options": {"a": 1},
    "store": False, "prediction": {"type": "content", "content": "secret"}, "moderation": {},
}  # fmt: skip
both = pytest.mark.parametrize("stream", [False, True])


class TestIgnored:
    @both
    async def test_hints_are_named_in_the_header_and_the_row(self, site: Any, stream: bool) -> None:
        answer = await site.client.ask(**HINTS, stream=stream)
        assert answer.headers["x-ignored-params"].split(",") == list(HINTS)
        row = await site.recorded(answer, "ok")
        assert row.ignored_params.split(",") == list(HINTS)
        assert row.asked == {"messages": 1}

    async def test_unknown_fields_are_named_too(self, site: Any) -> None:
        answer = await site.client.ask(top_k=5, chat_template_kwargs={"a": 1}, gone=None, seed=1)
        assert answer.headers["x-ignored-params"] == "seed,chat_template_kwargs,top_k"
        row = await site.recorded(answer, "ok")
        assert row.ignored_params == "seed,chat_template_kwargs,top_k"

    async def test_nothing_ignored_is_nothing_said(self, site: Any) -> None:
        answer = await site.client.ask(seed=None, stop=[], n=1)
        assert "x-ignored-params" not in answer.headers
        row = await site.recorded(answer, "ok")
        assert row.ignored_params == ""

    async def test_name_that_no_header_can_hold_is_made_harmless(self, site: Any) -> None:
        body = question() | {"x\r\nset-cookie: a": 1, "é😀": 1, "n" * 5000: 1}
        answer = await site.client.post(CHAT, json=body)
        assert "set-cookie" not in answer.headers
        assert answer.headers["x-ignored-params"].isascii()
        assert len(answer.headers["x-ignored-params"]) <= 1000
        row = await site.recorded(answer, "ok")
        assert len(row.ignored_params) == 500


class TestStrictKey:
    @pytest.fixture(autouse=True)
    async def strict(self, site: Any) -> None:
        await site.change(is_strict=True)

    @pytest.mark.parametrize("name", HINTS)
    async def test_hint_is_400_that_names_it(self, site: Any, name: str) -> None:
        answer = await site.client.ask(**{name: HINTS[name]})
        row = await site.refused(answer, 400, "unsupported_parameter")
        assert answer.error["param"] == row.ignored_params == name
        assert name in answer.error["message"]
        assert site.engine.turns == []

    async def test_first_of_several_is_named(self, site: Any) -> None:
        answer = await site.client.ask(zz=1, top_k=1, seed=1)
        row = await site.refused(answer, 400, "unsupported_parameter")
        assert answer.error["param"] == "seed"
        assert row.ignored_params == "seed,top_k,zz"

    async def test_what_is_carried_out_passes(self, site: Any) -> None:
        answer = await site.client.ask(
            stop="x", n=2, max_tokens=50, reasoning_effort="low", verbosity="low", service_tier="auto",
            seed=None,
        )  # fmt: skip
        await site.recorded(answer, "ok")

    async def test_other_keys_are_not_concerned(self, site: Any) -> None:
        _, other = await site.issue("other")
        answer = await site.client.post(CHAT, json=question(seed=1), key=other)
        await site.recorded(answer, "ok", who="other")


class TestReasoning:
    SCRIPT = (ReasoningDelta("I "), ReasoningDelta("think."), TextDelta("a"), Completed())

    @both
    async def test_is_beside_the_content(self, site: Any, stream: bool) -> None:
        site.engine.script = list(self.SCRIPT)
        answer = await site.client.ask(stream=stream)
        message = message_of(answer)
        assert (message["reasoning_content"], message["content"]) == ("I think.", "a")
        await site.recorded(answer, "ok")
        assert site.engine.turns[0].wants_reasoning

    async def test_is_streamed_as_it_comes(self, site: Any) -> None:
        site.engine.script = list(self.SCRIPT)
        answer = await site.client.ask(stream=True)
        assert deltas_of(answer) == [
            {"reasoning_content": "I "}, {"reasoning_content": "think."}, {"content": "a"},
        ]  # fmt: skip
        await site.recorded(answer, "ok")

    @both
    async def test_is_off_by_a_setting(self, site: Any, stream: bool) -> None:
        await site.set_options(reasoning=False)
        site.engine.script = list(self.SCRIPT)
        answer = await site.client.ask(stream=stream)
        assert message_of(answer)["content"] == "a"
        assert b"reasoning_content" not in answer.body
        await site.recorded(answer, "ok")
        assert not site.engine.turns[0].wants_reasoning

    async def test_is_shown_with_an_answer_that_is_checked(self, site: Any) -> None:
        site.engine.script = [ReasoningDelta("hm"), TextDelta("{}"), Completed()]
        answer = await site.client.ask(response_format={"type": "json_object"}, stream=True)
        assert deltas_of(answer) == [{"reasoning_content": "hm"}, {"content": "{}"}]
        await site.recorded(answer, "ok")


async def test_effort_of_another_model_is_400_with_the_models_list(site: Any) -> None:
    answer = await site.client.ask(model="scripted-2", reasoning_effort="high")
    await site.refused(answer, 400, "unsupported_value")
    assert answer.error["param"] == "reasoning_effort"
    assert answer.error["message"].endswith("Supported values are: 'low'.")
    answer = await site.client.ask(model="scripted-2", reasoning_effort="low")
    row = await site.recorded(answer, "ok")
    assert row.asked["effort"] == "low"


@pytest.mark.parametrize("verbosity", ["low", "medium", "high"])
async def test_verbosity_reaches_the_turn(site: Any, verbosity: str) -> None:
    row = await site.recorded(await site.client.ask(verbosity=verbosity), "ok")
    assert site.engine.turns[0].verbosity == row.asked["verbosity"] == verbosity


@both
@pytest.mark.parametrize(
    ("asked", "sent", "echoed"),
    [(None, None, "default"), ("auto", None, "default"), ("default", None, "default"),
     ("flex", "flex", "flex"), ("priority", "priority", "priority"), ("fast", "priority", "priority"),
     ("scale", None, "default")],
)  # fmt: skip
async def test_tier_is_echoed_as_it_was_sent(
    site: Any, monkeypatch: pytest.MonkeyPatch, asked: Any, sent: Any, echoed: str, stream: bool
) -> None:
    first, *others = scripted.CATALOGUE
    catalogue = (replace(first, service_tiers=("priority",)), *others)
    monkeypatch.setattr(scripted, "CATALOGUE", catalogue)
    site.service.runtime._seats.clear()  # what was asked of the engine before
    answer = await site.client.ask(service_tier=asked, stream=stream)
    bodies = chunks_of(answer) if stream else [answer.json()]
    assert {body["service_tier"] for body in bodies} == {echoed}
    assert site.engine.turns[0].service_tier == sent
    row = await site.recorded(answer, "ok")
    assert row.service_tier == echoed


async def test_tier_that_the_model_lacks_is_echoed_as_default(site: Any) -> None:
    answer = await site.client.ask(service_tier="priority")
    assert answer.json()["service_tier"] == "default"
    row = await site.recorded(answer, "ok")
    assert (row.service_tier, row.asked["service_tier"]) == ("default", "priority")
