"""One row for every request to `/v1/*`, and the counters that are kept with it.

A row stands alone: it copies the key's name and owner as they were, and has no foreign key into
the policy, so that nothing done to a key later can change what happened.
"""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Outcome(models.TextChoices):
    RUNNING = "running", "running"
    OK = "ok", "ok"
    REJECTED = "rejected", "rejected"
    FAILED = "failed", "failed"
    TIMED_OUT = "timed_out", "timed out"
    CANCELLED = "cancelled", "cancelled"
    INTERRUPTED = "interrupted", "interrupted"


class RequestRecord(models.Model):
    """What one request was: who, what, where, under which policy, how long, at what cost.

    Written by `audit.writer` alone. None means unknown, never zero. No prompt, no answer, no secret.
    """

    request_id = models.UUIDField(unique=True)
    created_at = models.DateTimeField(db_index=True)
    instance = models.CharField(max_length=32)
    boot = models.CharField(max_length=32)

    endpoint = models.CharField(max_length=200)
    method = models.CharField(max_length=10)
    client_address = models.CharField(max_length=64, blank=True)
    user_agent = models.CharField(max_length=300, blank=True)

    key_id = models.BigIntegerField(null=True)
    key_name = models.CharField(max_length=100, blank=True)
    key_prefix = models.CharField(max_length=32, blank=True)
    key_owner = models.CharField(max_length=150, blank=True)

    client_request_id = models.CharField(max_length=128, blank=True)
    joined_to = models.UUIDField(null=True)
    stream = models.BooleanField(null=True)
    asked = models.JSONField(default=dict)
    ignored_params = models.CharField(max_length=500, blank=True)
    model_asked = models.CharField(max_length=100, blank=True)
    model_served = models.CharField(max_length=100, blank=True)
    service_tier = models.CharField(max_length=16, blank=True)
    engine = models.CharField(max_length=16, blank=True)
    worker = models.CharField(max_length=64, blank=True)
    codex_version = models.CharField(max_length=32, blank=True)

    cwd = models.CharField(max_length=1000, blank=True)
    root_alias = models.CharField(max_length=64, blank=True)
    agent_mode = models.BooleanField(default=False)
    grant_id = models.BigIntegerField(null=True)
    sandbox = models.CharField(max_length=32, blank=True)
    grant_reason = models.CharField(max_length=300, blank=True)
    level = models.CharField(max_length=16, blank=True)
    network = models.BooleanField(null=True)
    policy_hash = models.CharField(max_length=64, blank=True)
    proof_id = models.BigIntegerField(null=True)
    as_root = models.BooleanField(null=True)
    action_count = models.PositiveIntegerField(null=True)
    killed_by = models.CharField(max_length=150, blank=True)
    kill_reason = models.CharField(max_length=300, blank=True)

    outcome = models.CharField(max_length=16, choices=Outcome.choices, default=Outcome.RUNNING)
    http_status = models.PositiveSmallIntegerField(null=True)
    error_code = models.CharField(max_length=64, blank=True)
    error_message = models.CharField(max_length=500, blank=True)

    input_tokens = models.PositiveBigIntegerField(null=True)
    cached_input_tokens = models.PositiveBigIntegerField(null=True)
    output_tokens = models.PositiveBigIntegerField(null=True)
    reasoning_output_tokens = models.PositiveBigIntegerField(null=True)

    first_delta_ms = models.FloatField(null=True)
    engine_ms = models.FloatField(null=True)
    total_ms = models.FloatField(null=True)
    phases = models.JSONField(default=dict)

    class Meta:
        verbose_name = "request"
        ordering: ClassVar = ["-id"]
        # Each list of the admin is a range scan of (column, id): newest first without a sort.
        indexes: ClassVar = [
            *(
                models.Index(fields=[column, "id"], name=f"request_{column}")
                for column in (
                    "outcome",
                    "key_id",
                    "key_prefix",
                    "engine",
                    "model_served",
                    "agent_mode",
                    "stream",
                    "http_status",
                )
            ),
            # Few requests have a grant; a comparison with a value is enough for the partial index.
            models.Index(
                fields=["grant_id", "id"],
                name="request_grant_id",
                condition=models.Q(grant_id__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return str(self.request_id)


class ActionKind(models.TextChoices):
    COMMAND = "command", "command"
    INPUT = "input", "typed into a command"
    PATCH = "patch", "patch"
    SHELL_CHANGE = "shell_change", "changed by no patch"
    WEB_SEARCH = "web_search", "web search"
    MCP_CALL = "mcp_call", "MCP call"
    ESCALATION_REFUSED = "escalation_refused", "escalation refused"
    COMMAND_REFUSED = "command_refused", "command refused"
    PATCH_REFUSED = "patch_refused", "patch refused"
    COMPARISON = "comparison", "folder compared"


class ActionStatus(models.TextChoices):
    RUNNING = "running", "running"
    COMPLETED = "completed", "completed"
    FAILED = "failed", "failed"
    REFUSED = "refused", "refused"
    UNFINISHED = "unfinished", "unfinished"


class AgentAction(models.Model):
    """One thing that an agent did, or was refused, in the turn of one request; in order by `number`.

    It names its request by id and has no foreign key: both travel through the spool, and what an
    agent did before a crash is on record even where its request's row is not. The key's columns are
    copied, as in the request's row. None means unknown. What a list searches in comes before what
    may be long: SQLite reads a row from its beginning.
    """

    request_id = models.UUIDField()
    number = models.PositiveIntegerField()
    created_at = models.DateTimeField(db_index=True)
    instance = models.CharField(max_length=32)
    boot = models.CharField(max_length=32)

    key_id = models.BigIntegerField(null=True)
    key_name = models.CharField(max_length=100, blank=True)
    key_prefix = models.CharField(max_length=32, blank=True)
    key_owner = models.CharField(max_length=150, blank=True)
    root_alias = models.CharField(max_length=64, blank=True)

    kind = models.CharField(max_length=24, choices=ActionKind.choices)
    change = models.CharField(max_length=8, blank=True)
    status = models.CharField(max_length=16, choices=ActionStatus.choices)
    exit_code = models.IntegerField(null=True)
    duration_ms = models.PositiveBigIntegerField(null=True)
    path = models.CharField(max_length=1000, blank=True)
    moved_to = models.CharField(max_length=1000, blank=True)
    cwd = models.CharField("working directory", max_length=1000, blank=True)
    command = models.TextField(blank=True, max_length=20_000)
    note = models.CharField(max_length=1000, blank=True)

    lines_added = models.PositiveIntegerField(null=True)
    lines_removed = models.PositiveIntegerField(null=True)
    output_bytes = models.PositiveBigIntegerField(null=True)
    output_sha256 = models.CharField(max_length=64, blank=True)
    output_head = models.TextField(blank=True)
    output_tail = models.TextField(blank=True)
    diff = models.TextField(blank=True)

    class Meta:
        verbose_name = "action"
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["request_id", "number"], name="one_action_a_number")
        ]
        # As for requests: each list is a range scan, newest first without a sort.
        indexes: ClassVar = [
            models.Index(fields=[column, "id"], name=f"action_{column}")
            for column in ("key_id", "kind", "status", "exit_code")
        ]

    def __str__(self) -> str:
        return f"{self.request_id} #{self.number}"


class RequestCounter(models.Model):
    """How many requests have ended, by outcome and status: counted where the row is closed."""

    outcome = models.CharField(max_length=16)
    http_status = models.PositiveSmallIntegerField()
    count = models.PositiveBigIntegerField(default=0)
    input_tokens = models.PositiveBigIntegerField(default=0)
    output_tokens = models.PositiveBigIntegerField(default=0)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["outcome", "http_status"], name="one_counter_each")
        ]

    def __str__(self) -> str:
        return f"{self.outcome} {self.http_status}: {self.count}"
