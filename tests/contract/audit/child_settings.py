"""The product's settings with no other app than `audit`: these children start often."""

from __future__ import annotations

from codexsite.settings import DATA_DIR, DATABASES, DEFAULT_AUTO_FIELD, INSTANCE_ID, SECRET_KEY

__all__ = ["DATABASES", "DATA_DIR", "DEFAULT_AUTO_FIELD", "INSTANCE_ID", "SECRET_KEY"]

INSTALLED_APPS = ["audit.apps.AuditConfig"]
USE_TZ = True
