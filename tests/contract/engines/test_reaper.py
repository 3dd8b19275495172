"""Children die with a server that is killed, also where no parent-death signal exists."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.processes import PROJECT, wait_for

SERVER = """
import asyncio, sys
from proxy.engines import child
child.parent_death_signal = lambda: []
async def main():
    loop = asyncio.get_running_loop()
    sleeper = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print(1, flush=True); import time; time.sleep(60)"
    started = loop.create_future()
    one = await child.Child.spawn([sys.executable, "-c", sleeper], env={"PATH": "/usr/bin:/bin"},
        cwd="/", on_line=lambda line: started.done() or started.set_result(None), on_end=lambda: None)
    await started
    print(one.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def group_is_gone(group: int) -> bool:
    """Zombies that nobody has waited for yet do not count."""
    listing = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True)
    return not any(
        line.split()[0] == str(group) and not line.split()[1].startswith("Z")
        for line in listing.stdout.splitlines()
    )


def test_killed_server_takes_child_and_grandchild_with_it(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    group = int(server.stdout.readline())
    assert not group_is_gone(group)
    os.kill(server.pid, signal.SIGKILL)
    server.wait(10)
    server.stdout.close()
    wait_for(lambda: group_is_gone(group))
