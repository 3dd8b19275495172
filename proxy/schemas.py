"""What OpenAI's clients send and expect, field by field, as pydantic models.

Strict: a numeric string is no number. Unknown fields are accepted, as clients send many; null is
absent. What would change the answer and cannot be honoured yet is refused by `completions`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _must_be_text(value: object) -> object:
    """Say that a type is wrong before its value is found to be none of the choices."""
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    return value


ChoiceOfText = BeforeValidator(_must_be_text)


class _Lenient(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class ContentPart(_Lenient):
    type: str
    text: str | None = None


class ChatMessage(_Lenient):
    role: Annotated[
        Literal["system", "developer", "user", "assistant", "tool", "function"], ChoiceOfText
    ]
    content: str | list[ContentPart] | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class StreamOptions(_Lenient):
    include_usage: bool | None = None


class ChatCompletionRequest(_Lenient):
    """The body of POST /v1/chat/completions."""

    model: str = Field(description="A model of GET /v1/models, or `default`.")
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, Any] | None = Field(
        None,
        description='`cwd`: a folder or a root\'s alias to work in. `agent`: "true" asks for agent mode.',
    )
    reasoning_effort: (
        Annotated[
            Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"],
            ChoiceOfText,
        ]
        | None
    ) = None


class PromptTokensDetails(BaseModel):
    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    annotations: list[Any] = []


class Choice(BaseModel):
    index: int = 0
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length", "content_filter"]


class ChatCompletion(BaseModel):
    """The answer of POST /v1/chat/completions without `stream`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    service_tier: str = "default"
    system_fingerprint: str | None = None
    choices: list[Choice]
    usage: CompletionUsage | None


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """Every answer of the API that is not a success."""

    error: ErrorBody
