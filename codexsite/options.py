"""The command line of `serve` and `proxy`: each option sets the variable of the same meaning.

Settings are read once, when Django loads them, and a command runs only after that. So `manage.py`
calls `prepare_environment` first; what a command then sees is the environment alone, whether a
value came from an option, from a variable, or from the start that `proxy restart` repeats.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codexsite.background import Background
from codexsite.datadir import DataDir, locate
from proxy.overrides import OverrideRefused, check_override

COMMANDS = ("serve", "proxy")
API_KEY_VARIABLE = "CODEX_PROXY_API_KEY"

Text = Callable[[str], str]


def _number(kind: type[int] | type[float], low: float, high: float = float("inf")) -> Text:
    def check(text: str) -> str:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            limit = f"between {low:g} and {high:g}" if high < float("inf") else f"{low:g} or more"
            raise argparse.ArgumentTypeError(f"{text} is not {limit}")
        return str(value)

    return check


def _path(text: str) -> str:
    # Absolute, since the server in the background does not run in the caller's directory.
    return str(Path(text).expanduser().absolute())


def _directory(text: str) -> str:
    path = _path(text)
    if not os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    return path


def _root(text: str) -> str:
    path = _directory(text)
    if ":" in path:
        raise argparse.ArgumentTypeError(f"{text} contains a colon; add this root in the admin")
    return path


def _program(text: str) -> str:
    found = shutil.which(os.path.expanduser(text))
    if found is None:
        raise argparse.ArgumentTypeError(f"there is no program {text!r}")
    return _path(found) if os.sep in text else text


def _override(text: str) -> str:
    try:
        check_override(text)
    except OverrideRefused as refused:
        raise argparse.ArgumentTypeError(str(refused)) from refused
    if ";;" in text:
        raise argparse.ArgumentTypeError("an override cannot contain ';;'; set it in the admin")
    return text


@dataclass(frozen=True, slots=True)
class Option:
    """One option, and the variable that it sets."""

    flag: str
    variable: str
    help: str
    metavar: str = ""
    type: Text = str
    choices: tuple[str, ...] | None = None
    between: str = ""
    """Where not empty: the option may be repeated, and this stands between the values."""
    is_switch: bool = False

    @property
    def dest(self) -> str:
        return self.flag.removeprefix("--").replace("-", "_")

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        text = f"{self.help} ({self.variable})"
        if self.is_switch:
            parser.add_argument(self.flag, action=argparse.BooleanOptionalAction, help=text)
            return
        more: dict[str, Any] = {"choices": self.choices} if self.choices else {}
        if self.metavar:
            more["metavar"] = self.metavar
        action = "append" if self.between else "store"
        parser.add_argument(self.flag, action=action, type=self.type, help=text, **more)

    def text_of(self, value: Any) -> str:  # noqa: ANN401 - whatever argparse made of it
        if self.is_switch:
            return "1" if value else "0"
        return self.between.join(value) if self.between else str(value)


DATA_DIR_OPTION = Option(
    "--data-dir", "CODEX_PROXY_DATA_DIR", metavar="DIR", type=_path,
    help="The server's own directory: database, secret key, CODEX_HOME, logs. Default: ~/.codexsite",
)  # fmt: skip

OPTIONS = (
    Option(
        "--host", "CODEX_PROXY_HOST", metavar="ADDRESS",
        help="Address to listen on. Default: 127.0.0.1, this machine only.",
    ),
    Option(
        "--port", "CODEX_PROXY_PORT", metavar="PORT", type=_number(int, 0, 65535),
        help="Port to listen on; 0 takes a free one. Default: 8765.",
    ),
    DATA_DIR_OPTION,
    Option(
        "--demo", "CODEX_PROXY_DEMO", is_switch=True,
        help="The whole chain without account and network: real codex, stand-in for the model.",
    ),
    Option(
        "--codex-bin", "CODEX_PROXY_CODEX_BIN", metavar="PROGRAM", type=_program,
        help="Codex, as a path or a name on PATH. Default: the one installed with this server.",
    ),
    Option(
        "--proxy", "CODEX_PROXY_PROXY", metavar="URL",
        help="Codex reaches its model provider through this proxy.",
    ),
    Option(
        "--model", "CODEX_PROXY_MODEL", metavar="MODEL",
        help="What a request for the model `default` gets. Default: Codex's own default.",
    ),
    Option(
        "--engine", "CODEX_PROXY_ENGINE", choices=("app-server", "exec"),
        help="Long-lived workers, or a process per request. Default: app-server.",
    ),
    Option(
        "--workers", "CODEX_PROXY_WORKERS", metavar="N", type=_number(int, 1, 64),
        help="Long-lived app-server processes. Default: 1.",
    ),
    Option(
        "--max-queue-size", "CODEX_PROXY_MAX_QUEUE_SIZE", metavar="N", type=_number(int, 0),
        help="Requests that may wait for an engine; one more gets 429. Default: 64.",
    ),
    Option(
        "--queue-timeout-seconds", "CODEX_PROXY_QUEUE_TIMEOUT_SECONDS", metavar="S",
        type=_number(float, 0),
        help="How long a request may wait for an engine before it gets 429. Default: 30.",
    ),
    Option(
        "--app-server-codex-home", "CODEX_PROXY_APP_SERVER_CODEX_HOME", metavar="DIR", type=_path,
        help="Codex's own directory, with its login. Default: codex_home in the data directory.",
    ),
    Option(
        "--codex-config", "CODEX_PROXY_CODEX_CONFIGS", metavar="KEY=VALUE", type=_override,
        between=";;",
        help="Override for codex -c; may be repeated. None may weaken the sandbox.",
    ),
    Option(
        "--ephemeral", "CODEX_PROXY_EPHEMERAL", is_switch=True,
        help="Codex keeps no file of a conversation. Default: on.",
    ),
    Option(
        "--agent", "CODEX_PROXY_AGENT", is_switch=True,
        help="Requests that do not say ask for agent mode; a grant is needed too. Default: off.",
    ),
    Option(
        "--fast", "CODEX_PROXY_FAST", is_switch=True,
        help="Low reasoning effort, unless an override sets it. Default: off.",
    ),
    Option(
        "--default-cwd", "CODEX_PROXY_DEFAULT_CWD", metavar="DIR", type=_directory,
        help="Working directory where a request names none. Default: workspace in the data directory.",
    ),
    Option(
        "--allowed-root", "CODEX_PROXY_ALLOWED_ROOTS", metavar="DIR", type=_root, between=":",
        help="Where keys without roots of their own may work; may be repeated.",
    ),
    Option(
        "--timeout-seconds", "CODEX_PROXY_TIMEOUT_SECONDS", metavar="S", type=_number(float, 1),
        help="A request's deadline, from its arrival to its last word. Default: 300.",
    ),
    Option(
        "--max-concurrency", "CODEX_PROXY_MAX_CONCURRENCY", metavar="N",
        type=_number(int, 1, 500),
        help="codex exec processes at once. Default: 4.",
    ),
    Option(
        "--log-level", "CODEX_PROXY_LOG_LEVEL", choices=("debug", "info", "warning", "error"),
        help="debug also logs a line per request. Default: info.",
    ),
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add every option of a server to the parser."""
    for option in OPTIONS:
        option.add_to(parser)
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="Read a key that opens the API without a row in the admin; - reads it from stdin. "
        f"There is no --api-key: others would see it in `ps`. ({API_KEY_VARIABLE})",
    )


def wanted_variables(given: Mapping[str, object]) -> dict[str, str]:
    """Return variables and values for those of the parsed options that were given."""
    return {
        option.variable: option.text_of(given[option.dest])
        for option in OPTIONS
        if given.get(option.dest) is not None
    }


def prepare_environment(argv: Sequence[str], environ: MutableMapping[str, str]) -> None:
    """Put a server command's options into the environment, before settings load.

    `argv` is the whole command line. For `proxy restart` the options of the last start follow,
    where neither the command line nor the environment says otherwise. Ends the process with
    status 2 and a line on stderr where an option is wrong.
    """
    if len(argv) < 2 or argv[1] not in COMMANDS or {"-h", "--help"} & set(argv):
        return
    parser = argparse.ArgumentParser(
        prog=f"{Path(argv[0]).name} {argv[1]}", add_help=False, allow_abbrev=False,
        usage=f"%(prog)s [options]; all are listed by {Path(argv[0]).name} {argv[1]} --help",
    )  # fmt: skip
    add_options(parser)
    given, rest = parser.parse_known_args(argv[2:])
    environ.update(wanted_variables(vars(given)))
    if given.api_key_file is not None:
        try:
            environ[API_KEY_VARIABLE] = _read_secret(given.api_key_file)
        except (OSError, ValueError) as error:
            parser.error(f"argument --api-key-file: {error}")
    if argv[1] == "proxy" and "restart" in rest:
        state = Background(DataDir(locate(environ.get("CODEX_PROXY_DATA_DIR")))).state()
        for variable, value in (state.options if state else {}).items():
            environ.setdefault(variable, value)


def _read_secret(source: str) -> str:
    text = sys.stdin.readline() if source == "-" else Path(source).expanduser().read_text("utf-8")
    if not (secret := text.strip()):
        raise ValueError("there is no key in it")
    return secret
