"""People and roles."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from proxy.admin.base import PolicyAdmin

admin.site.unregister([User, Group])


@admin.register(User)
class UserAdmin(DjangoUserAdmin, PolicyAdmin):  # type: ignore[misc,type-arg] # unfold has no types
    """People: made inactive, never deleted, since changes and grants are signed with them."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "is_active", "is_staff", "is_superuser", "last_login")
    list_filter = ("is_active", "is_staff", "is_superuser", "groups")


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, PolicyAdmin):  # type: ignore[misc] # unfold has no types
    """Roles: `Auditor` reads everything, `Operator` manages keys, roots and settings
    and ends what runs, `Administrator` gives and approves grants as well."""
