"""The variable that joins several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PROJECT, environment


def settings_with(data_dir: Path, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from codexsite import settings; print(settings.CHANNEL_LAYERS)"],
        cwd=PROJECT, env=environment(data_dir, CODEX_PROXY_REDIS_URL=url),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("url", ["127.0.0.1:6379", "http://user:hidden@host"])
def test_a_wrong_url_is_named_and_not_shown(data_dir: Path, url: str) -> None:
    done = settings_with(data_dir, url)

    assert done.returncode != 0
    assert "CODEX_PROXY_REDIS_URL" in done.stderr.splitlines()[-1]
    assert "hidden" not in done.stderr


def test_sites_that_share_a_redis_do_not_meet(tmp_path: Path) -> None:
    first, again, other = (
        settings_with(tmp_path / name, "redis://127.0.0.1:6379/0").stdout for name in "aab"
    )

    assert "RedisPubSub" in first
    assert first == again
    assert first != other
