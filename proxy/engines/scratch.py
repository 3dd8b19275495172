"""Folders of a child's own, named after the server process, so that a killed one's can be told."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

NAME = re.compile(r"codex-(\d+)-")


def new_folder(scratch_dir: str) -> Path:
    """Make a folder that only this user may read. Its maker removes it with `remove`."""
    return Path(tempfile.mkdtemp(prefix=f"codex-{os.getpid()}-", dir=scratch_dir))


def remove(folder: Path) -> None:
    """Remove a folder and all in it, as far as that goes: a dying child may still write there."""
    shutil.rmtree(folder, ignore_errors=True)


def sweep(scratch_dir: str) -> None:
    """Remove what servers left behind that are gone: it may hold the text of a request."""
    for folder in Path(scratch_dir).iterdir():
        owner = NAME.match(folder.name)
        if owner and not _runs(int(owner[1])):
            remove(folder)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
