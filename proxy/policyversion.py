"""A number in the database that is another one after every change of the policy, whoever makes it.

So a process may keep what it has read, and ask for this one number instead of reading it all again:
a change still holds from the next request on, in every process. Triggers of the database set it, so
that no way of writing gets by: the admin, a shell, another program. They are made anew after every
migration, as SQLite loses them when it rebuilds a table. Where they are missing nothing is kept. It
is random and does not count: after a rollback the next change must not give an old number again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db import connection

TABLE = "proxy_policyversion"

WATCHED: dict[str, tuple[str, ...]] = {
    "proxy_apikey": ("last_used_at",),
    "proxy_apikey_allowed_roots": (),
    "proxy_allowedroot": (),
    "proxy_proxysettings": (),
    "proxy_proxysettings_allowed_roots": (),
    "auth_user": ("last_login",),
}
"""The tables that requests are judged by -> their columns that say nothing of it, and often change."""

RANDOM = {"sqlite": "random()", "postgresql": "floor(random() * 9e15)::bigint"}
"""A new number, in the words of each database that we have triggers for."""


def read_version() -> int | None:
    """Return the number now; None where a change would not show in it. Asks the database (sync)."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT number FROM {TABLE}")  # noqa: S608 - a constant
        row = cursor.fetchone()
    return int(row[0]) if row else None


def install(**_: Any) -> None:  # noqa: ANN401 - what Django tells after a migration
    """Make the triggers anew, where this is a database that we know how to ask for them."""
    tables = set(connection.introspection.table_names())
    if not {TABLE, *WATCHED} <= tables:
        return  # after an app that comes before this one
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {TABLE}")  # noqa: S608 - a constant
        if connection.vendor not in RANDOM:
            return
        for statement in _statements():
            cursor.execute(statement)
        number = RANDOM[connection.vendor]
        cursor.execute(f"INSERT INTO {TABLE} (number) VALUES ({number})")  # noqa: S608


def _statements() -> Iterator[str]:
    change = f"UPDATE {TABLE} SET number = {RANDOM[connection.vendor]}"  # noqa: S608
    if connection.vendor == "postgresql":
        yield (
            "CREATE OR REPLACE FUNCTION policyversion_change() RETURNS trigger LANGUAGE plpgsql "
            f"AS $$ BEGIN {change}; RETURN NULL; END $$"
        )
    for table, quiet in WATCHED.items():
        columns = ", ".join(f'"{name}"' for name in _columns(table) if name not in quiet)
        for event in ("INSERT", "DELETE", f"UPDATE OF {columns}"):
            name = f"policyversion_{table}_{event[:6].lower()}"
            if connection.vendor == "postgresql":
                yield f"DROP TRIGGER IF EXISTS {name} ON {table}"
                yield (
                    f"CREATE TRIGGER {name} AFTER {event} ON {table} "
                    "FOR EACH STATEMENT EXECUTE FUNCTION policyversion_change()"
                )
            else:
                yield f"DROP TRIGGER IF EXISTS {name}"
                yield f"CREATE TRIGGER {name} AFTER {event} ON {table} BEGIN {change}; END"


def _columns(table: str) -> list[str]:
    with connection.cursor() as cursor:
        described = connection.introspection.get_table_description(cursor, table)
    return [column.name for column in described]
