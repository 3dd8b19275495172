"""What an agent does, put on record as it happens, whoever reads its answer.

    engine -> watched turn -> numbered action -> a line in the spool -> a row
                          \\-> ActionRecorded -> the client, where it asked for it

A watched turn stands around the engine's own: its task reads the events, whether or not a client
does; it looks at the folder before and after; and it ends only when both are done, so that nothing
is told after the end. What an agent did before its process died, or this one, is on record by then.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

from audit.actions import fitted, line_of, slim_line_of
from audit.models import ActionKind, ActionStatus
from audit.recorder import Record
from proxy.engines.agent_calls import files_of_patch
from proxy.engines.base import (
    ActionRecorded,
    CommandFinished,
    CommandInput,
    CommandStarted,
    Completed,
    Event,
    Failed,
    FileChange,
    McpCalled,
    MessageDone,
    Refused,
    Turn,
    TurnStarted,
    WebSearched,
)
from proxy.engines.running import RunningTurn
from proxy.models import is_inside
from proxy.workspace_diff import Change, Comparison, Limits, Workspace, count_lines

log = logging.getLogger(__name__)

Run = Callable[[Turn], RunningTurn]
Columns = dict[str, Any]

STATUS = {
    "completed": ActionStatus.COMPLETED,
    "failed": ActionStatus.FAILED,
    "declined": ActionStatus.REFUSED,
}
REFUSALS = {
    "escalation": ActionKind.ESCALATION_REFUSED,
    "command": ActionKind.COMMAND_REFUSED,
    "patch": ActionKind.PATCH_REFUSED,
}
NO_FOLDER = "The engine does not say where: this is the turn's folder."
NOT_BY_A_COMMAND = "The agent ran no command: something else changed it."
MOVED_AWAY = "A patch moved a file away in this turn, and this engine does not say where to."
WHOLE = Limits()
SHOWN = (
    "number", "status", "change", "command", "path", "moved_to", "exit_code", "duration_ms",
    "lines_added", "lines_removed", "output_bytes", "output_sha256", "output_head", "output_tail",
    "diff", "note",
)  # fmt: skip
"""Columns that a client may see of its own agent's actions."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How much is kept: characters of each end of an output, of a diff; files to compare."""

    output_chars: int
    diff_chars: int
    compared_files: int


class Workplaces:
    """Who works where now, in this process: two agents in one folder cannot be told apart."""

    def __init__(self) -> None:
        self._working: set[TurnTrail] = set()

    def enter(self, newcomer: TurnTrail) -> None:
        for other in self._working:
            if other.meets(newcomer):
                other.companions.add(newcomer.request_id)
                newcomer.companions.add(other.request_id)
        self._working.add(newcomer)

    def leave(self, turn: TurnTrail) -> None:
        self._working.discard(turn)


class Trail:
    """The actions of one request, numbered in order; of all its turns, where it has several."""

    def __init__(self, record: Record, root: str, kept: Kept, workplaces: Workplaces) -> None:
        """`root` is the real path that paths are told relative to."""
        self.record, self.root, self.kept, self.workplaces = record, root, kept, workplaces
        self._numbers = count(1)
        self._counted = 0
        record.note(action_count=0)

    def watch(self, run: Run) -> Run:
        """Return the engine's `run` with everything that its agents do put on record."""

        def run_watched(turn: Turn) -> RunningTurn:
            async def drive(outer: RunningTurn) -> None:
                await _follow(outer, run(turn), TurnTrail(self, turn, outer.emit))

            return RunningTurn(turn, drive)

        return run_watched

    def new(self, kind: ActionKind, status: ActionStatus, **columns: Any) -> Columns:  # noqa: ANN401
        """Put an action on record under the next number and return its columns."""
        known = self.record.fields
        action = {
            "request_id": str(self.record.request_id),
            "number": next(self._numbers),
            "created_at": datetime.now(UTC),
            "kind": str(kind),
            "status": str(status),
            **{name: known[name] for name in ("instance", "boot", "key_id", "key_name")},
            **{name: known[name] for name in ("key_prefix", "key_owner", "root_alias")},
        }
        if kind != ActionKind.COMPARISON:
            self._counted += 1
            self.record.note(action_count=self._counted)
        return self.say(action, **columns)

    def say(self, action: Columns, **columns: Any) -> Columns:  # noqa: ANN401 - any column
        """Put on record what is known of an action now. Never raises: the agent is at work."""
        try:
            action.update(fitted(columns))
            self.record.append(line_of(action), slim=lambda: slim_line_of(action))
        except Exception:
            log.exception("request %s: an action is not on record", self.record.request_id)
        return action

    def relative(self, path: str) -> str:
        """Return a path as it is told: relative to the root, absolute outside of it."""
        path = os.path.normpath(path)
        return os.path.relpath(path, self.root) if is_inside(path, self.root) else path


async def _follow(outer: RunningTurn, inner: RunningTurn, trail: TurnTrail) -> None:
    """Hand the inner turn's events on; end when it is over and the folder has been compared."""
    outer.inner, inner.preparation = inner, trail.look
    end: Event | None = None
    try:
        async for event in inner:
            if isinstance(event, Completed | Failed):
                end = event
                break
            if isinstance(event, TurnStarted):
                outer.take_over(inner)
            trail.see(event)
            outer.emit(event)
    finally:
        outer.take_over(inner)
        await inner.aclose()
        while (late := inner.pop_event()) is not None:  # said, and not read before it was stopped
            trail.see(late)
        if "turn_start" in outer.laps.ms:
            outer.laps.lap("answer")
        await trail.finish()
        if "turn_start" in outer.laps.ms:
            outer.laps.lap("workspace_after")
    if end is not None:
        outer.emit(end)


class TurnTrail:
    """The actions of one turn, and its folder. Made for it, finished behind it."""

    def __init__(self, trail: Trail, turn: Turn, emit: Callable[[Event], None]) -> None:
        self.folder, self.request_id = turn.cwd, turn.request_id
        held = turn.confinement
        self._folders = _outermost(held.roots, held.closed) if held is not None else [turn.cwd]
        self._closed = held.closed if held is not None else ()
        self._may_write = held is None or held.may_write
        self.companions: set[str] = set()
        self._trail, self._emit = trail, emit
        self._open: dict[str, tuple[Columns, float]] = {}
        self._commands: dict[str, str] = {}
        self._has_moved_away = False
        self._workspaces: list[Workspace] | None = None
        # Of its own, so that looks and patches happen in the order in which they are asked for.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="workspace")
        self._patches: list[asyncio.Future[Change | None]] = []

    # --- The folder ----------------------------------------------------------------------------

    async def look(self) -> None:
        """Look at the folder before the turn, in a thread. Once, however often it is tried."""
        if self._workspaces is not None:
            return
        self._trail.workplaces.enter(self)
        self._workspaces = []
        if not self._why_not_compared():
            share = len(self._folders)
            limits = Limits(
                files=max(self._trail.kept.compared_files // share, 1),
                seconds=WHOLE.seconds / share,
                copied_bytes=WHOLE.copied_bytes // share,
            )
            self._workspaces = [Workspace(folder, limits, self._closed) for folder in self._folders]
            for workspace in self._workspaces:
                await self._in_thread(workspace.look_before)

    def meets(self, other: TurnTrail) -> bool:
        """Whether one of the two may reach a folder of the other's."""
        pairs = [(ours, theirs) for ours in self._folders for theirs in other._folders]
        return any(is_inside(a, b) or is_inside(b, a) for a, b in pairs)

    def _why_not_compared(self) -> str:
        if not self._trail.kept.compared_files:
            return "Not compared: the settings switch it off."
        return "" if self._may_write else "Not compared: the grant lets the agent write nothing."

    def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:  # noqa: ANN401
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def finish(self) -> None:
        """Put on record what never ended and what changed in the folder. Never raises."""
        for action, _ in list(self._open.values()):
            self._say(action, status=str(ActionStatus.UNFINISHED))
        self._open.clear()
        try:
            await asyncio.gather(*self._patches, return_exceptions=True)
            await self._compare()
        except Exception:
            log.exception("request %s: its folder could not be compared", self.request_id)
        finally:
            self._trail.workplaces.leave(self)
            self._thread.shutdown(wait=False)

    async def _compare(self) -> None:
        if self._workspaces is None:
            return
        if note := self._why_not_compared():
            if self._commands:
                self._new(ActionKind.COMPARISON, ActionStatus.UNFINISHED, note=note)
            return
        for workspace in self._workspaces:
            self._tell(workspace.folder, await self._in_thread(workspace.compare))

    def _tell(self, folder: str, found: Comparison) -> None:
        remarks = self._remarks()
        for change in found.changes:
            moved_away = [MOVED_AWAY] if self._has_moved_away and change.kind == "add" else []
            self._new(
                ActionKind.SHELL_CHANGE,
                ActionStatus.COMPLETED,
                **self._of_change(folder, change),
                note=" ".join(filter(None, (change.note, *moved_away, *remarks))),
            )
        if self._commands or found.changes or not found.is_complete:
            status = ActionStatus.COMPLETED if found.is_complete else ActionStatus.UNFINISHED
            note = " ".join((found.summary, *(remarks if self.companions else ())))
            self._new(ActionKind.COMPARISON, status, note=note, cwd=folder)

    def _remarks(self) -> list[str]:
        remarks = []
        if self.companions - {self.request_id}:
            others = ", ".join(sorted(self.companions - {self.request_id}))
            remarks.append(f"Who did it is uncertain: request {others} had an agent here, too.")
        elif self.companions:
            remarks.append("Which of the request's own turns did it is uncertain.")
        if not self._commands:
            remarks.append(NOT_BY_A_COMMAND)
        return remarks

    def _of_change(self, folder: str, change: Change) -> Columns:
        moved_to = change.moved_to and self._told(folder, change.moved_to)
        return {
            "path": self._told(folder, change.path),
            "change": change.kind,
            "moved_to": moved_to,
            "lines_added": change.lines_added,
            "lines_removed": change.lines_removed,
            "diff": self._cut(change.diff),
        }

    def _told(self, folder: str, path: str) -> str:
        return self._trail.relative(os.path.join(folder, path))

    # --- Events --------------------------------------------------------------------------------

    def see(self, event: Event) -> None:
        """Put on record what the event says was done. Never raises: the agent is at work."""
        try:
            self._see(event)
        except Exception:
            log.exception("request %s: an action is not on record", self.request_id)

    def _see(self, event: Event) -> None:
        match event:
            case CommandStarted():
                self._command_started(event)
            case CommandInput(item_id, text):
                note = f"Typed into: {self._commands.get(item_id, 'a command')}"
                self._new(ActionKind.INPUT, ActionStatus.COMPLETED, command=text, note=note)
            case CommandFinished():
                self._command_finished(event)
            case FileChange():
                self._patched(event)
            case WebSearched(query):
                self._new(ActionKind.WEB_SEARCH, ActionStatus.COMPLETED, command=query)
            case McpCalled():
                self._mcp_called(event)
            case Refused():
                self._refused(event)

    def _command_started(self, event: CommandStarted) -> None:
        where = self._where(event.cwd)
        action = self._new(ActionKind.COMMAND, ActionStatus.RUNNING, command=event.command, **where)
        self._open[event.item_id] = action, time.monotonic()
        self._commands[event.item_id] = event.command

    def _command_finished(self, event: CommandFinished) -> None:
        if event.item_id not in self._open:
            self._command_started(CommandStarted(event.item_id, event.command, event.cwd))
        action, started = self._open.pop(event.item_id)
        duration_ms = event.duration_ms
        if duration_ms is None:
            duration_ms = round((time.monotonic() - started) * 1000)
        self._say(
            action,
            status=str(STATUS.get(event.status, ActionStatus.UNFINISHED)),
            exit_code=event.exit_code,
            duration_ms=duration_ms,
            **self._output(event.output),
        )

    def _where(self, cwd: str) -> Columns:
        return {"cwd": cwd} if cwd else {"cwd": self.folder, "note": NO_FOLDER}

    def _output(self, output: str) -> Columns:
        content, most = output.encode("utf-8", "replace"), self._trail.kept.output_chars
        return {
            "output_bytes": len(content),
            "output_sha256": hashlib.sha256(content).hexdigest(),
            "output_head": output[:most],
            "output_tail": output[max(most, len(output) - most) :] if most else "",
        }

    def _patched(self, event: FileChange) -> None:
        added, removed = (None, None) if event.diff is None else count_lines(event.diff)
        moved_to = event.moved_to and self._trail.relative(event.moved_to)
        action = self._new(
            ActionKind.PATCH,
            STATUS.get(event.status, ActionStatus.UNFINISHED),
            path=self._trail.relative(event.path),
            change=event.kind,
            moved_to=moved_to,
            lines_added=added,
            lines_removed=removed,
            diff=self._cut(event.diff or ""),
        )
        for path in filter(None, (event.path, event.moved_to)):
            self._note_patch(action, path, is_unknown=event.diff is None)

    def _note_patch(self, action: Columns, path: str, *, is_unknown: bool) -> None:
        """Let the folder's copy know of the patch; it then tells the lines that the engine does not."""
        path = os.path.normpath(path)
        holding = [held for held in self._workspaces or () if is_inside(path, held.folder)]
        if not holding:
            return
        inside = os.path.relpath(path, holding[0].folder)
        told = self._in_thread(holding[0].note_patch, inside)
        self._patches.append(told)
        if is_unknown:
            told.add_done_callback(lambda done: self._amend(action, done))

    def _amend(self, action: Columns, done: asyncio.Future[Change | None]) -> None:
        change = None if done.cancelled() or done.exception() else done.result()
        if change is None:
            return
        if change.kind == "delete" and action["change"] == "update":
            self._has_moved_away = True
            self._say(action, note="The patch moved it away; this engine does not say where to.")
            return
        self._say(
            action,
            lines_added=change.lines_added,
            lines_removed=change.lines_removed,
            diff=self._cut(change.diff),
        )

    def _mcp_called(self, event: McpCalled) -> None:
        self._new(
            ActionKind.MCP_CALL,
            STATUS.get(event.status, ActionStatus.UNFINISHED),
            command=f"{event.server}.{event.tool} {event.arguments}",
            duration_ms=event.duration_ms,
            **self._output(event.output),
        )

    def _refused(self, event: Refused) -> None:
        columns: Columns = {"command": event.asked}
        if event.what == "patch":
            names = [self._told(self.folder, name) for name in files_of_patch(event.asked)]
            columns = {"command": f"apply_patch {' '.join(names)}", "diff": self._cut(event.asked)}
            columns["path"] = names[0] if names else ""
        self._new(
            REFUSALS[event.what],
            ActionStatus.REFUSED,
            cwd=event.cwd or self.folder,
            note=event.reason,
            **columns,
        )

    # --- Saying it -----------------------------------------------------------------------------

    def _new(self, kind: ActionKind, status: ActionStatus, **columns: Any) -> Columns:  # noqa: ANN401
        action = self._trail.new(kind, status, **columns)
        self._emit(ActionRecorded(dict(action)))
        return action

    def _say(self, action: Columns, **columns: Any) -> None:  # noqa: ANN401 - any column
        self._trail.say(action, **columns)
        self._emit(ActionRecorded(dict(action)))

    def _cut(self, diff: str) -> str:
        most = self._trail.kept.diff_chars
        if len(diff) <= most:
            return diff
        return f"{diff[:most]}\n... {len(diff) - most:,} more characters" if most else ""


def _outermost(roots: Collection[str], closed: Collection[str]) -> list[str]:
    """Return the roots that no look at another one comes by."""

    def is_seen_from(outer: str, root: str) -> bool:
        shut = any(is_inside(root, path) and is_inside(path, outer) for path in closed)
        return outer != root and is_inside(root, outer) and not shut

    return [
        root for root in sorted(set(roots)) if not any(is_seen_from(outer, root) for outer in roots)
    ]


def shown(event: Event) -> dict[str, Any] | None:
    """Return what a client that asked for the actions sees of the event; None for nothing."""
    match event:
        case ActionRecorded(columns):
            return {"type": columns["kind"], **_known(columns)}
        case MessageDone(text, is_commentary=True):
            return {"type": "commentary", "text": text}
    return None


def _known(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: columns[name] for name in SHOWN if columns.get(name) not in (None, "")}
