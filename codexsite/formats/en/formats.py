"""Times to the second and without doubt about day and month: these pages are records."""

from __future__ import annotations

DATETIME_FORMAT = "j M Y H:i:s"
DATE_FORMAT = "j M Y"
