"""Where the kernel knows no parent-death signal: a process that outlives the server just to clean up.

It reads which process groups run from a pipe. When the pipe ends, the server is gone, however it
went, and what still runs is killed. One for a server, started with its first child.
"""

from __future__ import annotations

import logging
import subprocess
import sys

log = logging.getLogger(__name__)

SCRIPT = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


class Reaper:
    """Keeps the list of the groups that must not survive this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()

    def watch(self, group: int) -> None:
        """Have this process group killed when this process dies."""
        self._groups.add(group)
        self._tell(b"+%d\n" % group)

    def forget(self, group: int) -> None:
        """The group is gone: its number may soon be another's."""
        if group in self._groups:
            self._groups.discard(group)
            self._tell(b"-%d\n" % group)

    def _tell(self, line: bytes) -> None:
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
            line = b"".join(b"+%d\n" % group for group in self._groups)
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError as error:
            log.error("children may survive this server: %s", error)

    def _start(self) -> subprocess.Popen[bytes]:
        # A session of its own: what ends the server from a terminal must not end its reaper first.
        return subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-I", "-S", "-c", SCRIPT],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
