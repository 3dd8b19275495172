"""The predecessor, from PyPI, in a virtual environment of its own that is kept for the next run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

VERSION = "0.1.1"
INSTALL_BOUND_S = 180.0


class NotInstalled(RuntimeError):
    """The package index gave no predecessor; the text says why."""


def install() -> Path:
    """Return the predecessor's program, installing it where no earlier run did."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = cache / "codexsite-benchmarks" / f"codex-api-proxy-{VERSION}-py{python}"
    program, complete = home / "bin" / "codex-api-proxy", home / ".complete"
    if not complete.exists():
        shutil.rmtree(home, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(home))
        _run(
            *(str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"),
            *("--disable-pip-version-check", f"codex-api-proxy=={VERSION}"),
        )
        complete.touch()
    return program


def _run(*argv: str) -> None:
    try:
        subprocess.run(argv, check=True, capture_output=True, timeout=INSTALL_BOUND_S)
    except subprocess.CalledProcessError as error:
        raise NotInstalled(error.stderr.decode(errors="replace")[-500:]) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(str(error)) from error


def start_command(
    program: Path,
    folder: Path,
    *,
    port: int,
    key: str,
    codex_bin: str,
    overrides: Sequence[str],
    engine: Sequence[str],
) -> list[str]:
    """Return the command that serves it from `folder` in the foreground."""
    return [
        str(program),
        *("start", "--foreground", "--host", "127.0.0.1", "--port", str(port)),
        *("--codex-bin", codex_bin, "--api-key", key, "--max-queue-size", "512"),
        *("--queue-timeout-seconds", "120", "--log-level", "warning"),
        *("--app-server-codex-home", str(folder / "codex-home")),
        *("--default-cwd", str(folder), "--ephemeral"),
        *("--pid-file", str(folder / "pid"), "--state-file", str(folder / "state")),
        *("--log-file", str(folder / "log")),
        *engine,
        *(part for override in overrides for part in ("--codex-config", override)),
    ]
