"""The product's own directory: database, secret key, CODEX_HOME, logs. Owner-only, made on demand.

Where Codex runs as a user of its own, that one gets CODEX_HOME, scratch and workspace, and may pass
through the directory, not list it; all else stays closed to it.
"""

from __future__ import annotations

import os
import pwd
import secrets
import stat
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from proxy.engines.base import User


def locate(text: str | None) -> Path:
    """Return the absolute path of the data directory that `CODEX_PROXY_DATA_DIR` names."""
    return Path(text or "~/.codexsite").expanduser().resolve()


def find_user(name: str | None) -> User | None:
    """Return the user that `CODEX_PROXY_CODEX_USER` names; None where that is this process's own.

    Raises `ImproperlyConfigured` for one that is not there, is root, or cannot be changed to.
    """
    if not name:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ImproperlyConfigured(f"CODEX_PROXY_CODEX_USER: there is no user {name!r}.") from None
    if entry.pw_uid == 0:
        raise ImproperlyConfigured("CODEX_PROXY_CODEX_USER: this must not be root.")
    if entry.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise ImproperlyConfigured(
            f"CODEX_PROXY_CODEX_USER: only a server that is started as root can run Codex as {name}."
        )
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid)


@dataclass(frozen=True, slots=True)
class DataDir:
    """Where each thing lives. Only `prepare` touches the disk."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "db.sqlite3"

    @property
    def codex_home(self) -> Path:
        return self.root / "codex_home"

    @property
    def scratch(self) -> Path:
        """Temporary files and HOME of the children; Codex refuses helpers in a CODEX_HOME below it."""
        return self.root / "scratch"

    @property
    def certificates(self) -> Path:
        """Public ones, for Codex to read; not where its own user could write."""
        return self.root / "certificates"

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def run(self) -> Path:
        """Pid and state of a server in the background."""
        return self.root / "run"

    def prepare(self, codex_user: User | None = None) -> None:
        """Create what is missing and close it to everybody but its owner and Codex's user.

        Raises `ImproperlyConfigured` where that is not possible.
        """
        own = (self.logs, self.spool, self.run)
        shared = (self.codex_home, self.scratch, self.workspace)
        try:
            for folder in (self.root, *shared, *own):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if folder.stat().st_mode & (0o066 if folder == self.root else 0o077):
                    folder.chmod(0o700)
                if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                    raise ImproperlyConfigured(
                        f"CODEX_PROXY_DATA_DIR: {folder} is not writable by this user, or is on a "
                        "file system that is read-only"
                    )
            # Never closed again behind a running server's back: a command may lack the variable.
            if codex_user is not None:
                self.root.chmod(0o711)
            # SQLite gives its -wal and -shm files the mode of the database itself.
            self.database.touch(mode=0o600)
            if codex_user is not None:
                _give(self.workspace, codex_user)
                for folder in (self.codex_home, self.scratch):
                    _give_all(folder, codex_user)
        except OSError as error:
            raise ImproperlyConfigured(
                f"CODEX_PROXY_DATA_DIR: cannot prepare {self.root}: {error.strerror or error}"
            ) from error

    def secret_key(self) -> str:
        """Return Django's secret key, made once."""
        return self._once("secret_key", lambda: secrets.token_urlsafe(48))

    def instance_id(self) -> str:
        """Return the id of this data directory: only its own servers' open rows are closed by it."""
        return self._once("instance_id", lambda: uuid.uuid4().hex)

    def _once(self, name: str, make: Callable[[], str]) -> str:
        path = self.root / name
        try:
            return path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            pass
        # Written aside and linked into place: two servers that start at once agree on one value,
        # and nobody ever reads half of it.
        draft = path.with_name(f".{name}.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(make(), encoding="utf-8")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return path.read_text(encoding="utf-8").strip()


def _give(path: Path, user: User) -> None:
    if path.lstat().st_uid != user.uid:
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


def _give_all(folder: Path, user: User) -> None:
    """Give a folder and what lies in it to the user, from before Codex had one of its own.

    The user may write there, so nothing that it put there is followed or given: no symlink, no file
    with a second name elsewhere, nothing below a folder that it has already.
    """
    if folder.lstat().st_uid == user.uid:
        return
    for _, folders, files, handle in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            found = os.stat(name, dir_fd=handle, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode) or found.st_nlink == 1:
                os.chown(name, user.uid, user.gid, dir_fd=handle, follow_symlinks=False)
    os.chown(folder, user.uid, user.gid)
