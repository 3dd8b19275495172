"""pydantic-ai: agents with a tool, with an output type in each of its modes, streamed."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from scenarios import API_KEY, BASE_URL, main, scenario

QUESTION = "A person called 'Ada' is 36 years old. What is the weather like?"


class Person(BaseModel):
    name: str
    age: int


def model(name: str = "default") -> OpenAIChatModel:
    return OpenAIChatModel(name, provider=OpenAIProvider(base_url=BASE_URL, api_key=API_KEY))


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"sunny in {city}"


@scenario
async def text() -> Any:
    done = await Agent(model(), instructions="Be brief.").run("Hello")
    return {"text": done.output, "input_tokens": done.usage.input_tokens}


@scenario
async def text_streamed() -> Any:
    async with Agent(model()).run_stream("Hello") as running:
        return [delta async for delta in running.stream_text(delta=True, debounce_by=None)]


@scenario
async def tool_round_trip() -> Any:
    done = await Agent(model(), tools=[get_weather]).run("What is the weather in Paris?")
    return {"text": done.output, "requests": done.usage.requests, "calls": done.usage.tool_calls}


async def person(output: Any, **more: Any) -> Any:
    done = await Agent(model(), output_type=output, **more).run(QUESTION)
    return {**done.output.model_dump(), "requests": done.usage.requests}


@scenario
async def output_by_tool() -> Any:
    return await person(ToolOutput(Person))


@scenario
async def output_native() -> Any:
    return await person(NativeOutput(Person))


@scenario
async def output_prompted() -> Any:
    return await person(PromptedOutput(Person))


@scenario
async def output_and_tool() -> Any:
    """The model must call a tool each time: first the one that helps, then the one that answers."""
    return await person(Person, tools=[get_weather])


@scenario
async def unknown_model() -> Any:
    try:
        await Agent(model("gpt-2")).run("Hello")
    except ModelHTTPError as error:
        return {"status": error.status_code, "body": error.body}
    raise AssertionError("it was answered")


main()
