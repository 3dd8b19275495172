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
