"""What agents did: each action is one line in the spool, and a row once that is committed.

An action is told twice where it lasts: as running when it begins and whole when it has ended, both
under the same number, so that what never ended is on record too.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import orjson
from django.db import models, transaction
from django.db.models import Count

from audit.models import ActionKind, ActionStatus, AgentAction, RequestRecord
from audit.recorder import plain

Columns = dict[str, Any]

_MARK: Final = b'{"action":'
_FIELDS: Final = {field.name: field for field in AgentAction._meta.concrete_fields}
_COLUMNS: Final = tuple(name for name in _FIELDS if name != "id")
_CHANGING: Final = [name for name in _COLUMNS if name not in {"request_id", "number", "created_at"}]
_LARGE: Final = frozenset({"output_head", "output_tail", "diff"})
_LARGEST: Final = {
    models.PositiveIntegerField: 2**31 - 1,
    models.IntegerField: 2**31 - 1,
    models.PositiveBigIntegerField: 2**63 - 1,
}


def line_of(columns: Mapping[str, Any]) -> bytes:
    """Return the action as the spool's line; its values must be `fitted`."""
    return orjson.dumps({"action": dict(columns)}, default=str, option=orjson.OPT_APPEND_NEWLINE)


def slim_line_of(columns: Mapping[str, Any]) -> bytes:
    """Return the same without what may be large: for when the spool is full, or the disk."""
    return line_of({name: value for name, value in columns.items() if name not in _LARGE})


def is_action(line: bytes) -> bool:
    """Tell an action's line from a request's."""
    return line.startswith(_MARK)


def fitted(columns: Mapping[str, Any]) -> Columns:
    """Return the columns cut to what every database takes. Raises TypeError for a foreign name."""
    if not columns.keys() <= _FIELDS.keys():
        raise TypeError(f"No columns: {', '.join(sorted(columns.keys() - _FIELDS.keys()))}")
    return {name: _fitting(_FIELDS[name], value) for name, value in columns.items()}


def _fitting(field: Any, value: Any) -> Any:  # noqa: ANN401 - a column's value may be anything
    if isinstance(value, str):
        return plain(value)[: getattr(field, "max_length", None)]
    largest = _LARGEST.get(type(field))
    if largest is not None and isinstance(value, int) and abs(value) > largest:
        return None  # unknown rather than wrong
    return value


def commit(lines: Sequence[bytes]) -> set[uuid.UUID]:
    """Store the actions of these lines in one transaction; return the ids of their requests.

    Storing a line again changes nothing: a number of a request is one row, and one that has ended
    does not become a running one again.
    """
    rows = merged(_row(line) for line in lines)
    request_ids = {row["request_id"] for row in rows}
    if not rows:
        return request_ids
    with transaction.atomic():
        ended = set(
            AgentAction.objects.filter(request_id__in=request_ids)
            .exclude(status=ActionStatus.RUNNING)
            .values_list("request_id", "number")
        )
        fresh = [
            row
            for row in rows
            if row["status"] != ActionStatus.RUNNING
            or (row["request_id"], row["number"]) not in ended
        ]
        AgentAction.objects.bulk_create(
            [AgentAction(**row) for row in fresh],
            update_conflicts=True,
            unique_fields=["request_id", "number"],
            update_fields=_CHANGING,
        )
    return request_ids


def count(request_ids: Sequence[uuid.UUID], *, at_once: int = 1000) -> None:
    """Set `action_count` in the requests' rows; they may be closed by now, before their agents' end."""
    for start in range(0, len(request_ids), at_once):
        counted = (
            AgentAction.objects.filter(request_id__in=request_ids[start : start + at_once])
            .exclude(kind=ActionKind.COMPARISON)
            .order_by()
            .values("request_id")
            .annotate(count=Count("id"))
        )
        for found in counted:
            RequestRecord.objects.filter(request_id=found["request_id"]).update(
                action_count=found["count"]
            )


def merged(rows: Any) -> list[Columns]:  # noqa: ANN401 - an iterable of columns
    """Return one row a number: what was said last, but never running after an end."""
    states: dict[tuple[uuid.UUID, int], Columns] = {}
    for row in rows:
        place = (row["request_id"], row["number"])
        if row["status"] != ActionStatus.RUNNING or place not in states:
            states[place] = row
    return list(states.values())


def _row(line: bytes) -> Columns:
    """Return a line as columns. Another version's line may have more or fewer of them."""
    data = orjson.loads(line)["action"]
    row = {name: data[name] for name in _COLUMNS if name in data}
    row["request_id"] = uuid.UUID(data["request_id"])
    row["number"] = int(data["number"])
    row["created_at"] = datetime.fromisoformat(data["created_at"])
    row["status"] = str(data["status"])
    return row


def end_dead(instance: str, is_alive: Callable[[str], bool]) -> None:
    """Mark as unfinished what dead processes left running."""
    running = AgentAction.objects.filter(instance=instance, status=ActionStatus.RUNNING).order_by()
    for boot in list(running.values_list("boot", flat=True).distinct()):
        if not is_alive(boot):
            running.filter(boot=boot).update(status=ActionStatus.UNFINISHED)
