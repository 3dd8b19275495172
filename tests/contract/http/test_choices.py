"""n, stop and the limits of tokens: carried out in the proxy, at an honest price."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.engines.base import Completed, TextDelta, Turn, Usage, UsageReported
from proxy.errors import RateLimited
from tests.asgi import question
from tests.contract.http.openai_shapes import CHAT, chunks_of, deltas_of, finish_of, message_of
from tests.contract.http.waiting import until

both = pytest.mark.parametrize("stream", [False, True])


class TestN:
    @both
    async def test_choices_are_turns_with_numbers_and_one_row(
        self, site: Any, stream: bool
    ) -> None:
        site.engine.scripts = [
            [TextDelta(word), UsageReported(Usage(10, 1, 2, 1)), Completed()]
            for word in ("one", "two", "three")
        ]
        options = {"stream_options": {"include_usage": True}} if stream else {}
        answer = await site.client.ask(n=3, stream=stream, **options)
        texts = [message_of(answer, index)["content"] for index in range(3)] if not stream else [
            "".join(delta["content"] for delta in deltas_of(answer, index)) for index in range(3)
        ]  # fmt: skip
        assert texts == ["one", "two", "three"]
        assert [finish_of(answer, index) for index in range(3)] == ["stop"] * 3
        usage = chunks_of(answer)[-1]["usage"] if stream else answer.json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (30, 6)
        row = await site.recorded(answer, "ok")
        assert (row.input_tokens, row.output_tokens, row.asked["n"]) == (30, 6, 3)
        assert len(site.engine.turns) == 3

    async def test_turns_run_side_by_side(self, site: Any) -> None:
        gate = asyncio.Event()
        site.engine.script = [gate, TextDelta("a")]
        exchange = site.client.open("POST", CHAT, json=question(n=2))
        await until(lambda: len(site.engine.turns) == 2)
        gate.set()
        await exchange.start()
        await exchange.finish()
        assert len(exchange.json()["choices"]) == 2
        await site.recorded(exchange, "ok")

    async def test_above_the_setting_it_is_400(self, site: Any) -> None:
        await site.set_options(max_choices=2)
        await site.recorded(await site.client.ask(n=2), "ok")
        answer = await site.client.ask(n=3)
        await site.refused(answer, 400, "integer_above_max_value")
        assert answer.error["param"] == "n"
        assert len(site.engine.turns) == 2

    async def test_one_failing_turn_fails_the_request_and_stops_the_others(self, site: Any) -> None:
        site.engine.scripts = [[TextDelta("a"), asyncio.Event()], [RateLimited("Slow.")]]
        answer = await site.client.ask(n=2)
        await site.refused(answer, 429, "rate_limit_exceeded", outcome="failed")
        assert sorted(map(id, site.engine.cleaned_up)) == sorted(map(id, site.engine.turns))

    async def test_one_failing_turn_fails_the_stream(self, site: Any) -> None:
        failing = asyncio.Event()
        site.engine.scripts = [
            [TextDelta("a"), asyncio.Event()], [failing, RateLimited("Slow.")],
        ]  # fmt: skip
        exchange = await site.client.open("POST", CHAT, json=question(n=2, stream=True)).start()
        while b'"a"' not in exchange.body:
            await exchange.chunk()
        failing.set()
        await exchange.finish()
        assert exchange.events()[-1]["error"]["code"] == "rate_limit_exceeded"
        assert b"[DONE]" not in exchange.body
        await site.recorded(exchange, "failed", "rate_limit_exceeded")
        assert len(site.engine.cleaned_up) == 2

    async def test_each_choice_is_cut_on_its_own(self, site: Any) -> None:
        site.engine.scripts = [[TextDelta("a.b"), asyncio.Event()], [TextDelta("c"), Completed()]]
        answer = await site.client.ask(n=2, stop=".", stream=True)
        assert [deltas_of(answer, index) for index in (0, 1)] == [
            [{"content": "a"}],
            [{"content": "c"}],
        ]
        await site.recorded(answer, "ok")


class TestStop:
    @both
    @pytest.mark.parametrize("stop", ["END", ["END"], ["x", "EN", "END"]])
    async def test_text_is_cut_where_a_stop_begins_and_the_turn_is_stopped(
        self, site: Any, stop: Any, stream: bool
    ) -> None:
        site.engine.script = [*map(TextDelta, ("one E", "N", "D two")), asyncio.Event()]
        answer = await site.client.ask(stop=stop, stream=stream)
        assert (message_of(answer)["content"], finish_of(answer)) == ("one ", "stop")
        assert site.engine.cleaned_up == site.engine.turns
        row = await site.recorded(answer, "ok")
        assert (row.input_tokens, row.output_tokens) == (None, None)
        assert row.asked["stop"] == (1 if isinstance(stop, str) else len(stop))

    async def test_nothing_of_it_leaks_into_the_stream(self, site: Any) -> None:
        site.engine.script = [*map(TextDelta, "a</sto</stop>b"), Completed()]
        answer = await site.client.ask(stop="</stop>", stream=True)
        said = ["a"]
        texts = [delta["content"] for delta in deltas_of(answer)]
        assert "".join(texts) == "a</sto"
        assert texts[:1] == said
        await site.recorded(answer, "ok")

    async def test_usage_of_a_turn_that_was_stopped_is_null_and_not_zero(self, site: Any) -> None:
        site.engine.script = [TextDelta("a."), asyncio.Event()]
        answer = await site.client.ask(stop=".")
        assert answer.json()["usage"] is None
        answer = await site.client.ask(
            stop=".", stream=True, stream_options={"include_usage": True}
        )
        assert chunks_of(answer)[-1]["usage"] is None
        assert chunks_of(answer)[-1]["choices"] == []
        await site.recorded(answer, "ok")

    @both
    async def test_at_the_very_start_it_leaves_an_empty_answer(
        self, site: Any, stream: bool
    ) -> None:
        site.engine.script = [TextDelta("END"), asyncio.Event()]
        answer = await site.client.ask(stop="END", stream=stream)
        assert (message_of(answer)["content"] or "", finish_of(answer)) == ("", "stop")
        assert not message_of(answer).get("refusal")
        await site.recorded(answer, "ok")

    @both
    async def test_beginning_of_one_at_the_end_is_said(self, site: Any, stream: bool) -> None:
        site.engine.script = [TextDelta("the EN"), Completed()]
        answer = await site.client.ask(stop="END", stream=stream)
        assert (message_of(answer)["content"], finish_of(answer)) == ("the EN", "stop")
        await site.recorded(answer, "ok")


class TestLimit:
    @both
    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    async def test_answer_beyond_it_is_cut_and_says_length(
        self, site: Any, name: str, stream: bool
    ) -> None:
        site.engine.script = [*map(TextDelta, ("a ", "b ", "c ")), asyncio.Event()]
        limit: dict[str, Any] = {name: 2}
        answer = await site.client.ask(**limit, stream=stream)
        assert (message_of(answer)["content"], finish_of(answer)) == ("a b ", "length")
        assert site.engine.cleaned_up == site.engine.turns
        row = await site.recorded(answer, "ok")
        assert (row.asked["max_tokens"], row.output_tokens) == (2, None)

    @both
    async def test_answer_of_its_length_is_whole(self, site: Any, stream: bool) -> None:
        answer = await site.client.ask(max_tokens=2, stream=stream)
        assert (message_of(answer)["content"], finish_of(answer)) == ("Hello", "stop")
        row = await site.recorded(answer, "ok")
        assert row.output_tokens == 77

    async def test_engine_without_deltas_is_not_cut_below_it(self, site: Any) -> None:
        def whole(_: Turn) -> TextDelta:
            return TextDelta("many words at once")

        site.engine.script = [whole]
        answer = await site.client.ask(max_tokens=1)
        assert (message_of(answer)["content"], finish_of(answer)) == ("many words at once", "stop")
        await site.recorded(answer, "ok")
