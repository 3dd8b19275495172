"""Codex's login: refused clearly without one, logged in by command, noticed by a running server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from tests.e2e.conftest import LiveSite, drain
from tests.processes import PROJECT, WAIT_S, Serving, environment, manage
from tests.provider import ScriptedProvider

NEEDS_LOGIN = (
    'model_provider="team";;model_providers.team={{name="team", base_url="{url}", '
    'wire_api="responses", requires_openai_auth=true, supports_websockets=false, '
    "request_max_retries=0, stream_max_retries=0}}"
)


@pytest.fixture
def lonely() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as provider:
        yield provider


def codex(data_dir: Path, *arguments: str, stdin: str = "", **env: str) -> str:
    """Run `manage.py codex` and return what it said; it must succeed."""
    done = subprocess.run(
        [sys.executable, "manage.py", "codex", *arguments],
        cwd=PROJECT, env=environment(data_dir, **env), input=stdin, timeout=WAIT_S,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(180)
def test_server_without_a_login_says_so_until_somebody_logs_in(
    tmp_path: Path, lonely: ScriptedProvider
) -> None:
    data_dir = tmp_path / "data"
    configs = NEEDS_LOGIN.format(url=lonely.base_url)
    with Serving(data_dir, "serve", "--port", "0", CODEX_PROXY_CODEX_CONFIGS=configs) as server:
        drain(server)
        site = LiveSite(server, data_dir, lonely)
        for secret_engine in ("app-server", "exec"):
            secret = site.issue_key(engine=secret_engine)
            with pytest.raises(openai.InternalServerError) as refused:
                site.client(secret).chat.completions.create(
                    model="default", messages=[{"role": "user", "content": "hi"}]
                )
            assert (refused.value.status_code, refused.value.code) == (503, "codex_not_logged_in")
            row = site.row_of(refused.value.request_id or "")
            assert (row["outcome"], row["http_status"]) == ("failed", 503)
        ready = httpx.get(f"{site.url}/ready")
        assert ready.status_code == 503
        assert "codex login" in ready.json()["checks"]["login"]["reason"]
        assert ready.json()["checks"]["engine"]["ok"]
        assert "codex login" in httpx.get(f"{site.url}/").text

        said = codex(data_dir, "login", "--api-key", stdin="sk-test-key-123\n")
        assert "logged in: apiKey" in said
        assert "sk-test" not in said
        answer = site.client().chat.completions.create(
            model="default", messages=[{"role": "user", "content": "hi"}]
        )
        assert answer.choices[0].message.content == "Hello world"
        assert lonely.requests[-1].headers["authorization"] == "Bearer sk-test-key-123"
        assert httpx.get(f"{site.url}/ready").status_code == 200

        codex(data_dir, "logout")
        assert httpx.get(f"{site.url}/ready").status_code == 503
        site.close()
    assert lonely.requests[:-1] == []


def test_status_says_what_runs_and_who_is_logged_in(tmp_path: Path) -> None:
    assert manage(tmp_path, "migrate", "-v0").returncode == 0
    said = codex(tmp_path, "status")
    assert "codex 0.163.0" in said
    assert "not logged in: run `python manage.py codex login`" in said


def test_reuse_links_the_users_login_says_the_risk_and_logout_only_unlinks(tmp_path: Path) -> None:
    theirs, data_dir = tmp_path / "user", tmp_path / "data"
    theirs.mkdir()
    login = theirs / "auth.json"
    login.write_text(json.dumps({"auth_mode": "apikey", "OPENAI_API_KEY": "sk-users-own"}))
    assert manage(data_dir, "migrate", "-v0").returncode == 0
    said = codex(data_dir, "login", "--reuse", CODEX_HOME=str(theirs))
    assert "refresh token can be used once" in said
    assert "shared with this user's own Codex" in said
    assert (data_dir / "codex_home" / "auth.json").is_symlink()
    codex(data_dir, "logout")
    assert login.exists()
    assert not (data_dir / "codex_home" / "auth.json").exists()


def test_reuse_without_a_login_of_the_user_is_one_clear_error(tmp_path: Path) -> None:
    assert manage(tmp_path, "migrate", "-v0").returncode == 0
    refused = manage(tmp_path, "codex", "login", "--reuse", CODEX_HOME=str(tmp_path / "nobody"))
    assert refused.returncode == 1
    assert "no login to reuse" in refused.stderr


def test_device_code_without_a_network_is_one_clear_error(tmp_path: Path) -> None:
    assert manage(tmp_path, "migrate", "-v0").returncode == 0
    # A proxy that refuses: whatever network this machine has, the login cannot get out.
    refused = manage(tmp_path, "codex", "login", CODEX_PROXY_PROXY="http://127.0.0.1:9")
    assert refused.returncode == 1
    assert "device code" in refused.stderr
    assert "Traceback" not in refused.stderr
