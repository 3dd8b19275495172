"""Who may ask, where, and with which power: keys, roots, grants, and the server's options.

The rules live here and in the managers; `policy` asks them, the admin edits them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from auditlog.models import LogEntry
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.db.models import F, Q
from django.utils import timezone

from proxy.overrides import OverrideRefused, check_override

SECRET_START = "sk-codexsite-"  # noqa: S105 - the public beginning of every secret
PREFIX_LENGTH = len(SECRET_START) + 8
ENGINES = [("app-server", "app-server"), ("exec", "exec")]
LEVELS = [
    ("read", "read"),
    ("write", "read and write"),
    ("network", "read and write, with network"),
]
POWER = {level: power for power, (level, _) in enumerate(LEVELS)}
OWN_GRANT = "Who asked for a grant cannot approve it: that takes a second person."


def digest_of(secret: str) -> str:
    """SHA-256 in hex. The secret has 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_inside(path: str, root: str) -> bool:
    """Return whether a real path is a real root or lies below it."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def opens_data_directory(real: Path) -> bool:
    """Return whether work in this real path would reach the server's own data.

    Its workspace folder is there for work; the rest, and what holds it, is not.
    """
    data = settings.DATA_DIR
    if real == data.workspace or data.workspace in real.parents:
        return False
    return real == data.root or real in data.root.parents or data.root in real.parents


class AllowedRoot(models.Model):
    """A folder that keys may be allowed to work in. Its real path counts, found at each request."""

    alias = models.SlugField(
        max_length=64, unique=True, help_text="What a caller may send as metadata.cwd."
    )
    path = models.CharField(
        max_length=1000, help_text="Absolute path of an existing directory on this machine."
    )
    description = models.CharField(max_length=300, blank=True)

    class Meta:
        ordering: ClassVar = ["alias"]
        verbose_name = "allowed root"

    def __str__(self) -> str:
        return self.alias

    def save(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Django's own signature
        """Save; another folder behind the same name was never approved, so approvals are void."""
        before = AllowedRoot.objects.filter(pk=self.pk).values_list("path", flat=True).first()
        super().save(*args, **kwargs)
        if before not in (None, self.path):
            AgentGrant.objects.void_approvals(self)

    def clean(self) -> None:
        path = Path(self.path)
        if not path.is_absolute():
            raise ValidationError({"path": "The path must be absolute."})
        if not path.is_dir():
            raise ValidationError({"path": "There is no such directory."})
        if opens_data_directory(Path(os.path.realpath(path))):
            raise ValidationError(
                {"path": "This would open the server's own data directory to callers."}
            )


class ApiKeyManager(models.Manager["ApiKey"]):
    def issue(
        self,
        *,
        name: str,
        owner: Any,  # noqa: ANN401
        created_by: Any = None,  # noqa: ANN401
        **fields: Any,  # noqa: ANN401 - user models and columns
    ) -> tuple[ApiKey, str]:
        """Create a key and return it with its secret, which is not kept and cannot be shown again."""
        key = ApiKey(name=name, owner=owner, created_by=created_by, **fields)
        secret = key.new_secret()
        key.save(force_insert=True)
        return key, secret

    def find(self, secret: str) -> ApiKey | None:
        """Return the key that this secret belongs to, live or not; else None.

        Found by its visible prefix, then compared as digests in constant time. A secret that was
        rotated away counts until its grace is over.
        """
        prefix, digest, now = secret[:PREFIX_LENGTH], digest_of(secret), timezone.now()
        candidates = self.select_related("owner", "default_root").filter(
            Q(prefix=prefix) | Q(previous_prefix=prefix)
        )
        for key in candidates:
            if key.is_opened_by(digest, now):
                return key
        return None


class ApiKey(models.Model):
    """A caller's key. Only the digest of the secret is kept; the row is revoked, never deleted."""

    name = models.CharField(max_length=100)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="api_keys"
    )
    prefix = models.CharField(max_length=32, unique=True, editable=False)
    digest = models.CharField(max_length=64, editable=False)
    previous_prefix = models.CharField(max_length=32, blank=True, db_index=True, editable=False)
    previous_digest = models.CharField(max_length=64, blank=True, editable=False)
    previous_valid_until = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="+",
    )
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Empty: never.")
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="+",
    )
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    allowed_roots = models.ManyToManyField(
        AllowedRoot,
        blank=True,
        related_name="keys",
        help_text="Where this key may work. Empty: the roots of the proxy settings.",
    )
    default_root = models.ForeignKey(
        AllowedRoot,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        help_text="Where it works when a request names no metadata.cwd; one of its allowed roots.",
    )
    engine = models.CharField(
        max_length=16, blank=True, choices=ENGINES, help_text="Empty: the engine of the settings."
    )
    models_allowed = models.JSONField(
        default=list, blank=True, help_text="One model id a line. Empty: all."
    )
    max_concurrency = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Turns of this key at once; one more gets 429. Empty: no cap of its own.",
    )
    max_queued = models.PositiveIntegerField(
        "most waiting",
        null=True,
        blank=True,
        help_text="Turns of this key that may wait for an engine; one more gets 429. "
        "Empty: as many as the queue takes.",
    )
    agent_by_default = models.BooleanField(
        default=False,
        help_text="Ask for agent mode where the request does not say. A live grant is needed all the same.",
    )
    is_strict = models.BooleanField(
        "strict",
        default=False,
        help_text="Refuse parameters that would be ignored, such as temperature, with 400.",
    )
    note = models.TextField(blank=True)

    objects: ClassVar[ApiKeyManager] = ApiKeyManager()

    class Meta:
        ordering: ClassVar = ["-id"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    def clean(self) -> None:
        names = self.models_allowed
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValidationError({"models_allowed": "This must be a list of model ids."})

    def new_secret(self) -> str:
        """Set prefix and digest for a fresh secret and return it; the caller saves."""
        secret = SECRET_START + secrets.token_urlsafe(32)
        self.prefix, self.digest = secret[:PREFIX_LENGTH], digest_of(secret)
        return secret

    def rotate(self, grace: timedelta = timedelta()) -> str:
        """Replace the secret and return the new one; the old one still opens for `grace`."""
        self.previous_prefix, self.previous_digest = self.prefix, self.digest
        self.previous_valid_until = timezone.now() + grace
        secret = self.new_secret()
        self.save()
        return secret

    def revoke(self, by: Any = None) -> None:  # noqa: ANN401 - the user model is a setting
        """Close the key for good, from the next request on."""
        self.revoked_at, self.revoked_by = timezone.now(), by
        self.save()

    def is_opened_by(self, digest: str, now: datetime) -> bool:
        current = hmac.compare_digest(digest, self.digest)
        in_grace = self.previous_valid_until is not None and now < self.previous_valid_until
        return current or (hmac.compare_digest(digest, self.previous_digest) and in_grace)

    def is_live(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    @property
    def is_live_now(self) -> bool:
        return self.is_live(timezone.now())

    @property
    def state(self) -> str:
        if self.revoked_at is not None:
            return "revoked"
        return "live" if self.is_live_now else "expired"


APPROVED_BY_ANOTHER = Q(approved_at__isnull=False, approved_by__isnull=False) & ~Q(
    approved_by=F("granted_by")
)


class AgentGrantManager(models.Manager["AgentGrant"]):
    def live(self, now: datetime | None = None) -> models.QuerySet[AgentGrant]:
        """Return the grants in force at `now`; where two persons are needed, approved ones only."""
        now = now or timezone.now()
        started = Q(starts_at__lte=now) & (Q(ends_at__isnull=True) | Q(ends_at__gt=now))
        found = self.filter(started, revoked_at__isnull=True)
        return found.filter(APPROVED_BY_ANOTHER) if settings.GRANTS_NEED_APPROVAL else found

    def covering(self, key: ApiKey, folder: str) -> AgentGrant | None:
        """Return the live grant under which this key uses agent mode in the folder (a real path).

        Of several the one of the highest level counts: a grant is given to be used.
        """
        grants = [
            grant
            for grant in self.live().filter(key=key).prefetch_related("roots").order_by("id")
            if any(is_inside(folder, os.path.realpath(root.path)) for root in grant.roots.all())
        ]
        return max(grants, key=lambda grant: POWER.get(grant.level, -1), default=None)

    def void_approvals(self, root: AllowedRoot) -> None:
        """Ask for approval again where the root of a grant that is not over has become another."""
        now = timezone.now()
        is_open = Q(revoked_at=None) & (Q(ends_at=None) | Q(ends_at__gt=now))
        for grant in self.filter(is_open, roots=root, approved_at__isnull=False):
            grant.void_approval()
            grant.save(update_fields=["approved_by", "approved_at"])


class AgentGrant(models.Model):
    """Leave for one key to use agent mode (commands, file writes) in some roots, for some time."""

    key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, related_name="grants")
    roots = models.ManyToManyField(AllowedRoot, related_name="grants")
    level = models.CharField(
        max_length=16,
        choices=LEVELS,
        default="write",
        help_text="What commands may do inside the roots; nothing outside them is ever open.",
    )
    reads_agents_md = models.BooleanField(
        "reads AGENTS.md",
        default=False,
        help_text="Let the agent take instructions from AGENTS.md files in the folder.",
    )
    reason = models.CharField(max_length=300)
    granted_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        editable=False,
        related_name="+",
    )
    approved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="+",
    )
    approved_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    starts_at = models.DateTimeField(default=timezone.now)
    ends_at = models.DateTimeField(null=True, blank=True, help_text="Empty: until revoked.")
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="+",
    )

    objects: ClassVar[AgentGrantManager] = AgentGrantManager()

    class Meta:
        ordering: ClassVar = ["-id"]
        verbose_name = "agent grant"
        permissions: ClassVar = [
            ("approve_agentgrant", "Can approve agent grant"),
            ("revoke_agentgrant", "Can revoke agent grant"),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(approved_by=None)
                | Q(granted_by=None)
                | ~Q(approved_by=F("granted_by")),
                name="approved_by_another",
            )
        ]

    def __str__(self) -> str:
        return f"grant {self.pk} for {self.key.name}"

    def clean(self) -> None:
        starts_at: datetime | None = self.starts_at  # None where a form could not read it
        if self.ends_at and starts_at and self.ends_at <= starts_at:
            raise ValidationError({"ends_at": "A grant must end after it starts."})

    def revoke(self, by: Any = None) -> None:  # noqa: ANN401 - the user model is a setting
        """End the grant from the next request on."""
        self.revoked_at, self.revoked_by = timezone.now(), by
        # These columns alone: what somebody else changes at this moment stays.
        self.save(update_fields=["revoked_at", "revoked_by"])

    def approve(self, by: Any) -> None:  # noqa: ANN401 - the user model is a setting
        """Let the grant count where two persons are needed. Raises `ValidationError` for the asker."""
        if self.granted_by_id == by.pk:
            raise ValidationError(OWN_GRANT)
        self.approved_at, self.approved_by = timezone.now(), by
        self.save(update_fields=["approved_at", "approved_by"])

    def void_approval(self) -> None:
        self.approved_at = self.approved_by = None

    def ends_later(self, until: datetime | None) -> bool:
        """Return whether this end would be later than the present one; None is never."""
        return self.ends_at is not None and (until is None or until > self.ends_at)

    def move_end(self, until: datetime | None) -> None:
        """Move the end. A later one is more than anybody approved, so an approval is void then."""
        if self.ends_later(until):
            self.void_approval()
        self.ends_at = until
        self.save(update_fields=["ends_at", "approved_at", "approved_by"])

    def extend(self, until: datetime, by: Any) -> AgentGrant:  # noqa: ANN401 - see `revoke`
        """Let it go on until then, and return the grant that says so.

        It is this one with its end moved; where grants need approval it is a new one that begins
        where this one ends, so that what was approved stays as it was approved.
        """
        if not settings.GRANTS_NEED_APPROVAL:
            self.move_end(until)
            return self
        with transaction.atomic():
            following = AgentGrant.objects.create(
                key=self.key,
                level=self.level,
                reads_agents_md=self.reads_agents_md,
                reason=f"{self.reason[:260]} (extends grant {self.pk})",
                granted_by=by,
                starts_at=self.ends_at or timezone.now(),
                ends_at=until,
            )
            following.roots.set(self.roots.all())
        return following

    @property
    def needs_approval(self) -> bool:
        """Whether it does not count, because nobody has approved it and somebody must."""
        has_it = self.approved_at is not None and self.approved_by_id not in (
            None,
            self.granted_by_id,
        )
        return bool(settings.GRANTS_NEED_APPROVAL) and not has_it

    @property
    def state(self) -> str:
        now = timezone.now()
        if self.revoked_at is not None:
            return "revoked"
        if self.ends_at is not None and now >= self.ends_at:
            return "over"
        if self.needs_approval:
            return "awaiting approval"
        return "not yet" if now < self.starts_at else "live"

    @property
    def is_open(self) -> bool:
        """Whether it counts now, or still may one day."""
        return self.state not in ("revoked", "over")


class ApprovalRuleManager(models.Manager["ApprovalRule"]):
    def note(self, *, is_needed: bool) -> None:
        """Put on record what the setting says, where it is not what it said before."""
        newest = self.order_by("-since", "-id").first()
        if (newest.is_needed if newest else False) != is_needed:
            self.create(is_needed=is_needed)

    def was_needed_at(self, moment: datetime) -> bool:
        newest = self.filter(since__lte=moment).order_by("-since", "-id").first()
        return newest.is_needed if newest else False


class ApprovalRule(models.Model):
    """Since when grants (do not) need a second person.

    The rule is a setting of the environment, which has no history; each server notes it at its
    start, so that what counted on a day in the past can be told.
    """

    since = models.DateTimeField(default=timezone.now)
    is_needed = models.BooleanField()

    objects: ClassVar[ApprovalRuleManager] = ApprovalRuleManager()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{'needed' if self.is_needed else 'not needed'} since {self.since}"


class KillOrder(models.Model):
    """The order to end what runs: one request, or all that runs under a revoked key or grant.

    Each server looks at the orders for what runs in it, so it does not matter which one a request
    is in. What was carried out is in the request's own row.
    """

    request_id = models.UUIDField(null=True, db_index=True)
    key_id = models.BigIntegerField(null=True, db_index=True)
    grant_id = models.BigIntegerField(null=True, db_index=True)
    ordered_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    reason = models.CharField(max_length=300)
    ordered_at = models.DateTimeField(default=timezone.now)

    class Meta:
        verbose_name = "kill order"
        default_permissions = ()
        permissions: ClassVar = [("kill_request", "Can kill a running request")]

    def __str__(self) -> str:
        if self.request_id is not None:
            return f"end request {self.request_id}"
        what = f"key {self.key_id}" if self.key_id is not None else f"grant {self.grant_id}"
        return f"end what runs under {what}"


def check_overrides(value: object) -> None:
    """Refuse what is not a list of `key=value`, and what would weaken the sandbox."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValidationError(
            'This must be a list of strings, such as ["model_verbosity=\\"low\\""].'
        )
    for item in value:
        try:
            check_override(item)
        except OverrideRefused as refused:
            raise ValidationError(str(refused)) from refused


class ProxySettings(models.Model):
    """The server's options, one row. A variable of the environment wins over its field."""

    codex_bin = models.CharField(
        "codex binary",
        max_length=1000,
        blank=True,
        help_text="Path or name on PATH. Empty: the binary that was installed with this server.",
    )
    proxy = models.CharField(
        "outbound proxy",
        max_length=300,
        blank=True,
        help_text="Codex reaches its provider through this URL (http_proxy and https_proxy).",
    )
    model = models.CharField(
        max_length=100, blank=True, help_text="What `default` means. Empty: Codex's own default."
    )
    engine = models.CharField(max_length=16, choices=ENGINES, default="app-server")
    workers = models.PositiveIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(64)],
        help_text="Long-lived app-server processes.",
    )
    turns_per_worker = models.PositiveIntegerField(
        default=100,
        validators=[MinValueValidator(1), MaxValueValidator(500)],
        help_text="Turns that one app-server process runs at once.",
    )
    worker_max_mb = models.PositiveIntegerField(
        "memory of a worker",
        default=1024,
        validators=[MinValueValidator(256)],
        help_text="In MB. A worker above it is replaced; its running turns finish.",
    )
    worker_max_hours = models.FloatField(
        "age of a worker",
        default=24.0,
        validators=[MinValueValidator(0.01)],
        help_text="In hours. An older one is replaced; its running turns finish.",
    )
    max_concurrency = models.PositiveIntegerField(
        default=4,
        validators=[MinValueValidator(1), MaxValueValidator(500)],
        help_text="codex exec processes at once.",
    )
    max_queue_size = models.PositiveIntegerField(
        default=64, help_text="Requests that may wait for an engine; one more gets 429."
    )
    queue_timeout_seconds = models.FloatField(
        default=30.0,
        validators=[MinValueValidator(0.0)],
        help_text="How long a request may wait for an engine before it gets 429.",
    )
    app_server_codex_home = models.CharField(
        "CODEX_HOME",
        max_length=1000,
        blank=True,
        help_text="Empty: a directory of the server's own, apart from any user's Codex.",
    )
    codex_configs = models.JSONField(
        "codex config overrides",
        default=list,
        blank=True,
        validators=[check_overrides],
        help_text="One key=value a line, in the syntax of codex -c. None may weaken the sandbox. "
        "Auditors read this page: name a provider's key by env_key, never write it here.",
    )
    is_lean = models.BooleanField(
        "lean prompts",
        default=True,
        help_text="Give Codex a model catalogue without what a gateway has no use for. Off: its own.",
    )
    ephemeral = models.BooleanField(
        default=True, help_text="Codex keeps no file of a conversation."
    )
    agent = models.BooleanField(
        "agent by default",
        default=False,
        help_text="Requests that do not say ask for agent mode. A live grant is needed all the same.",
    )
    action_output_chars = models.PositiveIntegerField(
        "output kept",
        default=2_000,
        validators=[MaxValueValidator(100_000)],
        help_text="Characters of the first and of the last lines of an agent's command that are kept "
        "on record. Output is content: 0 keeps none of it, only its size and its SHA-256.",
    )
    action_diff_chars = models.PositiveIntegerField(
        "diff kept",
        default=20_000,
        validators=[MaxValueValidator(1_000_000)],
        help_text="Characters of the diff of a file that an agent changed. 0 keeps none of it.",
    )
    compared_files = models.PositiveIntegerField(
        "files compared",
        default=20_000,
        validators=[MaxValueValidator(500_000)],
        help_text="An agent's folder is compared before and after its turn, up to so many files, to "
        "find what its commands changed. 0 does not compare.",
    )
    fast = models.BooleanField(
        default=False, help_text="Low reasoning effort, unless an override sets it."
    )
    reasoning = models.BooleanField(
        "show reasoning",
        default=True,
        help_text="Ask the model for summaries of its reasoning and give them as reasoning_content.",
    )
    max_choices = models.PositiveIntegerField(
        "most choices",
        default=4,
        validators=[MinValueValidator(1), MaxValueValidator(128)],
        help_text="The largest n of a request. Each choice is a turn of its own, and costs one.",
    )
    fetch_images = models.BooleanField(
        default=False,
        help_text="Download images that a request names by https URL. Off: data URLs only.",
    )
    default_cwd = models.CharField(
        "default working directory",
        max_length=1000,
        blank=True,
        help_text="For keys without roots of their own. Empty: the server's own workspace folder.",
    )
    allowed_roots = models.ManyToManyField(
        AllowedRoot,
        blank=True,
        related_name="+",
        help_text="For keys without roots of their own. Empty: only the default working directory.",
    )
    timeout_seconds = models.FloatField(
        default=300.0,
        validators=[MinValueValidator(1.0)],
        help_text="A request's absolute deadline: queue, start and answer together.",
    )
    log_level = models.CharField(
        max_length=10,
        default="info",
        choices=[(level, level) for level in ("debug", "info", "warning", "error")],
    )

    class Meta:
        verbose_name = verbose_name_plural = "proxy settings"

    def __str__(self) -> str:
        return "Proxy settings"

    def save(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Django's own signature
        self.pk = 1
        super().save(*args, **kwargs)

    @classmethod
    def load(cls) -> ProxySettings:
        """Return the one row; an unsaved one with the defaults where nobody saved any yet."""
        return cls.objects.filter(pk=1).first() or cls(pk=1)


class PolicyVersion(models.Model):
    """One row with one number, which the database changes with the policy; see `policyversion`."""

    number = models.BigIntegerField()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.number)


class SandboxProof(models.Model):
    """What attacks on the sandbox showed, on one host, for one codex and one form of the policy."""

    host = models.CharField(max_length=200, help_text="Machine, kernel and user it counts for.")
    codex_version = models.CharField(max_length=32)
    level = models.CharField(max_length=16, choices=LEVELS)
    policy_hash = models.CharField(max_length=64, help_text="Of the policy's form, without paths.")
    facts = models.JSONField(default=dict)
    probes = models.JSONField(default=list)
    passed = models.BooleanField()
    as_root = models.BooleanField()
    duration_ms = models.PositiveIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )

    class Meta:
        ordering: ClassVar = ["-id"]
        default_permissions = ("add", "view")
        indexes: ClassVar = [
            models.Index(
                fields=["host", "level", "codex_version", "policy_hash", "id"], name="proof_sought"
            )
        ]

    def __str__(self) -> str:
        return f"proof {self.pk} of level {self.level}"

    @property
    def broken(self) -> list[dict[str, Any]]:
        return [probe for probe in self.probes if not probe["held"]]

    @property
    def why(self) -> str:
        """Why it did not pass, for an operator; empty where it did."""
        return "; ".join(
            f"{probe['name']} ({probe['engine']}): {probe['seen']}" for probe in self.broken
        )

    @property
    def public_why(self) -> str:
        """The same for a caller: without paths or what a command printed."""
        names = dict.fromkeys(probe["name"] for probe in self.broken)
        return f"Broken: {', '.join(names)}." if names else ""


class ChangeEntry(LogEntry):  # type: ignore[misc] # auditlog has no types
    """A change of the policy on record, as the admin shows it; auditlog writes it."""

    class Meta:
        proxy = True
        verbose_name = "change"
        default_permissions = ("view",)
