"""`python manage.py runserver`: Daphne's development server, in our own form."""

from __future__ import annotations

import os
from typing import Any

from daphne.management.commands.runserver import Command as DaphneCommand
from django.conf import settings
from django.utils.autoreload import DJANGO_AUTORELOAD_ENV

from codexsite import bootstrap
from codexsite.reloading import end_with
from codexsite.server import ListenFailed, Server, log_access

RELOADER_VARIABLE = "CODEXSITE_RELOADER_PID"


class Command(DaphneCommand):  # type: ignore[misc] # daphne has no types
    help = (
        "Serve this project for development, reloading when its code changes. Without an address "
        "it listens where `serve` does (CODEX_PROXY_HOST, CODEX_PROXY_PORT)."
    )
    server_cls = Server

    def handle(self, *args: object, **options: Any) -> None:  # noqa: ANN401 - Django's own signature
        if os.environ.get(DJANGO_AUTORELOAD_ENV) == "true":
            end_with(int(os.environ.get(RELOADER_VARIABLE, os.getppid())))
        else:
            os.environ[RELOADER_VARIABLE] = str(os.getpid())  # the reloaded process inherits it
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
