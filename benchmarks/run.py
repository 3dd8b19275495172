"""This server, Codex alone and the predecessor, side by side in one run.

    python benchmarks/run.py [--quick] [--strict] [--only codexsite,bare,predecessor]

All ask the same codex binary and the same model provider on loopback. The contenders take turns in
every round, so that whatever else the machine does hits all of them. Everything that it starts is
ended, whatever happens. Prints a table, and writes it as JSON and as a picture.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
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

from benchmarks import contenders, measuring, picture, predecessor, report
from benchmarks.bare import stop_group
from benchmarks.contenders import Bench, Contender
from benchmarks.measuring import Size
from benchmarks.processes import StartFailed
from benchmarks.report import Results

FULL = Size(
    rounds=3, alone=15, streams=6, crowd={"app-server": 160, "exec": 24},
    at_once=100, at_once_many=300, memory_turns=(200, 2000), budget_s=540,
)  # fmt: skip
QUICK = Size(
    rounds=1, alone=4, streams=2, crowd={"app-server": 48, "exec": 16},
    at_once=100, at_once_many=300, memory_turns=(100, 400), budget_s=150,
)  # fmt: skip
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    options = _options()
    results = Results()
    results.notes.append(_machine())
    program = _predecessor_program(results) if "predecessor" in options.only else None
    try:
        asyncio.run(_run(options, program, results))
    except asyncio.CancelledError:
        sys.exit("interrupted; everything that was started has been ended")
    except TimeoutError:
        results.failures["the time was up; what is missing was not measured"] += 1
    print("\n" + report.table(results) + "\n")
    for note in results.notes:
        print(note)
    for failure, count in results.failures.items():
        print(f"FAILED {count} times: {failure}")
    behind = results.behind()
    print("\n" + ("Behind: " + "; ".join(behind) if behind else "Every target is held."))
    for path, text in (
        (options.json, json.dumps(report.as_json(results), indent=1)),
        (options.picture, picture.draw(results)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sys.exit(1 if results.failures or (options.strict and behind) else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one small round, about two minutes")
    parser.add_argument("--strict", action="store_true", help="fail where a figure is behind")
    parser.add_argument("--json", type=Path, metavar="FILE", default=RESULTS / "latest.json")
    parser.add_argument("--picture", type=Path, metavar="FILE", default=RESULTS / "latest.svg")
    parser.add_argument("--only", default="codexsite,bare,predecessor", metavar="PRODUCTS")
    parser.add_argument("--engines", default="app-server,exec", metavar="ENGINES")
    return parser.parse_args()


def _machine() -> str:
    codex = importlib.metadata.version("openai-codex-cli-bin")
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores with a load of "
        f"{os.getloadavg()[0]:.1f} before; Python {platform.python_version()}, codex {codex}."
    )


def _predecessor_program(results: Results) -> Path | None:
    try:
        return predecessor.install()
    except predecessor.NotInstalled as error:
        results.failures[f"the predecessor could not be installed: {error}"] += 1
        return None


async def _run(options: argparse.Namespace, program: Path | None, results: Results) -> None:
    size = QUICK if options.quick else FULL
    started = time.monotonic()
    _end_once_on_signals()
    codex_bin = str(bundled_codex_path())
    with tempfile.TemporaryDirectory(prefix="codexsite-benchmark-") as scratch:
        async with (
            asyncio.timeout(size.budget_s),
            provider() as port,
            contextlib.AsyncExitStack() as stack,
        ):
            bench = Bench(codex_bin, f"http://127.0.0.1:{port}/v1", Path(scratch))
            entered = await _enter(stack, bench, options, program, results)
            await measuring.warm_up(bench, port, entered, results)
            await measuring.sent_to_the_model(port, entered, results)
            ready = time.monotonic()
            for number in range(1, size.rounds + 1):
                await measuring.one_round(entered, size, port, results)
                now = time.monotonic()
                print(f"round {number} of {size.rounds} done, {now - started:.0f} s", flush=True)
                is_late = now - started + (now - ready) / number > size.budget_s
                if is_late and number < size.rounds:
                    results.notes.append(f"Stopped after {number} rounds: the time was up.")
                    break
            await measuring.many_streams(entered, size, port, results)
            await measuring.memory(entered, size, port, results)


def _end_once_on_signals() -> None:
    """Turn the first SIGINT or SIGTERM into a clean end; a second must not cut that short."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def end() -> None:
        if not task.cancelling():
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)


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
    stack: contextlib.AsyncExitStack,
    bench: Bench,
    options: argparse.Namespace,
    program: Path | None,
    results: Results,
) -> list[Contender]:
    """Start the contenders that were chosen; one that cannot start is reported and left out."""
    starts: list[contextlib.AbstractAsyncContextManager[Contender]] = []
    if "app-server" in options.engines:
        starts += [contenders.codexsite(bench, "app-server")] if "codexsite" in options.only else []
        if "bare" in options.only:
            starts += [
                contenders.bare_app_server(bench, is_lifted=lifted) for lifted in (False, True)
            ]
        starts += [contenders.predecessor_app_server(bench, program)] if program else []
    if "exec" in options.engines:
        starts += [contenders.codexsite(bench, "exec")] if "codexsite" in options.only else []
        starts += [contenders.bare_exec(bench)] if "bare" in options.only else []
        starts += [contenders.predecessor_exec(bench, program)] if program else []
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
