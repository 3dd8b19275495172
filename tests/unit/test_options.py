"""From the command line to the environment, before settings load."""

from __future__ import annotations

from pathlib import Path

import pytest

from codexsite.background import Background, State
from codexsite.datadir import DataDir
from codexsite.options import OPTIONS, prepare_environment
from codexsite.settings import OPTION_VARIABLES


def prepared(*argv: str, **environ: str) -> dict[str, str]:
    prepare_environment(["manage.py", *argv], environ)
    return environ


def test_options_become_the_variables_of_the_predecessor(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert prepared(
        "serve", "--port", "9000", "--demo", "--no-ephemeral", "--queue-timeout-seconds", "1.5",
        "--codex-config", "a=1", "--codex-config", 'b="x"',
        "--allowed-root", str(tmp_path), "--allowed-root", str(tmp_path / "a"),
    ) == {
        "CODEX_PROXY_PORT": "9000",
        "CODEX_PROXY_DEMO": "1",
        "CODEX_PROXY_EPHEMERAL": "0",
        "CODEX_PROXY_QUEUE_TIMEOUT_SECONDS": "1.5",
        "CODEX_PROXY_CODEX_CONFIGS": 'a=1;;b="x"',
        "CODEX_PROXY_ALLOWED_ROOTS": f"{tmp_path}:{tmp_path / 'a'}",
    }  # fmt: skip


def test_option_wins_over_its_variable() -> None:
    assert prepared("serve", "--model", "m", CODEX_PROXY_MODEL="n") == {"CODEX_PROXY_MODEL": "m"}


def test_every_option_of_the_settings_has_a_flag() -> None:
    assert set(OPTION_VARIABLES.values()) <= {option.variable for option in OPTIONS}


def test_other_commands_are_left_alone() -> None:
    assert prepared("runserver", "--port", "1") == {}
    assert prepared() == {}
    assert prepared("serve", "--help", "--port", "1") == {}


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    environ = prepared("serve", "--data-dir", "data", "--default-cwd", "here")
    assert environ["CODEX_PROXY_DATA_DIR"] == str(tmp_path / "data")
    assert environ["CODEX_PROXY_DEFAULT_CWD"] == str(tmp_path / "here")


def test_key_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-mine\n")
    environ = prepared("serve", "--api-key-file", str(tmp_path / "key"))
    assert environ == {"CODEX_PROXY_API_KEY": "sk-mine"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "-1"),
        ("--port", "65536"),
        ("--timeout-seconds", "nan"),
        ("--codex-bin", "no-such-program"),
        ("--codex-config", "approval_policy=never"),
        ("--codex-config", "a=1;;b=2"),
        ("--api-key-file", "/does/not/exist"),
        ("--default-cwd", "/does/not/exist"),
    ],
)
def test_wrong_value_ends_with_status_2_and_names_the_option(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        prepared("serve", *arguments)
    assert ended.value.code == 2
    assert f"argument {arguments[0]}" in capsys.readouterr().err


def test_restart_repeats_what_nobody_says_otherwise(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    data_dir.prepare()
    last = {"CODEX_PROXY_ENGINE": "exec", "CODEX_PROXY_MODEL": "m", "CODEX_PROXY_FAST": "1"}
    Background(data_dir).remember(State("127.0.0.1", 8765, "1.0", "today", last))
    environ = prepared(
        "proxy", "restart", "--model", "n", CODEX_PROXY_DATA_DIR=str(tmp_path), CODEX_PROXY_FAST=""
    )
    assert environ["CODEX_PROXY_ENGINE"] == "exec"
    assert environ["CODEX_PROXY_MODEL"] == "n"
    assert environ["CODEX_PROXY_FAST"] == ""
    assert "CODEX_PROXY_ENGINE" not in prepared(
        "proxy", "start", CODEX_PROXY_DATA_DIR=str(tmp_path)
    )
