"""The `llm` command line, told of the server as its manual says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import Bench

GREETING = "Hello from the plausible model."
MODELS = """
- model_id: site
  model_name: default
  api_base: {url}/v1
  api_key_name: site
  supports_tools: true
  supports_schema: true
  vision: true
"""
TOOL = '''
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"sunny in {city}"
'''


class CommandLine:
    """The command, with a folder of its own that knows the server."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench, self._folder = bench, folder
        (folder / "extra-openai-models.yaml").write_text(MODELS.format(url=bench.site.url))
        (folder / "keys.json").write_text(json.dumps({"site": bench.secret("plain")}))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._bench.python(
            "current", "-m", "llm", *arguments, LLM_USER_PATH=str(self._folder)
        )

    def say(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def llm(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return CommandLine(bench, tmp_path_factory.mktemp("llm"))


@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
def test_prompt_is_answered(llm: CommandLine, how: str) -> None:
    streaming = [] if how == "--stream" else [how]
    assert llm.say("-m", "site", *streaming, "-s", "Be brief.", "Hello") == f"{GREETING}\n"


def test_usage_is_kept_and_the_conversation_goes_on(llm: CommandLine) -> None:
    llm.say("-m", "site", "Hello")
    assert llm.say("-c", "Say exactly: again").strip() == "again"
    usage = json.loads(llm.say("logs", "--json", "-n", "1"))[0]
    assert (usage["input_tokens"], usage["output_tokens"]) == (111, 77)


def test_schema_is_kept(llm: CommandLine) -> None:
    said = llm.say("-m", "site", "--schema", "name, age int", "A person 'Ada' is 36 years old.")
    assert json.loads(said) == {"name": "Ada", "age": 36}


def test_tool_is_run_and_its_result_answered(llm: CommandLine) -> None:
    said = llm.say("-m", "site", "--functions", TOOL, "What is the weather in Paris?")
    assert said.strip() == "The tool says: sunny in Paris"


def test_error_says_what_is_wrong(llm: CommandLine) -> None:
    done = llm.run("-m", "site", "Please fail: context length")
    assert done.returncode != 0
    assert "maximum context length" in done.stderr
