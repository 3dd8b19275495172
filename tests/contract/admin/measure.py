"""How long each page of the request list takes with a log of a given length, in SQLite.

    python -m tests.contract.admin.measure ROWS FOLDER

fills a database in FOLDER (once) and prints the median of five warm requests for each page.
"""

from __future__ import annotations

import os
import statistics
import sys
import time


def main(rows: int, folder: str) -> None:
    os.environ["CODEX_PROXY_DATA_DIR"] = folder
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "codexsite.settings")
    import django

    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.test import Client

    from audit.models import RequestRecord
    from tests.contract.admin.logbook import fill
    from tests.contract.admin.pages import pages

    call_command("migrate", verbosity=0)
    if not RequestRecord.objects.exists():
        began = time.perf_counter()
        fill(rows)
        report(f"filled {rows:,} rows", (time.perf_counter() - began) * 1000)
    client = Client(headers={"host": "localhost"})
    client.force_login(
        User.objects.get_or_create(username="boss", is_staff=True, is_superuser=True)[0]
    )
    for name, url in pages().items():
        report(name, median_ms(client, url))
    report("one request", median_ms(client, f"/admin/audit/requestrecord/{rows // 2}/change/"))


def report(name: str, ms: float) -> None:
    sys.stdout.write(f"{name:34}{ms:10.0f} ms\n")


def median_ms(client, url: str) -> float:
    times: list[float] = []
    for _ in range(6):
        began = time.perf_counter()
        assert client.get(url).status_code == 200, url
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
