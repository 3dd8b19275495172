"""What the sandbox would leave behind in a workspace: empty places on which it had mounted something.

Codex covers `.git`, `.codex`, `.agents` and `.aws` at the top of a writable root, and makes them where
they are missing. It takes them away again, but not where a command was killed. So that is done here,
when the last turn in that root has ended: before, it would bare what another one's commands see.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

from proxy.engines.confinement import GUARDED, Confinement

_in_use: Counter[str] = Counter()


def enter(confinement: Confinement) -> Callable[[], None]:
    """Note that a turn works in these roots, and return what to call when it has ended."""
    roots = confinement.roots if confinement.may_write else ()
    _in_use.update(roots)

    def leave() -> None:
        _in_use.subtract(roots)
        for root in roots:
            if not _in_use[root]:
                del _in_use[root]
                _remove_empty(root)

    return leave


def _remove_empty(root: str) -> None:
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        for name in GUARDED:
            try:
                os.rmdir(name, dir_fd=folder)  # only where it is an empty folder
            except OSError:
                pass
    finally:
        os.close(folder)
