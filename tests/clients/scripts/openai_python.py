"""The official Python client: what it does every day, and how it meets errors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Literal

import openai
from pydantic import BaseModel
from scenarios import API_KEY, BASE_URL, NARROW_KEY, SINGLE_KEY, main, scenario

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "get_time", "description": "Get the time."}}
QUESTION: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the weather in Paris?"},
]
HELLO: Any = [{"role": "user", "content": "Hello"}]
PERSON: Any = [{"role": "user", "content": "A person called 'Ada' is 36 years old."}]


class Person(BaseModel):
    name: str
    age: int


class Team(BaseModel):
    """Of everything that the client's own strict schemas may hold."""

    name: str
    kind: Literal["rowing", "chess"]
    members: list[Person]
    captain: Person | None
    parent: Team | None
    budget: float
    is_open: bool


client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)


def asyncs() -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)


def please(text: str) -> Any:
    return [{"role": "user", "content": f"Please {text}"}]


@scenario
def create() -> Any:
    answer = client.chat.completions.create(model="default", messages=HELLO)
    return {**answer.model_dump(), "request_id": answer._request_id}


@scenario
def stream() -> Any:
    with client.chat.completions.create(
        model="default", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as chunks:
        return [chunk.model_dump() for chunk in chunks]


@scenario
def stream_helper() -> Any:
    with client.chat.completions.stream(model="default", messages=HELLO) as events:
        kinds = [event.type for event in events]
        final = events.get_final_completion().choices[0]
    return {"kinds": kinds, "text": final.message.content, "finish": final.finish_reason}


@scenario
async def create_async() -> Any:
    async with asyncs() as aclient:
        answer = await aclient.chat.completions.create(model="default", messages=HELLO)
    return answer.choices[0].message.content


@scenario
async def stream_async() -> Any:
    async with asyncs() as aclient:
        chunks = await aclient.chat.completions.create(model="default", messages=HELLO, stream=True)
        return [chunk.choices[0].delta.content async for chunk in chunks]


@scenario
def parse() -> Any:
    answer = client.chat.completions.parse(model="default", messages=PERSON, response_format=Person)
    found = answer.choices[0].message.parsed
    assert isinstance(found, Person)
    return found.model_dump()


@scenario
def parse_rich_schema() -> Any:
    answer = client.chat.completions.parse(
        model="default",
        messages=[{"role": "user", "content": "A chess team called 'Ada'."}],
        response_format=Team,
    )
    found = answer.choices[0].message.parsed
    assert isinstance(found, Team)
    return found.model_dump()


@scenario
async def parse_async_stream() -> Any:
    async with (
        asyncs() as aclient,
        aclient.chat.completions.stream(
            model="default", messages=PERSON, response_format=Person
        ) as events,
    ):
        final = await events.get_final_completion()
    found = final.choices[0].message.parsed
    assert isinstance(found, Person)
    return found.model_dump()


@scenario
def json_object() -> Any:
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "Answer in JSON with the keys 'city' and 'land'."}],
        response_format={"type": "json_object"},
    )
    return json.loads(answer.choices[0].message.content or "")


@scenario
def tools_round_trip() -> Any:
    first = client.chat.completions.create(model="default", messages=QUESTION, tools=[WEATHER])
    message = first.choices[0].message
    (call,) = message.tool_calls or []
    history = [*QUESTION, message, {"role": "tool", "tool_call_id": call.id, "content": "20 C"}]
    second = client.chat.completions.create(model="default", messages=history, tools=[WEATHER])
    return {
        "first": first.model_dump(),
        "text": second.choices[0].message.content,
        "finish": second.choices[0].finish_reason,
        "later_calls": len(second.choices[0].message.tool_calls or []),
    }


@scenario
def two_calls_at_once() -> Any:
    messages: Any = [{"role": "user", "content": "Use get_time and get_weather in Rome."}]
    answer = client.chat.completions.create(
        model="default", messages=messages, tools=[WEATHER, CLOCK]
    )
    message = answer.choices[0].message
    calls = message.tool_calls or []
    history: Any = [*messages, message]
    history += [{"role": "tool", "tool_call_id": each.id, "content": each.id} for each in calls]
    second = client.chat.completions.create(
        model="default", messages=history, tools=[WEATHER, CLOCK]
    )
    return {
        "calls": [[each.function.name, each.function.arguments] for each in calls],
        "ids": [each.id for each in calls],
        "text": second.choices[0].message.content,
    }


@scenario
def tools_streamed() -> Any:
    with client.chat.completions.stream(
        model="default",
        messages=QUESTION,
        tools=[WEATHER],
        stream_options={"include_usage": True},
    ) as events:
        final = events.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    return {
        "name": call.function.name,
        "parsed": call.function.parsed_arguments,
        "finish": final.choices[0].finish_reason,
        "total": final.usage.total_tokens if final.usage else None,
    }


@scenario
def two_calls_streamed() -> Any:
    messages: Any = [{"role": "user", "content": "Use get_time and get_weather in Rome."}]
    with client.chat.completions.stream(
        model="default", messages=messages, tools=[WEATHER, CLOCK]
    ) as events:
        final = events.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    return [[each.function.name, each.function.arguments] for each in calls]


def chosen(choice: Any, text: str = "Hello", **more: Any) -> Any:
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": text}],
        tools=[WEATHER, CLOCK],
        tool_choice=choice,
        **more,
    )
    message = answer.choices[0].message
    return [message.content, [each.function.name for each in message.tool_calls or []]]


@scenario
def tool_choices() -> Any:
    named = {"type": "function", "function": {"name": "get_time"}}
    both = "Use get_time and get_weather in Rome."
    return {
        "none": chosen("none", both),
        "required": chosen("required"),
        "named": chosen(named, both),
        "not parallel": chosen("auto", both, parallel_tool_calls=False),
    }


@scenario
def tools_on_every_model() -> Any:
    found = {}
    for model in client.models.list():
        answer = client.chat.completions.create(model=model.id, messages=QUESTION, tools=[WEATHER])
        (call,) = answer.choices[0].message.tool_calls or []
        found[model.id] = [answer.model, call.function.name]
    return found


@scenario
def ignored_fields() -> Any:
    raw = client.chat.completions.with_raw_response.create(
        model="default", messages=HELLO, temperature=0.5, seed=1, extra_body={"top_k": 3}
    )
    return raw.headers.get("x-ignored-params")


@scenario
def more_fields() -> Any:
    said = [{"role": "user", "content": "Say exactly: one two three four"}]
    settings: Any = {"stop": ["three"], "n": 2, "temperature": 0.5, "seed": 1, "user": "ada"}
    answer = client.chat.completions.create(model="default", messages=said, **settings)
    with client.chat.completions.stream(model="default", messages=said, **settings) as events:
        streamed = events.get_final_completion()
    return {
        how: [[each.index, each.message.content, each.finish_reason] for each in done.choices]
        for how, done in {"whole": answer, "streamed": streamed}.items()
    }


@scenario
def cut_by_the_model() -> Any:
    answer = client.chat.completions.create(model="default", messages=please("fail: token limit"))
    return [answer.choices[0].message.content, answer.choices[0].finish_reason]


@scenario
def legacy_completion() -> Any:
    return client.completions.create(model="default", prompt="Hello").choices[0].text


@scenario
def image() -> Any:
    url = (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9Q"
        "DwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    parts: Any = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
    ]
    answer = client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": parts}]
    )
    return answer.choices[0].message.content


@scenario
def models() -> Any:
    names = [each.id for each in client.models.list()]
    return {"names": names, "one": client.models.retrieve(names[-1]).id}


def refusal(messages: Any = HELLO, model: str = "default", key: str = API_KEY, **more: Any) -> Any:
    """Ask, and return what the client raises; its class is none where it does not."""
    with openai.OpenAI(base_url=BASE_URL, api_key=key, max_retries=0) as asking:
        try:
            answer = asking.chat.completions.create(model=model, messages=messages, **more)
        except openai.APIStatusError as error:
            return {
                "class": type(error).__name__,
                "status": error.status_code,
                "code": error.code,
                "param": error.param,
                "type": error.type,
                "id": error.request_id,
                "retry_after": error.response.headers.get("retry-after"),
                "message": error.message,
            }
    return {"class": None, "status": 200, "code": None, "param": answer.model_dump()}


@scenario
def errors() -> Any:
    return {
        "no such key": refusal(key="sk-nobody"),
        "model not allowed": refusal(model="gpt-6-luna", key=NARROW_KEY),
        "no such model": refusal(model="gpt-2"),
        "no messages": refusal(messages=[]),
        "wrong type": refusal(temperature="hot"),
        "logprobs": refusal(logprobs=True),
        "context length": refusal(please("fail: context length")),
        "rate limit": refusal(please("fail: rate limit")),
        "usage limit": refusal(please("fail: usage limit")),
        "server login": refusal(please("fail: server login")),
        "bad gateway": refusal(please("fail: bad gateway")),
    }


@scenario
def cut_stream_raises() -> Any:
    got = []
    try:
        with client.chat.completions.create(
            model="default", messages=please("fail: cut"), stream=True
        ) as chunks:
            got.extend(chunk.choices[0].delta.content for chunk in chunks)
    except openai.APIError as error:
        return {"got": got, "class": type(error).__name__, "code": error.code}
    raise AssertionError(f"it ended as if it were whole: {got}")


class Wire:
    """What goes over the wire, seen from inside a client that retries twice."""

    def __init__(self, key: str = API_KEY, on_429: Callable[[], None] = lambda: None) -> None:
        self.counts: list[str | None] = []
        self.statuses: list[int] = []
        self.retry_after: list[str | None] = []
        self._on_429 = on_429
        hooks = {"request": [self._sent], "response": [self._got]}
        http = openai.DefaultHttpxClient(event_hooks=hooks)
        self.client = openai.OpenAI(base_url=BASE_URL, api_key=key, max_retries=2, http_client=http)

    def _sent(self, request: Any) -> None:
        self.counts.append(request.headers.get("x-stainless-retry-count"))

    def _got(self, response: Any) -> None:
        self.statuses.append(response.status_code)
        self.retry_after.append(response.headers.get("retry-after"))
        if response.status_code == 429:
            self._on_429()

    def ask(self, messages: Any) -> Any:
        before = time.monotonic()
        with self.client as client:
            answer = client.chat.completions.create(model="default", messages=messages)
        return {
            "counts": self.counts,
            "statuses": self.statuses,
            "retry_after": self.retry_after,
            "text": answer.choices[0].message.content,
            "took_s": time.monotonic() - before,
        }


@scenario
def retry_after_a_failure() -> Any:
    return Wire().ask(please("fail once: bad gateway"))


@scenario
def retry_after_429() -> Any:
    """A key with room for one request: the second is told to come back, and does, unasked."""
    with (
        openai.OpenAI(base_url=BASE_URL, api_key=SINGLE_KEY, max_retries=0) as other,
        other.chat.completions.create(
            model="default", messages=please("speak slowly"), stream=True
        ) as running,
    ):
        next(iter(running))
        return Wire(SINGLE_KEY, on_429=running.close).ask(HELLO)


@scenario
def retry_of_what_still_runs() -> Any:
    """The client loses patience and asks again by itself: the model must not be asked twice."""
    with openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=2, timeout=2) as hasty:
        answer = hasty.chat.completions.create(
            model="default", messages=[{"role": "user", "content": "You may be late"}]
        )
    return answer.choices[0].message.content


main()
