"""Folders of children: private, removed, and swept after a server that was killed."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

from proxy.engines import scratch


def test_folder_is_private_and_goes_with_its_content(tmp_path: Path) -> None:
    folder = scratch.new_folder(str(tmp_path))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "instructions.md").write_text("secret plan")
    scratch.remove(folder)
    assert list(tmp_path.iterdir()) == []


def test_sweep_takes_the_folders_of_dead_servers_only(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(20)
    left_behind = tmp_path / f"codex-{dead.pid}-abc"
    left_behind.mkdir()
    (left_behind / "instructions.md").write_text("secret plan")
    ours = scratch.new_folder(str(tmp_path))
    models = tmp_path / "models.json"
    models.write_text("{}")
    scratch.sweep(str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted([ours, models])


def test_a_shared_folder_serves_all_until_it_has_grown(tmp_path: Path) -> None:
    shared = scratch.SharedFolder(str(tmp_path), limit_mb=0.001)
    with shared.use() as first, shared.use() as same:
        assert first == same
        (first / "logs.sqlite").write_bytes(b"x" * 2000)
        with shared.use() as fresh:
            assert fresh != first
            assert first.exists(), "two still use it"
    assert list(tmp_path.iterdir()) == [fresh]
    shared.close()
    assert list(tmp_path.iterdir()) == []


def test_a_grown_folder_that_nobody_uses_goes_at_once(tmp_path: Path) -> None:
    shared = scratch.SharedFolder(str(tmp_path), limit_mb=0.001)
    with shared.use() as first:
        (first / "logs.sqlite").write_bytes(b"x" * 2000)
    with shared.use() as fresh:
        assert list(tmp_path.iterdir()) == [fresh]
