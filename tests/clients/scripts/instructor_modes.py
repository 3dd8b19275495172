"""instructor: typed answers in its modes, one that is asked again, and one in parts."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

import instructor
import openai
from instructor.core.exceptions import InstructorRetryException
from pydantic import BaseModel, Field, field_validator
from scenarios import API_KEY, BASE_URL, main, scenario

PERSON: Any = [{"role": "user", "content": "A person called 'Ada' is 36 years old."}]


class Person(BaseModel):
    name: str
    age: int


class Picky(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def never(cls, _: str) -> str:
        raise ValueError("the name must be another one")


class Report(BaseModel):
    """What strict schemas cannot say as it is: maps, bounds, formats, defaults."""

    title: str = Field(min_length=2, max_length=40)
    level: int = Field(ge=10, le=20)
    scores: dict[str, int]
    day: date
    kind: Literal["long", "short"] = "long"
    note: str | None = None
    parts: list[Person] = Field(default_factory=list, max_length=2)


def typed(mode: instructor.Mode) -> Any:
    client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)
    return instructor.from_openai(client, mode=mode)


def person(mode: instructor.Mode) -> Any:
    found = typed(mode).chat.completions.create(
        model="default", messages=PERSON, response_model=Person, max_retries=0
    )
    return found.model_dump()


@scenario
def tools() -> Any:
    return person(instructor.Mode.TOOLS)


@scenario
def json_mode() -> Any:
    return person(instructor.Mode.JSON)


@scenario
def json_schema() -> Any:
    return person(instructor.Mode.JSON_SCHEMA)


@scenario
def markdown_json() -> Any:
    return person(instructor.Mode.MD_JSON)


def report(mode: instructor.Mode) -> Any:
    found = typed(mode).chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "A short report called 'Ada', level 12."}],
        response_model=Report,
        max_retries=0,
    )
    return found.model_dump(mode="json")


@scenario
def rich_tools() -> Any:
    return report(instructor.Mode.TOOLS)


@scenario
def rich_json_schema() -> Any:
    return report(instructor.Mode.JSON_SCHEMA)


@scenario
def partial() -> Any:
    parts = typed(instructor.Mode.TOOLS).chat.completions.create_partial(
        model="default", messages=PERSON, response_model=Person, max_retries=0
    )
    return [part.model_dump() for part in parts][-1]


@scenario
def asked_again() -> Any:
    """A refused value goes back with the failed call in the history; that must be accepted."""
    try:
        typed(instructor.Mode.TOOLS).chat.completions.create(
            model="default", messages=PERSON, response_model=Picky, max_retries=2
        )
    except InstructorRetryException as error:
        return {"attempts": error.n_attempts, "why": str(error)}
    raise AssertionError("it was accepted")


main()
