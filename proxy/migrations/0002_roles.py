"""The two roles of the README, as groups: Auditor reads everything, Operator manages the policy."""

from django.db import migrations

# Model -> its verbose name, from which Django makes the names of permissions.
READ = {
    ("audit", "requestrecord"): "request",
    ("proxy", "changeentry"): "change",
    ("proxy", "apikey"): "API key",
    ("proxy", "allowedroot"): "allowed root",
    ("proxy", "agentgrant"): "agent grant",
    ("proxy", "proxysettings"): "proxy settings",
}
MANAGED = ("apikey", "allowedroot", "agentgrant")


def create_roles(apps, schema_editor):
    auditor, _ = apps.get_model("auth", "Group").objects.get_or_create(name="Auditor")
    operator, _ = apps.get_model("auth", "Group").objects.get_or_create(name="Operator")
    views = [permission(apps, "view", app, model) for app, model in READ]
    changes = [
        permission(apps, action, "proxy", model) for model in MANAGED for action in ("add", "change")
    ]
    changes.append(permission(apps, "change", "proxy", "proxysettings"))
    auditor.permissions.add(*views)
    operator.permissions.add(*views, *changes)


def permission(apps, action, app, model):
    """Return the permission, made here where Django has not: it does so after all migrations."""
    content_type, _ = apps.get_model("contenttypes", "ContentType").objects.get_or_create(
        app_label=app, model=model
    )
    found, _ = apps.get_model("auth", "Permission").objects.get_or_create(
        content_type=content_type,
        codename=f"{action}_{model}",
        defaults={"name": f"Can {action} {READ[app, model]}"},
    )
    return found


class Migration(migrations.Migration):
    dependencies = [
        ("proxy", "0001_initial"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]

    # Backwards nothing: the groups may have members by then.
    operations = [migrations.RunPython(create_roles, migrations.RunPython.noop)]
