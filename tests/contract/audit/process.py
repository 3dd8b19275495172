"""A real server process as far as the audit log is concerned, told what to do through its stdin.

Each line in is a JSON list `[command, argument...]`, each line out its JSON answer. It is killed,
starved and cut off from its database by the tests.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.core.management import call_command

from audit.actions import fitted, line_of
from audit.metrics import counters
from audit.models import AgentAction, RequestRecord
from audit.recorder import Record
from audit.spool import Spool
from audit.writer import AuditLog


class Server:
    def __init__(self) -> None:
        self.log = AuditLog(settings.DATA_DIR.spool, settings.INSTANCE_ID)
        self.records: dict[str, Record] = {}

    def migrate(self) -> None:
        call_command("migrate", "audit", verbosity=0)

    def start(self) -> str:
        self.log.start()
        return self.log.boot

    def open(self, count: int, **fields: object) -> list[str]:
        """Open and save records; return their ids."""
        names = []
        for _ in range(count):
            record = self.log.open(endpoint="/v1/chat/completions", method="POST", **fields)
            record.save()
            self.records[str(record.request_id)] = record
            names.append(str(record.request_id))
        return names

    def end(self, names: list[str], outcome: str, status: int, **fields: object) -> list[bool]:
        for name in names:
            self.records[name].note(**fields)
        return [self.records[name].close(outcome, status) for name in names]

    def act(self, name: str, number: int, status: str, **columns: object) -> None:
        """Put an action of a request on record."""
        record = self.records[name]
        known = {"request_id": name, "number": number, "created_at": datetime.now(UTC)}
        origin = {"instance": self.log.instance, "boot": self.log.boot}
        told = {"kind": "command", "status": status, **columns}
        line = line_of({**known, **origin, **fitted(told)})
        record.append(line, slim=lambda: line)

    def actions(self, name: str) -> list[list[Any]]:
        rows = AgentAction.objects.filter(request_id=name).order_by("number")
        return [[row.number, row.status, row.exit_code] for row in rows]

    def spoil(self, name: str) -> None:
        """Give a record a value that no database takes, past all that would stop it."""
        self.records[name].fields["input_tokens"] = -1

    def hammer(self) -> None:
        """Answer requests in several threads until killed, acknowledging each state."""

        def work(number: int) -> None:
            for turn in range(1_000_000):
                record = self.log.open(endpoint="/v1", method="POST", input_tokens=10)
                record.save()
                os.write(1, f"open {record.request_id}\n".encode())
                if turn % 10:
                    record.close("ok", 200)
                    os.write(1, f"ok {record.request_id}\n".encode())

        for number in range(4):
            threading.Thread(target=work, args=(number,), daemon=True).start()
        threading.Event().wait()

    def flush(self, timeout_s: float = 20) -> bool:
        return self.log.flush(timeout_s)

    def die_before_unlink(self) -> None:
        """From now on, die between the commit of a batch and the removal of its segment."""
        Spool.discard = lambda *_: os._exit(9)  # type: ignore[method-assign]

    def limit_files(self, size: int | None) -> None:
        """Let no file grow beyond the size, as a full disk does; None lifts it."""
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))

    def report(self) -> dict[str, Any]:
        rows = RequestRecord.objects.values_list("request_id", "outcome", "http_status")
        return {
            "rows": {str(name): [outcome, status] for name, outcome, status in rows},
            "counters": counters(),
        }

    def row(self, name: str) -> dict[str, Any]:
        return dict(RequestRecord.objects.filter(request_id=name).values().get())

    def close(self) -> None:
        self.log.close()


def main() -> None:
    server = Server()
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        fields = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
        try:
            answer = getattr(server, command)(*arguments, **fields)
        except OSError as error:
            answer = {"error": type(error).__name__}
        os.write(1, json.dumps(answer, default=str).encode() + b"\n")
