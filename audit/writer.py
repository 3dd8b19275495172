"""From the spool into the database: one thread, one transaction a batch, nothing twice.

The request path only appends a line to a file (`Record`); this thread seals the file every tenth
of a second, merges the lines of each request, commits them together with the counters, and then
removes the file. Dying anywhere in between repeats a batch at the next start, and a row that is
closed in the database is never written or counted again. While the database is down the segments
wait on disk and requests go on, up to the spool's bound: then new ones are refused. Their rows use
the reserve above it, then memory, and at last the server's log; those of running ones are taken.
"""

from __future__ import annotations

import atexit
import logging
import threading
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson
from django.db import (
    DataError,
    IntegrityError,
    close_old_connections,
    connection,
    connections,
    models,
    transaction,
)
from django.db.models import Count, Sum

from audit import actions
from audit.models import Outcome, RequestCounter, RequestRecord
from audit.recorder import BLANK, Record, is_closed
from audit.spool import MAX_BYTES, Spool, read_lines

logger = logging.getLogger(__name__)

Row = dict[str, Any]

KEPT_LINES = 50_000
"""How many lines wait in memory while the disk takes none; the next ones go to the log."""
RESERVE = 0.25
"""How much of the spool's bound the ends of refused requests may use above it."""
BATCH_ROWS = 1000
"""In one transaction: others want to write, too."""
STATEMENT_ROWS = 100
"""In one statement: SQLite takes some ten thousand values in one, and a row has fifty."""
MAX_WAIT_S = 5.0
"""Between two tries while the database is down."""
START_WAIT_S = 15.0
"""How long `start` waits for the recovery, which goes on in the thread if it takes longer."""

_FIELDS: Final = tuple(field for field in RequestRecord._meta.concrete_fields if field.name != "id")
_COLUMNS: Final = tuple(field.name for field in _FIELDS)
_CHANGING: Final = [name for name in _COLUMNS if name not in {"request_id", "created_at"}]
_ADAPTED: Final = tuple(
    field
    for field in _FIELDS
    if isinstance(field, models.UUIDField | models.DateTimeField | models.JSONField)
)
"""What each database wants in a form of its own; the rest goes there as it is."""
_POISON: Final = (DataError, IntegrityError, LookupError, OverflowError, TypeError, ValueError)
"""A row's own fault. Anything else is the database's: it is tried again, for ever."""


class AuditLog:
    """The audit log of this process: give it records, it stores them.

    `spool_dir` is shared by the processes of one data directory, whose id is `instance`: what a
    dead one of them left behind is finished by the next that starts. `after_commit` is called in
    the writer's thread with the rows (dicts of columns) of each batch, once they are committed.
    One use: `start` once, `close` once.
    """

    def __init__(
        self,
        spool_dir: Path,
        instance: str,
        *,
        after_commit: Callable[[Sequence[Row]], None] | None = None,
        interval_s: float = 0.1,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.instance = instance
        self.boot = uuid.uuid4().hex
        self._spool = Spool(spool_dir, self.boot, max_bytes=max_bytes)
        self._after_commit = after_commit
        self._interval_s = interval_s
        self._kept: deque[bytes] = deque()
        self._wake = threading.Event()
        self._is_closing = self._is_closed = False
        self._is_recovered = False
        self._failing: set[str] = set()
        # Each pass over the spool has a number, so that flush can wait for one begun after it.
        self._progress = threading.Condition()
        self._begun = 0
        self._committed = 0
        self._first_pass_over = threading.Event()
        self._start_mutex = threading.Lock()
        self._thread: threading.Thread | None = None

    # --- For the request path ---------------------------------------------------------------

    def open(self, **fields: Any) -> Record:  # noqa: ANN401 - a column's value may be anything
        """Return a new record, which is on record from its first `save` or `close` on."""
        return Record(self, fields)

    def append(self, line: bytes) -> None:
        """Put one state of a record on disk. Raises OSError (also before `start`)."""
        self._spool.append(line)

    @property
    def is_full(self) -> bool:
        """Whether new requests must be refused: too much waits, or the log is not running."""
        return self._thread is None or self._spool.is_full

    def keep(self, line: bytes, *, has_begun: bool) -> None:
        """Hold an end that `append` refused until the database has it: on disk, else in memory.

        Running requests are few, so their ends may exceed the bound; refused ones may be many.
        """
        beyond = float("inf") if has_begun else self._spool.max_bytes * RESERVE
        try:
            self._spool.append(line, beyond=beyond)
        except OSError:
            if len(self._kept) < KEPT_LINES and not self._is_closed:
                self._kept.append(line)
            else:
                logger.error("No room for an audit row, here it is: %s", line.decode())

    # --- Its life ---------------------------------------------------------------------------

    def start(self) -> None:
        """Finish what dead processes left behind and start the writer. Does nothing if it runs.

        Raises OSError where the spool folder cannot be used. A database that is down does not
        stop the start: the recovery is then tried again and again by the thread.
        """
        with self._start_mutex:
            if self._thread is None:
                self._spool.open()
                self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)
                self._thread.start()
                atexit.register(self.close)
        if not self._first_pass_over.wait(START_WAIT_S):
            logger.warning("The audit log is still recovering what the last server left open")

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything appended so far is committed; return False if it is not in time."""
        with self._progress:
            wanted = self._begun + 1
            self._wake.set()
            return self._progress.wait_for(lambda: self._committed >= wanted, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Store what there is and end the thread. What the database does not take stays on disk."""
        thread = self._thread
        if thread is None or self._is_closing:
            return
        atexit.unregister(self.close)
        self._is_closing = True
        self._wake.set()
        thread.join(timeout_s)
        if thread.is_alive():
            # It may yet commit what it holds: the boot's lock stays until the process is gone, or
            # another process would store and count the same rows at the same time.
            logger.warning("The audit log's writer does not end; the rest waits for the next start")
            return
        self._is_closed = True  # what comes now is told to the log
        self._spill()
        self._spool.seal()
        waiting = len(self._spool.sealed())
        self._spool.close()
        if waiting:
            logger.warning("%d segments of the audit log wait for the next start", waiting)

    # --- The thread -------------------------------------------------------------------------

    def _run(self) -> None:
        wait_s = 0.0
        try:
            while True:
                self._wake.wait(wait_s)
                self._wake.clear()
                is_last = self._is_closing  # read before the pass, which then sees every line
                if self._pass():
                    wait_s = self._interval_s
                else:
                    wait_s = min(MAX_WAIT_S, max(wait_s, self._interval_s) * 2)
                self._first_pass_over.set()
                if is_last:
                    return
        finally:
            connections.close_all()

    def _pass(self) -> bool:
        """Do all there is to do once; return whether all of it is done."""
        with self._progress:
            self._begun += 1
            number = self._begun
        if not self._is_recovered:
            self._is_recovered = self._try("recovery", self._recover)
        is_stored = self._try("writer", self._store_everything)
        if is_stored:
            with self._progress:
                self._committed = number
                self._progress.notify_all()
        return is_stored and self._is_recovered

    def _try(self, name: str, work: Callable[[], None]) -> bool:
        """Do the work; log once when it begins to fail and once when it works again."""
        try:
            work()
        except Exception:
            if name not in self._failing:
                self._failing.add(name)
                logger.exception("The audit log's %s fails; it will be tried again", name)
            close_old_connections()
            return False
        if name in self._failing:
            self._failing.discard(name)
            logger.warning("The audit log's %s works again", name)
        return True

    def _store_everything(self) -> None:
        self._spool.seal()
        self._store_segments(self._spool.sealed())
        # After the segments: a request's earlier states are in them.
        kept = list(self._kept)
        self._store(kept)
        for _ in kept:
            self._kept.popleft()

    def _store_segments(self, segments: Iterable[Path]) -> None:
        """Store and remove each; one that the disk does not give or let go holds up no other."""
        trouble: OSError | None = None
        for segment in segments:
            try:
                self._store(read_lines(segment))
                self._spool.discard(segment)
            except OSError as error:
                trouble = error
        if trouble is not None:
            raise trouble

    def _spill(self) -> None:
        """Put the lines that only memory holds on disk, now that the process ends."""
        while self._kept:
            line = self._kept.popleft()
            try:
                self._spool.append(line, beyond=float("inf"))
            except OSError:
                logger.error("The disk does not take an audit row, here it is: %s", line.decode())

    # --- Batches ----------------------------------------------------------------------------

    def _store(self, lines: Sequence[bytes]) -> None:
        acted = [line for line in lines if actions.is_action(line)]
        rows = merged(self._readable(line for line in lines if not actions.is_action(line)))
        # Before the rows: whoever sees that a request is over sees all it did.
        request_ids: set[uuid.UUID] = set()
        for start in range(0, len(acted), BATCH_ROWS):
            request_ids |= self._store_actions(acted[start : start + BATCH_ROWS])
        for start in range(0, len(rows), BATCH_ROWS):
            self._store_batch(rows[start : start + BATCH_ROWS])
        actions.count(sorted(request_ids))

    def _store_actions(self, lines: Sequence[bytes]) -> set[uuid.UUID]:
        try:
            return actions.commit(lines)
        except _POISON:
            stored = set()
            for line in lines:
                try:
                    stored |= actions.commit([line])
                except _POISON:
                    logger.exception("An action cannot be stored; it is kept in rejected.jsonl")
                    self._spool.set_aside(line)
            return stored

    def _store_batch(self, rows: Sequence[Row]) -> None:
        try:
            stored = commit(rows)
        except _POISON:
            stored = self._commit_one_by_one(rows)
        if self._after_commit is not None and stored:
            try:
                self._after_commit(stored)
            except Exception:
                logger.exception("What follows the commit of audit rows failed")
                close_old_connections()

    def _readable(self, lines: Iterable[bytes]) -> Iterable[Row]:
        for line in lines:
            try:
                yield _row(line)
            except _POISON:
                logger.exception("An audit line cannot be read; it is kept in rejected.jsonl")
                self._spool.set_aside(line)

    def _commit_one_by_one(self, rows: Sequence[Row]) -> list[Row]:
        """Commit each row for itself, so that a bad one stops no other."""
        stored = []
        for row in rows:
            try:
                stored += commit([row])
            except _POISON:
                logger.exception(
                    "Audit row %s cannot be stored; it is kept in rejected.jsonl", row["request_id"]
                )
                self._spool.set_aside(orjson.dumps(row, default=str))
        return stored

    # --- Recovery ---------------------------------------------------------------------------

    def _recover(self) -> None:
        """Store the segments of dead boots, then close what they left open as interrupted."""
        with self._spool.recovery():
            self._store_segments(self._spool.leftovers())
            self._spool.forget_leftovers()
            self._interrupt_dead()
            actions.end_dead(self.instance, self._spool.is_alive)
            self._spool.remove_dead_locks()

    def _interrupt_dead(self) -> None:
        running = RequestRecord.objects.filter(
            instance=self.instance, outcome=Outcome.RUNNING
        ).order_by()
        # Boots first, their locks second: a row can only be there if its boot was locked before.
        for boot in list(running.values_list("boot", flat=True).distinct()):
            if not self._spool.is_alive(boot):
                with transaction.atomic():
                    rows = running.filter(boot=boot)
                    ended = rows.aggregate(
                        count=Count("id"), input=Sum("input_tokens"), output=Sum("output_tokens")
                    )
                    rows.update(outcome=Outcome.INTERRUPTED)
                    sums = (ended["count"], ended["input"] or 0, ended["output"] or 0)
                    _add_to_counters({(Outcome.INTERRUPTED.value, 0): sums})


def merged(rows: Iterable[Row]) -> list[Row]:
    """Return one row a request: its last state, but never one from after its end."""
    states: dict[uuid.UUID, Row] = {}
    for row in rows:
        earlier = states.get(row["request_id"])
        if earlier is None or not is_closed(earlier):
            states[row["request_id"]] = row
    return list(states.values())


def commit(rows: Sequence[Row]) -> list[Row]:
    """Store the rows and count those that end, in one transaction; return the rows stored.

    A row that is closed in the database is left alone: it has been here before.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        names = {_request_id(row): row for row in rows}
        cursor.execute(_closed_among(len(names)), [*names])
        for (name,) in cursor.fetchall():
            del names[name]
        fresh = list(names.values())
        for start in range(0, len(fresh), STATEMENT_ROWS):
            part = fresh[start : start + STATEMENT_ROWS]
            values = [value for row in part for value in _values(row)]
            cursor.execute(_upsert(len(part)), values)
        _add_to_counters(_counted(filter(is_closed, fresh)))
    return fresh


# The ORM made this the server's largest cost beside the answers themselves: a model and fifty
# resolved expressions for each row, in the thread that competes with them for the interpreter. And
# few statements: with each one the interpreter goes to and fro between the two threads.


def _closed_among(count: int) -> str:
    table = connection.ops.quote_name(RequestRecord._meta.db_table)
    marks = ", ".join(["%s"] * count)
    return (
        f"SELECT request_id FROM {table}"  # noqa: S608 - no value is in the text
        f" WHERE outcome <> '{Outcome.RUNNING.value}' AND request_id IN ({marks})"
    )


def _upsert(count: int) -> str:
    table = connection.ops.quote_name(RequestRecord._meta.db_table)
    columns = ", ".join(f'"{name}"' for name in _COLUMNS)
    row = f"({', '.join(['%s'] * len(_COLUMNS))})"
    changes = ", ".join(f'"{name}" = excluded."{name}"' for name in _CHANGING)
    return (
        f"INSERT INTO {table} ({columns})"  # noqa: S608 - no value is in the text
        f" VALUES {', '.join([row] * count)}"
        f' ON CONFLICT ("request_id") DO UPDATE SET {changes}'
    )


def _values(row: Row) -> list[Any]:
    """Return a row's columns in order, as this database takes them."""
    whole = {**BLANK, **row}
    for field in _ADAPTED:
        whole[field.name] = field.get_db_prep_save(whole[field.name], connection)
    return [whole[name] for name in _COLUMNS]


def _request_id(row: Row) -> Any:  # noqa: ANN401 - what this database makes of a UUID
    field = RequestRecord._meta.get_field("request_id")
    return field.get_db_prep_save(row["request_id"], connection)


def _row(line: bytes) -> Row:
    """Return a line as columns. Another version's line may have more or fewer of them."""
    data = orjson.loads(line)
    row = {name: data[name] for name in _COLUMNS if name in data}
    row["request_id"] = uuid.UUID(data["request_id"])
    row["created_at"] = datetime.fromisoformat(data["created_at"])
    row["outcome"] = str(data["outcome"])
    return row


Counts = dict[tuple[str, int], tuple[int, int, int]]
"""(outcome, status or 0) -> (requests, input tokens, output tokens)."""


def _counted(rows: Iterable[Row]) -> Counts:
    counts: Counts = defaultdict(lambda: (0, 0, 0))
    for row in rows:
        key = (row["outcome"], row.get("http_status") or 0)
        requests, received, sent = counts[key]
        counts[key] = (
            requests + 1,
            received + (row.get("input_tokens") or 0),
            sent + (row.get("output_tokens") or 0),
        )
    return counts


def _add_to_counters(counts: Counts) -> None:
    """Add in the database itself: several processes count at once, and the ORM cannot say this."""
    table = connection.ops.quote_name(RequestCounter._meta.db_table)
    additions = ", ".join(
        f'"{column}" = {table}."{column}" + excluded."{column}"'
        for column in ("count", "input_tokens", "output_tokens")
    )
    statement = (
        f"INSERT INTO {table}"  # noqa: S608 - no value is in the text
        ' ("outcome", "http_status", "count", "input_tokens", "output_tokens")'
        " VALUES (%s, %s, %s, %s, %s)"
        f' ON CONFLICT ("outcome", "http_status") DO UPDATE SET {additions}'
    )
    # In one order everywhere, or two processes that count the same things would deadlock.
    values = [(*key, *sums) for key, sums in sorted(counts.items())]
    if values:
        with connection.cursor() as cursor:
            cursor.executemany(statement, values)
