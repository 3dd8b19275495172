"""What a request asks for: its fields, checked and in our own terms. No policy, no I/O.

Three kinds of fields, told apart by one question: would the caller's program misread the answer if
this were lost? If not, it is a hint: checked, ignored, and named in `x-ignored-params`. If so, it is
carried out or refused with 400, never dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from proxy.engines.base import Image, Message, Model, Part, Text, ToolCall
from proxy.errors import InvalidRequest, UnsupportedParameter
from proxy.images import check_data_url
from proxy.schemas import (
    HINTS,
    CalledFunction,
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    ContentPart,
)
from proxy.structured import OutputFormat, output_format
from proxy.tools import ToolPlan, read_tools

MAX_STOPS = 4
MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
REFUSED_PARTS = {"input_audio": "audio", "file": "files"}


@dataclass(frozen=True, slots=True)
class Wish:
    """What `metadata` asks of the policy; None leaves it to the key."""

    cwd: str | None
    agent: bool | None
    show_actions: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, understood. `is_verbatim`: the format needs no mapping of the model's text."""

    model: str
    messages: tuple[Message, ...]
    wish: Wish
    tools: ToolPlan
    format: OutputFormat | None
    format_kind: str
    is_verbatim: bool
    choices: int
    stops: tuple[str, ...]
    max_tokens: int | None
    effort: str | None
    verbosity: str | None
    service_tier: str | None
    is_stream: bool
    wants_usage: bool
    ignored: tuple[str, ...]

    @property
    def has_images(self) -> bool:
        return any(isinstance(part, Image) for message in self.messages for part in message.parts)

    @property
    def only_app_server(self) -> str:
        """The field that `codex exec` cannot carry out; empty where it can carry out all."""
        if self.tools.declared and self.tools.mode == "auto":
            return "tools"
        if any(message.tool_calls or message.role == "tool" for message in self.messages):
            return "messages"
        started = False
        for message in self.messages:
            is_instruction = message.role in ("system", "developer")
            if is_instruction and started:
                return "messages"
            started = started or not is_instruction
        return ""

    def summary(self) -> dict[str, Any]:
        """What the audit row keeps of it: names and numbers, no text of the caller's."""
        found = {
            "messages": len(self.messages),
            "tools": len(self.tools.declared) or len(self.tools.forced_names),
            "tool_choice": self.tools.mode if self.tools.mode != "none" else "",
            "response_format": self.format_kind,
            "n": self.choices if self.choices > 1 else 0,
            "stop": len(self.stops),
            "max_tokens": self.max_tokens,
            "images": sum(
                isinstance(part, Image) for message in self.messages for part in message.parts
            ),
            "effort": self.effort,
            "verbosity": self.verbosity,
            "service_tier": self.service_tier,
            "show_actions": self.wish.show_actions,
        }
        return {name: value for name, value in found.items() if value}


def understand(request: ChatCompletionRequest, *, max_choices: int) -> Asked:
    """Return what is asked. Raises `InvalidRequest` or `UnsupportedParameter` naming the field.

    Images are decoded to check them, which takes time: with images, call this in a thread.
    """
    _refuse_what_cannot_be(request)
    plan = read_tools(
        request.tools,
        request.tool_choice,
        request.parallel_tool_calls,
        request.functions,
        request.function_call,
    )
    if request.n is not None and request.n > max_choices:
        raise InvalidRequest(
            f"Invalid 'n': integer above maximum value. Expected at most {max_choices}.",
            param="n",
            code="integer_above_max_value",
        )
    options = request.stream_options
    form, kind, is_verbatim = _format(request.response_format)
    return Asked(
        model=request.model,
        messages=conversation_of(request.messages, plan),
        wish=wish_of(request.metadata),
        tools=plan,
        format=form,
        format_kind=kind,
        is_verbatim=is_verbatim,
        choices=request.n or 1,
        stops=_stops(request.stop),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        effort=request.reasoning_effort,
        verbosity=request.verbosity,
        service_tier=request.service_tier,
        is_stream=bool(request.stream),
        wants_usage=bool(options and options.include_usage),
        ignored=_ignored(request),
    )


def _format(wanted: dict[str, Any] | None) -> tuple[OutputFormat | None, str, bool]:
    """Return the format of the answer, its kind, and whether the model's own text is the answer.

    That is so where the caller's schema has the strict form already; else the text is mapped back.
    """
    form = output_format(wanted)
    if form is None or wanted is None:
        return None, "", False
    given = wanted.get("json_schema")
    schema = given.get("schema") if isinstance(given, dict) else None
    is_verbatim = form.schema_for_codex is not None and form.schema_for_codex == schema
    return form, str(wanted["type"]), is_verbatim


def _refuse_what_cannot_be(request: ChatCompletionRequest) -> None:
    for name in ("logprobs", "top_logprobs"):
        if getattr(request, name):
            raise UnsupportedParameter(
                f"Log probabilities are not available: '{name}'.", param=name
            )
    if request.audio is not None:
        raise UnsupportedParameter("Audio is not available: 'audio'.", param="audio")
    if request.web_search_options is not None:
        raise UnsupportedParameter(
            "Web search is not available: 'web_search_options'.", param="web_search_options"
        )
    if request.modalities not in (None, ["text"]):
        raise UnsupportedParameter(
            "Invalid 'modalities': only ['text'] is available.",
            param="modalities",
            code="unsupported_value",
        )
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )


def _ignored(request: ChatCompletionRequest) -> tuple[str, ...]:
    """Return the fields that are set and not carried out, unknown ones included."""
    hints = [name for name in HINTS if getattr(request, name) is not None]
    unknown = [name for name, value in (request.model_extra or {}).items() if value is not None]
    return (*hints, *sorted(unknown))


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(
            f"Invalid 'stop': array too long. Expected at most {MAX_STOPS} texts.",
            param="stop",
            code="array_above_max_length",
        )
    if not all(stops):
        raise InvalidRequest("Invalid 'stop': a stop text is empty.", param="stop")
    return tuple(stops)


def wish_of(metadata: dict[str, Any] | None) -> Wish:
    """Return the parts of `metadata` that mean something here. Raises `InvalidRequest`."""
    metadata = metadata or {}
    _check_size(metadata)
    cwd = metadata.get("cwd")
    if cwd is not None and not isinstance(cwd, str):
        raise InvalidRequest(
            "Invalid type for 'metadata.cwd': expected a string.",
            param="metadata.cwd",
            code="invalid_type",
        )
    return Wish(cwd, _flag(metadata, "agent"), bool(_flag(metadata, "show_actions")))


def _flag(metadata: dict[str, Any], name: str) -> bool | None:
    """Return a yes or no, which metadata says in words; None where it does not say."""
    value = metadata.get(name)
    if value is None:
        return None
    if str(value).lower() not in ("true", "false"):
        raise InvalidRequest(
            f'Invalid value for \'metadata.{name}\': expected "true" or "false".',
            param=f"metadata.{name}",
        )
    return str(value).lower() == "true"


def _check_size(metadata: dict[str, Any]) -> None:
    if len(metadata) > MAX_METADATA:
        raise InvalidRequest(
            f"Invalid 'metadata': too many pairs. Expected at most {MAX_METADATA}.",
            param="metadata",
            code="object_above_max_properties",
        )
    for key, value in metadata.items():
        too_long = len(key) > MAX_METADATA_KEY or (
            isinstance(value, str) and key != "cwd" and len(value) > MAX_METADATA_VALUE
        )
        if too_long:
            raise InvalidRequest(
                f"Invalid 'metadata': keys have at most {MAX_METADATA_KEY} characters, values "
                f"{MAX_METADATA_VALUE}.",
                param="metadata",
                code="string_above_max_length",
            )


# --- The conversation -------------------------------------------------------------------------


def conversation_of(messages: list[ChatMessage], plan: ToolPlan) -> tuple[Message, ...]:
    """Return the messages with their roles. Raises `InvalidRequest` naming the part at fault.

    Ids of tool calls are the client's own and are never looked up; an answer to a call must follow
    the message that made it. Legacy function messages become tool messages with ids of ours.
    """
    reader = _HistoryReader(plan)
    return tuple(
        reader.read(message, f"messages[{index}]") for index, message in enumerate(messages)
    )


class _HistoryReader:
    """Reads messages in order, remembering which calls were made."""

    def __init__(self, plan: ToolPlan) -> None:
        self._plan = plan
        self._called: set[str] = set()
        self._legacy: list[tuple[str, str]] = []

    def read(self, message: ChatMessage, where: str) -> Message:
        match message.role:
            case "assistant":
                return self._assistant(message, where)
            case "tool":
                return self._tool(message, where)
            case "function":
                return self._function(message, where)
            case role:
                if message.content is None:
                    raise _must_have_content(where)
                return Message(role, _content(message, where, images=role == "user"))

    def _assistant(self, message: ChatMessage, where: str) -> Message:
        calls = [
            self._call(call.id, call.function, f"{where}.tool_calls[{index}]")
            for index, call in enumerate(message.tool_calls or [])
        ]
        if message.function_call is not None:
            made = f"call_legacy_{len(self._legacy)}"
            self._legacy.append((message.function_call.name, made))
            calls.append(self._call(made, message.function_call, f"{where}.function_call"))
        has_content = bool(message.content) or (message.content == [] and not calls)
        content = _content(message, where, images=False) if has_content else ""
        if not content and not calls:
            content = message.refusal or ""
            if message.content is None and message.refusal is None:
                raise _must_have_content(where)
        return Message("assistant", content, tuple(calls))

    def _call(self, call_id: str, function: CalledFunction | None, where: str) -> ToolCall:
        if function is None:
            raise UnsupportedParameter(f"Only function calls are supported: {where}.", param=where)
        self._called.add(call_id)
        return ToolCall(call_id, self._plan.name_for_codex(function.name), function.arguments)

    def _tool(self, message: ChatMessage, where: str) -> Message:
        if message.tool_call_id is None:
            raise InvalidRequest(
                f"Missing required parameter: '{where}.tool_call_id'.",
                param=f"{where}.tool_call_id",
                code="missing_required_parameter",
            )
        if message.tool_call_id not in self._called:
            raise InvalidRequest(
                "Invalid parameter: messages with role 'tool' must be a response to a preceeding "
                "message with 'tool_calls'.",
                param=f"{where}.tool_call_id",
            )
        if message.content is None:
            raise _must_have_content(where)
        content = _content(message, where, images=False)
        return Message("tool", content, tool_call_id=message.tool_call_id)

    def _function(self, message: ChatMessage, where: str) -> Message:
        made = [call_id for name, call_id in self._legacy if name == message.name]
        if not made:
            raise InvalidRequest(
                "Invalid parameter: messages with role 'function' must be a response to a "
                "preceeding message with 'function_call'.",
                param=f"{where}.name",
            )
        content = _content(message, where, images=False) if message.content else ""
        return Message("tool", content, tool_call_id=made[-1])


def _must_have_content(where: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for '{where}.content': expected a string or an array of parts, got null.",
        param=f"{where}.content",
        code="invalid_type",
    )


def _content(message: ChatMessage, where: str, *, images: bool) -> str | tuple[Part, ...]:
    if not isinstance(message.content, list):
        return message.content or ""
    if not message.content:
        raise InvalidRequest(
            f"Invalid '{where}.content': empty array.", param=f"{where}.content", code="empty_array"
        )
    return tuple(
        _part(part, f"{where}.content[{index}]", message.role, images=images)
        for index, part in enumerate(message.content)
    )


def _part(part: ContentPart, where: str, role: str, *, images: bool) -> Part:
    if part.type == "text":
        return Text(_present(part.text, f"{where}.text"))
    if part.type == "refusal" and role == "assistant":
        return Text(_present(part.refusal, f"{where}.refusal"))
    if part.type == "image_url" and images:
        found = _present(part.image_url, f"{where}.image_url")
        return Image(check_data_url(found.url, found.detail, where))
    what = REFUSED_PARTS.get(part.type, f"content parts of type '{part.type}'")
    raise UnsupportedParameter(f"Not supported here: {what} ({where}).", param=where)


def _present(value: Any, where: str) -> Any:  # noqa: ANN401 - the same value, not None
    if value is None:
        raise InvalidRequest(
            f"Missing required parameter: '{where}'.",
            param=where,
            code="missing_required_parameter",
        )
    return value


# --- Against the model's own entry ------------------------------------------------------------


def check_effort(asked: Asked, model: Model | None) -> None:
    """Refuse an effort that the model does not offer; outside the catalogue, one that none knows."""
    offered = model.efforts if model is not None else EFFORTS
    if asked.effort is None or asked.effort in offered:
        return
    listed = ", ".join(f"'{effort}'" for effort in offered)
    raise InvalidRequest(
        f"Unsupported value: 'reasoning_effort' does not support '{asked.effort}' with this model. "
        f"Supported values are: {listed}.",
        param="reasoning_effort",
        code="unsupported_value" if asked.effort in EFFORTS else "invalid_value",
    )


def check_images(asked: Asked, model: Model | None) -> None:
    """Refuse images for a model that takes none: Codex would leave them out without a word."""
    if asked.has_images and model is not None and not model.takes_images:
        raise UnsupportedParameter(
            f"Unsupported value: 'messages' has images, and the model `{model.id}` takes none.",
            param="messages",
            code="unsupported_value",
        )


def tier_to_send(asked: Asked, model: Model | None) -> str | None:
    """Return the service tier that Codex will really pass on for this model; None is the default."""
    wanted = "priority" if asked.service_tier == "fast" else asked.service_tier
    if wanted == "flex" or (model is not None and wanted in model.service_tiers):
        return wanted
    return None


# --- The legacy endpoint ----------------------------------------------------------------------


def as_chat(request: CompletionRequest) -> ChatCompletionRequest:
    """Return a legacy completion as a chat with one message. Raises `InvalidRequest`."""
    prompt = request.prompt if isinstance(request.prompt, str) else None
    if prompt is None and len(request.prompt) == 1:
        prompt = request.prompt[0]
    if prompt is None:
        raise UnsupportedParameter("Only one prompt a request is supported.", param="prompt")
    for name, neutral in {"suffix": "", "echo": False, "logprobs": 0}.items():
        if getattr(request, name) not in (None, neutral):
            raise UnsupportedParameter(f"Unsupported parameter: '{name}'.", param=name)
    if request.best_of not in (None, request.n or 1):
        raise UnsupportedParameter("Unsupported parameter: 'best_of'.", param="best_of")
    for name in request.model_extra or {}:
        if name in ChatCompletionRequest.model_fields and name not in HINTS:
            raise UnsupportedParameter(
                f"Unsupported parameter: '{name}' is one of chat completions only.", param=name
            )
    own = ("prompt", "suffix", "echo", "best_of", "logprobs")
    shared = {name: value for name, value in request if name not in own}
    # Constructed and not validated: it has been, but for hints, which are only named.
    return ChatCompletionRequest.model_construct(
        messages=[ChatMessage(role="user", content=prompt)], **shared
    )
