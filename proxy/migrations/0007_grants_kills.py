"""A second person for grants, orders to kill, and a third role: operators no longer give grants."""

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

KILL = ("kill_request", "killorder", "Can kill a running request")
REVOKE = ("revoke_agentgrant", "agentgrant", "Can revoke agent grant")
APPROVE = ("approve_agentgrant", "agentgrant", "Can approve agent grant")
ADD = ("add_agentgrant", "agentgrant", "Can add agent grant")
CHANGE = ("change_agentgrant", "agentgrant", "Can change agent grant")


def create_roles(apps, schema_editor):
    groups = apps.get_model("auth", "Group").objects
    operator, _ = groups.get_or_create(name="Operator")
    administrator, _ = groups.get_or_create(name="Administrator")
    operator.permissions.remove(permission(apps, ADD), permission(apps, CHANGE))
    operator.permissions.add(permission(apps, KILL), permission(apps, REVOKE))
    administrator.permissions.add(
        *operator.permissions.all(), *(permission(apps, each) for each in (ADD, CHANGE, APPROVE))
    )


def permission(apps, wanted):
    """Return the permission, made here where Django has not: it does so after all migrations."""
    codename, model, name = wanted
    content_type, _ = apps.get_model("contenttypes", "ContentType").objects.get_or_create(
        app_label="proxy", model=model
    )
    found, _ = apps.get_model("auth", "Permission").objects.get_or_create(
        content_type=content_type, codename=codename, defaults={"name": name}
    )
    return found


class Migration(migrations.Migration):
    dependencies = [
        ("proxy", "0006_queue_of_a_key"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="ApprovalRule",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("since", models.DateTimeField(default=django.utils.timezone.now)),
                ("is_needed", models.BooleanField()),
            ],
            options={"default_permissions": ()},
        ),
        migrations.CreateModel(
            name="KillOrder",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("request_id", models.UUIDField(db_index=True, null=True)),
                ("key_id", models.BigIntegerField(db_index=True, null=True)),
                ("grant_id", models.BigIntegerField(db_index=True, null=True)),
                ("reason", models.CharField(max_length=300)),
                ("ordered_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "ordered_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "verbose_name": "kill order",
                "default_permissions": (),
                "permissions": [("kill_request", "Can kill a running request")],
            },
        ),
        migrations.AlterModelOptions(
            name="agentgrant",
            options={
                "ordering": ["-id"],
                "permissions": [
                    ("approve_agentgrant", "Can approve agent grant"),
                    ("revoke_agentgrant", "Can revoke agent grant"),
                ],
                "verbose_name": "agent grant",
            },
        ),
        migrations.AddConstraint(
            model_name="agentgrant",
            constraint=models.CheckConstraint(
                condition=models.Q(approved_by=None)
                | models.Q(granted_by=None)
                | ~models.Q(approved_by=models.F("granted_by")),
                name="approved_by_another",
            ),
        ),
        # Backwards nothing: the groups may have members by then.
        migrations.RunPython(create_roles, migrations.RunPython.noop),
    ]
