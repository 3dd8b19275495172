"""From a turn's events to one choice of an answer, whole and in deltas of OpenAI's words. Pure."""

from __future__ import annotations

from typing import Any

from proxy.asked import Asked
from proxy.engines.base import (
    AnswerRestarted,
    Completed,
    Event,
    Failed,
    MessageDone,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCalled,
    Usage,
)
from proxy.errors import AnswerIncomplete
from proxy.stops import StopCutter
from proxy.tools import check_arguments

NO_TEXT = "The model gave no text: it refused, or its answer was withheld."

Delta = dict[str, Any]


class Answer:
    """One choice: takes events, gives deltas, and knows in the end what the message is.

    `is_over` once nothing more will come: the turn ended, a stop text was met, or the limit of
    tokens was. The limit counts the model's deltas, each of which is at least one token, so an
    answer is never cut below it.
    """

    def __init__(self, asked: Asked, *, is_checked: bool, shows_reasoning: bool) -> None:
        self._asked, self._is_checked, self._shows_reasoning = asked, is_checked, shows_reasoning
        self._cutter = StopCutter(asked.stops)
        self._deltas = 0
        self._settled = self._settled_reasoning = self._settled_deltas = 0
        self._is_repeating = False
        self.text = ""
        self.reasoning = ""
        self.refusal: str | None = None
        self.calls: list[ToolCall] = []
        self.finish_reason = ""

    @property
    def is_over(self) -> bool:
        return bool(self.finish_reason)

    def take(self, event: Event) -> list[Delta]:
        """Take one event and return what it adds. Raises the error of a failed turn.

        An answer that the provider cut short is an answer, even where it was cut before its text;
        one that ends well without any text is a refusal.
        """
        if self.is_over:
            return []
        match event:
            case TextDelta() if self._asked.tools.mode == "forced":
                return []  # a demanded call cut short: its text is our own form, not an answer
            case TextDelta(text):
                return self._take_text(text)
            case ReasoningDelta(text) if self._shows_reasoning and not self._is_repeating:
                self.reasoning += text
                return [{"reasoning_content": text}]
            case ToolCalled(call):
                return self._take_call(call)
            case MessageDone(is_commentary=False):
                self._settled, self._settled_reasoning = len(self.text), len(self.reasoning)
                self._settled_deltas = self._deltas
                self._is_repeating = False
            case AnswerRestarted():
                self._restart()
            case Failed(AnswerIncomplete() as incomplete):
                return self._end(incomplete.finish_reason)
            case Failed(error):
                raise error
            case Completed():
                return self._complete()
        return []

    @property
    def is_mid_message(self) -> bool:
        """Whether a restart would take text back."""
        return len(self.text) > self._settled

    def _restart(self) -> None:
        self.text, self._deltas = self.text[: self._settled], self._settled_deltas
        self._cutter = StopCutter(self._asked.stops)
        if not self._asked.is_stream:
            self.reasoning = self.reasoning[: self._settled_reasoning]
        elif len(self.reasoning) > self._settled_reasoning:
            self._is_repeating = True  # what the client has read of it cannot be taken back

    def _take_text(self, text: str) -> list[Delta]:
        self._deltas += 1
        limit = self._asked.max_tokens
        if limit is not None and self._deltas > limit:
            return self._end("length")
        passed = self._cutter.feed(text)
        self.text += passed
        deltas: list[Delta] = [{"content": passed}] if passed else []
        if self._cutter.has_stopped:
            self.finish_reason = "stop"
        return deltas

    def _take_call(self, call: ToolCall) -> list[Delta]:
        if self.calls and not self._asked.tools.allows_many:
            return []
        check_arguments(call)
        self._asked.tools.check_offered(call)
        name = self._asked.tools.name_for_client(call.name)
        self.calls.append(ToolCall(call.id, name, call.arguments))
        if self._asked.tools.is_legacy:
            return [{"function_call": {"name": name, "arguments": call.arguments}}]
        index = len(self.calls) - 1
        function = {"name": name, "arguments": ""}
        return [
            {
                "tool_calls": [
                    {"index": index, "id": call.id, "type": "function", "function": function}
                ]
            },
            {"tool_calls": [{"index": index, "function": {"arguments": call.arguments}}]},
        ]

    def _complete(self) -> list[Delta]:
        if self.calls:
            return self._end("function_call" if self._asked.tools.is_legacy else "tool_calls")
        deltas = self._end("stop")
        if not self.text:
            self.finish_reason, self.refusal = "content_filter", NO_TEXT
            return [{"refusal": NO_TEXT}]
        if self._asked.format is not None and not self._is_checked:
            self._asked.format.read(self.text)
        return deltas

    def _end(self, reason: str) -> list[Delta]:
        self.finish_reason = reason
        rest = self._cutter.flush()
        self.text += rest
        return [{"content": rest}] if rest else []

    def message(self) -> dict[str, Any]:
        """Return the whole message."""
        has_other = self.calls or self.refusal
        message: dict[str, Any] = {
            "role": "assistant",
            # A stop text may leave no text, which is an answer all the same.
            "content": None if has_other and not self.text else self.text,
            "refusal": self.refusal,
            "annotations": [],
        }
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls and self._asked.tools.is_legacy:
            (call,) = self.calls[:1]
            message["function_call"] = {"name": call.name, "arguments": call.arguments}
        elif self.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.calls
            ]
        return message


def total_usage(usages: list[Usage | None]) -> Usage | None:
    """Return the sum; None where one is unknown: a part passed off as the whole would mislead."""
    known = [usage for usage in usages if usage is not None]
    if len(known) < len(usages) or not known:
        return None
    return Usage(
        input_tokens=sum(usage.input_tokens for usage in known),
        cached_input_tokens=sum(usage.cached_input_tokens for usage in known),
        output_tokens=sum(usage.output_tokens for usage in known),
        reasoning_output_tokens=sum(usage.reasoning_output_tokens for usage in known),
    )


def usage_body(usage: Usage | None) -> dict[str, Any] | None:
    """Return usage in OpenAI's words; None where the provider did not say."""
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_output_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
