"""A server in the background: who it is, how it was started, how it is watched and ended.

The pid file is locked by whoever starts the server, and the server inherits the lock and keeps it
until its process is gone, however that ends. So a held lock means that it runs and that the pid in
the file is its own; a free one means that the number there is history, whoever has it now.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from codexsite.datadir import DataDir
from proxy.redaction import redact_url

PREFIX = "CODEX_PROXY_"
SECRETS = ("CODEX_PROXY_API_KEY", "CODEX_PROXY_SECRET_KEY", "DATABASE_URL")
OVERRIDE_NAMES = re.compile(r"([\w.\-\"']+)\s*=")
SECRET_ENDINGS = (
    "token",
    "secret",
    "password",
    "api_key",
    "authorization",
    "headers",
    "query_params",
)
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class State:
    """How the server was last started. Never a secret."""

    host: str
    port: int
    version: str
    started_at: str
    options: dict[str, str] = field(default_factory=dict)
    """The CODEX_PROXY_ variables that were set, but not those of `withheld`."""
    withheld: list[str] = field(default_factory=list)
    """Names of variables that were set and are not kept, since they are or may hold secrets."""

    def missing(self, environ: Mapping[str, str]) -> list[str]:
        """Return which of the withheld a restart is not given; an empty value is an answer too."""
        return [name for name in self.withheld if name not in environ]


def is_secret(variable: str, value: str) -> bool:
    """Whether the value is or may hold a secret: a key, a URL with a login, an override's token."""
    if variable in SECRETS or redact_url(value) != value:
        return True
    if variable != "CODEX_PROXY_CODEX_CONFIGS":
        return False
    names = (part for name in OVERRIDE_NAMES.findall(value) for part in name.split("."))
    return any(name.strip("\"'").lower().endswith(SECRET_ENDINGS) for name in names)


def split_options(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables that a restart repeats, and the names of those that it must be given."""
    handed_on = [name.strip() for name in environ.get("CODEX_PROXY_CHILD_ENV", "").split(",")]
    withheld = {name for name in (*SECRETS, *handed_on) if environ.get(name)}
    options = {}
    for name, value in sorted(environ.items()):
        # The data directory is where the state lies; it is not part of it.
        if not value or not name.startswith(PREFIX) or name == "CODEX_PROXY_DATA_DIR":
            continue
        if is_secret(name, value):
            withheld.add(name)
        else:
            options[name] = value
    return options, sorted(withheld)


class AlreadyRunning(Exception):
    """Another server of this data directory holds the pid file; `pid` is None while it starts."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(pid)
        self.pid = pid


class StartFailed(Exception):
    """The server ended, or did not answer in time; `log` holds its last words."""

    def __init__(self, reason: str, log: str) -> None:
        super().__init__(reason)
        self.log = log


class Background:
    """The one server in the background that a data directory may have."""

    def __init__(self, data_dir: DataDir) -> None:
        self.pid_file = data_dir.run / "server.pid"
        self.state_file = data_dir.run / "server.json"
        self.log_file = data_dir.logs / "server.log"

    # --- Who runs ---

    def lock(self, patience_s: float = 1.0) -> int:
        """Lock the pid file and return its descriptor; closing it gives the lock back.

        Raises `AlreadyRunning`. The patience is for a `status` that looks at the same moment.
        """
        handle = os.open(self.pid_file, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + patience_s
        while not _try_lock(handle, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                os.close(handle)
                raise AlreadyRunning(self._written_pid())
            time.sleep(POLL_S)
        os.ftruncate(handle, 0)
        return handle

    def is_running(self) -> bool:
        """Whether a server holds the pid file, or is being started."""
        try:
            handle = os.open(self.pid_file, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(handle, fcntl.LOCK_SH)
        finally:
            os.close(handle)

    def pid(self) -> int | None:
        """Return the running server's pid; None where none runs, or none has a pid yet."""
        return self._written_pid() if self.is_running() else None

    def _written_pid(self) -> int | None:
        try:
            return int(self.pid_file.read_text("ascii"))
        except (OSError, ValueError):
            return None

    # --- How it was started ---

    def state(self) -> State | None:
        """Return how the server was last started; None where that is not known."""
        try:
            return State(**json.loads(self.state_file.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def remember(self, state: State) -> None:
        """Keep the state for `restart` and `status`, readable by the owner alone."""
        draft = self.state_file.with_suffix(".draft")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(state), file, indent=2)
            file.write("\n")
        draft.replace(self.state_file)

    # --- Start and stop ---

    def occupy(self, handle: int) -> None:
        """Declare this very process the server; it keeps the lock until it ends."""
        _write_pid(handle, os.getpid())

    def spawn(
        self, command: Sequence[str], *, handle: int, cwd: Path, url: str, timeout_s: float = 60.0
    ) -> int:
        """Start the command with the lock, wait until `url` answers, and return its pid.

        It gets a session of its own and writes to the log file. Raises `StartFailed`; then, and
        when this call is interrupted, the process is stopped.
        """
        log = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            begin = os.fstat(log).st_size
            process = subprocess.Popen(  # noqa: S603 - our own command
                command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, pass_fds=(handle,),
            )  # fmt: skip
        finally:
            os.close(log)
        try:
            _write_pid(handle, process.pid)
            _wait_until_it_answers(process, url, timeout_s)
        except BaseException as error:
            _end(process)
            if isinstance(error, TimeoutError | ChildProcessError):
                raise StartFailed(str(error), self.last_words(begin)) from error
            raise
        # It outlives this process on purpose; say so, or Popen warns when it is collected.
        process.returncode = 0
        return process.pid

    def stop(self, timeout_s: float) -> bool:
        """Ask the server to stop; True when it is gone within the time. Raises `PermissionError`."""
        return self._signal(signal.SIGTERM, os.kill, timeout_s)

    def kill(self, timeout_s: float = 5.0) -> bool:
        """End the server and its process group at once; True when it is gone."""
        return self._signal(signal.SIGKILL, _kill_group, timeout_s)

    def _signal(self, number: int, send: Callable[[int, int], None], timeout_s: float) -> bool:
        deadline, sent = time.monotonic() + timeout_s, False
        while self.is_running():
            pid = self._written_pid()
            # The lock is looked at right before, so the pid is the server's and nobody else's.
            if pid is not None and not sent:
                try:
                    send(pid, number)
                except ProcessLookupError:
                    pass
                sent = True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def last_words(self, begin: int = 0, lines: int = 15) -> str:
        """Return the last lines of the log that were written after the offset."""
        with self.log_file.open("rb") as log:
            log.seek(max(begin, log.seek(0, os.SEEK_END) - 16_384))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_pid(handle: int, pid: int) -> None:
    os.pwrite(handle, f"{pid}\n".encode("ascii"), 0)


def _kill_group(pid: int, number: int) -> None:
    # In the foreground the server may share the group of a script; then it alone is meant.
    if os.getpgid(pid) == pid:
        os.killpg(pid, number)
    else:
        os.kill(pid, number)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not answers(url):
        if process.poll() is not None:
            raise ChildProcessError(f"the server ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"the server did not answer within {timeout_s:g} s")
        time.sleep(POLL_S)


def answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether something serves HTTP there without failing."""
    parts = urlsplit(url)
    # http.client, since urllib would send this through the proxy of the environment.
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
