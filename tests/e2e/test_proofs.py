"""Proofs of the sandbox with the real codex: what holds is said to hold, and what is broken, broken."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from codex_cli_bin import bundled_codex_path

from proxy import runtime
from proxy.checks import first_closed
from proxy.confining import codex_package
from proxy.engines.app_server import AppServerEngine
from proxy.engines.base import EngineConfig, User
from proxy.engines.confinement import LEVELS, Confinement
from proxy.engines.exec import ExecEngine
from proxy.policy import load_options
from proxy.probing import Probe, probe
from tests.e2e.conftest import children_of, is_alive, wait_until
from tests.processes import PROJECT, WAIT_S, Serving, environment, manage
from tests.provider import ScriptedProvider

CODEX = bundled_codex_path()


@pytest.fixture
def config(db: None) -> EngineConfig:
    return runtime.engine_config(load_options())


async def broken(config: EngineConfig, **private: str) -> dict[str, str]:
    """Return what the probes of level `write` found broken on the app-server engine."""
    found = await attacked(config, **private)
    return {each.name: each.seen for each in found if not each.held}


async def attacked(config: EngineConfig, **private: str) -> list[Probe]:
    readable = (codex_package(config.codex_bin),)
    return await probe(AppServerEngine, config, "write", readable=readable, private=private)


def changed_profile(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], None]
) -> None:
    """Let every profile be one that somebody has got wrong."""
    honest = Confinement.profile

    def wrong(confinement: Confinement) -> dict[str, Any]:
        profile = honest(confinement)
        change(profile)
        return profile

    monkeypatch.setattr(Confinement, "profile", wrong)


async def test_a_sandbox_that_holds_is_said_to_hold(config: EngineConfig) -> None:
    found = await attacked(config)
    assert [each for each in found if not each.held] == []
    assert len(found) > 15
    left = [path.name for path in Path(config.codex_home).iterdir() if "canary" in path.name]
    assert left == []


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (
            lambda profile: profile["filesystem"].update({":root": "read"}),
            {"cannot read another root", "cannot read a file outside the workspace",
             "cannot read CODEX_HOME", "cannot read the secret"},
        ),
        (
            lambda profile: profile["filesystem"].update({":root": "write"}),
            {"cannot write outside", "cannot read another root"},
        ),
        (
            lambda profile: profile["network"].update({"enabled": True}),
            {"cannot reach the network"},
        ),
    ],
    ids=["reads all", "writes all", "network"],
)  # fmt: skip
async def test_a_profile_that_opens_too_much_is_found_out(
    config: EngineConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    names: set[str],
) -> None:
    (tmp_path / "secret").write_text("x")
    changed_profile(monkeypatch, change)
    found = await broken(config, **{"the secret": str(tmp_path / "secret")})
    assert names <= found.keys()


async def test_guards_that_are_listed_as_writable_are_found_out(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Codex's own examples would have it: then a symlink in their place leads anywhere."""

    def change(profile: dict[str, Any]) -> None:
        (root,) = (path for path, access in profile["filesystem"].items()
                   if access == "write" and path.endswith("/project"))  # fmt: skip
        profile["filesystem"] |= {f"{root}/.aws": "write", f"{root}/.git": "write"}

    changed_profile(monkeypatch, change)
    found = await broken(config)
    assert {"cannot follow a link that it planted", "cannot write .git and .codex"} <= found.keys()


async def test_a_way_that_is_not_held_is_found_out(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Confinement, "_ways", lambda confinement: iter(()))
    assert "cannot move another key's root" in await broken(config)


async def test_an_environment_that_leaks_is_found_out(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaking = {"inherit": "all", "ignore_default_excludes": True}
    monkeypatch.setattr("proxy.engines.confinement.command_environment", lambda: leaking)
    found = await broken(config)
    assert {"sees no other environment", "sees no process outside"} <= found.keys()


def without_user_namespaces(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command where the kernel allows no more user namespaces."""
    command = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", command, "sh",
         sys.executable, "manage.py", *arguments],
        cwd=PROJECT, env=environment(data_dir), timeout=WAIT_S, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_machine_without_user_namespaces_fails_closed_and_says_what_to_do(
    data_dir: Path,
) -> None:
    can_try = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c",
         "echo 0 > /proc/sys/user/max_user_namespaces"],
        check=False, capture_output=True,
    )  # fmt: skip
    if can_try.returncode:
        pytest.skip("Not run: this machine cannot take user namespaces away")
    manage(data_dir, "migrate", "-v0")
    done = without_user_namespaces(data_dir, "verify_sandbox", "--level", "write", "--json")
    assert done.returncode == 1, done.stderr
    (proof,) = json.loads(done.stdout)
    assert proof["passed"] is False
    assert {each["name"] for each in proof["probes"]} == {"commands run"}
    assert all("user.max_user_namespaces" in each["seen"] for each in proof["probes"])
    assert proof["facts"]["user.max_user_namespaces"] == "0"


def test_the_command_says_what_held_for_every_level(data_dir: Path) -> None:
    manage(data_dir, "migrate", "-v0")
    done = manage(data_dir, "verify_sandbox")
    assert done.returncode == 0, done.stdout + done.stderr
    for level in LEVELS:
        assert f"level {level}: holds" in done.stdout
    assert "cannot reach the network" in done.stdout
    assert "reaches the network" in done.stdout
    assert "BROKEN" not in done.stdout


def test_the_command_needs_a_database(data_dir: Path) -> None:
    done = manage(data_dir, "verify_sandbox", "--level", "read")
    assert done.returncode == 1
    assert "migrate" in done.stderr


# --- A user of Codex's own --------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that `nobody` can get to, for a server of root's."""
    if os.geteuid() != 0:
        pytest.skip("Not run: only root can run Codex as another user")
    entry = pwd.getpwnam("nobody")
    if first_closed(CODEX.parent, User("nobody", entry.pw_uid, entry.pw_gid)):
        pytest.skip("Not run: codex is installed where nobody cannot get to")
    base = Path(tempfile.mkdtemp(prefix="codexsite-user-", dir="/var/tmp")).resolve()
    base.chmod(0o711)
    yield base
    shutil.rmtree(base, ignore_errors=True)


AS_NOBODY = {"CODEX_PROXY_CODEX_USER": "nobody", "CODEX_PROXY_ALLOW_ROOT_AGENT": "0"}


def tried_as_nobody(command: str) -> str:
    """Run a shell command as nobody, with no sandbox at all, and return what it says."""
    done = subprocess.run(
        ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "sh", "-c", command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout


def test_codex_runs_as_its_user_and_dies_with_the_server(place: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    with ScriptedProvider() as provider:
        configs = ";;".join(provider.overrides)
        with Serving(
            place / "data", "serve", "--port", "0", CODEX_PROXY_CODEX_CONFIGS=configs, **AS_NOBODY
        ) as server:
            wait_until(lambda: bool(codex_processes(server.process.pid)))
            (pid,) = codex_processes(server.process.pid)
            assert os.stat(f"/proc/{pid}").st_uid == nobody
            status = Path(f"/proc/{pid}/status").read_text()
            assert f"Uid:\t{nobody}\t{nobody}\t{nobody}\t{nobody}" in status
            groups = next(line for line in status.splitlines() if line.startswith("Groups:"))
            assert groups.split()[1:] in ([], [str(pwd.getpwnam("nobody").pw_gid)])
            server.process.send_signal(signal.SIGKILL)
            wait_until(lambda: not is_alive(pid))


def codex_processes(server: int) -> list[int]:
    found = []
    for pid in children_of(server):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(str(CODEX).encode()) and b"app-server" in command:
            found.append(pid)
    return found


def test_the_rest_of_the_data_directory_stays_closed_to_it(place: Path) -> None:
    data = place / "data"
    manage(data, "migrate", "-v0", **AS_NOBODY)
    manage(data, "verify_sandbox", "--level", "read", **AS_NOBODY)
    closed = [data / name for name in ("db.sqlite3", "secret_key", "instance_id")]
    assert all(path.exists() for path in closed)
    for path in (*closed, data, data / "spool", data / "logs", data / "run"):
        tell = f"ls {path}/ || cat {path}" if path.is_dir() else f"cat {path}"
        assert tried_as_nobody(f"({tell}) 2>/dev/null && echo READ") == ""
    for name in ("codex_home", "scratch", "workspace"):
        assert tried_as_nobody(f"touch {data}/{name}/x && echo WRITTEN") == "WRITTEN\n"
    # A command without the variable does not shut the directory behind the server's back.
    manage(data, "check")
    assert tried_as_nobody(f"ls {data}/codex_home && echo STILL").endswith("STILL\n")


def test_what_codex_had_before_is_given_to_it_but_nothing_that_a_link_names(place: Path) -> None:
    data = place / "data"
    manage(data, "migrate", "-v0")
    (place / "roots-own").write_text("secret")
    (place / "roots-own").chmod(0o600)
    (data / "codex_home" / "auth.json").write_text("{}")
    (data / "codex_home" / "link").symlink_to(place / "roots-own")
    os.link(place / "roots-own", data / "scratch" / "hard")
    manage(data, "check", **AS_NOBODY)
    nobody = pwd.getpwnam("nobody").pw_uid
    assert (data / "codex_home" / "auth.json").stat().st_uid == nobody
    assert (data / "codex_home" / "link").lstat().st_uid == nobody
    assert (place / "roots-own").stat().st_uid == 0


def test_the_proof_holds_for_the_user_and_names_it(place: Path) -> None:
    manage(place / "data", "migrate", "-v0", **AS_NOBODY)
    done = manage(place / "data", "verify_sandbox", "--level", "write", "--json", **AS_NOBODY)
    assert done.returncode == 0, done.stdout + done.stderr
    (proof,) = json.loads(done.stdout)
    assert (proof["passed"], proof["as_root"]) == (True, False)
    assert proof["facts"]["codex runs as"] == "nobody"
    assert {each["engine"] for each in proof["probes"]} == {"app-server", "exec"}


@pytest.mark.parametrize(
    ("user", "said"),
    [("no-such-user", "there is no user"), ("root", "must not be root")],
)
def test_a_user_that_cannot_be_is_refused_at_the_start(
    data_dir: Path, user: str, said: str
) -> None:
    done = manage(data_dir, "check", CODEX_PROXY_CODEX_USER=user)
    assert done.returncode == 1
    assert said in done.stderr
    assert "CODEX_PROXY_CODEX_USER" in done.stderr


def test_a_data_directory_that_the_user_cannot_get_to_is_named(place: Path) -> None:
    (place / "closed").mkdir(mode=0o700)
    done = manage(place / "closed" / "data", "check", **AS_NOBODY)
    assert done.returncode == 1
    assert "proxy.E005" in done.stderr
    assert str(place / "closed") in done.stderr


def test_engines_are_those_that_are_proven() -> None:
    """A third engine would need its proof, too."""
    from proxy.sandboxing import ENGINES

    assert set(ENGINES) == set(runtime.BUILDERS.values()) == {AppServerEngine, ExecEngine}


async def test_a_codex_that_does_not_start_is_a_probe_that_broke(config: EngineConfig) -> None:
    found = await broken(replace(config, codex_bin="/bin/false"))
    assert set(found) == {"commands run"}
