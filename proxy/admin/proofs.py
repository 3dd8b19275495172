"""Proofs of the sandbox in the admin: what was tried, what was seen, and a button to try again."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action

from audit.listing import column
from proxy import sandboxing
from proxy.engines.confinement import LEVELS
from proxy.errors import EngineError
from proxy.models import SandboxProof
from proxy.policy import load_options
from proxy.runtime import engine_config

VERDICTS = {"held": "success", "broken": "danger"}


@admin.register(SandboxProof)
class SandboxProofAdmin(ModelAdmin):  # type: ignore[misc] # unfold has no types
    """Evidence: made by the button or the command, never edited."""

    list_display = (
        "created_at", "verdict", "level", "codex_version", "broken_probes", "as_root", "host",
        "asked_by",
    )  # fmt: skip
    list_filter = ("level", "passed")
    list_select_related = ("created_by",)
    actions = None
    fieldsets: ClassVar = (
        (None, {"fields": ("verdict", "level", "results")}),
        (
            "What it counts for",
            {"fields": ("host", "codex_version", "policy_hash", "as_root", "kernel")},
        ),
        ("When and by whom", {"fields": ("created_at", "asked_by", "duration_ms")}),
    )
    actions_list: ClassVar = ["verify"]

    def get_readonly_fields(
        self, request: HttpRequest, obj: SandboxProof | None = None
    ) -> list[str]:
        return [name for _, section in self.fieldsets for name in section["fields"]]

    def has_change_permission(self, request: HttpRequest, obj: SandboxProof | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: SandboxProof | None = None) -> bool:
        return False

    def has_add_permission(self, request: HttpRequest) -> bool:
        """A proof cannot be written down; who may add one may have it tried."""
        return False

    def has_verify_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("proxy.add_sandboxproof"))

    @action(description="Verify the sandbox", icon="shield_lock", permissions=["verify"])  # type: ignore[untyped-decorator] # unfold has no types
    def verify(self, request: HttpRequest) -> HttpResponse:
        """Ask, and on POST attack the sandbox of every level: it takes some seconds.

        This thread of the admin's waits for it; the loop that serves requests does not.
        """
        if request.method == "POST":
            self._prove(request)
            return HttpResponseRedirect(reverse("admin:proxy_sandboxproof_changelist"))
        return TemplateResponse(
            request,
            "proxy/prove.html",
            {
                **self.admin_site.each_context(request),
                "title": "Verify the sandbox",
                "opts": self.opts,
                "original": "All levels, through both engines",
                "list_url": reverse("admin:proxy_sandboxproof_changelist"),
            },
        )

    def _prove(self, request: HttpRequest) -> None:
        for level in LEVELS:
            try:
                config = engine_config(load_options())
                proof = asyncio.run(sandboxing.prove(config, level, by=request.user))
            except EngineError as error:
                messages.error(request, f"Level {level}: the probes could not run. {error.message}")
                continue
            if proof.passed:
                messages.success(request, f"Level {level}: every probe held.")
            else:
                messages.error(request, f"Level {level}: broken. {proof.why}")

    @column("verdict", colours=VERDICTS)
    def verdict(self, proof: SandboxProof) -> str:
        return "held" if proof.passed else "broken"

    @column("broken probes")
    def broken_probes(self, proof: SandboxProof) -> str:
        return ", ".join(f"{probe['name']} ({probe['engine']})" for probe in proof.broken) or "-"

    @column("asked by")
    def asked_by(self, proof: SandboxProof) -> str:
        return str(proof.created_by) if proof.created_by else "the server, or a command on it"

    @column("kernel")
    def kernel(self, proof: SandboxProof) -> str:
        return ", ".join(f"{name}: {value}" for name, value in proof.facts.items())

    @column("probes")
    def results(self, proof: SandboxProof) -> SafeString:
        return render_to_string("proxy/probes.html", {"probes": proof.probes})
