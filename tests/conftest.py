"""A data directory of the tests' own, before Django reads its settings; fixtures for all."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# A runner in the background may ignore these, and every process it starts then does so, too: the
# servers that the tests end by a signal would never hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

for _name in [name for name in os.environ if name.startswith("CODEX_PROXY_")]:
    del os.environ[_name]
_DATA_DIR = tempfile.mkdtemp(prefix="codexsite-tests-")
atexit.register(shutil.rmtree, _DATA_DIR, ignore_errors=True)
os.environ["CODEX_PROXY_DATA_DIR"] = _DATA_DIR
if os.geteuid() == 0:  # as in a throwaway container, where tests may well run
    os.environ["CODEX_PROXY_ALLOW_ROOT_AGENT"] = "1"
os.environ["DJANGO_SETTINGS_MODULE"] = "codexsite.settings"
os.environ.pop("DATABASE_URL", None)

import django  # noqa: E402 - reads the settings, so after the environment

django.setup()  # the conftests below import models


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak-turns", default="3000", metavar="N", help="turns of tests/soak (default: 3000)"
    )
    parser.addoption(
        "--write-fault-table",
        action="store_true",
        help="write tests/faults/TABLE.md from what this run has seen",
    )


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A fresh, empty data directory, for processes that the test starts."""
    return tmp_path / "data"


@pytest.fixture
def server_env(data_dir: Path) -> dict[str, str]:
    """The environment of a server process with that data directory and nothing inherited."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "CODEX_PROXY_DATA_DIR": str(data_dir), "PYTHONUNBUFFERED": "1"}
