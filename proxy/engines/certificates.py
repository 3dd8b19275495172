"""Spare Codex the parsing of every certificate authority of the system, for each turn anew.

Codex makes HTTP clients for every thread, and one of them has OpenSSL parse the whole bundle that
`SSL_CERT_FILE` or the system names, some 140 certificates: 10 ms of CPU, half of a short turn, with or
without TLS (measured with codex 0.163; bare Codex gains as much). The clients that really connect
(HTTPS, WebSocket, login refresh, account) take their authorities from that file *and* from all files
in `SSL_CERT_DIR`, which they read without parsing. So Codex gets a file with one certificate out of
the bundle, and a folder with the bundle in it: the authorities trusted are the same ones.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import sys
from pathlib import Path

from proxy.engines.scratch import new_file

log = logging.getLogger(__name__)

PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
OPERATORS_CHOICE = ("SSL_CERT_FILE", "SSL_CERT_DIR", "CODEX_CA_CERTIFICATE")
"""Variables that name authorities; whoever gives Codex one of them is left alone."""


def spread_out(folder: Path, bundle: Path | None = None) -> dict[str, str]:
    """Write the authorities of `bundle` into `folder`, and return the variables that name them.

    Without one it is the system's. Nothing where the system keeps none in a file (macOS has a
    keychain instead).
    """
    if sys.platform != "linux":
        return {}
    try:
        path = bundle or Path(ssl.get_default_verify_paths().openssl_cafile)
        authorities_text = path.read_text(encoding="utf-8")
        first = PEM.search(authorities_text)
        if first is None:
            return {}
        authorities = folder / "authorities"
        authorities.mkdir(mode=0o755, parents=True, exist_ok=True)
        _write(authorities / "bundle.pem", authorities_text)
        _write(folder / "one-authority.pem", first[0] + "\n")
    except (OSError, ValueError) as error:
        log.info("Codex parses the whole bundle of certificates for each turn: %s", error)
        return {}
    return {"SSL_CERT_FILE": str(folder / "one-authority.pem"), "SSL_CERT_DIR": str(authorities)}


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with new_file(draft) as file:
        file.write(text.encode())
        os.fchmod(file.fileno(), 0o644)
    draft.replace(path)
