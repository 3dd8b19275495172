"""What an agent's commands may reach: a permission profile of Codex, its exact text and its hash.

    Confinement -> profile -> config of a thread or of `codex exec` -> text -> policy_hash

Nothing on the disk is open but what is listed: the system's own programs (`:minimal`), the codex
package (without which the sandbox cannot start anything), and the granted roots. Found by experiment
with Codex 0.163, and kept by the tests and by `verify_sandbox`:

- A path that is listed as writable is followed when it is a symlink. So nothing below a folder that
  an agent may write is listed, unless it is a mount of its own in every such profile: then no
  command can move or replace it. That holds for roots inside roots and the folders on their way.
- For the same reason `.git`, `.codex`, `.agents` and `.aws` are not listed: Codex itself keeps them
  read-only at the top of a writable root, and refuses to run anything where one is a symlink.
- A profile and a sandbox flag switch each other off, so a turn has one of them only.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import orjson

from proxy.errors import WorkspaceMoved

Level = Literal["read", "write", "network"]
LEVELS: tuple[Level, ...] = ("read", "write", "network")

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the sandbox's own, empty for each command
COMMAND_VARIABLES = ("PATH", "HOME", "TMPDIR", "LANG", "LC_*", "TERM", "USER", "LOGNAME", "SHELL")
GUARDED = (".git", ".codex", ".agents", ".aws")
"""What Codex keeps read-only at the top of a writable root."""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder as it was when the policy looked: its real path, and which folder that was."""

    path: str
    device: int
    inode: int

    @classmethod
    def at(cls, path: str) -> Place:
        """Look at a real path. Raises `OSError` where no folder is."""
        found = os.stat(path, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(path)
        return cls(path, found.st_dev, found.st_ino)

    @property
    def is_unmoved(self) -> bool:
        """Whether the same folder is still there, by a way without symlinks."""
        try:
            return os.path.realpath(self.path) == self.path and Place.at(self.path) == self
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Confinement:
    """Where an agent's turn may read, write and connect. All paths are real paths.

    `workspace` lies in one of `roots`, which may be read, and written where the level says so;
    `closed` are places inside them that stay shut. `readable` is what programs need besides the
    system's own. `places` is what the policy looked at, to be compared before the turn starts.
    """

    level: Level
    workspace: str
    roots: tuple[str, ...]
    closed: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    reads_agents_md: bool = False
    places: tuple[Place, ...] = ()

    @property
    def name(self) -> str:
        """The profile's name, as Codex and the audit row have it."""
        return f"codexsite_{self.level}"

    @property
    def may_write(self) -> bool:
        return self.level != "read"

    @property
    def has_network(self) -> bool:
        return self.level == "network"

    def profile(self) -> dict[str, Any]:
        """Return the permission profile in Codex's own form."""
        access = "write" if self.may_write else "read"
        opened = {*self.roots, *self._ways()}
        filesystem = {":root": "deny", ":minimal": "read"}
        filesystem |= dict.fromkeys(sorted(self.readable), "read")
        filesystem |= dict.fromkeys(sorted(opened), access)
        filesystem |= dict.fromkeys(sorted(self.closed), "deny")
        return {"filesystem": filesystem, "network": {"enabled": self.has_network}}

    def _ways(self) -> Iterator[str]:
        """Yield the folders between a root and what lies in it on its own account."""
        for inner in (*self.roots, *self.closed):
            above = [root for root in self.roots if root != inner and _lies_in(inner, root)]
            if above:
                outer = min(above, key=len)
                parents = [str(parent) for parent in PurePosixPath(inner).parents]
                yield from (parent for parent in parents if _lies_in(parent, outer))

    def config(self) -> dict[str, Any]:
        """Return the settings of a thread (or of one `codex exec`) that carry this out."""
        folders = [self.workspace, *map(str, PurePosixPath(self.workspace).parents)]
        return {
            f"permissions.{self.name}": self.profile(),
            # By exact paths: to distrust a folder says nothing of those in it.
            "projects": {folder: {"trust_level": "untrusted"} for folder in folders},
            "shell_environment_policy": command_environment(),
        }

    @property
    def text(self) -> str:
        """The policy's exact text: what Codex is told, and what it is not told to read."""
        told = {"workspace": self.workspace, "reads_agents_md": self.reads_agents_md}
        told |= {"approval_policy": "never", "default_permissions": self.name, **self.config()}
        return orjson.dumps(told, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2).decode()

    @property
    def policy_hash(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def insist(self) -> None:
        """Raise `WorkspaceMoved` unless each folder is still the one that the policy allowed."""
        if not all(place.is_unmoved for place in self.places):
            raise WorkspaceMoved(
                "The folder of this request has changed since it was checked; ask again.",
                param="metadata.cwd",
            )


def form_of(level: Level) -> Confinement:
    """Return the confinement of this level with its paths abstracted: one of each kind."""
    return Confinement(
        level=level,
        workspace="/root-1/workspace",
        roots=("/root-1", "/root-1/way/inner", "/root-2"),
        closed=("/root-1/closed",),
        readable=("/codex-package",),
    )


def command_environment(platform: str = sys.platform) -> Mapping[str, Any]:
    """Return Codex's policy for the environment of commands: these variables and no others."""
    policy: dict[str, Any] = {"inherit": "core", "include_only": list(COMMAND_VARIABLES)}
    if platform == "linux":
        # The server's own are not there in the sandbox; this one is, and is gone with the command.
        policy["set"] = {"HOME": SHARED_MEMORY, "TMPDIR": SHARED_MEMORY}
    return policy


def _lies_in(path: str, folder: str) -> bool:
    return path != folder and path.startswith(folder.rstrip("/") + "/")
