"""`python manage.py proxy start|stop|restart|status`: the server in the background."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser

from django.conf import settings
from django.core.management.base import CommandError
from django.db import DatabaseError
from django.utils import timezone

from codexsite import bootstrap
from codexsite.background import AlreadyRunning, Background, StartFailed, State, split_options
from codexsite.lifecycle import AFTER_INTERRUPT_S
from codexsite.management.serving import ServerCommand
from codexsite.options import DATA_DIR_OPTION, OPTIONS
from proxy import __version__
from proxy.models import ProxySettings

STOP_MARGIN_S = 2 * AFTER_INTERRUPT_S + 5.0
"""On top of the grace of running turns: what a stop may take at most, before something is wrong."""
ACTIONS = {
    "start": "Start it, unless it runs already.",
    "stop": "Stop it; running turns get CODEX_PROXY_SHUTDOWN_GRACE_SECONDS to end.",
    "restart": "Stop it and start it with the options of the last start; those given here win.",
    "status": "Say whether it runs, and where. Status 0: it runs; 1: it does not.",
}


class Command(ServerCommand):
    help = "Run the server in the background: start it, stop it, restart it, say what runs."
    requires_system_checks = ()  # only a start runs them: a stop must not depend on them

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        for name, text in ACTIONS.items():
            action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
            if name in ("start", "restart"):
                self.add_server_options(action)
            else:
                DATA_DIR_OPTION.add_to(action)
            if name == "start":
                action.add_argument(
                    "--foreground", action="store_true", help="Stay in this terminal."
                )
            if name in ("stop", "restart"):
                action.add_argument(
                    "--force",
                    action="store_true",
                    help="End it with SIGKILL where it does not stop in time.",
                )
            if name == "status":
                action.add_argument(
                    "--verbose", action="store_true", help="Show the options it runs with, too."
                )

    def handle(self, *, action: str, **options: object) -> None:
        self.insist_on_options(options)
        self.background = Background(settings.DATA_DIR)
        if action == "start":
            self.start(in_foreground=bool(options["foreground"]))
        elif action == "stop":
            self.stop(force=bool(options["force"]))
        elif action == "restart":
            self.restart(force=bool(options["force"]))
        else:
            self.status(verbose=bool(options["verbose"]))

    # --- start ---

    def start(self, *, in_foreground: bool = False) -> None:
        self.check()
        try:
            handle = self.background.lock()
        except AlreadyRunning as running:
            self.stdout.write(f"codexsite is already running{_with_pid(running.pid)}")
            return
        try:
            self.choose_address()
            # The port that was chosen where 0 asked for any: the server and a restart take it too.
            os.environ["CODEX_PROXY_PORT"] = str(settings.PORT)
            # In this terminal, so that what is shown once never reaches the log file.
            self.prepare()
            self.background.remember(_state())
            if in_foreground:
                self.background.occupy(handle)
                self.serve()
            else:
                self._spawn(handle)
        finally:
            os.close(handle)

    def _spawn(self, handle: int) -> None:
        manage = settings.BASE_DIR / "manage.py"
        try:
            pid = self.background.spawn(
                [sys.executable, str(manage), "serve"],
                handle=handle,
                cwd=settings.BASE_DIR,
                url=f"{bootstrap.base_url(settings.HOST, settings.PORT)}/health",
            )
        except StartFailed as failed:
            raise CommandError(
                f"codexsite did not start: {failed}. The end of {self.background.log_file}:\n"
                f"{failed.log}"
            ) from failed
        self.stdout.write(f"\ncodexsite started{_with_pid(pid)}")
        self.stdout.write(f"Log: {self.background.log_file}")
        self.stdout.write("Stop with: python manage.py proxy stop")

    # --- stop ---

    def stop(self, *, force: bool) -> None:
        if not self.background.is_running():
            self.stdout.write("codexsite is not running")
            return
        pid, patience_s = self.background.pid(), self._patience_s()
        try:
            is_gone = self.background.stop(patience_s) or (force and self.background.kill())
        except PermissionError as error:
            raise CommandError(f"codexsite{_with_pid(pid)} belongs to another user") from error
        if not is_gone:
            raise CommandError(
                f"codexsite{_with_pid(pid)} did not stop within {patience_s:g} s of SIGTERM"
                + ("." if force else "; --force ends it with SIGKILL.")
            )
        self.stdout.write(f"codexsite stopped{_with_pid(pid)}")

    def _patience_s(self) -> float:
        state = self.background.state()
        given = state.options.get("CODEX_PROXY_SHUTDOWN_GRACE_SECONDS") if state else None
        return float(given or settings.SHUTDOWN_GRACE_S) + STOP_MARGIN_S

    # --- restart ---

    def restart(self, *, force: bool) -> None:
        """Start again; `prepare_environment` has already put the last options in place."""
        state = self.background.state()
        if state is None:
            raise CommandError(f"No start to repeat is recorded in {self.background.state_file}.")
        if missing := state.missing(os.environ):
            raise CommandError(
                f"The last start had {' and '.join(missing)} set. Secrets are not kept: set it "
                "again for the restart, or set it to nothing to go without."
            )
        self.check()
        self.stop(force=force)
        self.start()

    # --- status ---

    def status(self, *, verbose: bool) -> None:
        if not self.background.is_running():
            self.stdout.write("codexsite is stopped")
            sys.exit(1)
        state, pid = self.background.state(), self.background.pid()
        self.stdout.write(f"codexsite is running{_with_pid(pid)}")
        if state is None:
            return
        url = bootstrap.base_url(state.host, state.port)
        self.stdout.write(f"Version: {state.version}")
        self.stdout.write(f"Base URL: {url}/v1")
        self.stdout.write(f"Admin: {url}/admin/")
        if verbose:
            self._show_options(state)

    def _show_options(self, state: State) -> None:
        self.stdout.write(f"Started: {state.started_at}")
        self.stdout.write(f"State: {self.background.state_file}")
        self.stdout.write(f"Log: {self.background.log_file}")
        self.stdout.write("Options:")
        row = _load_row()
        fields = {option.variable: option.dest for option in OPTIONS}
        for variable in sorted({*fields, *state.options} - {"CODEX_PROXY_DATA_DIR"}):
            if variable in state.options:
                self.stdout.write(f"  {variable}={state.options[variable]}")
            elif variable in state.withheld:
                self.stdout.write(f"  {variable} is set, and not kept")
            elif (value := _in_row(row, fields[variable])) is not None:
                self.stdout.write(f"  {variable} is not set; the admin says: {value}")
        for variable in sorted(set(state.withheld) - set(fields)):
            self.stdout.write(f"  {variable} is set, and not kept")


def _state() -> State:
    options, withheld = split_options(os.environ)
    return State(
        host=settings.HOST,
        port=settings.PORT,
        version=__version__,
        started_at=timezone.now().isoformat(timespec="seconds"),
        options=options,
        withheld=withheld,
    )


def _load_row() -> ProxySettings | None:
    try:
        return ProxySettings.load()
    except DatabaseError:
        return None  # the status of a server is of use without its database too


def _in_row(row: ProxySettings | None, option: str) -> str | None:
    """Return what the admin's settings say for an option, in words; None where they have none."""
    name = {"codex_config": "codex_configs"}.get(option, option)
    value = getattr(row, name, None)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or "nothing"
    return None if value is None or option == "allowed_root" else str(value) or "nothing"


def _with_pid(pid: int | None) -> str:
    return f" with pid {pid}" if pid else " (it is just starting)"
