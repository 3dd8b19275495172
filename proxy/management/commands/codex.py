"""`manage.py codex login|logout|status`: the server's own Codex login, in its own CODEX_HOME."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import logging
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from proxy import runtime
from proxy.engines import login
from proxy.engines.base import EngineConfig, Inspection
from proxy.errors import EngineError
from proxy.policy import load_options

DEVICE_CODE_WAIT_S = 15 * 60

REUSE_RISK = (
    "Two Codex installations now share one login. Its refresh token can be used once: when both "
    "refresh at the same time, one of them is logged out, and logging out here or there logs out "
    "both. A login of the server's own (`codex login`) has no such risk."
)


class Command(BaseCommand):
    help = "Log the server's Codex in or out, or say who is logged in."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        log_in = actions.add_parser(
            "login", help="Log in with ChatGPT by a device code, or with an API key."
        )
        way = log_in.add_mutually_exclusive_group()
        way.add_argument(
            "--api-key", action="store_true", help="Read an API key from standard input."
        )
        way.add_argument(
            "--reuse",
            action="store_true",
            help="Link the login of this user's own Codex (CODEX_HOME, else ~/.codex). "
            + REUSE_RISK,
        )
        actions.add_parser("logout", help="Log out.")
        actions.add_parser("status", help="Say which codex runs and who is logged in.")

    def handle(self, *args: Any, action: str, **options: Any) -> None:  # noqa: ANN401 - Django's
        logging.getLogger("proxy").setLevel(logging.ERROR)  # a server's log, not a terminal's
        try:
            config = runtime.engine_config(load_options())
            if action == "login" and options["reuse"]:
                self._reuse(config)
            elif action == "login":
                self._log_in(config, with_api_key=options["api_key"])
            elif action == "logout":
                self._log_out(config)
            else:
                self._say(asyncio.run(login.inspect(config)), config)
        except DatabaseError as error:
            raise CommandError(
                "The database is not prepared: run `serve` or `migrate` first."
            ) from error
        except (login.LoginFailed, EngineError) as error:
            raise CommandError(str(error)) from error

    def _log_in(self, config: EngineConfig, *, with_api_key: bool) -> None:
        if with_api_key:
            key = self._read_key()
            found = asyncio.run(login.with_api_key(config, key))
        else:
            wait_s = DEVICE_CODE_WAIT_S
            found = asyncio.run(login.with_device_code(config, self._show_code, timeout_s=wait_s))
        self._say(found, config)

    def _read_key(self) -> str:
        if sys.stdin.isatty():
            key = getpass.getpass("API key of the model provider: ")
        else:
            key = sys.stdin.readline()
        if not key.strip():
            raise CommandError("No API key on standard input.")
        return key.strip()

    def _show_code(self, url: str, code: str) -> None:
        self.stdout.write(f"Open {url}\nand enter the code {code}\nWaiting for you to do so ...")
        self.stdout.flush()

    def _reuse(self, config: EngineConfig) -> None:
        theirs, ours = settings.USER_CODEX_HOME / "auth.json", _auth_file(config)
        if not theirs.is_file():
            raise CommandError(f"There is no login to reuse: {theirs} does not exist.")
        if ours.is_symlink():
            ours.unlink()
        if ours.exists():
            raise CommandError("This server has a login of its own; `codex logout` first.")
        ours.symlink_to(theirs.resolve())
        self.stdout.write(self.style.WARNING(REUSE_RISK))
        self._say(asyncio.run(login.inspect(config)), config)

    def _log_out(self, config: EngineConfig) -> None:
        ours = _auth_file(config)
        if ours.is_symlink():  # Codex would revoke the login of its owner, too
            ours.unlink()
        else:
            asyncio.run(login.log_out(config))
        self.stdout.write("Logged out. A running server notices with its next request.")

    def _say(self, found: Inspection, config: EngineConfig) -> None:
        self.stdout.write(f"codex {found.codex_version}  {config.codex_bin}")
        self.stdout.write(f"CODEX_HOME  {config.codex_home}")
        shared = " (shared with this user's own Codex)" if _auth_file(config).is_symlink() else ""
        if found.account is not None:
            self.stdout.write(self.style.SUCCESS(f"logged in: {found.account}{shared}"))
        elif found.needs_login:
            self.stdout.write(self.style.ERROR("not logged in: run `python manage.py codex login`"))
        else:
            self.stdout.write("not logged in, and the configured model provider needs no login")


def _auth_file(config: EngineConfig) -> Path:
    return Path(config.codex_home) / "auth.json"
