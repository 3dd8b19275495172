"""The gateway: keys and policy, the OpenAI API, and the engines behind it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("codexsite")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0.0.0"
