"""After a fault: is everything on record, and is nothing left behind?

Rows are counted in the database, processes by the parent and by the environment that the server
gives its children, descriptors and threads in `/proc`, asyncio's tasks by `/metrics`.
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.conftest import LiveSite

log = logging.getLogger(__name__)

SETTLING_S = 15.0
"""How long what a fault has begun may take to be over: longer than any wait inside the server."""
POLL_S = 0.05
HAS_PROC = Path("/proc/self/fd").is_dir()


@dataclass(frozen=True)
class Figures:
    """What a server holds at one moment. Descriptors and threads are None where nobody can tell."""

    processes: tuple[str, ...]
    folders: int
    tasks: int
    descriptors: int | None
    threads: int | None

    def with_more(self, count: int) -> Figures:
        """Return the same with so many more descriptors and threads."""
        descriptors = None if self.descriptors is None else self.descriptors + count
        threads = None if self.threads is None else self.threads + count
        return replace(self, descriptors=descriptors, threads=threads)

    def excess_over(self, base: Figures) -> list[str]:
        """Return what is more (or, for processes and folders, other) than in `base`, in words."""
        found = []
        if self.processes != base.processes:
            found.append(f"processes {list(self.processes)}, not {list(base.processes)}")
        if self.folders != base.folders:
            found.append(f"{self.folders} scratch folders, not {base.folders}")
        for name in ("tasks", "descriptors", "threads"):
            now, before = getattr(self, name), getattr(base, name)
            if now is not None and before is not None and now > before:
                found.append(f"{now} {name}, not {before}")
        return found


class Leak(AssertionError):
    """Something is missing, or left."""


class Checker:
    """Watches one server. `baseline` once when it is warm, `check` after each fault."""

    def __init__(self, site: LiveSite, pid: int, *, settling_s: float = SETTLING_S) -> None:
        self.site, self.pid = site, pid
        self._settling_s = settling_s
        self._base: Figures | None = None
        if not HAS_PROC:
            log.warning("no /proc here: descriptors and threads are not compared")

    def baseline(self) -> Figures:
        """Take the figures to compare with, once they come again among a few; return them.

        Two in a row need not be the same: the connection by which we ask for them comes and goes.
        """
        deadline = time.monotonic() + self._settling_s
        recent = deque([self.figures()], maxlen=3)
        while True:
            time.sleep(4 * POLL_S)
            found = self.figures()
            if found in recent:
                self._base = found
                return found
            if time.monotonic() > deadline:
                raise Leak(f"the server does not come to rest: {recent[-1]}, then {found}")
            recent.append(found)

    def allow(self, figures: Figures) -> None:
        """Compare with these from now on."""
        self._base = figures

    def check(self, sent: int) -> None:
        """Wait until all is as it was, and a closed row there for each of `sent` requests.

        Raises `Leak`, which says what is missing or left, when that takes too long.
        """
        assert self._base is not None, "take the baseline first"
        deadline = time.monotonic() + self._settling_s
        while found := self._wrong(sent):
            if time.monotonic() > deadline:
                raise Leak("; ".join(found))
            time.sleep(POLL_S)

    def _wrong(self, sent: int) -> list[str]:
        assert self._base is not None
        found = list(_wrong_rows(self.site.rows_now(), sent))
        if not found:
            excess = self.figures().excess_over(self._base)
            found = (
                [*excess, f"descriptors: {self.kinds()}; folders: {self._folders()}"]
                if excess
                else []
            )
        return found

    def figures(self) -> Figures:
        """Take them now."""
        scratch = self.site.data_dir / "scratch"
        return Figures(
            processes=tuple(sorted(processes_of(self.pid, scratch))),
            folders=sum(1 for _ in scratch.glob("codex-[0-9]*-*")),
            tasks=int(metrics_of(self.site.url)["tasks"]),
            descriptors=len(os.listdir(f"/proc/{self.pid}/fd")) if HAS_PROC else None,
            threads=len(os.listdir(f"/proc/{self.pid}/task")) if HAS_PROC else None,
        )

    def _folders(self) -> dict[str, list[str]]:
        found = (self.site.data_dir / "scratch").glob("codex-[0-9]*-*")
        return {one.name: [inner.name for inner in one.glob("*")] for one in found}

    def kinds(self) -> dict[str, int]:
        """Return how many descriptors of which kind are open; for the message of a leak."""
        return dict(Counter(_kinds_of_descriptors(self.pid))) if HAS_PROC else {}


def _wrong_rows(rows: list[dict[str, Any]], sent: int) -> Iterator[str]:
    if len(rows) != sent:
        yield f"{len(rows)} rows for {sent} requests"
    running = [row["request_id"] for row in rows if row["outcome"] == "running"]
    if running:
        yield f"rows that say running: {running}"
    if len({row["request_id"] for row in rows}) != len(rows):
        yield "two rows for one request"


def _kinds_of_descriptors(pid: int) -> Iterator[str]:
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
        yield target.partition(":[")[0]


def processes_of(pid: int, scratch: Path) -> Iterator[str]:
    """Yield the name of each process that the server has started and that is still there.

    An orphan has another parent by now, but still the environment it was given; a zombie has
    nothing else than its parent.
    """
    try:
        below = {child.pid for child in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        below = set()  # the server has gone; what it started may not have
    for process in psutil.process_iter():
        try:
            is_ours = process.pid in below or (
                process.pid != pid and _is_at_home_in(process, scratch)
            )
            if is_ours:
                mark = " (zombie)" if process.status() == psutil.STATUS_ZOMBIE else ""
                yield process.name() + mark
        except psutil.Error:
            continue  # it has just ended, or is another user's


def _is_at_home_in(process: psutil.Process, scratch: Path) -> bool:
    return process.environ().get("TMPDIR") == str(scratch)


def metrics_of(url: str) -> dict[str, Any]:
    """Return what `/metrics` says, over a connection that is closed again."""
    request = urllib.request.Request(f"{url}/metrics", headers={"connection": "close"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return dict(json.loads(answer.read()))
