#!/usr/bin/env python
"""Django's command line for codexsite."""

from __future__ import annotations

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line

from codexsite.options import prepare_environment

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "codexsite.settings")
    prepare_environment(sys.argv, os.environ)
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"codexsite cannot start: {error}")
