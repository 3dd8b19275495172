"""`manage.py verify_sandbox`: attack the sandbox on this host, and say what held and what broke."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from proxy import sandboxing
from proxy.engines.confinement import LEVELS, Level
from proxy.errors import EngineError
from proxy.models import SandboxProof
from proxy.policy import load_options
from proxy.runtime import engine_config


class Command(BaseCommand):
    help = (
        "Attack the sandbox of agent turns on this host, through both engines, with no model asked: "
        "each probe is reported as held or broken with what was seen, and the result is stored. "
        "Agent mode needs one that passed. Exits with 1 where something broke."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--level", choices=LEVELS, help="Only this level of grants.")
        parser.add_argument("--json", action="store_true", help="Print one JSON document.")

    def handle(self, *args: Any, level: Level | None, **options: Any) -> None:  # noqa: ANN401 - Django's
        logging.getLogger("proxy").setLevel(logging.CRITICAL)  # a server's log, not a terminal's
        try:
            config = engine_config(load_options())
            levels = (level,) if level else LEVELS
            proofs = [asyncio.run(sandboxing.prove(config, each)) for each in levels]
        except DatabaseError as error:
            raise CommandError(
                "The database is not prepared: run `serve` or `migrate` first."
            ) from error
        except EngineError as error:
            raise CommandError(error.message) from error
        if options["json"]:
            self.stdout.write(json.dumps([_as_json(proof) for proof in proofs], indent=2))
        else:
            for proof in proofs:
                self._show(proof)
            self._warn()
        if not all(proof.passed for proof in proofs):
            raise SystemExit(1)

    def _show(self, proof: SandboxProof) -> None:
        verdict = self.style.SUCCESS("holds") if proof.passed else self.style.ERROR("BROKEN")
        self.stdout.write(
            f"level {proof.level}: {verdict}  (codex {proof.codex_version}, "
            f"{proof.duration_ms / 1000:.1f} s, proof {proof.pk})"
        )
        for probe in proof.probes:
            mark = "held  " if probe["held"] else self.style.ERROR("BROKEN")
            self.stdout.write(f"  {mark} {probe['engine']:<10} {probe['name']:<44} {probe['seen']}")
        if proof.broken:
            facts = "  ".join(f"{name}={value}" for name, value in proof.facts.items())
            self.stdout.write(f"  {facts}")

    def _warn(self) -> None:
        if sandboxing.runs_as_root():
            allowed = settings.ALLOW_ROOT_AGENT
            text = sandboxing.AS_ROOT_KNOWINGLY if allowed else sandboxing.AS_ROOT
            self.stdout.write(self.style.WARNING(text))


def _as_json(proof: SandboxProof) -> dict[str, Any]:
    names = ("id", "host", "codex_version", "level", "policy_hash", "facts", "probes", "passed",
             "as_root", "duration_ms")  # fmt: skip
    return {
        **{name: getattr(proof, name) for name in names},
        "created_at": proof.created_at.isoformat(),
    }
