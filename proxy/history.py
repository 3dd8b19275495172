"""What the policy said at a moment in the past: from the rows as they are and the changelog.

A grant's end can be moved, a root can get another path, a key other roots. The changelog has each of
these changes with what was before, so the rows of today are taken back to the moment, newest change
first. What was switched by the environment, and where symlinks led, is on no record: the answers
that depend on it say so.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from auditlog.models import LogEntry
from django.conf import settings
from django.db.models import Model
from django.utils import timezone

from proxy.models import (
    AgentGrant,
    AllowedRoot,
    ApiKey,
    ApprovalRule,
    ProxySettings,
    is_inside,
    opens_data_directory,
)
from proxy.policy import load_options

CREATE, UPDATE, DELETE = LogEntry.Action.CREATE, LogEntry.Action.UPDATE, LogEntry.Action.DELETE


def parse_moment(text: str | None) -> datetime | None:
    """Return a moment as the changelog writes it: UTC, without saying so; `None` is no moment."""
    if not text or text == "None":
        return None
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Log:
    """The changelog of some rows of one kind, by row, oldest first."""

    def __init__(self, model: type[Model], pks: Iterable[int] | None = None) -> None:
        entries = LogEntry.objects.get_for_model(model).order_by("timestamp", "id")
        if pks is not None:
            entries = entries.filter(object_id__in=list(pks))
        self._entries: dict[int, list[LogEntry]] = {}
        for entry in entries.select_related(None):
            if entry.object_id is not None:
                self._entries.setdefault(entry.object_id, []).append(entry)

    def of(self, pk: int) -> list[LogEntry]:
        return self._entries.get(pk, [])

    @property
    def rows(self) -> set[int]:
        return set(self._entries)

    def value(self, pk: int, field: str, now: Any, moment: datetime) -> Any:  # noqa: ANN401
        """Return the field's value at the moment; `now` where it has not changed since.

        A value from the log is the text that stands there.
        """
        for entry in self.of(pk):
            if entry.timestamp > moment and entry.action != CREATE:
                change = (entry.changes or {}).get(field)
                if isinstance(change, list):
                    return change[0]
        return now

    def moment_of(
        self, pk: int, field: str, now: datetime | None, moment: datetime
    ) -> datetime | None:
        """Return the field, a point in time, as it was at the moment."""
        found = self.value(pk, field, now, moment)
        return parse_moment(found) if isinstance(found, str) else found

    def names(self, pk: int, field: str, now: set[int], moment: datetime, roots: Roots) -> set[int]:
        """Return the roots in a relation at the moment.

        Told forward from the row's beginning where that is on record: an entry of a relation that
        was emptied names all roots there are, and cannot be taken back.
        """
        entries = [entry for entry in self.of(pk) if entry.action == UPDATE]
        if any(entry.action == CREATE for entry in self.of(pk)):
            return _told_forward(entries, field, moment, roots)
        found = set(now)
        for entry in reversed(entries):
            change = (entry.changes or {}).get(field)
            if entry.timestamp > moment and isinstance(change, dict):
                objects = roots.named(change["objects"], entry.timestamp)
                found = found - objects if change["operation"] == "add" else found | objects
        return found


def _told_forward(entries: list[LogEntry], field: str, moment: datetime, roots: Roots) -> set[int]:
    found: set[int] = set()
    for entry in entries:
        change = (entry.changes or {}).get(field)
        if entry.timestamp <= moment and isinstance(change, dict):
            objects = roots.named(change["objects"], entry.timestamp)
            found = found | objects if change["operation"] == "add" else found - objects
    return found


@dataclass(frozen=True, slots=True)
class RootThen:
    """A root as it was: its name and its folder."""

    pk: int
    alias: str
    path: str

    @property
    def real(self) -> str:
        """Its real path; where symlinks led then is not on record, so as they lead now."""
        return os.path.realpath(self.path)


class Roots:
    """All roots that there are or were, at any moment."""

    def __init__(self) -> None:
        self._log = Log(AllowedRoot)
        self._changes = sorted(
            entry.timestamp for pk in self._log.rows for entry in self._log.of(pk)
        )
        self._then: dict[int, dict[int, RootThen]] = {}
        self._now = {root.pk: root for root in AllowedRoot.objects.all()}

    def at(self, moment: datetime) -> dict[int, RootThen]:
        """Return the roots that there were, by primary key."""
        since = bisect_right(self._changes, moment)  # the same until the next change
        if since not in self._then:
            everything = self._now.keys() | self._log.rows
            found = ((pk, self._root(pk, moment)) for pk in everything)
            self._then[since] = {pk: root for pk, root in found if root is not None}
        return self._then[since]

    def _root(self, pk: int, moment: datetime) -> RootThen | None:
        if any(e.action == CREATE and e.timestamp > moment for e in self._log.of(pk)):
            return None  # not yet
        if any(e.action == DELETE and e.timestamp <= moment for e in self._log.of(pk)):
            return None  # no more
        now = self._now.get(pk)
        alias = self._log.value(pk, "alias", now.alias if now else "", moment)
        path = self._log.value(pk, "path", now.path if now else "", moment)
        return RootThen(pk, alias, path) if path else None

    def named(self, aliases: Iterable[str], moment: datetime) -> set[int]:
        """Return the roots that had these names at the moment."""
        wanted = set(aliases)
        return {pk for pk, root in self.at(moment).items() if root.alias in wanted}


@dataclass(frozen=True, slots=True)
class GrantThen:
    """A grant as it stood at a moment. `approved_by` is empty where nobody had approved it."""

    grant: AgentGrant
    ends_at: datetime | None
    approved_by: str
    approved_at: datetime | None
    roots: tuple[RootThen, ...]

    def covers(self, folder: str) -> bool:
        return any(is_inside(folder, root.real) for root in self.roots)


class GrantHistory:
    """Some grants, at any moment."""

    def __init__(self, grants: Iterable[AgentGrant]) -> None:
        self.grants = list(grants)
        self.roots = Roots()
        self._log = Log(AgentGrant, [grant.pk for grant in self.grants])
        self._rules = list(ApprovalRule.objects.order_by("since", "id"))

    def then(self, grant: AgentGrant, moment: datetime) -> GrantThen:
        """Return the grant as it stood at the moment, which may be one still to come."""
        log, pk = self._log, grant.pk
        approver = grant.approved_by.get_username() if grant.approved_by else ""
        approved_by = log.value(pk, "approved_by", approver, moment)
        names = log.names(pk, "roots", {root.pk for root in grant.roots.all()}, moment, self.roots)
        there = self.roots.at(moment)
        return GrantThen(
            grant=grant,
            ends_at=log.moment_of(pk, "ends_at", grant.ends_at, moment),
            approved_by="" if approved_by == "None" else approved_by,
            approved_at=log.moment_of(pk, "approved_at", grant.approved_at, moment),
            roots=tuple(there[name] for name in sorted(names) if name in there),
        )

    def approval_was_needed(self, moment: datetime) -> bool:
        """Whether a second person was needed; for what is still to come, whether one is now."""
        if moment >= timezone.now():
            return bool(settings.GRANTS_NEED_APPROVAL)
        needed = [rule.is_needed for rule in self._rules if rule.since <= moment]
        return needed[-1] if needed else False

    def why_not(self, then: GrantThen, moment: datetime) -> str:
        """Return why the grant was not in force at the moment, or an empty text."""
        grant = then.grant
        if moment < grant.created_at:
            return f"it was given later, on {shown(grant.created_at)}"
        if moment < grant.starts_at:
            return f"it began later, on {shown(grant.starts_at)}"
        if grant.revoked_at is not None and grant.revoked_at <= moment:
            by = f" by {grant.revoked_by}" if grant.revoked_by else ""
            return f"it was revoked on {shown(grant.revoked_at)}{by}"
        if then.ends_at is not None and then.ends_at <= moment:
            return f"it was over: its end was {shown(then.ends_at)}{self._moved_later(then)}"
        if self.approval_was_needed(moment) and not (then.approved_by and then.approved_at):
            return f"it was not approved{self._approved_later(grant)}"
        return ""

    @staticmethod
    def _moved_later(then: GrantThen) -> str:
        end = then.grant.ends_at
        if end == then.ends_at:
            return ""
        return f", moved later to {shown(end)}" if end else ", taken away later"

    @staticmethod
    def _approved_later(grant: AgentGrant) -> str:
        return f" before {shown(grant.approved_at)}" if grant.approved_at else " by anybody"

    def changes(self, grant: AgentGrant, now: datetime) -> list[datetime]:
        """Return the moments, now among them, at which the grant or the rule may have changed."""
        moments = {entry.timestamp for entry in self._log.of(grant.pk)}
        moments |= {rule.since for rule in self._rules}
        moments |= {grant.created_at, grant.starts_at, now}
        moments |= {end for end in (grant.ends_at, grant.revoked_at, grant.approved_at) if end}
        for moment in list(moments):
            end = self.then(grant, moment).ends_at
            moments |= {end} if end else set()
        return sorted(moments)


def shown(moment: datetime) -> str:
    return f"{timezone.localtime(moment):%d %b %Y %H:%M %Z}"


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a key could write in a folder at a moment, why, and by which grant.

    `others` are the key's other grants, each with why it was not the one.
    """

    is_allowed: bool
    reason: str
    folder: str = ""
    by: GrantThen | None = None
    others: tuple[tuple[GrantThen, str], ...] = ()


def could_write(key: ApiKey, place: str, moment: datetime) -> Answer:
    """Answer whether agent mode of this key could write in a folder (path or alias) then."""
    history = GrantHistory(
        key.grants.select_related("granted_by", "approved_by", "revoked_by").prefetch_related(
            "roots"
        )
    )
    closed = _why_key_was_closed(key, moment)
    open_roots = _roots_of_key(key, moment, history.roots)
    folder = _folder(place, open_roots)
    others: list[tuple[GrantThen, str]] = []
    found: GrantThen | None = None
    for grant in history.grants:
        then = history.then(grant, moment)
        why_not = history.why_not(then, moment) or _why_not_there(then, folder)
        if why_not:
            others.append((then, why_not))
        elif found is None:
            found = then
    answer = Answer(is_allowed=False, reason="", folder=folder, others=tuple(others))
    if closed:
        return replace(answer, reason=closed)
    if not folder:
        return replace(answer, reason=f"No root named “{place}” was open to the key then.")
    if opens_data_directory(Path(folder)):
        return replace(answer, reason="The server's own data directory is open to nobody.")
    if not any(is_inside(folder, root.real) for root in open_roots):
        return replace(answer, reason="The folder was in none of the roots that the key had then.")
    if found is None:
        return replace(answer, reason="No grant of the key allowed it then.")
    return replace(
        answer,
        is_allowed=True,
        by=found,
        reason=f"Grant {found.grant.pk} allowed it: {found.grant.get_level_display()}.",
    )


def _why_not_there(then: GrantThen, folder: str) -> str:
    if folder and not then.covers(folder):
        names = ", ".join(f"{root.alias} ({root.path})" for root in then.roots) or "no root"
        return f"it was for {names}"
    return "it was for reading only" if then.grant.level == "read" else ""


def _why_key_was_closed(key: ApiKey, moment: datetime) -> str:
    if moment < key.created_at:
        return f"The key was issued later, on {shown(key.created_at)}."
    if key.revoked_at is not None and key.revoked_at <= moment:
        by = f" by {key.revoked_by}" if key.revoked_by else ""
        return f"The key was revoked on {shown(key.revoked_at)}{by}."
    expiry = Log(ApiKey, [key.pk]).moment_of(key.pk, "expires_at", key.expires_at, moment)
    if expiry is not None and expiry <= moment:
        return f"The key had expired on {shown(expiry)}."
    return ""


def _roots_of_key(key: ApiKey, moment: datetime, roots: Roots) -> list[RootThen]:
    """Return where the key could work: its own roots then, else those of the settings."""
    now = {root.pk for root in key.allowed_roots.all()}
    names = Log(ApiKey, [key.pk]).names(key.pk, "allowed_roots", now, moment, roots)
    there = roots.at(moment)
    own = [there[name] for name in sorted(names) if name in there]
    return own or _general_roots(moment, roots)


def _general_roots(moment: datetime, roots: Roots) -> list[RootThen]:
    if "allowed_roots" in settings.OPTION_OVERRIDES:  # what the environment said then nobody knows
        return [RootThen(0, root.alias, root.path) for root in load_options().roots]
    row, log = ProxySettings.load(), Log(ProxySettings, [1])
    now = set() if row._state.adding else {root.pk for root in row.allowed_roots.all()}
    there = roots.at(moment)
    names = log.names(1, "allowed_roots", now, moment, roots)
    found = [there[name] for name in sorted(names) if name in there]
    path = log.value(1, "default_cwd", row.default_cwd, moment)
    path = settings.OPTION_OVERRIDES.get("default_cwd", path) or str(settings.DATA_DIR.workspace)
    return found or [RootThen(0, "workspace", path)]


def _folder(place: str, roots: list[RootThen]) -> str:
    """Return the real path that a caller would have meant, as far as it can be told now."""
    if place.startswith("/"):
        return os.path.realpath(place)
    return next((root.real for root in roots if root.alias == place), "")


# --- Spans for the timeline -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """A time in which a grant stood as it did, on some roots; `until` None is without an end.

    `state` is live, awaiting approval, or planned (still to come).
    """

    grant: AgentGrant
    since: datetime
    until: datetime | None
    state: str
    roots: tuple[RootThen, ...]


def spans_of(grant: AgentGrant, history: GrantHistory) -> list[Span]:
    """Return when the grant was in force, and on what, as it really was and as it is planned."""
    now = timezone.now()
    moments = history.changes(grant, now)
    spans: list[Span] = []
    for since, until in zip(moments, [*moments[1:], None], strict=True):
        then = history.then(grant, since)
        why_not = history.why_not(then, since)
        state = "live" if since < now else "planned"
        if why_not.startswith("it was not approved"):
            state = "awaiting approval"
        elif why_not:
            continue
        last = spans[-1] if spans else None
        if last and last.until == since and (last.state, last.roots) == (state, then.roots):
            spans[-1] = replace(last, until=until)
        else:
            spans.append(Span(grant, since, until, state, then.roots))
    return spans
