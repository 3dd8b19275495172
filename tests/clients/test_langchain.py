"""LangChain's ChatOpenAI under LangChain's own standard tests: see `scripts/langchain_suite.py`."""

from __future__ import annotations

import re

from tests.clients.conftest import SCRIPTS, Bench

PASSED_AT_LEAST = 53
SKIPPED = {
    "Model does not support image tool message.",  # OpenAI's chat completions refuse it as well
    "Model does not support PDF inputs.",  # Codex passes no files to a model
    "Model does not support PDF tool message.",
    "Model does not support audio inputs.",  # nor audio
    "VCR not set up.",  # it measures recordings of a service on the internet
}


def test_standard_suite_passes(bench: Bench) -> None:
    done = bench.python(
        "current", "-m", "pytest", str(SCRIPTS / "langchain_suite.py"),
        f"--rootdir={SCRIPTS}", f"--confcutdir={SCRIPTS}", "-c", "/dev/null", "-o", "asyncio_mode=auto",
        "-o", "asyncio_default_fixture_loop_scope=session",
        "-o", "asyncio_default_test_loop_scope=session", "-p", "no:cacheprovider", "-q", "-rsxX", "--tb=short",
        "-k", "TestStandard or structured_output",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= PASSED_AT_LEAST, done.stdout
    assert set(re.findall(r"(?m)^SKIPPED .*: (.+)$", done.stdout)) == SKIPPED
    assert "xfailed" not in done.stdout
    assert "xpassed" not in done.stdout
