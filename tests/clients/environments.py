"""The clients' own environments: built once, kept in the user's cache under a hash of their pins.

So the product's dependencies stay small, clients that cannot live together need not, and only the
first run on a machine installs anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PINS = Path(__file__).parent / "environments"
INSTALL_S = 900.0
"""For one environment on a slow network."""


def python_environment(name: str) -> Path:
    """Return the Python of the environment that `environments/NAME.txt` pins."""
    pins = PINS / f"{name}.txt"
    return _kept(name, [pins], lambda place: _make_python(place, pins)) / "bin" / "python"


def node_environment() -> tuple[Path, Path]:
    """Return Node and the folder that holds the `node_modules` of `package-lock.json`."""
    python = python_environment("node")
    pins = [PINS / "package.json", PINS / "package-lock.json"]
    folder = _kept("packages", pins, lambda place: _make_packages(place, pins, python.parent))
    return python.parent / "node", folder


def _make_python(place: Path, pins: Path) -> None:
    _run([sys.executable, "-m", "venv", str(place)])
    python = str(place / "bin" / "python")
    # All that is needed is pinned, so there is nothing to resolve.
    _run([python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(pins)])


def _make_packages(place: Path, pins: list[Path], programs: Path) -> None:
    place.mkdir()
    for each in pins:
        shutil.copy(each, place)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    _run([str(programs / "npm"), "ci", "--no-audit", "--no-fund"], cwd=place, PATH=path)


def _kept(name: str, pins: list[Path], make: Callable[[Path], None]) -> Path:
    """Return the place of that name and these pins, made unless it is there."""
    what = [platform.platform(), sys.version, *(each.read_text() for each in pins)]
    digest = hashlib.sha256("\0".join(what).encode()).hexdigest()[:16]
    place = _cache() / f"{name}-{digest}"
    done = place.with_suffix(".done")
    with _alone(place.with_suffix(".lock")):
        if not (place.is_dir() and done.exists()):
            shutil.rmtree(place, ignore_errors=True)
            make(place)
            done.touch()
    return place


def _cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "codexsite-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Keep another run's tests out; the system frees the lock of one that dies."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], cwd: Path | None = None, **env: str) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | env, timeout=INSTALL_S, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}"
