"""`manage.py serve` in a real process: from an empty directory to a server that answers."""

from __future__ import annotations

import re
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest

from codexsite.background import answers
from tests.processes import Serving, free_port, manage, status_of, wait_for

SECRET = r"sk-codexsite-[\w-]+"


def test_first_start_serves_and_shows_admin_and_key_once(tmp_path: Path) -> None:
    with Serving(tmp_path / "data", "serve", "--port", "0", "--demo") as server:
        assert status_of(f"{server.url}/health") == 200
        assert status_of(f"{server.url}/admin/login/") == 200
        assert server.find(rf"(?m)^API key \(shown once\): ({SECRET})$")
        assert server.find(r"(?m)^Admin: \S+/admin/  user admin  password \(shown once\): (\S+)$")
        assert "demo" in server.output
        assert "not logged in" not in server.output
    with Serving(tmp_path / "data", "serve", "--port", "0", "--demo") as again:
        assert status_of(f"{again.url}/health") == 200
        assert not re.search(SECRET, again.output)
        assert "shown once" not in again.output


def test_start_without_a_login_serves_and_says_how_to_log_in(tmp_path: Path) -> None:
    with Serving(tmp_path, "serve", "--port", "0") as server:
        assert status_of(f"{server.url}/health") == 200
        assert "python manage.py codex login" in server.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_server_with_status_0(tmp_path: Path, number: int) -> None:
    with Serving(tmp_path, "serve", "--port", "0", "--demo") as server:
        assert server.end(number) == 0
        assert "Traceback" not in server.output


def test_data_directory_is_closed_to_others(tmp_path: Path) -> None:
    with Serving(tmp_path / "data", "serve", "--port", "0", "--demo"):
        found = [tmp_path / "data", *(tmp_path / "data").rglob("*")]
        places = [path for path in found if path.exists() and not path.is_symlink()]
        # What Codex writes into its own home has its modes, behind a directory that has ours.
        ours = [path for path in places if path.parent.name not in ("codex_home", "scratch")]
    tops = [path for path in ours if path.parent in (tmp_path, tmp_path / "data")]
    assert len(tops) > 8
    assert not [path for path in tops if stat.S_IMODE(path.stat().st_mode) & 0o077]


def test_taken_port_is_one_clear_line_before_anything_is_created(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = manage(tmp_path, "serve", "--port", str(port))
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--port", "http"], "argument --port: 'http' is not a number"),
        (["--workers", "0"], "argument --workers: 0 is not between 1 and 64"),
        (["--engine", "fast"], "argument --engine: invalid choice"),
        (["--codex-config", "sandbox_mode=x"], "'sandbox_mode' is refused"),
        (["--allowed-root", "/does/not/exist"], "/does/not/exist is not a directory"),
        (["--api-key", "sk-secret"], "unrecognized arguments"),
    ],
)
def test_wrong_option_is_named(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    refused = manage(tmp_path, "serve", *arguments)
    assert refused.returncode == 2
    assert complaint in refused.stderr
    assert "Traceback" not in refused.stderr


def test_wrong_variable_is_one_clear_line(tmp_path: Path) -> None:
    refused = manage(tmp_path, "serve", CODEX_PROXY_TIMEOUT_SECONDS="soon")
    assert refused.returncode == 1
    assert refused.stderr.startswith("codexsite cannot start: CODEX_PROXY_TIMEOUT_SECONDS")
    assert refused.stderr.count("\n") == 1


def test_impossible_data_directory_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = manage(tmp_path, "serve", "--data-dir", str(tmp_path / "file"))
    assert refused.returncode == 1
    assert "CODEX_PROXY_DATA_DIR: cannot prepare" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_wildcard_bind_warns_and_names_the_variable(tmp_path: Path) -> None:
    with Serving(tmp_path, "serve", "--host", "0.0.0.0", "--port", "0", "--demo") as server:
        assert "WARNING" in server.output
        assert "CODEX_PROXY_ALLOWED_HOSTS" in server.output
        assert server.url.startswith("http://127.0.0.1:")


def test_data_dir_option_leaves_the_default_directory_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    made = manage(
        tmp_path / "unused", "serve", "--data-dir", str(tmp_path / "data"), "--port", "1",
        "--host", "203.0.113.1", HOME=str(home),
    )  # fmt: skip
    assert "cannot listen" in made.stderr
    assert (tmp_path / "data" / "secret_key").exists()
    assert not (tmp_path / "unused").exists()
    assert list(home.iterdir()) == []


def test_runserver_listens_where_serve_would_and_ends_cleanly(tmp_path: Path) -> None:
    assert manage(tmp_path, "migrate", "--verbosity", "0").returncode == 0
    port = str(free_port())
    arguments = ("runserver", "--noreload")
    with Serving(tmp_path, *arguments, until="Quit the server", CODEX_PROXY_PORT=port) as server:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"))
        assert server.end(signal.SIGTERM) == 0


def test_runserver_child_does_not_outlive_a_killed_reloader(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux lets a process ask to end with its parent")
    assert manage(tmp_path, "migrate", "--verbosity", "0").returncode == 0
    port = str(free_port())
    with Serving(tmp_path, "runserver", port, until="Quit the server") as server:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"))
        server.process.kill()
        wait_for(lambda: not answers(f"http://127.0.0.1:{port}/health"))


def test_created_key_is_alone_on_stdout(tmp_path: Path) -> None:
    early = manage(tmp_path, "createkey", "--name", "ci")
    assert early.stderr.startswith("CommandError: Run `serve` or `migrate` first")
    with Serving(tmp_path, "serve", "--port", "0", "--demo"):
        made = manage(tmp_path, "createkey", "--name", "ci", "--root", "workspace")
        unknown = manage(tmp_path, "createkey", "--name", "ci", "--root", "elsewhere")
    assert re.fullmatch(SECRET, made.stdout.strip())
    assert "workspace" in made.stderr
    assert unknown.returncode == 1
    assert "no allowed root 'elsewhere'" in unknown.stderr
