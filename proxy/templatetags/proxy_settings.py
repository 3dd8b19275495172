"""What a template that gets no context of ours must know of the settings."""

from __future__ import annotations

from django import template
from django.conf import settings

register = template.Library()


@register.simple_tag
def grants_need_approval() -> bool:
    return bool(settings.GRANTS_NEED_APPROVAL)
