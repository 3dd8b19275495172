"""`python manage.py serve`: the whole product, from an empty directory to a listening server."""

from __future__ import annotations

from argparse import ArgumentParser

from codexsite.management.serving import ServerCommand


class Command(ServerCommand):
    help = (
        "Start the server: prepares the data directory and the database, creates the first admin "
        "and API key (shown once), and serves until Ctrl-C or SIGTERM. Can be run again at any "
        "time. An option sets the variable named behind it for this process, and so wins over "
        "what the admin says."
    )

    def handle(self, **options: object) -> None:
        self.insist_on_options(options)
        self.choose_address()
        self.prepare()
        self.serve()

    def add_arguments(self, parser: ArgumentParser) -> None:
        self.add_server_options(parser)
