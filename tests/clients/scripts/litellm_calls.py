"""litellm, which rewrites what it gets and sorts errors by status and text."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the internet when imported

import litellm
from scenarios import API_KEY, BASE_URL, main, scenario

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def completion(messages: Any = HELLO, model: str = "default", **more: Any) -> Any:
    settings = {"api_base": BASE_URL, "api_key": API_KEY, "max_retries": 0, **more}
    return litellm.completion(model=f"openai/{model}", messages=messages, **settings)


@scenario
def plain() -> Any:
    answer = completion(max_tokens=500)
    return {"text": answer.choices[0].message.content, "total": answer.usage.total_tokens}


@scenario
async def plain_async() -> Any:
    answer = await litellm.acompletion(
        model="openai/default", messages=HELLO, api_base=BASE_URL, api_key=API_KEY
    )
    return answer.choices[0].message.content


@scenario
def streamed() -> Any:
    chunks = list(completion(stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(chunks, messages=HELLO)
    return {
        "deltas": [chunk.choices[0].delta.content for chunk in chunks if chunk.choices],
        "text": whole.choices[0].message.content,
        "finish": whole.choices[0].finish_reason,
        "total": whole.usage.total_tokens,
    }


@scenario
def tools() -> Any:
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    message = completion(question, tools=[WEATHER]).choices[0].message
    (call,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": "20 C"}
    second = completion([*question, message, result], tools=[WEATHER])
    return {
        "arguments": json.loads(call.function.arguments),
        "text": second.choices[0].message.content,
    }


@scenario
def tools_streamed() -> Any:
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    whole = litellm.stream_chunk_builder(list(completion(question, tools=[WEATHER], stream=True)))
    (call,) = whole.choices[0].message.tool_calls
    return [call.function.name, json.loads(call.function.arguments)]


@scenario
def reasoning() -> Any:
    question = [{"role": "user", "content": "Think, then greet."}]
    return completion(question, model="gpt-5.5").choices[0].message.reasoning_content


def raised(text: str = "", **more: Any) -> Any:
    messages = [{"role": "user", "content": f"Please fail: {text}"}] if text else HELLO
    try:
        completion(messages, **more)
    except Exception as error:  # noqa: BLE001 - which one is the question
        return [type(error).__name__, getattr(error, "status_code", None)]
    return ["answered", 200]


@scenario
def errors() -> Any:
    return {
        "no such key": raised(api_key="sk-nobody"),
        "no such model": raised(model="gpt-2"),
        "context length": raised("context length"),
        "rate limit": raised("rate limit"),
        "server login": raised("server login"),
        "bad gateway": raised("bad gateway"),
        "bad temperature": raised(temperature=7),
    }


@scenario
def cut_stream_raises() -> Any:
    got = []
    try:
        chunks = completion([{"role": "user", "content": "Please fail: cut"}], stream=True)
        got.extend(chunk.choices[0].delta.content for chunk in chunks)
    except Exception as error:  # noqa: BLE001 - which one is the question
        return [type(error).__name__, "".join(each or "" for each in got)]
    raise AssertionError(f"it ended as if it were whole: {got}")


main()
