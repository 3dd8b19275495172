"""Each fault: the caller is told in time, the row says so, and nothing is lost or left behind."""

from __future__ import annotations

import time
from functools import partial

import pytest

from tests.e2e.conftest import is_alive, wait_until
from tests.faults import table as tables
from tests.faults.checker import processes_of
from tests.faults.faults import FAULTS, SERVER, SHARED, Fault
from tests.faults.table import Table
from tests.faults.world import LEFT, World
from tests.processes import Serving


def outcome_of(world: World, table: Table, fault: Fault) -> None:
    """Do it, and hold what came of it to what is written."""
    try:
        world.strike()
        fault.act(world)
        assert world.subject is not None
        seen = world.subject.view()
        if world.site.server.process.poll() is not None:
            starts_again(world)
        row = world.row()
        ended_at = time.monotonic() if seen == LEFT else world.subject.ended_at
        took_s = max(0.0, ended_at - world.struck_at)
    finally:
        world.restore()
    table.add(fault.id, seen, took_s, row)
    assert (seen, row) == (fault.sees, fault.row)
    assert took_s < fault.bound_s


@pytest.mark.parametrize("fault", SHARED, ids=lambda fault: fault.id)
def test_fault(world: World, table: Table, fault: Fault) -> None:
    outcome_of(world, table, fault)
    world.is_served(fault.engine)
    for pid in world.watched:
        wait_until(partial(is_gone, pid), 10)
    world.watched.clear()
    world.checker.check(world.sent)


def is_gone(pid: int) -> bool:
    return not is_alive(pid)


@pytest.mark.parametrize("fault", SERVER, ids=lambda fault: fault.id)
def test_end_of_the_server(doomed: World, table: Table, fault: Fault) -> None:
    outcome_of(doomed, table, fault)
    assert has_its_rows(doomed)


def starts_again(world: World) -> None:
    """Nothing of the ended server is left; where it could not, the next start closes its rows."""
    left = partial(remnants, world)
    wait_until(lambda: not left(), 10)
    if world.site.server.process.returncode == 0:
        return
    with Serving(world.site.data_dir, "serve", "--port", "0"):
        wait_until(lambda: has_its_rows(world))


def has_its_rows(world: World) -> bool:
    rows = world.site.rows_now()
    return len(rows) == world.sent and all(row["outcome"] != "running" for row in rows)


def remnants(world: World) -> list[str]:
    return list(processes_of(world.pid, world.site.data_dir / "scratch"))


def test_committed_table_is_that_of_the_suite() -> None:
    assert tables.committed() == [(fault.id, fault.sees, fault.row) for fault in FAULTS]


def test_suite_has_its_forty_faults() -> None:
    assert len(FAULTS) >= 40
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)
