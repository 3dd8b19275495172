"""What some tests need and not every machine has: asked for here, and nowhere else.

Where the thing is missing the test is skipped and says so. With CODEXSITE_TESTS_REQUIRE_ALL=1 (as
in `.ci/run`) it fails instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import NoReturn

import psycopg
import pytest
import redis

_POSTGRES_USERS = ("postgres", os.environ.get("USER", "root"))


def require_postgres() -> str:
    """Return the URL of a PostgreSQL server on this machine, without a database name."""
    for user in _POSTGRES_USERS:
        url = f"postgresql://{user}@127.0.0.1:5432"
        try:
            psycopg.connect(f"{url}/postgres", connect_timeout=5).close()
        except psycopg.OperationalError:
            continue
        return url
    _missing("PostgreSQL does not answer on 127.0.0.1:5432 without a password")


def require_redis() -> str:
    """Return the URL of a Redis server on this machine."""
    url = "redis://127.0.0.1:6379/0"
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=5) as client:
            client.ping()
    except redis.RedisError:
        _missing("Redis does not answer on 127.0.0.1:6379 without a password")
    return url


def require_chromium() -> str:
    """Return the path of a Chromium or Chrome."""
    return _require_program("chromium", "chromium-browser", "google-chrome")


def require_node() -> str:
    """Return the path of Node.js."""
    return _require_program("node")


def _require_program(*names: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    _missing(f"none of {', '.join(names)} is on PATH")


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CODEXSITE_TESTS_REQUIRE_ALL") == "1":
        pytest.fail(f"Required here, but {reason}", pytrace=False)
    pytest.skip(f"Not run: {reason}")


def require_mounts() -> str:
    """Return the path of `mount`, where this process may use it."""
    mount = _require_program("mount")
    may_mount = sys.platform == "linux" and os.geteuid() == 0
    if not may_mount or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        _missing("only root on Linux may mount file systems, and not in most containers")
    return mount
