"""This server, Codex alone and the predecessor, side by side in one run.

    python benchmarks/run.py [--quick] [--json FILE] [--only codexsite,bare,predecessor]

All ask the same codex binary and the same model provider on loopback. The contenders take turns in
every round, so that whatever else the machine does hits all of them. Everything that it starts is
ended, whatever happens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

# As a script it sees its own folder only, not the checkout that holds the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from codex_cli_bin import bundled_codex_path

from benchmarks import contenders, measuring, predecessor, report
from benchmarks.bare import stop_group
from benchmarks.contenders import Bench, Contender
from benchmarks.measuring import Size
from benchmarks.processes import StartFailed
from benchmarks.report import Results

FULL = Size(rounds=3, alone=12, streams=4, crowd={"app-server": 96, "exec": 32}, budget_s=225)
QUICK = Size(rounds=1, alone=6, streams=2, crowd={"app-server": 48, "exec": 16}, budget_s=57)


def main() -> None:
    options = _options()
    results = Results()
    try:
        asyncio.run(_run(options, results))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("interrupted; everything that was started has been ended")
    except TimeoutError:
        results.failures["the time was up before every round was done"] += 1
    engines = options.engines.split(",")
    print("\n" + report.table(results, engines) + "\n")
    for note in results.notes:
        print(note)
    for failure, count in results.failures.items():
        print(f"FAILED {count} times: {failure}")
    if options.json:
        options.json.write_text(json.dumps(report.as_json(results), indent=1))
    sys.exit(1 if results.failures else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one small round, below a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    parser.add_argument("--only", default="codexsite,bare,predecessor", metavar="PRODUCTS")
    parser.add_argument("--engines", default="app-server,exec", metavar="ENGINES")
    return parser.parse_args()


async def _run(options: argparse.Namespace, results: Results) -> None:
    size = QUICK if options.quick else FULL
    started = time.monotonic()
    _end_on_sigterm()
    codex_bin = str(bundled_codex_path())
    with tempfile.TemporaryDirectory(prefix="codexsite-benchmark-") as scratch:
        async with (
            asyncio.timeout(size.budget_s),
            provider() as port,
            contextlib.AsyncExitStack() as stack,
        ):
            bench = Bench(codex_bin, f"http://127.0.0.1:{port}/v1", Path(scratch))
            entered = await _enter(stack, bench, options, results)
            await measuring.warm_up(bench, port, entered, results)
            ready = time.monotonic()
            for number in range(1, size.rounds + 1):
                await measuring.one_round(entered, size, port, results)
                now = time.monotonic()
                print(f"round {number} of {size.rounds} done, {now - started:.0f} s", flush=True)
                if now - started + (now - ready) / number > size.budget_s:
                    results.notes.append(f"Stopped after {number} rounds: the time was up.")
                    break
    results.notes.append(
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def _end_on_sigterm() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


@contextlib.asynccontextmanager
async def provider() -> AsyncIterator[int]:
    """Run the model provider in a process of its own; gives its port."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("provider.py"))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        yield int(await asyncio.wait_for(child.stdout.readline(), 20))
    finally:
        await stop_group(child)


async def _enter(
    stack: contextlib.AsyncExitStack, bench: Bench, options: argparse.Namespace, results: Results
) -> list[Contender]:
    """Start the contenders that were chosen; one that cannot start is reported and left out."""
    products, engines = options.only.split(","), options.engines.split(",")
    starts: list[contextlib.AbstractAsyncContextManager[Contender]] = []
    if "codexsite" in products:
        starts += [contenders.codexsite(bench, engine) for engine in engines]
    if "bare" in products:
        starts += [contenders.bare_app_server(bench)] if "app-server" in engines else []
        starts += [contenders.bare_exec(bench)] if "exec" in engines else []
    if "predecessor" in products:
        try:
            program = await asyncio.to_thread(predecessor.install)
        except predecessor.NotInstalled as error:
            results.failures[f"the predecessor could not be installed: {error}"] += 1
        else:
            starts += (
                [contenders.predecessor_app_server(bench, program)]
                if "app-server" in engines
                else []
            )
            starts += [contenders.predecessor_exec(bench, program)] if "exec" in engines else []
    entered = []
    for start in starts:
        try:
            contender = await stack.enter_async_context(start)
        except StartFailed as error:
            results.failures[f"could not start {error}"] += 1
        else:
            entered.append(contender)
            print(f"started: {contender.product}, {contender.engine}", flush=True)
    return entered


if __name__ == "__main__":
    main()
