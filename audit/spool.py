"""The spool: what has happened, on disk before anybody is told, until the database has it.

Each process appends whole JSON lines to segments of its own, `<boot>-<number>.jsonl`. A segment is
sealed from time to time, its lines are committed, and only then is it discarded; so a line is
always in a segment, or in the database, or (after a crash in between) in both.

A boot is one life of one process. It holds a lock on `<boot>.lock` until it ends, however it ends;
a boot whose lock is free is dead, and its segments belong to whoever recovers them. Nobody touches
the segments of a living boot. Pure: no Django here.

What waits here is bounded: a database that stays away must not fill the disk. Above the bound a
new line is refused, and its request with it; the ends of requests that run are taken all the same.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SEGMENT_BYTES = 4_000_000
"""A segment is one transaction, so an outage of the database must not grow a giant."""

MAX_BYTES = 256_000_000
"""How much may wait, unless told otherwise: some hundred thousand requests."""

_OWNER_ONLY = 0o600


class SpoolFull(OSError):
    """So much waits for the database that no more is taken."""


class Spool:
    """One process's place in the spool folder. Any thread may append; one thread does the rest."""

    def __init__(self, folder: Path, boot: str, *, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.boot = boot
        self.max_bytes = max_bytes
        self._mutex = threading.Lock()
        self._lock_fd: int | None = None
        self._segment: tuple[int, Path] | None = None
        self._size = 0
        self._number = 0
        self._sealed: deque[Path] = deque()
        self._waiting: dict[Path, int] = {}
        self._waiting_bytes = 0

    def open(self) -> None:
        """Claim the boot's lock; from here on others see this process as alive. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Locked under another name and then renamed: nobody ever sees a lock file that is free
        # only because its owner has not come round to locking it.
        draft = self.folder / f".{self.boot}.lock"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.rename(self._lock_of(self.boot))
        except BaseException:
            os.close(fd)
            draft.unlink(missing_ok=True)
            raise
        self._lock_fd = fd
        # A server that dies again and again while the database is away must not get a bound each.
        for segment in self.leftovers():
            self._weigh(segment, _size_of(segment))

    @property
    def is_full(self) -> bool:
        """Whether new lines are refused because too much waits."""
        return self._waiting_bytes >= self.max_bytes

    def close(self) -> None:
        """End this boot. What is still sealed waits for the next start."""
        with self._mutex:
            self._seal()
            if self._lock_fd is None:
                return
            self._lock_of(self.boot).unlink(missing_ok=True)
            os.close(self._lock_fd)
            self._lock_fd = None

    def append(self, line: bytes, *, beyond: float = 0) -> None:
        """Write one line, newline included; it survives this process once this returns.

        `beyond` is how many bytes above the bound this line may go. Raises OSError (`SpoolFull`
        at the bound), and then nothing of the line is left in the segment.
        """
        with self._mutex:
            if self._waiting_bytes + len(line) > self.max_bytes + beyond:
                raise SpoolFull(errno.EDQUOT, "Too much waits for the database")
            fd, path = self._segment or self._begin()
            if os.write(fd, line) != len(line):
                # A full disk takes half a line; the next one must not continue it.
                os.ftruncate(fd, self._size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += len(line)
            self._weigh(path, self._size)
            if self._size >= SEGMENT_BYTES:
                self._seal()

    def seal(self) -> None:
        """End the current segment, if it holds anything; the next line begins another."""
        with self._mutex:
            self._seal()

    def sealed(self) -> list[Path]:
        """Return this boot's sealed segments, oldest first."""
        with self._mutex:
            return list(self._sealed)

    def discard(self, segment: Path) -> None:
        """Remove a segment whose lines are committed."""
        segment.unlink(missing_ok=True)
        with self._mutex:
            self._weigh(segment, 0)
            if segment in self._sealed:
                self._sealed.remove(segment)

    def forget_leftovers(self) -> None:
        """Weigh our own segments only: what dead boots had left is stored, by us or by others."""
        with self._mutex:
            for segment in [path for path in self._waiting if boot_of(path) != self.boot]:
                self._weigh(segment, 0)

    def set_aside(self, line: bytes) -> None:
        """Keep a line that no database takes where a human finds it: `rejected.jsonl`."""
        path = self.folder / "rejected.jsonl"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _OWNER_ONLY)
        try:
            os.write(fd, line.rstrip(b"\n") + b"\n")
        finally:
            os.close(fd)

    # --- Other boots ------------------------------------------------------------------------

    def is_alive(self, boot: str) -> bool:
        """Tell whether a process still holds this boot's lock (our own counts)."""
        try:
            fd = os.open(self._lock_of(boot), os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    @contextmanager
    def recovery(self) -> Iterator[None]:
        """Hold the folder's recovery lock: processes that start at once take turns."""
        fd = os.open(self.folder / "recovery.lock", os.O_WRONLY | os.O_CREAT, _OWNER_ONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def leftovers(self) -> list[Path]:
        """Return the segments of dead boots, each boot's oldest first. To store: in `recovery`."""
        # Listed first, judged second: a boot that appears in the list had its lock before.
        segments = sorted(self.folder.glob("*-*.jsonl"))
        boots = {boot_of(segment) for segment in segments}
        alive = {boot for boot in boots if self.is_alive(boot)}
        return [segment for segment in segments if boot_of(segment) not in alive]

    def remove_dead_locks(self) -> None:
        """Remove the lock files of dead boots. Within `recovery` only."""
        for path in self.folder.glob("[!.]*.lock"):
            if path.stem != "recovery" and not self.is_alive(path.stem):
                path.unlink(missing_ok=True)

    # --- Inside, the mutex held -------------------------------------------------------------

    def _lock_of(self, boot: str) -> Path:
        return self.folder / f"{boot}.lock"

    def _weigh(self, segment: Path, size: int) -> None:
        self._waiting_bytes += size - self._waiting.pop(segment, 0)
        if size:
            self._waiting[segment] = size

    def _begin(self) -> tuple[int, Path]:
        if self._lock_fd is None:
            raise OSError(errno.EBADF, "The spool is not open")
        self._number += 1
        path = self.folder / f"{self.boot}-{self._number:08d}.jsonl"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, _OWNER_ONLY)
        self._segment, self._size = (fd, path), 0
        return self._segment

    def _seal(self) -> None:
        if self._segment is None:
            return
        fd, path = self._segment
        self._segment = None
        self._sealed.append(path)
        os.close(fd)


def boot_of(segment: Path) -> str:
    """Return the boot that wrote a segment."""
    return segment.name.partition("-")[0]


def _size_of(segment: Path) -> int:
    try:
        return segment.stat().st_size
    except FileNotFoundError:
        return 0


def read_lines(segment: Path) -> list[bytes]:
    """Return a segment's lines, oldest first.

    A last line without its newline is one whose `append` never returned (the process was killed
    in it): nobody was told that it exists, so it is left out. A segment that is gone has none.
    """
    try:
        lines = segment.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [line for line in lines[:-1] if line]
