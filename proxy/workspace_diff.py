"""What changed in a folder while an agent worked in it: compared before and after, within bounds.

Codex reports what its own patches do, and nothing of what a shell command does to files. So the
folder is looked at before the turn (names, sizes, times, inodes; copies of small texts) and after.

The folder belongs to whoever the agent obeys, and this runs with the server's rights. So no program
is run, git least of all, whose configuration lies in the folder and may name others; no symbolic
link is followed, of no part of a path, and no other file system is entered; only plain files with
one name are read. Git is known by its layout: its object store is left out, and what a commit, a
hook or a setting changes there is found like any other file.

Each look ends at its bounds, which the result names: what was not looked at is not said to be equal.
Pure but for the files that it reads.
"""

from __future__ import annotations

import difflib
import errno
import os
import stat
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LEFT_OUT = frozenset(
    {
        "node_modules", ".venv", "venv", "__pycache__", ".mypy_cache", ".ruff_cache",
        ".pytest_cache", ".tox", ".nox", ".gradle", ".terraform",
    }
)  # fmt: skip
"""Folders of installed or derived files: their own tools write thousands of them."""
LEFT_OUT_OF_GIT = frozenset({"objects", "logs", "lfs", "index", "index.lock", "COMMIT_EDITMSG"})
"""Git's bulk; its HEAD, refs, hooks and configuration are looked at."""

READING = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# To pass through a folder takes less right than to read it, where the system knows the difference.
PASSING = READING | getattr(os, "O_PATH", 0)

COPY_BYTES = 64 * 1024
DIFF_LINE_PAIRS = 4_000_000
"""Of two texts, after their common beginning and end: above it a diff is all lines out, all in."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one look may cost."""

    files: int = 20_000
    seconds: float = 2.0
    copied_bytes: int = 8 * 1024 * 1024
    changes: int = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as the folder's listing shows it; ctime is the one thing that no program can set."""

    inode: int
    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    links: int

    @property
    def may_be_copied(self) -> bool:
        return stat.S_ISREG(self.mode) and self.links == 1 and self.size <= COPY_BYTES


@dataclass(frozen=True, slots=True)
class Change:
    """One file that is not as it was: `kind` is add, update, delete or move.

    `path` is relative to the folder. Without a text before or after, the lines are unknown.
    """

    path: str
    kind: str
    moved_to: str = ""
    diff: str = ""
    lines_added: int | None = None
    lines_removed: int | None = None
    note: str = ""


@dataclass(slots=True)
class Look:
    """The folder at one moment, as far as the bounds let it be seen."""

    files: dict[str, Entry] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    unlisted: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)
    stopped_at: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    uncopied: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found, and how far it was looked: `summary` says it in a sentence."""

    changes: list[Change]
    summary: str
    is_complete: bool


class Workspace:
    """One folder, looked at before and after one turn. Used from one thread at a time."""

    def __init__(self, folder: str, limits: Limits, closed: Collection[str] = ()) -> None:
        """`closed` are real paths inside the folder that are not looked at: they are others'."""
        self.folder, self._limits = folder, limits
        inside = folder.rstrip("/") + "/"
        self._closed = frozenset(
            path.removeprefix(inside) for path in closed if path.startswith(inside)
        )
        self._before: Look | None = None
        self._patched: dict[str, Entry | None] = {}
        self._why_not = ""

    def look_before(self) -> None:
        """Remember the folder as it is. Never raises OSError: it is then not compared."""
        try:
            with _opened_folder(self.folder) as root:
                look = _look(root, self._limits, self._limits.files, self._closed)
                _copy_texts(root, look, self._limits)
        except OSError as error:
            self._why_not = f"The folder could not be read: {error.strerror}."
            return
        self._before = look

    def note_patch(self, path: str) -> Change | None:
        """Take a file as a patch left it, so that only what changes it later counts.

        Returns what the patch did to it, as far as the copies tell; None where they do not.
        """
        if self._before is None or not self._is_open(path):
            return None
        try:
            with _opened_folder(self.folder) as root:
                now, text = _entry_of(root, path), _read_text(root, path)
        except OSError:
            now, text = None, None
        before = self._before.files.get(path)
        old = self._before.texts.pop(path, None)
        self._patched[path] = now
        if now is None:
            self._before.files.pop(path, None)
            return _changed(path, "delete", old, "") if old is not None else None
        self._before.files[path] = now
        if text is not None:
            self._before.texts[path] = text
        if before is None:
            return _changed(path, "add", "", text) if text is not None else None
        return _changed(path, "update", old, text) if None not in (old, text) else None

    def _is_open(self, path: str) -> bool:
        return not any(path == shut or path.startswith(f"{shut}/") for shut in self._closed)

    def compare(self) -> Comparison:
        """Look again and return what changed beside the patches. Never raises OSError."""
        before = self._before
        if before is None:
            reason = self._why_not or "The turn did not get as far as its start."
            return Comparison([], f"Not compared. {reason}", is_complete=False)
        deadline = time.monotonic() + self._limits.seconds
        try:
            with _opened_folder(self.folder) as root:
                # The agent may have added files; they must not hide the ones that were there.
                after = _look(root, self._limits, 2 * self._limits.files, self._closed)
                found = list(_moves_joined(list(_differences(before, after)), before, after))
                cut = found[: self._limits.changes]
                changes = [_described(root, change, before, after, deadline) for change in cut]
        except OSError as error:
            why = f"Not compared. The folder could not be read: {error.strerror}."
            return Comparison([], why, is_complete=False)
        return _result(before, after, changes, len(found))


def _result(before: Look, after: Look, changes: list[Change], found: int) -> Comparison:
    said = [f"Compared {len(before.files):,} files with {len(after.files):,}."]
    bound = before.stopped_at or after.stopped_at
    if bound:
        said.append(f"Stopped at the bound of {bound}: the rest was not looked at.")
    if found > len(changes):
        said.append(f"{found:,} changes were found, the first {len(changes):,} are on record.")
    if before.uncopied:
        said.append(f"No copy was kept of {before.uncopied:,} files (large, binary or too many).")
    left_out = sorted(before.left_out | after.left_out)
    if left_out:
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        said.append(f"Left out: {', '.join(left_out[:5])}{more}.")
    return Comparison(changes, " ".join(said), is_complete=not bound and found == len(changes))


# --- Looking -----------------------------------------------------------------------------------


@contextmanager
def _opened_folder(path: str) -> Iterator[int]:
    """Open a folder by its real path, part by part: none of them may have become a link."""
    root = os.open("/", PASSING)
    try:
        with _opened_below(root, path.strip("/")) as fd:
            yield fd
    finally:
        os.close(root)


@contextmanager
def _opened_below(root: int, path: str) -> Iterator[int]:
    """Open a folder inside another, part by part, no link followed. The last one must be readable."""
    parts = path.split("/") if path else []
    if not {"", ".", ".."}.isdisjoint(parts):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    fd = os.dup(root) if parts else os.open(".", READING, dir_fd=root)
    try:
        for number, part in enumerate(parts, start=1):
            inner = os.open(part, READING if number == len(parts) else PASSING, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def _look(root: int, limits: Limits, most_files: int, closed: frozenset[str]) -> Look:
    """List the folder from its top down, so that what the bounds cut off lies deepest."""
    look, todo = Look(), deque([""])
    deadline = time.monotonic() + limits.seconds
    device = os.fstat(root).st_dev
    while todo:
        if len(look.files) >= most_files:
            look.stopped_at = f"{most_files:,} files"
            break
        if time.monotonic() > deadline:
            look.stopped_at = f"{limits.seconds:g} seconds"
            break
        folder = todo.popleft()
        try:
            with _opened_below(root, folder) as fd:
                if os.fstat(fd).st_dev != device:
                    look.left_out.add(folder)
                    continue
                _list(fd, folder, look, todo, most_files, closed)
        except OSError:  # it went away, or it may not be read
            look.unlisted.add(folder)
    look.unlisted.update(todo)
    if look.unlisted and len(look.files) >= most_files:
        look.stopped_at = f"{most_files:,} files"
    return look


def _list(
    fd: int,
    folder: str,
    look: Look,
    todo: deque[str],
    most_files: int,
    closed: frozenset[str],
) -> None:
    inside = f"{folder}/" if folder else ""
    in_git = folder == ".git" or folder.endswith("/.git")
    with os.scandir(fd) as entries:
        for entry in entries:
            if len(look.files) >= most_files:  # one folder may hold a million
                look.unlisted.add(folder)
                return
            path = f"{inside}{entry.name}"
            if in_git and entry.name in LEFT_OUT_OF_GIT:
                continue
            if path in closed and not entry.is_dir(follow_symlinks=False):
                continue
            if entry.is_dir(follow_symlinks=False):
                if entry.name in LEFT_OUT or path in closed:
                    look.left_out.add(path)
                else:
                    todo.append(path)
                continue
            try:
                look.files[path] = _entry(entry.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue
    look.listed.add(folder)


def _entry(found: os.stat_result) -> Entry:
    return Entry(
        found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns,
        found.st_nlink,
    )  # fmt: skip


def _entry_of(root: int, path: str) -> Entry | None:
    folder, _, name = path.rpartition("/")
    with _opened_below(root, folder) as fd:
        try:
            return _entry(os.stat(name, dir_fd=fd, follow_symlinks=False))
        except FileNotFoundError:
            return None


def _read_text(root: int, path: str) -> str | None:
    """Return a small text file's content; None for anything else."""
    folder, _, name = path.rpartition("/")
    try:
        with _opened_below(root, folder) as fd:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(name, flags, dir_fd=fd)
        try:
            if not _entry(os.fstat(file)).may_be_copied:
                return None
            content = os.read(file, COPY_BYTES + 1)
        finally:
            os.close(file)
    except OSError:
        return None
    if len(content) > COPY_BYTES or b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _copy_texts(root: int, look: Look, limits: Limits) -> None:
    """Keep small texts, those first that were changed last: they are the ones being worked on."""
    deadline = time.monotonic() + limits.seconds / 2
    left = limits.copied_bytes
    latest = sorted(look.files.items(), key=lambda item: item[1].mtime_ns, reverse=True)
    for number, (path, entry) in enumerate(latest):
        if left <= 0 or time.monotonic() > deadline:
            look.uncopied += len(latest) - number
            return
        text = _read_text(root, path) if entry.may_be_copied else None
        if text is None:
            look.uncopied += stat.S_ISREG(entry.mode)
        else:
            look.texts[path] = text
            left -= entry.size


# --- Comparing ---------------------------------------------------------------------------------


def _differences(before: Look, after: Look) -> Iterator[Change]:
    for path in sorted(before.files.keys() | after.files.keys()):
        old, new = before.files.get(path), after.files.get(path)
        if old is None:
            # In a folder that was never listed it may have been there all the time.
            if _was_seen(path, before):
                yield Change(path, "add")
        elif new is None:
            if _was_seen(path, after):
                yield Change(path, "delete")
        elif old != new:
            yield Change(path, "update")


def _was_seen(path: str, look: Look) -> bool:
    """Tell whether the look would have found the file if it had been there."""
    folder = os.path.dirname(path)
    while folder not in look.listed:
        if folder in look.unlisted or folder in look.left_out or not folder:
            return False
        folder = os.path.dirname(folder)
    return True


def _moves_joined(changes: list[Change], before: Look, after: Look) -> Iterator[Change]:
    """Make one move of a file that went away here and is there under another name, unchanged."""
    gone = {
        before.files[change.path].inode: change for change in changes if change.kind == "delete"
    }
    moved: dict[str, str] = {}
    for change in changes:
        entry = after.files.get(change.path)
        if change.kind != "add" or entry is None or entry.inode not in gone:
            continue
        source = gone[entry.inode].path
        old = before.files[source]
        if (old.size, old.mtime_ns) == (entry.size, entry.mtime_ns):
            moved[source] = change.path
            del gone[entry.inode]
    targets = set(moved.values())
    for change in changes:
        if change.path in moved and change.kind == "delete":
            yield Change(change.path, "move", moved[change.path], "", 0, 0)
        elif not (change.kind == "add" and change.path in targets):
            yield change


def _described(root: int, change: Change, before: Look, after: Look, deadline: float) -> Change:
    """Return the change with its lines, where both texts are at hand and time is left."""
    if change.kind == "move":
        return change
    old_entry, new_entry = before.files.get(change.path), after.files.get(change.path)
    entry = new_entry or old_entry
    if entry is not None and not stat.S_ISREG(entry.mode):
        what = "a symbolic link" if stat.S_ISLNK(entry.mode) else "no plain file"
        return Change(change.path, change.kind, note=f"It is {what}.")
    if time.monotonic() > deadline:
        return Change(change.path, change.kind, note="No time was left for its lines.")
    old = "" if old_entry is None else before.texts.get(change.path)
    new = "" if new_entry is None else _read_text(root, change.path)
    if old is None:
        return Change(change.path, change.kind, note="There is no copy of what it was before.")
    if new is None:
        return Change(change.path, change.kind, note="It is no small text now.")
    if old == new and change.kind == "update":
        return Change(change.path, "update", "", "", 0, 0, _same_text(old_entry, new_entry))
    return _changed(change.path, change.kind, old, new)


def _same_text(old: Entry | None, new: Entry | None) -> str:
    if old is not None and new is not None and old.mode != new.mode:
        return f"Its text is the same; its mode went from {old.mode:o} to {new.mode:o}."
    return "Its text is the same: it was touched or written anew."


def _changed(path: str, kind: str, old: str | None, new: str | None) -> Change:
    diff, added, removed = diff_of(old or "", new or "")
    return Change(path, kind, "", diff, added, removed)


def diff_of(old: str, new: str) -> tuple[str, int, int]:
    """Return a unified diff without file names, the lines added and those removed."""
    before, after = _lines(old), _lines(new)
    start, limit = 0, min(len(before), len(after))
    while start < limit and before[start] == after[start]:
        start += 1
    end = 0
    while end < limit - start and before[-1 - end] == after[-1 - end]:
        end += 1
    out, into = len(before) - start - end, len(after) - start - end
    if out * into > DIFF_LINE_PAIRS:
        head = f"@@ -{start + 1},{out} +{start + 1},{into} @@\n"
        lines = ["-" + line for line in before[start : start + out]]
        lines += ["+" + line for line in after[start : start + into]]
        return head + _joined(lines), into, out
    hunks = list(difflib.unified_diff(before, after))[2:]
    diff = _joined(hunks)
    return diff, *count_lines(diff)


def count_lines(diff: str) -> tuple[int, int]:
    """Return how many lines a unified diff without file names adds and removes."""
    lines = diff.split("\n")  # and not at a form feed, as `splitlines` would
    return sum(line.startswith("+") for line in lines), sum(line.startswith("-") for line in lines)


def _lines(text: str) -> list[str]:
    *whole, rest = text.split("\n")
    return [f"{line}\n" for line in whole] + ([rest] if rest else [])


def _joined(lines: list[str]) -> str:
    return "".join(_whole(line) for line in lines)


def _whole(line: str) -> str:
    return line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
