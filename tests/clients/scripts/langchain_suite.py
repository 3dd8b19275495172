"""LangChain's published standard tests for chat models, run as they are against the server.

Not a file of this project's own suite: `test_langchain.py` runs it in the client's environment.
What is switched off here is off for a reason that is given with it; the rest must pass.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests, chat_models

# One pixel, for the picture that the tests would fetch from the internet.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)


class _Fetched:
    content = PICTURE


class TestStandard(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give the tests their picture without the internet."""
        get: Callable[..., Any] = lambda *_, **__: _Fetched()  # noqa: E731
        monkeypatch.setattr(chat_models.httpx, "get", get)

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "default",
            "base_url": os.environ["BASE_URL"],
            "api_key": os.environ["API_KEY"],
            "max_retries": 0,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "gpt-5.5"

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        details = ["reasoning_output", "cache_read_input"]
        return {"invoke": details, "stream": details}

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> Any:
        return self._answer("Think, then greet.", stream=stream)

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> Any:
        return self._answer("Hello", stream=stream)

    def _answer(self, text: str, *, stream: bool) -> Any:
        model = ChatOpenAI(**self.chat_model_params)
        if not stream:
            return model.invoke(text)
        whole: Any = None
        for chunk in model.stream(text):
            whole = chunk if whole is None else whole + chunk
        return whole

    # Off by the suite's own defaults, each skipped with the suite's message:
    # - supports_image_tool_message: in chat completions a tool's content is text, at OpenAI too.
    # - supports_image_urls: the model's own side would have to fetch it, and Codex refuses URLs.
    # - PDF and audio (as input, or from a tool): Codex passes neither to a model.
    # - enable_vcr_tests: for recordings of a service on the internet.


class TestByFunctionCalling(TestStandard):
    """The tests of structured output once more, by a forced tool instead of a response format."""

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "function_calling"}
