"""This server, Codex alone and the predecessor, side by side in one run.

    python benchmarks/run.py [--quick] [--strict] [--only codexsite,bare,predecessor]

All ask the same codex binary and the same model provider on loopback, and take turns, so that
whatever else the machine does hits all of them. Prints the table, writes it as JSON and as a
picture. Ends with 0 where everything could be measured; with `--strict` only where, besides, no
figure fell behind. Everything that it starts is ended, whatever happens.
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
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

# As a script it sees its own folder only, not the checkout that holds the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
from codex_cli_bin import bundled_codex_path

from benchmarks import contenders, measuring, picture, predecessor, report
from benchmarks.asking import FAILURES
from benchmarks.bare import lean_catalogue, stop_group
from benchmarks.contenders import CLIENTS, MORE_WORKERS, Bench, Contender
from benchmarks.measuring import Size
from benchmarks.processes import StartFailed
from benchmarks.report import Results

FULL = Size(
    rounds=5,
    alone=6,
    alone_exec=1,
    crowd=160,
    crowd_exec=24,
    stream_rounds=3,
    streams_before=10,
    memory=(200, 2000),
    budget_s=700,
)
QUICK = Size(
    rounds=1,
    alone=3,
    alone_exec=1,
    crowd=64,
    crowd_exec=16,
    stream_rounds=1,
    streams_before=3,
    memory=(60, 300),
    budget_s=118,
)
RESULTS = Path(__file__).with_name("results")


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
    _tell(results)
    _write(options.json, json.dumps(report.as_json(results), indent=1))
    _write(options.picture, picture.draw(report.rows(results), results.notes[0]))
    is_behind = any(row.verdict == "behind" for row in report.rows(results))
    sys.exit(1 if results.failures or (options.strict and is_behind) else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="less of everything, in two minutes")
    parser.add_argument(
        "--strict", action="store_true", help="a figure that fell behind is an error"
    )
    for name, what in (("json", "every sample"), ("picture", "the ratios, as SVG,")):
        default = RESULTS / f"latest.{'svg' if name == 'picture' else name}"
        parser.add_argument(
            f"--{name}", type=Path, metavar="FILE", default=default, help=f"where {what} go"
        )
    parser.add_argument("--only", default="codexsite,bare,predecessor", metavar="PRODUCTS")
    parser.add_argument("--engines", default="app-server,exec", metavar="ENGINES")
    return parser.parse_args()


def _machine() -> str:
    codex = importlib.metadata.version("openai-codex-cli-bin")
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores with a load of "
        f"{os.getloadavg()[0]:.1f} before; Python {platform.python_version()}, codex {codex}."
    )


def _tell(results: Results) -> None:
    print(f"\n{report.table(results)}\n\n{report.table_of_cpu(results)}\n")
    if results.sent:
        print(f"{report.table_of_models(results)}\n")
    for note in (*report.notes(results), *results.notes):
        print(note)
    for failure, count in results.failures.items():
        print(f"FAILED {count} times: {failure}")
    print(report.conclusion(results))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _predecessor_program(results: Results) -> Path | None:
    try:
        return predecessor.install()
    except predecessor.NotInstalled as error:
        results.failures[f"the predecessor could not be installed: {error}"] += 1
        return None


async def _run(options: argparse.Namespace, program: Path | None, results: Results) -> None:
    size = QUICK if options.quick else FULL
    _end_once_on_signals()
    with tempfile.TemporaryDirectory(prefix="codexsite-benchmark-") as scratch:
        async with asyncio.timeout(size.budget_s), _provider() as port:
            bench = Bench(str(bundled_codex_path()), port, Path(scratch))
            async with contextlib.AsyncExitStack() as stack:
                starts = _starts(bench, options, program)
                entered = [one for start in starts if (one := await _enter(stack, start, results))]
                await _measure(bench, entered, size, results)
            await _agents_of_the_predecessor(bench, options, program, results)
            if "codexsite" in options.only and "app-server" in options.engines:
                await _memory(bench, size, results)


async def _measure(bench: Bench, entered: list[Contender], size: Size, results: Results) -> None:
    """Measure all that needs the contenders side by side."""
    step = _Steps(results)
    await step("warm-up", measuring.warm_up(bench, entered, results))
    models = await asyncio.to_thread(_models, bench)
    await step("sizes", measuring.sizes(bench, entered, models, results))
    for contender in entered:
        # Codex alone is asked by `exec`: the app-server of the bare loop has a lean catalogue.
        is_ours = contender.product == "codexsite" and contender.workers == 1
        if is_ours or (contender.product == "bare codex" and contender.engine == "exec"):
            await step("agent mode", measuring.agent_size(bench, contender, results))
    for number in range(1, size.rounds + 1):
        await step(f"one client, {number}", measuring.alone(bench, entered, size, results))
        await step(f"16 clients, {number}", measuring.crowds(bench, entered, size, results))
    for number in range(1, size.stream_rounds + 1):
        label = f"100 streams, {number}"
        await step(label, measuring.streams(bench, entered, 100, 1, results))
    await step("300 streams", measuring.streams(bench, entered, 300, MORE_WORKERS, results))
    for contender in entered:
        if (contender.product, contender.engine, contender.workers) == (
            *("predecessor", "app-server"),
            1,
        ):
            streams = measuring.streams_before(bench, contender, size.streams_before, results)
            await step("streams of the predecessor", streams)


class _Steps:
    """Runs one measure after the other; one that breaks is noted and the next goes on."""

    def __init__(self, results: Results) -> None:
        self._results, self._started = results, time.monotonic()

    async def __call__(self, label: str, work: Awaitable[None]) -> None:
        try:
            await work
        except (*FAILURES, psutil.Error) as error:
            if isinstance(error, TimeoutError):  # the whole budget's, or a server's: the end
                raise
            self._results.failures[f"{label}: {type(error).__name__} {error}"] += 1
        print(f"{time.monotonic() - self._started:5.0f} s  {label}", flush=True)


def _models(bench: Bench) -> list[str]:
    """Return every model that the installed codex knows and shows."""
    home = bench.subfolder("models")
    catalogue = json.loads(lean_catalogue(bench.codex_bin, home, home / "models.json").read_text())
    return [model["slug"] for model in catalogue["models"] if model["visibility"] == "list"]


async def _agents_of_the_predecessor(
    bench: Bench, options: argparse.Namespace, program: Path | None, results: Results
) -> None:
    if program is None:
        return
    for engine in contenders.ENGINES:
        if engine not in options.engines:
            continue
        serving = contenders.predecessor_serving(bench, program, engine, 1, is_agent=True)
        async with contextlib.AsyncExitStack() as stack:
            if contender := await _enter(stack, serving, results):
                await measuring.agent_size(bench, contender, results)


async def _memory(bench: Bench, size: Size, results: Results) -> None:
    async with contextlib.AsyncExitStack() as stack:
        fresh = contenders.codexsite(bench, "app-server", name="-memory")
        if contender := await _enter(stack, fresh, results):
            await _Steps(results)("memory", measuring.memory(bench, contender, size, results))


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
async def _provider() -> AsyncIterator[int]:
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


def _starts(
    bench: Bench, options: argparse.Namespace, program: Path | None
) -> list[AbstractAsyncContextManager[Contender]]:
    """Return the contenders that were chosen, not yet started."""
    starts: list[AbstractAsyncContextManager[Contender]] = []
    for engine in (engine for engine in contenders.ENGINES if engine in options.engines):
        is_exec = engine == "exec"
        if "codexsite" in options.only:
            counts = (1,) if is_exec else (1, MORE_WORKERS)
            starts += [contenders.codexsite(bench, engine, count) for count in counts]
        if "bare" in options.only:
            for lifted in (False, True):
                starts += (
                    [contenders.bare_exec(bench, is_lifted=lifted)]
                    if is_exec
                    else [
                        contenders.bare_app_server(bench, count, is_lifted=lifted)
                        for count in (1, MORE_WORKERS)
                    ]
                )
        if program is not None:
            settings = (CLIENTS,) if is_exec else (1, MORE_WORKERS, CLIENTS)
            starts += [
                contenders.predecessor_serving(bench, program, engine, count) for count in settings
            ]
    return starts


async def _enter(
    stack: contextlib.AsyncExitStack,
    start: AbstractAsyncContextManager[Contender],
    results: Results,
) -> Contender | None:
    """Start a contender; one that cannot start is reported and left out."""
    try:
        contender = await stack.enter_async_context(start)
    except StartFailed as error:
        results.failures[f"could not start {error}"] += 1
        return None
    print(f"started: {contender}", flush=True)
    return contender


if __name__ == "__main__":
    main()
