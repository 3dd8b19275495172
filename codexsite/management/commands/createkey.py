"""`python manage.py createkey`: an API key from the terminal."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, transaction
from django.utils import timezone

from proxy.models import AllowedRoot, ApiKey


class Command(BaseCommand):
    help = (
        "Create an API key. Its secret is printed once, alone on stdout, and kept nowhere; "
        "what it may do is printed on stderr and managed in the admin."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", required=True, help="What the key is for, or who uses it.")
        parser.add_argument("--owner", metavar="USER", help="Its user. Default: the first admin.")
        parser.add_argument(
            "--root",
            metavar="ALIAS",
            action="append",
            default=[],
            help="An allowed root where it may work, by alias; may be repeated, the first is its "
            "default. Without: the roots of the proxy settings.",
        )
        parser.add_argument(
            "--expires-hours",
            metavar="N",
            type=float,
            help="Hours until it expires. Default: never.",
        )

    def handle(
        self,
        *,
        name: str,
        owner: str | None,
        root: list[str],
        expires_hours: float | None,
        **_: object,
    ) -> None:
        if not 0 < len(name := name.strip()) <= 100:
            raise CommandError("--name must have 1 to 100 characters.")
        if expires_hours is not None and not 0 < expires_hours < 24 * 365 * 100:
            raise CommandError("--expires-hours must be above 0, and below a century.")
        try:
            user, roots = _find_owner(owner), [_find_root(alias) for alias in root]
        except DatabaseError as error:
            raise CommandError(f"Run `serve` or `migrate` first: {error}") from error
        expires_at = timezone.now() + timedelta(hours=expires_hours) if expires_hours else None
        with transaction.atomic():
            key, secret = ApiKey.objects.issue(
                name=name,
                owner=user,
                expires_at=expires_at,
                default_root=roots[0] if roots else None,
            )
            key.allowed_roots.set(roots)
        where = ", ".join(root) or "the roots of the proxy settings"
        until = f"{expires_at:%Y-%m-%d %H:%M %Z}" if expires_at else "revoked"
        self.stderr.write(f"{key} of {user} may work in {where}, until {until}.")
        self.stderr.write("Its secret is shown once:")
        self.stdout.write(secret)


def _find_owner(name: str | None) -> Any:  # noqa: ANN401 - the user model is a setting
    users = get_user_model()._default_manager
    if name is None:
        user = users.filter(is_superuser=True).order_by("pk").first()
        problem = (
            "There is no admin yet: run `serve` once, or `createsuperuser`, or name an --owner."
        )
    else:
        user = users.filter(username=name).first()
        problem = f"There is no user {name!r}."
    if user is None:
        raise CommandError(problem)
    return user


def _find_root(alias: str) -> AllowedRoot:
    root = AllowedRoot.objects.filter(alias=alias).first()
    if root is None:
        known = ", ".join(AllowedRoot.objects.values_list("alias", flat=True)) or "none"
        raise CommandError(f"There is no allowed root {alias!r}. Known: {known}.")
    return root
