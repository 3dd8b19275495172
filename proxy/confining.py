"""Which folders a grant really opens to a request: looked at anew each time, kept as what was seen.

All of it reads the disk, so it runs beside the event loop, like the policy's own questions.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from django.conf import settings

from proxy.engines.confinement import Confinement, Place
from proxy.errors import WorkspaceDenied
from proxy.models import AgentGrant, AllowedRoot, is_inside, opens_data_directory
from proxy.policy import WRONG_FOLDER, Caller, Workspace

log = logging.getLogger(__name__)

AGENTS_MD = "AGENTS.md"
AGENTS_MD_LIMIT = 32_768
"""Bytes of all of them together, as much as Codex itself would read."""
AGENTS_MD_HEAD = "The folder of this work has an AGENTS.md with instructions:"

MOUNTS = "/proc/self/mountinfo"
PACKAGE_MARKS = ("codex-package.json", "codex-resources", "package.json")


@dataclass(frozen=True, slots=True)
class Enclosure:
    """What an agent's turn runs under: its confinement, and the AGENTS.md that it is told."""

    confinement: Confinement
    agents_md: str


def enclose(
    caller: Caller, workspace: Workspace, grant: AgentGrant, *, codex_bin: str, codex_home: Path
) -> Enclosure:
    """Return what this grant opens to a turn in this folder. Raises `WorkspaceDenied`.

    Open is where the grant's roots and the key's meet. Shut inside them are the roots of others,
    what is mounted there (it is another place, whatever its path says), and the server's own data.
    A folder that cannot be told apart from these is refused.
    """
    opened = _opened(caller, workspace, grant)
    inner = {path for path in _real_roots(caller) if _lies_below(path, opened)}
    private = [os.path.realpath(settings.DATA_DIR.root), os.path.realpath(codex_home)]
    foreign = [path for path in _all_roots() if path not in _real_roots(caller)]
    shut = {path for path in (*foreign, *private, *_mounts()) if _lies_below(path, opened)}
    shut -= {*opened, *inner}
    roots = sorted({*opened, *inner})
    _refuse_where_shut(workspace.path, roots, shut, [*foreign, os.path.realpath(codex_home)])
    confinement = Confinement(
        level=grant.level,  # type: ignore[arg-type] # a choice of the model's
        workspace=workspace.path,
        roots=tuple(roots),
        closed=tuple(sorted(shut)),
        readable=(codex_package(codex_bin),),
        reads_agents_md=grant.reads_agents_md,
        places=tuple(_places([workspace.path, *roots])),
    )
    return Enclosure(confinement, read_agents_md(confinement) if grant.reads_agents_md else "")


def _opened(caller: Caller, workspace: Workspace, grant: AgentGrant) -> list[str]:
    """Return the real paths where grant and key meet, none inside another."""
    granted = [os.path.realpath(root.path) for root in grant.roots.all()]
    found: set[str] = set()
    for given in granted:
        for own in _real_roots(caller):
            if is_inside(given, own) or is_inside(own, given):
                found.add(max(given, own, key=len))
    # A root that would open the server's own data opens no more than the folder asked for.
    narrowed = {
        workspace.path if opens_data_directory(Path(path)) else path
        for path in found
        if os.path.isdir(path)
        and (is_inside(workspace.path, path) or not opens_data_directory(Path(path)))
    }
    return [path for path in narrowed if not _lies_below(path, narrowed)]


def _real_roots(caller: Caller) -> set[str]:
    return {os.path.realpath(root.path) for root in caller.roots}


def _all_roots() -> set[str]:
    return {os.path.realpath(path) for path in AllowedRoot.objects.values_list("path", flat=True)}


def _lies_below(path: str, folders: Iterable[str]) -> bool:
    return any(path != folder and is_inside(path, folder) for folder in folders)


def _mounts() -> Iterator[str]:
    """Yield where something is mounted, as this process sees it; nothing but on Linux."""
    if sys.platform != "linux":
        return
    with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            yield re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split(" ")[4])


def _refuse_where_shut(
    folder: str, roots: list[str], shut: set[str], others: Iterable[str]
) -> None:
    """Raise `WorkspaceDenied` unless the folder is open, by its path and by what it is."""
    holding = [root for root in roots if is_inside(folder, root)]
    is_shut = any(is_inside(folder, path) for path in shut) and not _is_reopened(
        folder, holding, shut
    )
    if not holding or is_shut or opens_data_directory(Path(folder)):
        raise WorkspaceDenied(WRONG_FOLDER, param="metadata.cwd")
    # The same folder under another name: a bind mount, or letters of another case.
    theirs = {_identity(path) for path in others} - {_identity(root) for root in roots} - {None}
    way = [folder, *map(str, PurePosixPath(folder).parents)]
    if any(_identity(step) in theirs for step in way if is_inside(step, min(holding, key=len))):
        raise WorkspaceDenied(WRONG_FOLDER, param="metadata.cwd")


def _is_reopened(folder: str, holding: list[str], shut: set[str]) -> bool:
    """Whether the innermost of what holds the folder is a root of the key's own."""
    innermost = max((path for path in shut if is_inside(folder, path)), key=len)
    return bool(holding) and len(max(holding, key=len)) > len(innermost)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _places(paths: Iterable[str]) -> Iterator[Place]:
    for path in dict.fromkeys(paths):
        try:
            place = Place.at(path)
        except OSError:
            place = None
        if place is None or not place.is_unmoved:
            raise WorkspaceDenied(WRONG_FOLDER, param="metadata.cwd")
        yield place


def codex_package(codex_bin: str) -> str:
    """Return what must be readable so that the sandbox can start codex's own helpers."""
    program = Path(os.path.realpath(codex_bin))
    folder = program.parent.parent
    is_package = any((folder / mark).exists() for mark in PACKAGE_MARKS)
    return str(folder if is_package else program)


# --- AGENTS.md --------------------------------------------------------------------------------


def read_agents_md(confinement: Confinement) -> str:
    """Return the instructions of each AGENTS.md from the root down to the workspace, or nothing.

    Codex reads none in a folder that it distrusts, and we distrust them all; so we read it. No link
    is followed on the way, and only a plain file counts: a link could name any file of the server.
    """
    root = max((r for r in confinement.roots if is_inside(confinement.workspace, r)), key=len)
    below = PurePosixPath(confinement.workspace).relative_to(root).parts
    texts: list[str] = []
    room = AGENTS_MD_LIMIT
    handle = -1
    try:
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        for step in ("", *below):
            if step:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                inner = os.open(step, flags, dir_fd=handle)
                os.close(handle)
                handle = inner
            text = _plain_file(AGENTS_MD, handle, room)
            room -= len(text)
            texts += [text.decode(errors="replace")] if text.strip() else []
    except OSError as error:
        log.warning("AGENTS.md is left out: %s", error.strerror)
    finally:
        if handle >= 0:
            os.close(handle)
    return "\n\n".join([AGENTS_MD_HEAD, *texts]) if texts else ""


def _plain_file(name: str, folder: int, limit: int) -> bytes:
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return b""
    try:
        is_plain = stat.S_ISREG(os.fstat(handle).st_mode)
        return os.read(handle, limit) if is_plain and limit > 0 else b""
    finally:
        os.close(handle)
