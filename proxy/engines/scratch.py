"""Folders of a child's own, named after the server process, so that a killed one's can be told."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

NAME = re.compile(r"codex-(\d+)-")


def new_folder(scratch_dir: str) -> Path:
    """Make a folder that only the owner of `scratch_dir` (the children's user) and root may read.

    Its maker removes it with `remove`.
    """
    folder = tempfile.mkdtemp(prefix=f"codex-{os.getpid()}-", dir=scratch_dir)
    owner = os.stat(scratch_dir)
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.chown(folder, owner.st_uid, owner.st_gid)
    return Path(folder)


def new_file(path: Path) -> BinaryIO:
    """Open a file that is not there yet; whoever put something in its place gets `OSError` instead.

    The children's user may write in these folders: a link that lies there must not be followed.
    """
    return path.open("xb")


def remove(folder: Path) -> None:
    """Remove a folder and all in it, as far as that goes: a dying child may still write there."""
    shutil.rmtree(folder, ignore_errors=True)


def size_mb(folder: Path) -> float:
    """Return how much the files right in a folder hold."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                total += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue  # a database's journal, gone by now
    return total / 1_000_000


class SharedFolder:
    """One folder for several children at a time, exchanged for a fresh one when it has grown.

    Codex's databases stand there: a fresh one costs a `codex exec` 120 ms, and each turn adds some
    30 KB to the log in it, which nothing ever takes out.
    """

    def __init__(self, scratch_dir: str, limit_mb: float) -> None:
        self._scratch_dir, self._limit_mb = scratch_dir, limit_mb
        self._current: Path | None = None
        self._users: Counter[Path] = Counter()

    @contextmanager
    def use(self) -> Iterator[Path]:
        """Hold the folder; one that has been exchanged is removed behind its last user."""
        if self._current is not None and size_mb(self._current) > self._limit_mb:
            retired, self._current = self._current, None
            self._remove_when_unused(retired)
        folder = self._current = self._current or new_folder(self._scratch_dir)
        self._users[folder] += 1
        try:
            yield folder
        finally:
            self._users[folder] -= 1
            if folder != self._current:
                self._remove_when_unused(folder)

    def _remove_when_unused(self, folder: Path) -> None:
        if not self._users[folder]:
            del self._users[folder]
            remove(folder)

    def close(self) -> None:
        """Remove it, now that nobody uses it any more."""
        if self._current is not None:
            remove(self._current)
            self._current = None


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
