"""`python manage.py runserver`: Daphne's development server, in our own form."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from daphne.management.commands.runserver import Command as DaphneCommand
from django.conf import settings
from django.utils.autoreload import DJANGO_AUTORELOAD_ENV

from codexsite import bootstrap
from codexsite.server import ListenFailed, Server, log_access

PR_SET_PDEATHSIG = 1  # from linux/prctl.h


class Command(DaphneCommand):  # type: ignore[misc] # daphne has no types
    help = (
        "Serve this project for development, reloading when its code changes. Without an address "
        "it listens where `serve` does (CODEX_PROXY_HOST, CODEX_PROXY_PORT)."
    )
    server_cls = Server

    def handle(self, *args: object, **options: Any) -> None:  # noqa: ANN401 - Django's own signature
        if os.environ.get(DJANGO_AUTORELOAD_ENV) == "true":
            _end_with_the_parent()
        options["addrport"] = options["addrport"] or bootstrap.netloc(settings.HOST, settings.PORT)
        super().handle(*args, **options)

    def inner_run(self, *args: object, **options: Any) -> None:  # noqa: ANN401 - Django's own signature
        # The address counts, wherever it came from: anonymous use is for loopback only.
        settings.HOST, settings.PORT = self.addr, int(self.port)
        try:
            super().inner_run(*args, **options)
        except ListenFailed as failed:
            self.stderr.write(f"Error: {bootstrap.refusal(self.addr, int(self.port), str(failed))}")
            # Under the autoreloader this is a thread, whose end would leave the process waiting.
            os._exit(1)

    def log_action(self, protocol: str, action: str, details: dict[str, Any]) -> None:
        log_access(protocol, action, details)


def _end_with_the_parent() -> None:
    """Have the kernel end this process with the reloader that started it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
