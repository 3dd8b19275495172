"""The product's own directory: database, secret key, CODEX_HOME, logs. Owner-only, made on demand."""

from __future__ import annotations

import os
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured


def locate(text: str | None) -> Path:
    """Return the absolute path of the data directory that `CODEX_PROXY_DATA_DIR` names."""
    return Path(text or "~/.codexsite").expanduser().resolve()


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

    def prepare(self) -> None:
        """Create what is missing and close it to everybody but its owner.

        Raises `ImproperlyConfigured` where that is not possible.
        """
        folders = (self.codex_home, self.scratch, self.workspace, self.logs, self.spool, self.run)
        try:
            for folder in (self.root, *folders):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if folder.stat().st_mode & 0o077:
                    folder.chmod(0o700)
            # SQLite gives its -wal and -shm files the mode of the database itself.
            self.database.touch(mode=0o600)
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
