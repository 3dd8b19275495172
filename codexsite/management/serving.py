"""What `serve` and `proxy` share."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from codexsite import bootstrap
from codexsite.options import add_options, wanted_variables


class ServerCommand(BaseCommand):
    """A command whose options became environment variables before Django started."""

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:  # noqa: ANN401 - Django's own
        # prepare_environment knows whole names only; the two must read a line alike.
        return super().create_parser(prog_name, subcommand, allow_abbrev=False, **kwargs)

    def add_server_options(self, parser: ArgumentParser) -> None:
        add_options(parser)

    def insist_on_options(self, options: dict[str, object]) -> None:
        """Raise `CommandError` where options could not reach the settings."""
        for variable, value in wanted_variables(options).items():
            if os.environ.get(variable) != value:
                raise CommandError(f"Run this through manage.py, or set {variable} instead.")

    def choose_address(self) -> None:
        """Settle where to listen, so that it can be told. Raises `CommandError` where it is taken."""
        try:
            settings.PORT = bootstrap.free_port(settings.HOST, settings.PORT)
        except bootstrap.AddressRefused as refused:
            raise CommandError(str(refused)) from refused

    def prepare(self) -> None:
        """Do the chores and say where the server will be, first of all what is shown only once."""
        try:
            first = bootstrap.prepare()
        except (DatabaseError, OSError) as error:
            raise CommandError(f"cannot prepare the database: {error}") from error
        self.stdout.write(bootstrap.summary(settings.HOST, settings.PORT, first))
        self.stdout.flush()
        for warning in bootstrap.warnings(settings.HOST):
            self.stderr.write(self.style.WARNING(f"WARNING: {warning}"))

    def serve(self) -> None:
        """Serve in this process until a signal ends it."""
        # Here, since Twisted's reactor must be the one that Daphne installs.
        from daphne.endpoints import build_endpoint_description_strings
        from daphne.management.commands.runserver import get_default_application

        from codexsite.server import ListenFailed, Server

        def ready() -> None:
            self.stdout.write("\nServing. Stop with Ctrl-C.")
            self.stdout.flush()

        host, port = settings.HOST, settings.PORT
        endpoints = build_endpoint_description_strings(host=host, port=port)
        try:
            Server(get_default_application(), endpoints, ready_callable=ready).run()
        except ListenFailed as failed:
            raise CommandError(bootstrap.refusal(host, port, str(failed))) from failed
