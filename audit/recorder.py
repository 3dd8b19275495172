"""One request's record, from its first byte to its end."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import orjson
from django.db import models

from audit.models import Outcome, RequestRecord

logger = logging.getLogger(__name__)

_COLUMNS: Final = {field.name: field for field in RequestRecord._meta.concrete_fields}
_OURS: Final = frozenset(
    {"id", "request_id", "created_at", "instance", "boot", "outcome", "total_ms"}
)
_NOTABLE: Final = frozenset(_COLUMNS) - _OURS
BLANK: Final = {name: field.get_default() for name, field in _COLUMNS.items() if name != "id"}
_LENGTHS: Final = {
    name: field.max_length
    for name, field in _COLUMNS.items()
    if isinstance(field, models.CharField)
}
_LARGEST: Final = {
    name: 2**15 - 1 if isinstance(field, models.PositiveSmallIntegerField) else 2**63 - 1
    for name, field in _COLUMNS.items()
    if isinstance(field, models.IntegerField)
}


class Journal(Protocol):
    """Where a record's states go; `audit.writer.AuditLog` is the one that there is."""

    instance: str
    boot: str

    def append(self, line: bytes) -> None:
        """Keep the line beyond this process's death, or raise OSError."""

    def keep(self, line: bytes, *, has_begun: bool) -> None:
        """Keep a request's end that could not be appended. Never raises.

        `has_begun` is whether the request is on record already: its end has been promised.
        """


class Record:
    """What is known of one request so far. `fields` are the columns of `RequestRecord`.

    Nothing here touches the database or waits: a state is one line appended to the journal.
    Safe to close from any thread, more than once.
    """

    __slots__ = (
        "_has_begun", "_is_closed", "_journal", "_mutex", "_opened_at", "fields", "request_id",
    )  # fmt: skip

    def __init__(self, journal: Journal, fields: dict[str, Any]) -> None:
        self.request_id = uuid.uuid4()
        self._journal = journal
        self._opened_at = time.monotonic()
        self._mutex = threading.Lock()
        self._has_begun = self._is_closed = False
        self.fields: dict[str, Any] = {
            **BLANK,
            "phases": {},
            "request_id": self.request_id,
            "created_at": datetime.now(UTC),
            "instance": journal.instance,
            "boot": journal.boot,
        }
        self.note(**fields)

    def note(self, **fields: Any) -> None:  # noqa: ANN401 - a column's value may be anything
        """Set columns, cut to what they can hold. Nothing is written before `save` or `close`.

        Raises TypeError for a name that is no column, or one that the record sets itself.
        """
        if not fields.keys() <= _NOTABLE:
            raise TypeError(f"No columns to note: {', '.join(sorted(fields.keys() - _NOTABLE))}")
        for name, value in fields.items():
            self.fields[name] = _fitting(name, value)

    def save(self) -> None:
        """Put the present state on record; it then survives this process. Raises OSError.

        After `close` this does nothing: the end is the last word.
        """
        if not self._is_closed:
            self._journal.append(_line_of(self.fields))
            self._has_begun = True

    def append(self, line: bytes, *, slim: Callable[[], bytes]) -> None:
        """Put a line of something that belongs to this request, which runs, on record.

        Never raises OSError: what cannot be appended now the writer stores later, as `slim` has it.
        """
        try:
            self._journal.append(line)
        except OSError:
            self._journal.keep(slim(), has_begun=True)

    def close(
        self,
        outcome: str,
        http_status: int | None,
        *,
        error_code: str = "",
        error_message: str = "",
    ) -> bool:
        """End the record with an `Outcome`; return whether this call was the one that did.

        Measures `total_ms` since the record was opened. Never raises: a trouble of the audit log
        must not break an answer. What cannot be appended now, the writer stores later.
        """
        with self._mutex:
            if self._is_closed:
                return False
            self._is_closed = True
        try:
            self.note(http_status=http_status, error_code=error_code, error_message=error_message)
            self.fields["outcome"] = str(outcome)
            self.fields["total_ms"] = (time.monotonic() - self._opened_at) * 1000
            self._end(self._last_line())
        except Exception:
            logger.exception("Request %s could not be closed on record", self.request_id)
        return True

    def _end(self, line: bytes) -> None:
        try:
            self._journal.append(line)
        except OSError:
            self._journal.keep(line, has_begun=self._has_begun)

    def _last_line(self) -> bytes:
        """Return the end as a line, if need be without the columns that cannot be written."""
        try:
            return _line_of(self.fields)
        except (TypeError, ValueError):
            logger.exception("Request %s is on record with gaps", self.request_id)
        return _line_of({name: value for name, value in self.fields.items() if _is_fit(value)})


def _line_of(fields: dict[str, Any]) -> bytes:
    return orjson.dumps(
        fields, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
    )


def _is_fit(value: Any) -> bool:  # noqa: ANN401 - a column's value may be anything
    try:
        _line_of({"": value})
    except (TypeError, ValueError):
        return False
    return True


def is_closed(row: dict[str, Any]) -> bool:
    """Tell whether a row has its final state."""
    return bool(row["outcome"] != Outcome.RUNNING)


def _fitting(name: str, value: Any) -> Any:  # noqa: ANN401 - a column's value may be anything
    """Return the value as every database takes it: one row that none takes would be lost."""
    if isinstance(value, str):
        return plain(value)[: _LENGTHS.get(name)]
    if name in _LARGEST and isinstance(value, int) and not 0 <= value <= _LARGEST[name]:
        return None  # unknown rather than wrong
    return value


def plain(text: str) -> str:
    """Return the text without NUL (PostgreSQL refuses it) and half surrogates (JSON does)."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\x00", "")
